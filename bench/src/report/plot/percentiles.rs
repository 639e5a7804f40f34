//! Latencies by percentile, on a scale that gives each further nine the same room, up to 99.9 %.

use super::{
    labels::spread,
    scale::Scale,
    short,
    svg::{Anchor, Drawing},
};
use crate::{report::table::number, stats::quantile};

const LEFT: f64 = 62.0;
const WIDTH: f64 = 590.0;
const RIGHT: f64 = 178.0;
const TOP: f64 = 14.0;
const HEIGHT: f64 = 300.0;
const FOOT: f64 = 40.0;
const LABEL: f64 = 15.0;
/// Of the samples, on either side of the median, that the whisker leaves out.
const TAIL: f64 = 0.25;

/// One contestant: at each percentile (as a share) the values of all samples.
#[derive(Debug)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// Its place in the order of colours.
    pub(crate) colour: usize,
    pub(crate) points: Vec<(f64, Vec<f64>)>,
}

/// Medians over the samples, with whiskers from quartile to quartile, in microseconds.
pub(crate) fn percentiles(curves: &[Curve], says: &str) -> Drawing {
    let mut drawing = Drawing::new(LEFT + WIDTH + RIGHT, TOP + HEIGHT + FOOT, says);
    let whiskers = curves.iter().flat_map(|curve| &curve.points).flat_map(|(_, values)| quartiles(values));
    let shown = whiskers.flat_map(|(low, middle, high)| [low, middle, high]);
    let y = Scale::log(shown, (TOP + HEIGHT, TOP));
    let shares: Vec<f64> =
        curves.first().map(|curve| curve.points.iter().map(|(at, _)| *at).collect()).unwrap_or_default();
    let nines = |share: f64| -(1.0 - share).log10();
    let x = Scale::exact(
        shares.first().map_or(0.0, |share| nines(*share)),
        shares.last().map_or(1.0, |share| nines(*share)),
        (LEFT + 20.0, LEFT + WIDTH - 20.0),
    );
    for tick in y.ticks() {
        drawing.line("grid", (LEFT, y.at(tick)), (LEFT + WIDTH, y.at(tick)));
        drawing.text("tick", (LEFT - 8.0, y.at(tick) + 4.0), Anchor::End, &short(tick));
    }
    drawing.text("note", (0.0, TOP - 3.0), Anchor::Start, "µs");
    for share in &shares {
        let at = x.at(nines(*share));
        drawing.line("grid", (at, TOP), (at, TOP + HEIGHT));
        drawing.text("tick", (at, TOP + HEIGHT + 17.0), Anchor::Middle, &format!("p{}", short(share * 100.0)));
    }
    drawing.text("note", (LEFT + WIDTH / 2.0, TOP + HEIGHT + 34.0), Anchor::Middle, "percentile of requests");
    for curve in curves {
        draw_curve(&mut drawing, curve, |share| x.at(nines(share)), &y);
    }
    label(&mut drawing, curves, &y);
    drawing
}

fn draw_curve(drawing: &mut Drawing, curve: &Curve, x: impl Fn(f64) -> f64, y: &Scale) {
    let colour = curve.colour % 8;
    let mut line = Vec::new();
    for (share, values) in &curve.points {
        let Some((low, middle, high)) = quartiles(values) else { continue };
        let at = x(*share) + 1.5 * (curve.colour as f64 - 2.0);
        drawing.line(&format!("thin c{colour}"), (at, y.at(low)), (at, y.at(high)));
        line.push((x(*share), y.at(middle)));
        let says = format!("{}, p{}: {} µs", curve.name, short(share * 100.0), number(middle));
        drawing.dot(&format!("fill c{colour}"), (x(*share), y.at(middle)), 3.5, &says);
    }
    drawing.path(&format!("stroke c{colour}"), &line);
}

/// Names at the right end of their curves.
fn label(drawing: &mut Drawing, curves: &[Curve], y: &Scale) {
    let ends: Vec<(&Curve, f64)> =
        curves.iter().filter_map(|curve| Some((curve, quartiles(&curve.points.last()?.1)?.1))).collect();
    let wanted: Vec<f64> = ends.iter().map(|(_, value)| y.at(*value)).collect();
    for ((curve, value), place) in ends.iter().zip(spread(&wanted, LABEL, TOP + 4.0, TOP + HEIGHT)) {
        let from = LEFT + WIDTH - 14.0;
        drawing.line("leader", (from, y.at(*value)), (LEFT + WIDTH + 12.0, place));
        let text = format!("{}  {}", curve.name, number(*value));
        drawing.text(
            &format!("colour c{}", curve.colour % 8),
            (LEFT + WIDTH + 16.0, place + 4.0),
            Anchor::Start,
            &text,
        );
    }
}

fn quartiles(values: &[f64]) -> Option<(f64, f64, f64)> {
    Some((quantile(values, TAIL)?, quantile(values, 0.5)?, quantile(values, 1.0 - TAIL)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_named_with_their_last_value() {
        let curve = |name: &str, most: f64| Curve {
            name: name.into(),
            colour: 0,
            points: vec![(0.5, vec![100.0; 3]), (0.99, vec![300.0, 400.0, 900.0]), (0.999, vec![most; 3])],
        };
        let text = percentiles(&[curve("a<b>", 2000.0), curve("none", f64::NAN)], "made up").standalone("");
        roxmltree::Document::parse(&text).expect("well-formed");
        assert!(
            text.contains(">a&lt;b&gt;  2000<") && text.contains(">p99.9<") && text.contains("p99: 400 µs"),
            "{text}"
        );
        roxmltree::Document::parse(&percentiles(&[], "").standalone("")).expect("well-formed without anybody");
    }
}
