//! A page as HTML: one file that needs no other and no script, well-formed as XML too; owns the form and says nothing itself.

use std::fmt::Write;

use super::{
    page::{Cell, Column, Conclusion, Grid, Page, Part, Section},
    plot::{STYLE, Tone, escape},
};

const PAGE_STYLE: &str = include_str!("html/style.css");

/// The whole file.
pub(crate) fn html(page: &Page) -> String {
    let mut body = String::new();
    let title = escape(&page.title);
    let _ = writeln!(body, "<header>\n<p class=\"kicker\">{}</p>\n<h1>{title}</h1>", escape(&page.kicker));
    for (class, text) in [("about", &page.about), ("provenance", &page.provenance)] {
        if !text.is_empty() {
            let _ = writeln!(body, "<p class=\"{class}\">{}</p>", escape(text));
        }
    }
    if let Some(warning) = &page.warning {
        let _ = writeln!(body, "<p class=\"warning\">{}</p>", escape(warning));
    }
    if !page.conclusions.is_empty() {
        body.push_str("<ul class=\"conclusions\">\n");
        page.conclusions.iter().for_each(|conclusion| conclude(&mut body, conclusion));
        body.push_str("</ul>\n");
    }
    body.push_str("</header>\n");
    page.sections.iter().for_each(|section| add_section(&mut body, section));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title} · {}</title>\n<style>\n{STYLE}{PAGE_STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(&page.kicker)
    )
}

fn conclude(body: &mut String, conclusion: &Conclusion) {
    let (class, word, text) = (conclusion.tone.class(), escape(&conclusion.word), escape(&conclusion.text));
    let _ = writeln!(body, "<li><span class=\"badge {class}\">{word}</span><span>{text}</span></li>");
}

fn add_section(body: &mut String, section: &Section) {
    let _ = writeln!(body, "<section>\n<h2>{}</h2>", escape(&section.title));
    if !section.says.is_empty() {
        let _ = writeln!(body, "<p>{}</p>", escape(&section.says));
    }
    section.parts.iter().for_each(|part| add_part(body, part));
    body.push_str("</section>\n");
}

fn add_part(body: &mut String, part: &Part) {
    let _ = match part {
        Part::Grid(grid) => {
            add_grid(body, grid);
            Ok(())
        }
        Part::Figure { drawings, caption } => {
            let drawings: String =
                drawings.iter().map(|drawing| format!("<div>{}</div>\n", drawing.inline())).collect();
            let caption = match &**caption {
                "" => String::new(),
                caption => format!("<figcaption>{}</figcaption>\n", escape(caption)),
            };
            writeln!(body, "<figure>\n<div class=\"side\">{drawings}</div>\n{caption}</figure>")
        }
        Part::List(items) => {
            let items: String = items.iter().map(|item| format!("<li>{}</li>\n", escape(item))).collect();
            writeln!(body, "<ul>\n{items}</ul>")
        }
        Part::Verbatim { text, open: true, .. } => writeln!(body, "<pre>{}</pre>", escape(text)),
        Part::Verbatim { title, text, open: false } => {
            writeln!(body, "<details>\n<summary>{}</summary>\n<pre>{}</pre>\n</details>", escape(title), escape(text))
        }
    };
}

fn add_grid(body: &mut String, grid: &Grid) {
    body.push_str("<div class=\"scroll\">\n<table>\n<thead>\n<tr>");
    for column in &grid.columns {
        let _ = write!(body, "<th scope=\"col\"{}>{}</th>", class(column), escape(column.title()));
    }
    body.push_str("</tr>\n</thead>\n<tbody>\n");
    for row in &grid.rows {
        body.push_str("<tr>");
        for (index, (cell, column)) in row.iter().zip(&grid.columns).enumerate() {
            let content = content(cell);
            let _ = match index {
                0 => write!(body, "<th scope=\"row\">{content}</th>"),
                _ => write!(body, "<td{}>{content}</td>", class(column)),
            };
        }
        body.push_str("</tr>\n");
    }
    body.push_str("</tbody>\n</table>\n</div>\n");
}

fn class(column: &Column) -> &'static str {
    match column {
        Column::Words(_) => "",
        Column::Figures(_) => " class=\"figure\"",
    }
}

fn content(cell: &Cell) -> String {
    if let Some(picture) = &cell.picture {
        return picture.inline();
    }
    let text = escape(&cell.text);
    let text = match cell.tone {
        Tone::Plain => text,
        tone => format!("<span class=\"{}\">{text}</span>", tone.class()),
    };
    match &cell.link {
        Some(link) => format!("<a href=\"{}\">{text}</a>", escape(link)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        Document,
        testing::{self, AWKWARD, Plan},
    };

    /// All its text, of a page that is well-formed.
    fn read(page: &Page) -> String {
        let text = html(page);
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
        let document =
            roxmltree::Document::parse_with_options(&text, options).unwrap_or_else(|error| panic!("{error}"));
        let texts = document.descendants().filter(|node| node.is_text()).filter_map(|node| node.text());
        texts.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_comparison_is_shown_with_its_ratios_and_answers() {
        let shown = read(&testing::report().page());
        for wanted in
            [AWKWARD, "a < b && c", "0123456789ab", "sherd-bench relay --note '<&>'", "held", "NOT held", "p99.9"]
        {
            assert!(shown.contains(wanted), "{wanted} in {shown}");
        }
    }

    #[test]
    fn what_is_not_concluded_is_seen() {
        let noisy = testing::planned(&Plan { factor: 1.0, foreign_share: 0.3, blocks: 8, seed: 1 });
        assert!(read(&noisy.page()).contains("Too noisy to conclude: other processes used"));
        let mut off = testing::report();
        off.analysis.control[0].estimate.low = 1.01;
        off.analysis.control[0].estimate.high = 1.02;
        assert!(read(&off.page()).contains("is not 1 in CPU µs/request: nothing is concluded about that."));
    }

    #[test]
    fn a_trial_is_shown_with_its_time_lines() {
        let shown = read(&testing::findings().page());
        for wanted in ["kill(2) & co", "connections that failed <after>", "others used 9 % of the CPU time", "1.75"] {
            assert!(shown.contains(wanted), "{wanted} in {shown}");
        }
    }

    #[test]
    fn what_only_has_a_text_shows_that() {
        let shown = read(&Page::of_text("one line\n a < b\n".into()));
        assert!(shown.contains("one line") && shown.contains(" a < b"), "{shown}");
    }
}
