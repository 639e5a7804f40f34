//! Two measures against each other: every sample as a faint point, the medians named.

use super::{
    labels::spread,
    scale::Scale,
    short,
    svg::{Anchor, Drawing},
};
use crate::stats::median;

const LEFT: f64 = 46.0;
const WIDTH: f64 = 250.0;
const NAMES: f64 = 108.0;
const TOP: f64 = 30.0;
const HEIGHT: f64 = 230.0;
const FOOT: f64 = 42.0;
const LABEL: f64 = 15.0;

/// One contestant's samples.
#[derive(Debug)]
pub(crate) struct Cloud {
    pub(crate) name: String,
    /// Its place in the order of colours.
    pub(crate) colour: usize,
    pub(crate) points: Vec<(f64, f64)>,
}

/// With `x_title` below and `y_title` above the axis.
pub(crate) fn scatter(clouds: &[Cloud], x_title: &str, y_title: &str, says: &str) -> Drawing {
    let mut drawing = Drawing::new(LEFT + WIDTH + NAMES, TOP + HEIGHT + FOOT, says);
    let points = || clouds.iter().flat_map(|cloud| &cloud.points);
    let x = Scale::linear(points().map(|point| point.0).chain([0.0]), (LEFT, LEFT + WIDTH));
    let y = Scale::linear(points().map(|point| point.1).chain([0.0]), (TOP + HEIGHT, TOP));
    for tick in y.ticks() {
        drawing.line("grid", (LEFT, y.at(tick)), (LEFT + WIDTH, y.at(tick)));
        drawing.text("tick", (LEFT - 8.0, y.at(tick) + 4.0), Anchor::End, &short(tick));
    }
    for tick in x.ticks() {
        drawing.line("grid", (x.at(tick), TOP), (x.at(tick), TOP + HEIGHT));
        drawing.text("tick", (x.at(tick), TOP + HEIGHT + 17.0), Anchor::Middle, &short(tick));
    }
    drawing.text("note", (0.0, 12.0), Anchor::Start, y_title);
    drawing.text("note", (LEFT + WIDTH / 2.0, TOP + HEIGHT + 35.0), Anchor::Middle, x_title);
    for cloud in clouds {
        for point in &cloud.points {
            drawing.dot(&format!("haze c{}", cloud.colour % 8), (x.at(point.0), y.at(point.1)), 2.5, "");
        }
    }
    name(&mut drawing, clouds, &x, &y);
    drawing
}

/// Names stand on the right, each on a line to its median.
fn name(drawing: &mut Drawing, clouds: &[Cloud], x: &Scale, y: &Scale) {
    let middles: Vec<(&Cloud, (f64, f64))> = clouds.iter().filter_map(|cloud| Some((cloud, middle(cloud)?))).collect();
    let wanted: Vec<f64> = middles.iter().map(|(_, (_, value))| y.at(*value)).collect();
    for ((cloud, (across, up)), place) in middles.iter().zip(spread(&wanted, LABEL, TOP, TOP + HEIGHT)) {
        let (at, colour) = ((x.at(*across), y.at(*up)), cloud.colour % 8);
        drawing.path(&format!("thin c{colour}"), &[at, (LEFT + WIDTH, place), (LEFT + WIDTH + 8.0, place)]);
        drawing.dot(&format!("fill c{colour}"), at, 5.5, &format!("{}: {across:.0}, {up:.2}", cloud.name));
        drawing.text(&format!("colour c{colour}"), (LEFT + WIDTH + 12.0, place + 4.0), Anchor::Start, &cloud.name);
    }
}

fn middle(cloud: &Cloud) -> Option<(f64, f64)> {
    let of = |value: fn(&(f64, f64)) -> f64| median(&cloud.points.iter().map(value).collect::<Vec<_>>());
    Some((of(|point| point.0)?, of(|point| point.1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_a_point_and_every_cloud_has_a_name() {
        let cloud = |name: &str, points: &[(f64, f64)]| Cloud { name: name.into(), colour: 3, points: points.into() };
        let clouds = [cloud("a<b>", &[(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]), cloud("nothing", &[])];
        let text = scatter(&clouds, "requests/s", "µs", "made up").standalone("");
        let document = roxmltree::Document::parse(&text).expect("well-formed");
        assert_eq!(document.descendants().filter(|node| node.has_tag_name("circle")).count(), 4);
        assert!(text.contains("a&lt;b&gt;") && !text.contains("nothing"));
    }
}
