//! How often a slot's programs may call listen(2): a token bucket. PURE: the clock is passed in.

use std::time::{Duration, Instant};

/// Calls per second, beyond which they wait. A restart of a program with a hundred listeners is far below it.
const RATE: u32 = 1000;
/// Calls that may come at once.
const BURST: u32 = 1000;

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the bucket will be full.
    full_at: Instant,
}

impl Pace {
    /// A full bucket.
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes a token; how long the caller has to wait for it.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let token = Duration::from_secs(1) / RATE;
        self.full_at = self.full_at.max(now) + token;
        self.full_at.saturating_duration_since(now).saturating_sub(token * BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_what_is_beyond_the_rate_waits() {
        let start = Instant::now();
        let (mut pace, mut now) = (Pace::new(start), start);
        assert!((0..BURST).all(|_| pace.take(start).is_zero()));
        for _ in 0..5000 {
            now += pace.take(now);
        }
        let rate = 5000.0 / now.duration_since(start).as_secs_f64();
        assert!((f64::from(RATE) - rate).abs() < 1.0, "{rate} calls/s");
        // A second later there is a second's worth again.
        now += Duration::from_secs(1);
        assert!((0..RATE).all(|_| pace.take(now).is_zero()));
        assert!(!pace.take(now).is_zero());
    }

    #[test]
    fn whoever_stays_below_the_rate_never_waits() {
        let (mut now, step) = (Instant::now(), Duration::from_millis(2));
        let mut pace = Pace::new(now);
        for _ in 0..10_000 {
            assert!(pace.take(now).is_zero());
            now += step;
        }
    }
}
