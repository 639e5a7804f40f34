//! The colours of groups, for terminals and pages. The order is the order of groups in a plan.

/// A group's colour: fill and the ink that is readable on it.
pub(super) struct Color {
    pub(super) fill: &'static str,
    pub(super) ink: &'static str,
    /// Background and foreground among the terminal's 256 colours.
    pub(super) ansi: (u8, u8),
}

const COLORS: [Color; 12] = [
    Color { fill: "#2f6fd6", ink: "#ffffff", ansi: (26, 231) },
    Color { fill: "#e8912d", ink: "#20160a", ansi: (208, 16) },
    Color { fill: "#2c9a5b", ink: "#ffffff", ansi: (29, 231) },
    Color { fill: "#8b57c6", ink: "#ffffff", ansi: (97, 231) },
    Color { fill: "#cf3f5c", ink: "#ffffff", ansi: (161, 231) },
    Color { fill: "#29b0b5", ink: "#06282a", ansi: (37, 16) },
    Color { fill: "#d9b824", ink: "#221d05", ansi: (178, 16) },
    Color { fill: "#dd78b4", ink: "#2b0f20", ansi: (175, 16) },
    Color { fill: "#71862a", ink: "#ffffff", ansi: (100, 231) },
    Color { fill: "#8a6246", ink: "#ffffff", ansi: (95, 231) },
    Color { fill: "#54708f", ink: "#ffffff", ansi: (60, 231) },
    Color { fill: "#a9d06c", ink: "#17210a", ansi: (149, 16) },
];

/// The colour of a plan's n-th group; they repeat after twelve, the letters don't.
pub(super) fn color(group: usize) -> &'static Color {
    &COLORS[group % COLORS.len()]
}

/// A group's letter: A … Z, AA, AB, …
pub(super) fn letter(group: usize) -> String {
    let last = char::from(b'A' + (group % 26) as u8);
    if group < 26 { last.to_string() } else { letter(group / 26 - 1) + &last.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_go_on_after_z() {
        assert_eq!([0, 25, 26, 51, 52, 701, 702].map(letter), ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]);
    }
}
