//! How shards are, as state machines: results of checks, outcomes of connections and exits in, verdicts out. PURE: the clock
//! is passed in, nothing is probed, taken out or started here.

use std::time::{Duration, Instant};

pub mod outlier;
pub mod pace;
pub mod panic;
mod readiness;
pub mod slow_start;

pub use self::readiness::{Readiness, Thresholds, Verdict};

/// How long to wait before a shard that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffPolicy {
    /// The wait after the first failure; each further one doubles it.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
    /// A shard that ran at least this long starts from `first` again.
    pub reset_after: Duration,
}

/// The restarts of one slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    start_after: Option<Instant>,
}

impl Backoff {
    /// When the slot's next shard may start; `None`: at once.
    pub fn start_after(&self) -> Option<Instant> {
        self.start_after
    }

    /// How often in a row the slot's shards failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Takes note that a shard failed after it ran for `ran`; returns how long the next one has to wait.
    pub fn note_failure(&mut self, policy: BackoffPolicy, ran: Duration, now: Instant) -> Duration {
        if ran >= policy.reset_after {
            self.failures = 0;
        }
        let doublings = self.failures.min(31);
        let wait = policy.first.saturating_mul(1 << doublings).min(policy.max);
        self.failures = self.failures.saturating_add(1);
        self.start_after = Some(now + wait);
        wait
    }

    /// Forgets all failures: somebody asked for this start.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_again_after_a_good_run() {
        let policy = BackoffPolicy {
            first: Duration::from_millis(100),
            max: Duration::from_secs(1),
            reset_after: Duration::from_secs(10),
        };
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let waits: Vec<u128> = [0, 0, 0, 0, 0, 20, 0]
            .map(|ran| backoff.note_failure(policy, Duration::from_secs(ran), now).as_millis())
            .to_vec();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 100, 200]);
        assert_eq!(backoff.start_after(), Some(now + Duration::from_millis(200)));
        backoff.reset();
        assert_eq!((backoff.failures(), backoff.start_after()), (0, None));
    }

    #[test]
    fn thousands_of_failures_do_not_overflow() {
        let policy =
            BackoffPolicy { first: Duration::from_secs(1), max: Duration::from_secs(60), reset_after: Duration::MAX };
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for _ in 0..5_000 {
            assert!(backoff.note_failure(policy, Duration::ZERO, now) <= policy.max);
        }
    }
}
