//! One figure over time, with what happened when.

use super::{
    scale::Scale,
    short,
    svg::{Anchor, Drawing},
};
use crate::report::Timeline;

const LEFT: f64 = 62.0;
const WIDTH: f64 = 750.0;
const TOP: f64 = 56.0;
const HEIGHT: f64 = 130.0;
const FOOT: f64 = 36.0;
const RIGHT: f64 = 16.0;
/// Marks' texts stand in turn in so many lines.
const LINES: usize = 2;
/// Milliseconds are read more easily below this.
const SHORT_SECONDS: f64 = 2.0;

/// Points joined where they follow each other, from 0 up.
pub(crate) fn timeline(of: &Timeline) -> Drawing {
    let mut drawing = Drawing::new(LEFT + WIDTH + RIGHT, TOP + HEIGHT + FOOT, &*of.title);
    let moments = || of.points.iter().map(|point| point.0).chain(of.marks.iter().map(|mark| mark.0));
    let (first, last) = moments().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), at| (a.min(at), b.max(at)));
    let (first, last) = if first < last { (first, last) } else { (0.0, 1.0) };
    let (unit, factor) = if last - first < SHORT_SECONDS { ("ms", 1e3) } else { ("s", 1.0) };
    let x = Scale::exact(first * factor, last * factor, (LEFT, LEFT + WIDTH));
    let y = Scale::linear(of.points.iter().map(|point| point.1).chain([0.0]), (TOP + HEIGHT, TOP));
    let ticks = y.ticks();
    let every = if ticks.len() > 4 { 2 } else { 1 };
    for tick in ticks.into_iter().step_by(every) {
        drawing.line("grid", (LEFT, y.at(tick)), (LEFT + WIDTH, y.at(tick)));
        drawing.text("tick", (LEFT - 8.0, y.at(tick) + 4.0), Anchor::End, &short(tick));
    }
    for tick in x.ticks() {
        drawing.text("tick", (x.at(tick), TOP + HEIGHT + 16.0), Anchor::Middle, &short(tick));
    }
    drawing.line("axis", (LEFT, TOP + HEIGHT), (LEFT + WIDTH, TOP + HEIGHT));
    drawing.text("head", (0.0, 12.0), Anchor::Start, &of.title);
    drawing.text("note", (LEFT - 8.0, TOP - 8.0), Anchor::End, &of.unit);
    drawing.text("note", (LEFT + WIDTH / 2.0, TOP + HEIGHT + 32.0), Anchor::Middle, unit);
    for (index, (at, text)) in of.marks.iter().enumerate() {
        let (x, line) = (x.at(at * factor), 34.0 + (index % LINES) as f64 * 13.0);
        drawing.line("event", (x, line + 3.0), (x, TOP + HEIGHT));
        let anchor = if x > LEFT + WIDTH * 0.8 { Anchor::End } else { Anchor::Start };
        let beside = if anchor == Anchor::End { -4.0 } else { 4.0 };
        drawing.text("event", (x + beside, line), anchor, text);
    }
    let points: Vec<(f64, f64)> = of.points.iter().map(|(at, value)| (x.at(at * factor), y.at(*value))).collect();
    drawing.path("stroke c0", &points);
    for point in &points {
        drawing.dot("fill c0", *point, 1.8, "");
    }
    drawing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing;

    #[test]
    fn every_point_and_mark_is_there() {
        let line = &testing::findings().timelines[0];
        let text = timeline(line).standalone("");
        let document = roxmltree::Document::parse(&text).expect("well-formed");
        assert_eq!(document.descendants().filter(|node| node.has_tag_name("circle")).count(), line.points.len());
        assert!(text.contains("kill(2) &amp; co") && text.contains(">ms<"), "{text}");
        let empty = Timeline { title: String::new(), unit: String::new(), points: vec![], marks: vec![] };
        roxmltree::Document::parse(&timeline(&empty).standalone("")).expect("well-formed");
    }
}
