//! How much of its share a shard gets that has just come into service. PURE.

use std::time::Duration;

/// Each step is another table, which moves connections: a few are enough for caches to fill.
pub const STEPS: u32 = 5;
/// What it begins with.
pub const FIRST_PERCENT: u32 = 10;
/// All of it.
pub const WHOLE_PERCENT: u32 = 100;

/// Per cent of its share, so long after it came in; `whole` is the time until it has all of it.
pub fn percent(elapsed: Duration, whole: Duration) -> u32 {
    if elapsed >= whole {
        return WHOLE_PERCENT;
    }
    let step = elapsed.as_nanos() * u128::from(STEPS) / whole.as_nanos();
    FIRST_PERCENT + (WHOLE_PERCENT - FIRST_PERCENT) * u32::try_from(step).unwrap_or(STEPS) / STEPS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_share_grows_in_a_few_steps() {
        let check = |elapsed, whole, expected| {
            assert_eq!(
                percent(Duration::from_secs(elapsed), Duration::from_secs(whole)),
                expected,
                "{elapsed}/{whole}"
            );
        };
        check(0, 0, 100);
        check(0, 10, 10);
        check(1, 10, 10);
        check(2, 10, 28);
        check(5, 10, 46);
        check(6, 10, 64);
        check(9, 10, 82);
        check(10, 10, 100);
        check(u64::MAX, 10, 100);
    }

    proptest! {
        #[test]
        fn it_never_falls_and_is_whole_in_the_end(whole in 1..100_000u64, earlier in 0..100_000u64, later in 0..100_000u64) {
            let of = |millis| percent(Duration::from_millis(millis), Duration::from_millis(whole));
            let (earlier, later) = (earlier.min(later), earlier.max(later));
            prop_assert!(of(earlier) <= of(later));
            prop_assert!((FIRST_PERCENT..=WHOLE_PERCENT).contains(&of(earlier)));
            prop_assert_eq!(of(later) == WHOLE_PERCENT, later >= whole);
        }
    }
}
