//! Text in columns, aligned for people and split by blanks for programs.

use std::time::Duration;

/// Lines of cells below a heading. An empty cell is printed as `-`, so that every line has every column.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()] }
    }

    pub(super) fn push<const N: usize>(&mut self, cells: [String; N]) {
        let cell = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
        self.rows.push(cells.map(cell).to_vec());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A span of time in its two largest units: `12s`, `3m20s`, `5h2m`, `8d3h`.
pub(super) fn age(span: Duration) -> String {
    let seconds = span.as_secs();
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        _ => format!("{large}{large_unit}{small}{small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// An amount of memory in the largest binary unit that it has one of: `3.0MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut amount, mut unit) = (count as f64, 0);
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count}B") } else { format!("{amount:.1}{}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_never_empty() {
        let mut table = Table::new(["GROUP", "SLOT"]);
        table.push(["web-é".to_owned(), "0".to_owned()]);
        table.push(["a".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "GROUP  SLOT\nweb-é  0\na      -\n");
    }

    #[test]
    fn ages() {
        let check = |seconds, expected: &str| assert_eq!(age(Duration::from_secs(seconds)), expected);
        check(0, "0s");
        check(60, "1m");
        check(200, "3m20s");
        check(7_260, "2h1m");
        check(90_000, "1d1h");
    }

    #[test]
    fn amounts_of_memory() {
        let check = |count, expected: &str| assert_eq!(bytes(count), expected);
        check(0, "0B");
        check(1023, "1023B");
        check(1536, "1.5KiB");
        check(5 << 40, "5.0TiB");
        check(u64::MAX, "16777216.0TiB");
    }
}
