//! A page as Markdown, fit for a pull request: the same sentences and tables, without pictures and configurations; owns the form alone.

use std::fmt::Write;

use super::{
    page::{Cell, Column, Grid, Page, Part},
    plot::Tone,
};

/// The whole text.
pub(crate) fn markdown(page: &Page) -> String {
    let mut text = format!("# {}\n\n", inline(&page.title));
    for line in [&page.about, &page.provenance].into_iter().filter(|line| !line.is_empty()) {
        let _ = writeln!(text, "{}\n", inline(line));
    }
    if let Some(warning) = &page.warning {
        let _ = writeln!(text, "> **{}**\n", inline(warning));
    }
    for conclusion in &page.conclusions {
        let _ = writeln!(text, "- **{}** — {}", inline(&conclusion.word), inline(&conclusion.text));
    }
    for section in &page.sections {
        let parts: String = section.parts.iter().map(part).collect();
        if !parts.is_empty() {
            let _ = write!(text, "\n## {}\n\n{parts}", inline(&section.title));
        }
    }
    text
}

fn part(part: &Part) -> String {
    match part {
        Part::Grid(grid) => table(grid),
        Part::List(items) => items.iter().map(|item| format!("- {}\n", inline(item))).chain(["\n".into()]).collect(),
        Part::Verbatim { text, open: true, .. } => fenced(text),
        Part::Figure { .. } | Part::Verbatim { .. } => String::new(),
    }
}

fn table(grid: &Grid) -> String {
    let shown: Vec<usize> = (0..grid.columns.len())
        .filter(|column| grid.rows.iter().all(|row| row.get(*column).is_none_or(|cell| cell.picture.is_none())))
        .collect();
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rule = |column: &usize| match grid.columns[*column] {
        Column::Words(_) => "---".to_owned(),
        Column::Figures(_) => "--:".to_owned(),
    };
    let head = line(shown.iter().map(|column| inline(grid.columns[*column].title())).collect());
    let rule = line(shown.iter().map(rule).collect());
    let rows = grid.rows.iter().map(|row| line(shown.iter().filter_map(|column| row.get(*column)).map(cell).collect()));
    [head, rule].into_iter().chain(rows).chain(["\n".into()]).collect()
}

/// Tones have no colours here; only what is bad or in doubt stands out.
fn cell(cell: &Cell) -> String {
    let text = inline(&cell.text);
    match (&cell.link, cell.tone) {
        (Some(link), _) => format!("[{text}](<{}>)", link.replace(['<', '>', '\n'], "")),
        (None, Tone::Bad) if !text.is_empty() => format!("**{text}**"),
        (None, Tone::Doubtful) if !text.is_empty() => format!("*{text}*"),
        _ => text,
    }
}

/// As long a fence as the text needs.
fn fenced(text: &str) -> String {
    let longest = text.split(|character| character != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat((longest + 1).max(3));
    format!("{fence}\n{}\n{fence}\n\n", text.trim_end())
}

/// Text that stays text, in one line.
fn inline(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.trim().chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => escaped.extend(['\\', character]),
            '\n' | '\r' | '\t' => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        for (text, expected) in [
            ("a|b", "a\\|b"),
            (" two\nlines ", "two lines"),
            ("<b>&amp;", "&lt;b>&amp;amp;"),
            ("*_`[x](y)", "\\*\\_\\`\\[x\\](y)"),
        ] {
            assert_eq!(inline(text), expected);
        }
        assert_eq!(fenced("a ``` b"), "````\na ``` b\n````\n\n");
    }

    #[test]
    fn columns_of_pictures_are_left_out() {
        let picture = || Cell { picture: Some(crate::report::plot::Drawing::new(1.0, 1.0, "")), ..Cell::default() };
        let columns = vec![Column::Words("a".into()), Column::Figures("b|".into()), Column::Words("c".into())];
        let grid = Grid { columns, rows: vec![vec![Cell::new("x"), Cell::toned("1", Tone::Bad), picture()]] };
        assert_eq!(table(&grid), "| a | b\\| |\n| --- | --: |\n| x | **1** |\n\n");
    }
}
