//! How much something grows with something else: a line through points by least squares, and an interval for its slope.

use serde::Serialize;

use super::{CONFIDENCE, RESAMPLES, Random};

/// A slope and the interval that holds it with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Slope {
    /// y for each x.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// How many points it stands on.
    pub points: usize,
}

/// The slope that `series` of points (x, y) have in common, each with a level of its own: what they differ in as a whole says
/// nothing of what an x costs. The interval comes from resampling the points; the same `seed` gives the same. None where
/// nobody's x differ.
pub fn slope(series: &[Vec<(f64, f64)>], seed: u64) -> Option<Slope> {
    let centred: Vec<(f64, f64)> = series.iter().flat_map(|points| centred(points)).collect();
    let value = through_origin(&centred)?;
    let mut random = Random::new(seed);
    let mut sample = vec![(0.0, 0.0); centred.len()];
    let mut slopes: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            sample.fill_with(|| centred[random.below(centred.len())]);
            through_origin(&sample)
        })
        .collect();
    slopes.sort_by(f64::total_cmp);
    let last = slopes.len().checked_sub(1)?;
    let cut = (last as f64 * (1.0 - CONFIDENCE) / 2.0).floor() as usize;
    // Of few points, resamples may all lie on one side of it.
    let (low, high) = (slopes[cut].min(value), slopes[last - cut].max(value));
    Some(Slope { value, low, high, points: centred.len() })
}

/// The points around their mean.
fn centred(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let count = points.len() as f64;
    let x: f64 = points.iter().map(|point| point.0).sum::<f64>() / count;
    let y: f64 = points.iter().map(|point| point.1).sum::<f64>() / count;
    points.iter().map(|point| (point.0 - x, point.1 - y)).collect()
}

fn through_origin(points: &[(f64, f64)]) -> Option<f64> {
    let squares: f64 = points.iter().map(|(x, _)| x * x).sum();
    let products: f64 = points.iter().map(|(x, y)| x * y).sum();
    (squares > 0.0).then(|| products / squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_whatever_its_level() {
        let line = |level: f64| (0..5).map(|x| (f64::from(x), level + 3.0 * f64::from(x))).collect::<Vec<_>>();
        let found = slope(&[line(0.0), line(1000.0)], 1).expect("points differ");
        assert!((found.value - 3.0).abs() < 1e-9 && (found.high - found.low).abs() < 1e-9, "{found:?}");
        assert_eq!(found.points, 10);
    }

    #[test]
    fn without_a_difference_there_is_no_slope() {
        assert_eq!(slope(&[vec![(1.0, 2.0), (1.0, 5.0)]], 1), None);
        assert_eq!(slope(&[vec![(1.0, 2.0)], Vec::new()], 1), None);
        assert_eq!(slope(&[], 1), None);
    }

    /// Lines of a known slope under noise.
    #[test]
    fn the_interval_holds_the_truth_about_as_often_as_it_says() {
        let mut covered = 0;
        for seed in 0..100 {
            let mut random = Random::new(seed);
            let mut line = || (0..9).map(|x| (f64::from(x), 7.0 * f64::from(x) + random.unit())).collect::<Vec<_>>();
            let found = slope(&[line(), line(), line()], seed).expect("points differ");
            covered += usize::from(found.low <= 7.0 && 7.0 <= found.high);
        }
        assert!(covered >= 80, "about 95 of 100 should, {covered} do");
    }
}
