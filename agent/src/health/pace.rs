//! When a shard's next check is due. PURE: chance is a number that the caller gives.

use std::time::Duration;

/// How often a shard is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// The first wait while it has never succeeded; doubles up to `usual`.
    pub first: Duration,
    /// Between two checks.
    pub usual: Duration,
    /// The same once it is ready.
    pub settled: Duration,
    /// Successes in a row until it is ready.
    pub rise: u32,
}

/// The checks of one shard.
#[derive(Debug, Clone)]
pub struct Pace {
    intervals: Intervals,
    successes: u32,
    /// While it has never succeeded: what it takes to become ready is not to be rounded up to whole intervals.
    starting: Option<Duration>,
    chance: u64,
}

impl Pace {
    /// `seed` tells the shards of a host apart, so that they aren't checked all at once.
    pub fn new(intervals: Intervals, seed: u64) -> Self {
        Self { intervals, successes: 0, starting: Some(intervals.first.min(intervals.usual)), chance: seed }
    }

    /// How long to wait after a check.
    pub fn after(&mut self, passed: bool) -> Duration {
        let Intervals { usual, settled, rise, .. } = self.intervals;
        if passed {
            self.successes = self.successes.saturating_add(1);
            self.starting = None;
            return match self.successes {
                // Shards that started together part here.
                successes if successes == rise => settled.mul_f64(0.1 + 0.9 * self.draw()),
                successes if successes > rise => self.about(settled),
                _ => self.about(usual),
            };
        }
        self.successes = 0;
        match &mut self.starting {
            Some(wait) => {
                let now = *wait;
                *wait = (now * 2).min(usual);
                self.about(now)
            }
            None => self.about(usual),
        }
    }

    /// Give or take a tenth.
    fn about(&mut self, wait: Duration) -> Duration {
        wait.mul_f64(0.9 + 0.2 * self.draw())
    }

    /// From 0 to 1: SplitMix64 (Steele et al., 2014), which needs no more than a counter.
    fn draw(&mut self) -> f64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The upper 53 bits fill a double's fraction.
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVALS: Intervals = Intervals {
        first: Duration::from_millis(10),
        usual: Duration::from_secs(1),
        settled: Duration::from_secs(60),
        rise: 2,
    };

    fn is_about(wait: Duration, expected: Duration) -> bool {
        wait >= expected.mul_f64(0.9) && wait <= expected.mul_f64(1.1)
    }

    #[test]
    fn a_starting_shard_is_checked_often_and_a_settled_one_seldom() {
        let mut pace = Pace::new(INTERVALS, 1);
        for expected_ms in [10, 20, 40, 80, 160, 320, 640, 1000, 1000] {
            let wait = pace.after(false);
            assert!(is_about(wait, Duration::from_millis(expected_ms)), "{wait:?}, not {expected_ms} ms");
        }
        assert!(is_about(pace.after(true), INTERVALS.usual));
        let phase = pace.after(true);
        assert!(phase >= INTERVALS.settled / 10 && phase <= INTERVALS.settled, "{phase:?}");
        assert!(is_about(pace.after(true), INTERVALS.settled));
        assert!(is_about(pace.after(false), INTERVALS.usual));
    }

    /// Sixty-four shards that started together: no tenth of the interval has more than a third of their checks.
    #[test]
    fn shards_part() {
        let mut tenths = [0; 10];
        for seed in 0..64 {
            let mut pace = Pace::new(Intervals { rise: 1, ..INTERVALS }, seed);
            let at = pace.after(true) + pace.after(true);
            tenths[(at.as_millis() / 6000 % 10) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| *count <= 21), "{tenths:?}");
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_a_tenth_above_the_interval(seed: u64, results: Vec<bool>) {
            let mut pace = Pace::new(INTERVALS, seed);
            for passed in results {
                prop_assert!(pace.after(passed) <= INTERVALS.settled.mul_f64(1.1));
            }
        }
    }
}
