//! A page as plain text, for a terminal: the same sentences and tables, without pictures and configurations; owns the form alone.

use std::fmt::Write;

use super::page::{Cell, Column, Grid, Page, Part};

/// The whole text.
pub(crate) fn text(page: &Page) -> String {
    let mut text = format!("{}\n", page.title);
    for line in [&page.about, &page.provenance].into_iter().filter(|line| !line.is_empty()) {
        let _ = writeln!(text, "{line}");
    }
    if let Some(warning) = &page.warning {
        let _ = writeln!(text, "{warning}");
    }
    for section in &page.sections {
        let parts: String = section.parts.iter().map(part).collect();
        if !parts.is_empty() {
            let _ = write!(text, "\n{}\n{parts}", section.title);
        }
    }
    if !page.conclusions.is_empty() {
        text.push('\n');
    }
    for conclusion in &page.conclusions {
        let _ = writeln!(text, "{}: {}", conclusion.word, conclusion.text);
    }
    text
}

fn part(part: &Part) -> String {
    match part {
        Part::Grid(grid) => table(grid),
        Part::List(items) => items.iter().map(|item| format!("  {item}\n")).collect(),
        Part::Verbatim { text, open: true, .. } => format!("{}\n", text.trim_end()),
        Part::Figure { .. } | Part::Verbatim { .. } => String::new(),
    }
}

/// Columns as wide as their widest cell.
fn table(grid: &Grid) -> String {
    let width = |text: &str| text.chars().count();
    let widths: Vec<usize> = (0..grid.columns.len())
        .map(|column| {
            let cells = grid.rows.iter().filter_map(|row| row.get(column)).map(|cell| width(&cell.text));
            cells.chain([width(grid.columns[column].title())]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let mut line = String::from("  ");
        for ((text, column), width) in cells.into_iter().zip(&grid.columns).zip(&widths) {
            let _ = match column {
                Column::Words(_) => write!(line, "{text:<width$}  "),
                Column::Figures(_) => write!(line, "{text:>width$}  "),
            };
        }
        format!("{}\n", line.trim_end())
    };
    let head = line(grid.columns.iter().map(Column::title).collect());
    let rows = grid.rows.iter().map(|row| line(row.iter().map(|cell: &Cell| &*cell.text).collect()));
    [head].into_iter().chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let columns = vec![Column::Words("a".into()), Column::Figures("µs".into())];
        let grid = Grid {
            columns,
            rows: vec![vec![Cell::new("long"), Cell::new("1")], vec![Cell::new("x"), Cell::new("1000")]],
        };
        assert_eq!(table(&grid), "  a       µs\n  long     1\n  x     1000\n");
    }
}
