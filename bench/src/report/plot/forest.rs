//! Ratios with their intervals around the line at 1: a row for each, every pair as a faint point, the control's interval as a shade,
//! the target's bound as a broken line.

use super::{
    Tone,
    scale::Scale,
    short,
    svg::{Anchor, Drawing},
};
use crate::stats::Estimate;

const NAME: f64 = 170.0;
const PLOT: f64 = 510.0;
const FIGURE: f64 = 150.0;
const ROW: f64 = 21.0;
const TITLE: f64 = 25.0;
const HEAD: f64 = 22.0;
const FOOT: f64 = 24.0;
/// Single pairs far outside don't squeeze all intervals: they are drawn at the edge.
const WIDEST: f64 = 1.2;

/// Ratios on one scale.
#[derive(Debug)]
pub(crate) struct Forest {
    /// What it shows, for those who don't see it.
    pub(crate) says: String,
    /// What is on the left and on the right of 1.
    pub(crate) sides: (&'static str, &'static str),
    pub(crate) groups: Vec<ForestGroup>,
}

/// Those of one measure.
#[derive(Debug)]
pub(crate) struct ForestGroup {
    pub(crate) title: String,
    /// What the run can't tell from 1.
    pub(crate) control: Option<Estimate>,
    pub(crate) rows: Vec<ForestRow>,
}

/// One ratio.
#[derive(Debug)]
pub(crate) struct ForestRow {
    pub(crate) name: String,
    pub(crate) estimate: Estimate,
    /// The ratio within each pair.
    pub(crate) pairs: Vec<f64>,
    pub(crate) tone: Tone,
    /// What it is to stay within.
    pub(crate) bound: Option<f64>,
}

impl Forest {
    pub(crate) fn draw(&self) -> Drawing {
        let height = HEAD + self.groups.iter().map(ForestGroup::height).sum::<f64>() + FOOT;
        let mut drawing = Drawing::new(NAME + PLOT + FIGURE, height, &*self.says);
        let scale = self.scale();
        let bottom = height - FOOT;
        for tick in scale.ticks() {
            let x = scale.at(tick);
            drawing.line("grid", (x, HEAD), (x, bottom));
            drawing.text("tick", (x, bottom + 15.0), Anchor::Middle, &short(tick));
        }
        let one = scale.at(1.0);
        drawing.text("note", (one - 8.0, 12.0), Anchor::End, &format!("← {}", self.sides.0));
        drawing.text("note", (one + 8.0, 12.0), Anchor::Start, &format!("{} →", self.sides.1));
        let mut top = HEAD;
        for group in &self.groups {
            group.draw(&mut drawing, &scale, top);
            top += group.height();
        }
        drawing.line("one", (one, HEAD - 4.0), (one, bottom));
        drawing
    }

    /// All intervals, bounds and 1 are on it, and pairs as far as they don't widen it much.
    fn scale(&self) -> Scale {
        let rows = || self.groups.iter().flat_map(|group| &group.rows);
        let intervals = rows().flat_map(|row| [row.estimate.low, row.estimate.high]);
        let controls = self.groups.iter().filter_map(|group| group.control).flat_map(|all| [all.low, all.high]);
        let must: Vec<f64> =
            intervals.chain(controls).chain(rows().filter_map(|row| row.bound)).chain([1.0, 0.9, 1.1]).collect();
        let least = must.iter().copied().fold(f64::INFINITY, f64::min);
        let most = must.iter().copied().fold(0.0, f64::max);
        let pairs = rows().flat_map(|row| row.pairs.iter().copied());
        let near = pairs.filter(|ratio| *ratio >= least / WIDEST && *ratio <= most * WIDEST);
        Scale::log(must.iter().copied().chain(near), (NAME, NAME + PLOT))
    }
}

impl ForestGroup {
    fn height(&self) -> f64 {
        TITLE + self.rows.len() as f64 * ROW + 6.0
    }

    fn draw(&self, drawing: &mut Drawing, scale: &Scale, top: f64) {
        drawing.text("head", (0.0, top + 17.0), Anchor::Start, &self.title);
        if let Some(control) = self.control {
            let bottom = top + self.height() - 4.0;
            drawing.rect("control", (scale.at(control.low), top + TITLE - 4.0), (scale.at(control.high), bottom));
        }
        for (index, row) in self.rows.iter().enumerate() {
            row.draw(drawing, scale, top + TITLE + (index as f64 + 0.5) * ROW);
        }
    }
}

impl ForestRow {
    fn draw(&self, drawing: &mut Drawing, scale: &Scale, y: f64) {
        let Estimate { ratio, low, high, pairs } = self.estimate;
        let class = self.tone.class();
        drawing.text("label", (NAME - 12.0, y + 4.0), Anchor::End, &self.name);
        for pair in &self.pairs {
            drawing.dot(&format!("haze {class}"), (scale.at(*pair), y), 2.5, "");
        }
        if let Some(bound) = self.bound {
            let x = scale.at(bound);
            drawing.line("bound", (x, y - ROW / 2.0 + 1.0), (x, y + ROW / 2.0 - 1.0));
        }
        drawing.line(&format!("bar {class}"), (scale.at(low), y), (scale.at(high), y));
        let says = format!("{}: {ratio:.3}, {low:.3} to {high:.3}, of {pairs} pairs", self.name);
        drawing.dot(&format!("fill {class}"), (scale.at(ratio), y), 5.0, &says);
        let figure = format!("{ratio:.3} ({low:.2}–{high:.2})");
        drawing.text(&format!("colour {class}"), (NAME + PLOT + 14.0, y + 4.0), Anchor::Start, &figure);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_its_figure_and_far_pairs_stay_within() {
        let estimate = Estimate { ratio: 0.802, low: 0.754, high: 0.84, pairs: 3 };
        let row = ForestRow {
            name: "<haproxy>".into(),
            estimate,
            pairs: vec![0.8, 1e-9, 1e9],
            tone: Tone::Good,
            bound: Some(0.9),
        };
        let control = Some(Estimate { ratio: 1.0, low: 0.98, high: 1.03, pairs: 3 });
        let group = ForestGroup { title: "CPU".into(), control, rows: vec![row] };
        let forest = Forest { says: "s".into(), sides: ("less", "more"), groups: vec![group] };
        let text = forest.draw().standalone("");
        let document = roxmltree::Document::parse(&text).expect("well-formed");
        assert!(text.contains("0.802 (0.75–0.84)") && text.contains("&lt;haproxy&gt;") && text.contains("\"bound\""));
        for dot in document.descendants().filter(|node| node.has_tag_name("circle")) {
            let x: f64 = dot.attribute("cx").expect("it is somewhere").parse().expect("a number");
            assert!((NAME..=NAME + PLOT).contains(&x), "{x}");
        }
        // 0.5 would be on a scale that the far pairs had widened.
        assert!(!text.contains(">0.5<"), "{text}");
    }
}
