//! Every value as a faint point, its median as a line with the figure: one row for each contestant, one panel for each measure; and
//! the same for one row, as small as a line of text.

use super::{
    scale::Scale,
    short,
    svg::{Anchor, Drawing},
};
use crate::{
    report::table::number,
    stats::{median, quantile},
};

const NAME: f64 = 128.0;
const PANEL: f64 = 204.0;
const BETWEEN: f64 = 24.0;
const ROW: f64 = 27.0;
const HEAD: f64 = 40.0;
const FOOT: f64 = 36.0;
/// What the figure beside a median takes.
const FIGURE: f64 = 46.0;

const SPARK: (f64, f64) = (150.0, 18.0);
/// More dots than these can't be told apart in a line of text.
const MOST_DOTS: usize = 400;

/// One measure.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    /// Which side is better, in words.
    pub(crate) note: String,
    /// Whether equal steps are equal ratios: for what has a long tail.
    pub(crate) log: bool,
    pub(crate) strips: Vec<Strip>,
}

/// One contestant in it.
#[derive(Debug)]
pub(crate) struct Strip {
    pub(crate) name: String,
    /// Its place in the order of colours.
    pub(crate) colour: usize,
    pub(crate) values: Vec<f64>,
}

/// Panels side by side, in so many columns. All have the same names in the same order.
pub(crate) fn strips(panels: &[Panel], columns: usize, says: &str) -> Drawing {
    let columns = columns.clamp(1, panels.len().max(1));
    let names: Vec<&Strip> = panels.first().map(|panel| panel.strips.iter().collect()).unwrap_or_default();
    let height = HEAD + names.len() as f64 * ROW + FOOT;
    let width = NAME + columns as f64 * (PANEL + BETWEEN) - BETWEEN + FIGURE;
    let mut drawing = Drawing::new(width, panels.len().div_ceil(columns) as f64 * height, says);
    for (index, panel) in panels.iter().enumerate() {
        let top = (index / columns) as f64 * height;
        if index % columns == 0 {
            for (row, strip) in names.iter().enumerate() {
                let class = format!("colour c{}", strip.colour % 8);
                drawing.text(&class, (NAME - 12.0, top + middle(row) + 4.0), Anchor::End, &strip.name);
            }
        }
        draw_panel(&mut drawing, panel, (NAME + (index % columns) as f64 * (PANEL + BETWEEN), top));
    }
    drawing
}

/// One row of points from 0 or the least to the most, with the median.
pub(crate) fn sparkline(values: &[f64], says: &str) -> Drawing {
    let (width, height) = SPARK;
    let mut drawing = Drawing::new(width, height, says);
    let scale = Scale::linear(values.iter().copied(), (4.0, width - 4.0));
    drawing.line("grid", (0.0, height / 2.0), (width, height / 2.0));
    let every = values.len().div_ceil(MOST_DOTS).max(1);
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    for value in sorted.iter().rev().step_by(every) {
        drawing.dot("haze c0", (scale.at(*value), height / 2.0), 3.0, "");
    }
    if let Some(middle) = quantile(values, 0.5) {
        let x = scale.at(middle);
        drawing.line("bar c0", (x, 4.0), (x, height - 4.0));
    }
    drawing
}

fn middle(row: usize) -> f64 {
    HEAD + (row as f64 + 0.5) * ROW
}

fn draw_panel(drawing: &mut Drawing, panel: &Panel, (left, top): (f64, f64)) {
    let bottom = top + HEAD + panel.strips.len() as f64 * ROW;
    let values = || panel.strips.iter().flat_map(|strip| strip.values.iter().copied());
    let room = (left, left + PANEL - FIGURE);
    let scale = if panel.log { Scale::log(values(), room) } else { Scale::linear(values(), room) };
    drawing.text("head", (left, top + 12.0), Anchor::Start, &panel.title);
    drawing.text("note", (left, top + 27.0), Anchor::Start, &panel.note);
    for tick in thinned(&scale.ticks()) {
        let x = scale.at(tick);
        drawing.line("grid", (x, top + HEAD), (x, bottom));
        drawing.text("tick", (x, bottom + 14.0), Anchor::Middle, &short(tick));
    }
    for (row, strip) in panel.strips.iter().enumerate() {
        draw_strip(drawing, strip, &scale, top + middle(row));
    }
}

fn draw_strip(drawing: &mut Drawing, strip: &Strip, scale: &Scale, y: f64) {
    let colour = strip.colour % 8;
    let Some(middle) = median(&strip.values) else {
        drawing.text("note", (scale.at(f64::MIN), y + 4.0), Anchor::Start, "–");
        return;
    };
    let every = strip.values.len().div_ceil(MOST_DOTS).max(1);
    for value in strip.values.iter().step_by(every) {
        drawing.dot(&format!("haze c{colour}"), (scale.at(*value), y), 3.5, "");
    }
    let x = scale.at(middle);
    drawing.line(&format!("bar c{colour}"), (x, y - 7.0), (x, y + 7.0));
    let widest = strip.values.iter().copied().fold(middle, f64::max);
    drawing.text("strong", (scale.at(widest) + 8.0, y + 4.0), Anchor::Start, &number(middle));
}

/// Every second one where they would stand too close.
fn thinned(ticks: &[f64]) -> Vec<f64> {
    let every = if ticks.len() > 4 { 2 } else { 1 };
    ticks.iter().copied().step_by(every).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_contestant_has_its_median_in_every_panel() {
        let strip = |name: &str, values: &[f64]| Strip { name: name.into(), colour: 9, values: values.into() };
        let panel = |title: &str| Panel {
            title: title.into(),
            note: "more is better".into(),
            log: title == "two",
            strips: vec![strip("a", &[10.0, 12.0, 17.0]), strip("<b>", &[])],
        };
        let text = strips(&[panel("one"), panel("two"), panel("three")], 2, "made up").standalone("");
        let document = roxmltree::Document::parse(&text).expect("well-formed");
        let texts: Vec<&str> =
            document.descendants().filter(|node| node.is_text()).filter_map(|node| node.text()).collect();
        let count = |wanted: &str| texts.iter().filter(|text| **text == wanted).count();
        assert_eq!((count("12.0"), count("–"), count("<b>"), count("three")), (3, 3, 2, 1), "{texts:?}");
    }

    #[test]
    fn a_sparkline_of_anything_is_a_picture() {
        for values in [vec![], vec![0.0; 3], (0..10_000).map(f64::from).collect()] {
            let text = sparkline(&values, "").standalone("");
            let document = roxmltree::Document::parse(&text).expect("well-formed");
            let dots = document.descendants().filter(|node| node.has_tag_name("circle")).count();
            assert!(dots <= MOST_DOTS && (dots == 0) == values.is_empty(), "{dots}");
        }
    }
}
