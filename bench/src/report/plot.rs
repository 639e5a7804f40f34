//! Pictures of figures: values in, SVG out; pure. Knows scales, marks and labels, and nothing of what the figures mean.

pub(crate) use self::{
    forest::{Forest, ForestGroup, ForestRow},
    percentiles::{Curve, percentiles},
    scatter::{Cloud, scatter},
    strips::{Panel, Strip, sparkline, strips},
    svg::{Drawing, STYLE, escape},
    timeline::timeline,
};

mod forest;
mod labels;
mod percentiles;
mod scale;
mod scatter;
mod strips;
mod svg;
mod timeline;

/// Whether a figure is one to like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
    /// Nothing can be said.
    Doubtful,
}

impl Tone {
    /// The class that styles know.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Doubtful => "doubtful",
        }
    }
}

/// As short as axes want it: 12.5k, 3M, 0.25.
fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        1e9.. => (value / 1e9, "G"),
        1e6.. => (value / 1e6, "M"),
        1e4.. => (value / 1e3, "k"),
        _ => (value, ""),
    };
    // Three digits after the point, and no more of them than are needed.
    let text = format!("{scaled:.3}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{}{unit}", text.replace('-', "−"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_axes_are_short() {
        for (value, expected) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (-1.5, "−1.5"),
            (2000.0, "2000"),
            (12_500.0, "12.5k"),
            (3e6, "3M"),
            (5e9, "5G"),
        ] {
            assert_eq!(short(value), expected);
        }
    }
}
