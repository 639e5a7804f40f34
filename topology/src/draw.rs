//! Pictures of a machine and of a plan over it: text for a terminal, SVG for a page. Pure; decides nothing about
//! placement, only what is shown.

mod area;
mod palette;
mod svg;
mod text;

use crate::{model::Host, plan::Plan};

/// How a text picture is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextStyle {
    /// Columns to use; at least 40.
    pub width: usize,
    /// Whether to colour by ANSI escape sequences.
    pub color: bool,
}

impl Default for TextStyle {
    fn default() -> Self {
        Self { width: 100, color: false }
    }
}

/// The machine, and on it the plan's slots, as text. Without a plan, give `&Plan::default()`. The plan's changes,
/// faults and notes are not in it.
pub fn text(host: &Host, plan: &Plan, style: TextStyle) -> String {
    text::draw(&area::Picture::new(host, plan), style)
}

/// The machine, and on it the plan's slots, as an SVG document of its own, with the plan's faults and notes below:
/// no scripts, no outside fonts.
pub fn svg(host: &Host, plan: &Plan) -> String {
    svg::draw(&area::Picture::new(host, plan))
}
