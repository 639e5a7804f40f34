//! What samples say: medians, and ratios of pairs with bootstrap intervals; owns no sample and may not touch clock or host.
//!
//! A ratio is taken within each pair (two contestants, side by side in time), because what disturbs a host for seconds
//! (a neighbour, a frequency change) then hits both. The estimate is the median of those ratios, and its interval comes
//! from resampling the pairs. All of it happens on logarithms, so that A/B and B/A tell the same story.

use serde::{Deserialize, Serialize};

pub(crate) use self::student::critical_value;
pub use self::{
    random::Random,
    slope::{Slope, slope},
};

mod random;
mod slope;
mod student;

/// How often the pairs are resampled for an interval.
const RESAMPLES: usize = 2000;
/// The share of resampled medians that an interval holds.
const CONFIDENCE: f64 = 0.95;

/// A ratio and the interval that holds it with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
pub struct Estimate {
    /// The median of the ratios within pairs.
    pub ratio: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// How many pairs it stands on.
    pub pairs: usize,
}

impl Estimate {
    /// Whether the interval includes `value`.
    pub fn includes(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// The median of `values`; the mean of the two in the middle when their number is even. None without values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

/// The value that `share` of `values` don't exceed (nearest rank). None without values.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// The ratio of the first to the second of each pair. Pairs that have no ratio (zero, negative, not a number) are
/// left out; None when none is left. The same `seed` gives the same interval.
pub fn ratio(pairs: &[(f64, f64)], seed: u64) -> Option<Estimate> {
    let mut logs: Vec<f64> = pairs
        .iter()
        .filter(|(a, b)| a.is_finite() && b.is_finite() && *a > 0.0 && *b > 0.0)
        .map(|(a, b)| (a / b).ln())
        .collect();
    logs.sort_by(f64::total_cmp);
    let middle = median_of_sorted(&logs)?;
    let (low, high) = bootstrap(&logs, seed);
    Some(Estimate { ratio: middle.exp(), low: low.exp(), high: high.exp(), pairs: logs.len() })
}

/// The ratio of the medians of two sets that make no pairs, each resampled for itself; `pairs` is the smaller set's size. Takes
/// logarithms, as those of positive values; None when a set is empty. The same `seed` gives the same interval.
pub fn unpaired(logs_of: &[f64], logs_to: &[f64], seed: u64) -> Option<Estimate> {
    let difference = median(logs_of)? - median(logs_to)?;
    let mut random = Random::new(seed);
    let mut median_of =
        |set: &[f64]| median(&resample(set, &mut random)).expect("a resample of something is not empty");
    let (low, high) = percentile_interval((0..RESAMPLES).map(|_| median_of(logs_of) - median_of(logs_to)));
    let pairs = logs_of.len().min(logs_to.len());
    Some(Estimate { ratio: difference.exp(), low: low.exp(), high: high.exp(), pairs })
}

/// The difference of the means of two sets, and the interval that holds it; for counts, whose medians are often 0. None when a set
/// is empty. The same `seed` gives the same interval.
pub fn difference_of_means(of: &[f64], to: &[f64], seed: u64) -> Option<(f64, f64, f64)> {
    if of.is_empty() || to.is_empty() {
        return None;
    }
    let mean = |set: &[f64]| set.iter().sum::<f64>() / set.len() as f64;
    let mut random = Random::new(seed);
    let mut once = || mean(&resample(of, &mut random)) - mean(&resample(to, &mut random));
    let (low, high) = percentile_interval((0..RESAMPLES).map(|_| once()));
    Some((mean(of) - mean(to), low, high))
}

/// The percentile interval of the median: resample with replacement, take the median, cut both tails.
fn bootstrap(sorted: &[f64], seed: u64) -> (f64, f64) {
    let mut random = Random::new(seed);
    let mut drawn = vec![0_usize; sorted.len()];
    percentile_interval((0..RESAMPLES).map(|_| {
        drawn.fill(0);
        for _ in 0..sorted.len() {
            drawn[random.below(sorted.len())] += 1;
        }
        median_of_drawn(sorted, &drawn).expect("as many are drawn as there are")
    }))
}

fn resample(set: &[f64], random: &mut Random) -> Vec<f64> {
    (0..set.len()).map(|_| set[random.below(set.len())]).collect()
}

fn percentile_interval(found: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut found: Vec<f64> = found.collect();
    found.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let last = found.len() - 1;
    let cut = (last as f64 * tail).floor() as usize;
    (found[cut], found[last - cut])
}

/// The median of a resample in which each of `sorted` is so many times as `drawn` says, and which is as long as `sorted`.
fn median_of_drawn(sorted: &[f64], drawn: &[usize]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let mut seen = 0;
    let mut lower = None;
    for (value, times) in sorted.iter().zip(drawn) {
        seen += times;
        // Of an even number, the lower one of the two in the middle may be another's.
        if lower.is_none() && seen >= middle && sorted.len().is_multiple_of(2) {
            lower = Some(*value);
        }
        if seen > middle {
            return Some(lower.map_or(*value, |lower| f64::midpoint(lower, *value)));
        }
    }
    None
}

fn median_of_sorted(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn medians_by_hand() {
        for (values, expected) in
            [(vec![], None), (vec![3.0], Some(3.0)), (vec![9.0, 1.0], Some(5.0)), (vec![7.0, 1.0, 2.0], Some(2.0))]
        {
            assert_eq!(median(&values), expected, "median of {values:?}");
        }
    }

    #[test]
    fn quantiles_by_hand() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (share, expected) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0)] {
            assert_eq!(quantile(&hundred, share), Some(expected), "{share}");
        }
        assert_eq!((quantile(&[], 0.5), quantile(&[7.0], 0.99)), (None, Some(7.0)));
    }

    #[test]
    fn pairs_without_a_ratio_are_left_out() {
        assert_eq!(ratio(&[(0.0, 1.0), (1.0, 0.0), (f64::NAN, 1.0)], 1), None);
        assert_eq!(ratio(&[(0.0, 1.0), (2.0, 1.0)], 1).map(|found| found.pairs), Some(1));
    }

    #[test]
    fn a_resample_has_the_median_of_what_was_drawn() {
        let check = |sorted: &[f64], drawn: &[usize]| {
            let whole: Vec<f64> =
                sorted.iter().zip(drawn).flat_map(|(value, times)| std::iter::repeat_n(*value, *times)).collect();
            assert_eq!(median_of_drawn(sorted, drawn), median(&whole), "{drawn:?}");
        };
        check(&[1.0], &[1]);
        check(&[1.0, 2.0, 4.0], &[0, 1, 2]);
        check(&[1.0, 2.0, 4.0, 8.0], &[2, 0, 1, 1]);
        check(&[1.0, 2.0, 4.0, 8.0], &[0, 0, 0, 4]);
        check(&[1.0, 2.0, 4.0, 8.0], &[1, 2, 0, 1]);
        check(&[1.0, 2.0, 4.0, 8.0], &[3, 0, 0, 1]);
    }

    /// Pairs whose true ratio is `truth`, each with its own common factor and ±`noise` on either side.
    fn planted(truth: f64, noise: f64, pairs: usize, seed: u64) -> Vec<(f64, f64)> {
        let mut random = Random::new(seed);
        let mut wobble = move || 1.0 + noise * (2.0 * random.unit() - 1.0);
        (0..pairs)
            .map(|_| {
                let common = 100.0 * wobble();
                (truth * common * wobble(), common * wobble())
            })
            .collect()
    }

    #[test]
    fn a_planted_difference_is_found_and_a_planted_nothing_is_not() {
        let mut covered = 0;
        for seed in 0..100 {
            let slower = ratio(&planted(1.05, 0.02, 12, seed), seed).expect("there are pairs");
            assert!(slower.low > 1.0, "5 % under 2 % noise, seed {seed}: {slower:?}");
            covered += usize::from(ratio(&planted(1.0, 0.02, 12, seed), seed).expect("there are pairs").includes(1.0));
        }
        assert!(covered >= 85, "the interval holds the truth about 95 times of 100, here {covered} of 100");
    }

    #[test]
    fn sets_without_pairs_are_compared_too() {
        let set = |middle: f64, noise: f64, seed| -> Vec<f64> {
            let mut random = Random::new(seed);
            (0..12).map(|_| middle + noise * (2.0 * random.unit() - 1.0)).collect()
        };
        let logs = |set: Vec<f64>| -> Vec<f64> { set.into_iter().map(f64::ln).collect() };
        let mut covered = 0;
        for seed in 0..100 {
            let (old, new) = (logs(set(100.0, 2.0, seed)), logs(set(105.0, 2.0, seed + 1000)));
            assert!(unpaired(&new, &old, seed).expect("there are some").low > 1.0, "5 % under 2 % noise, seed {seed}");
            let same = logs(set(100.0, 2.0, seed + 2000));
            covered += usize::from(unpaired(&same, &old, seed).expect("there are some").includes(1.0));
        }
        assert!(covered >= 85, "the interval holds the truth about 95 times of 100, here {covered} of 100");
        assert_eq!(unpaired(&[], &[1.0], 1), None);
        let (difference, low, high) = difference_of_means(&[3.0, 4.0, 5.0, 4.0], &[0.0; 4], 1).expect("there are some");
        assert!(difference == 4.0 && low > 0.0 && high <= 5.0);
        assert_eq!(difference_of_means(&[1.0], &[], 1), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_interval_holds_its_ratio_and_lies_within_the_pairs(
            pairs in prop::collection::vec((0.001..1000.0, 0.001..1000.0), 1..20), seed: u64,
        ) {
            let found = ratio(&pairs, seed).expect("all pairs have a ratio");
            let ratios: Vec<f64> = pairs.iter().map(|(a, b)| a / b).collect();
            let (least, most) = ratios.iter().fold((f64::MAX, f64::MIN), |(l, m), r| (l.min(*r), m.max(*r)));
            prop_assert!(found.low <= found.ratio && found.ratio <= found.high);
            prop_assert!(least * 0.999_999 <= found.low && found.high <= most * 1.000_001);
        }

        #[test]
        fn the_same_seed_gives_the_same_interval(
            pairs in prop::collection::vec((0.1..10.0, 0.1..10.0), 1..20), seed: u64,
        ) {
            prop_assert_eq!(ratio(&pairs, seed), ratio(&pairs, seed));
        }

        #[test]
        fn units_do_not_matter_and_sides_swap_to_the_reciprocal(
            pairs in prop::collection::vec((0.1..10.0, 0.1..10.0), 1..20), unit in 0.001..1000.0, seed: u64,
        ) {
            let found = ratio(&pairs, seed).expect("all pairs have a ratio");
            let scaled: Vec<_> = pairs.iter().map(|(a, b)| (a * unit, b * unit)).collect();
            let swapped: Vec<_> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
            let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
            prop_assert!(close(ratio(&scaled, seed).expect("same pairs").ratio, found.ratio));
            prop_assert!(close(ratio(&swapped, seed).expect("same pairs").ratio, 1.0 / found.ratio));
        }

        #[test]
        fn pairs_that_agree_leave_no_doubt(a in 0.1..10.0, b in 0.1..10.0, count in 1_usize..20, seed: u64) {
            let found = ratio(&vec![(a, b); count], seed).expect("all pairs have a ratio");
            prop_assert_eq!(found.low, found.high);
        }
    }
}
