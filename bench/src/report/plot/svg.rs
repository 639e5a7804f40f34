//! A picture as SVG: owns its elements and their escaping, and decides no position.

use std::fmt::{Display, Write};

/// What all pictures look like, light and dark: in a page once, and in each picture that stands alone.
pub(crate) const STYLE: &str = include_str!("style.css");

/// Pictures that stand alone are seen on anything.
const PAPER_MARGIN: f64 = 12.0;
/// What the line below takes.
const CAPTION: f64 = 22.0;

/// A picture, in pixels that scale.
#[derive(Debug)]
pub(crate) struct Drawing {
    width: f64,
    height: f64,
    says: String,
    body: String,
}

/// Where a text is, seen from its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

impl Drawing {
    /// An empty one; `says` is for those who don't see it.
    pub(crate) fn new(width: f64, height: f64, says: impl Into<String>) -> Self {
        Self { width, height, says: says.into(), body: String::new() }
    }

    pub(crate) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(pixels);
        self.add(format_args!(r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#));
    }

    /// From its upper left to its lower right.
    pub(crate) fn rect(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x, y, width, height] = [from.0, from.1, (to.0 - from.0).max(0.0), (to.1 - from.1).max(0.0)].map(pixels);
        self.add(format_args!(r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}"/>"#));
    }

    /// A point; `says` is shown when somebody points at it, and may be empty.
    pub(crate) fn dot(&mut self, class: &str, at: (f64, f64), radius: f64, says: &str) {
        let [x, y, radius] = [at.0, at.1, radius].map(pixels);
        if says.is_empty() {
            self.add(format_args!(r#"<circle class="{class}" cx="{x}" cy="{y}" r="{radius}"/>"#));
        } else {
            let says = escape(says);
            let element = format!(r#"<circle class="{class}" cx="{x}" cy="{y}" r="{radius}">"#);
            self.add(format_args!("{element}<title>{says}</title></circle>"));
        }
    }

    /// Lines from point to point.
    pub(crate) fn path(&mut self, class: &str, points: &[(f64, f64)]) {
        let mut list = String::new();
        for (x, y) in points {
            let _ = write!(list, "{},{} ", pixels(*x), pixels(*y));
        }
        self.add(format_args!(r#"<polyline class="{class}" points="{}"/>"#, list.trim_end()));
    }

    pub(crate) fn text(&mut self, class: &str, at: (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let ([x, y], text) = ([at.0, at.1].map(pixels), escape(text));
        self.add(format_args!(r#"<text class="{class}" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>"#));
    }

    /// For a page, which has the style: as wide as there is room for it, and not wider than drawn.
    pub(crate) fn inline(&self) -> String {
        let [width, height] = [self.width, self.height].map(pixels);
        let says = escape(&self.says);
        format!(
            "<svg role=\"img\" aria-label=\"{says}\" viewBox=\"0 0 {width} {height}\" style=\"max-width:{width}px\">\n{}</svg>",
            self.body
        )
    }

    /// A file of its own, with a line below that says where it comes from.
    pub(crate) fn standalone(&self, caption: &str) -> String {
        let [width, height] = [self.width + 2.0 * PAPER_MARGIN, self.height + CAPTION + 2.0 * PAPER_MARGIN].map(pixels);
        let (says, margin) = (escape(&self.says), pixels(-PAPER_MARGIN));
        let view = format!("{margin} {margin} {width} {height}");
        let (caption, below) = (escape(caption), pixels(self.height + CAPTION - 4.0));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" aria-label=\"{says}\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"{view}\">\n<style>{STYLE}</style>\n\
             <rect class=\"paper\" x=\"{margin}\" y=\"{margin}\" width=\"{width}\" height=\"{height}\"/>\n{}\
             <text class=\"note\" x=\"0\" y=\"{below}\">{caption}</text>\n</svg>\n",
            self.body
        )
    }

    fn add(&mut self, element: impl Display) {
        let _ = writeln!(self.body, "{element}");
    }
}

/// What XML takes for text, in elements and in quoted attributes. Characters that XML 1.0 knows no way to write are left out.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => {}
            control if control.is_control() => {}
            other => escaped.push(other),
        }
    }
    escaped
}

/// Two digits after the point are finer than any screen.
fn pixels(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_element() {
        assert_eq!(escape("a<b>&\"c\"'d'\u{1b}\u{0}\n"), "a&lt;b&gt;&amp;&quot;c&quot;&#39;d&#39;\n");
        let mut drawing = Drawing::new(10.0, 10.0, "\"<>&");
        drawing.text("t", (1.0, 2.0), Anchor::Middle, "</text>");
        drawing.dot("d", (0.123_456, 2.0), 1.0, "<title>");
        for text in [drawing.standalone("<&>"), format!("<p>{}</p>", drawing.inline())] {
            roxmltree::Document::parse(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(text.contains(r#"cx="0.12""#), "{text}");
        }
    }
}
