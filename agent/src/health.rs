//! Readiness and restart back-off as state machines: probe results and exits in, verdicts out. PURE: the clock is
//! passed in, nothing is probed or started here.

use std::time::{Duration, Instant};

/// What the last probes of a shard amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Too few successful probes so far, or too many failed ones.
    Unready,
    /// Enough successful probes in a row; failures since then are still fewer than `fall`.
    Ready,
}

/// How many results in a row change the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes in a row that make an unready shard ready; at least 1.
    pub rise: u32,
    /// Failures in a row that make a ready shard unready; at least 1.
    pub fall: u32,
}

/// The readiness of one shard. Starts unready: a shard gets connections when it has shown that it takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    thresholds: Thresholds,
    verdict: Verdict,
    /// Results in a row that contradict the verdict.
    streak: u32,
}

impl Readiness {
    /// An unready shard.
    pub fn new(thresholds: Thresholds) -> Self {
        Self { thresholds, verdict: Verdict::Unready, streak: 0 }
    }

    /// A shard found serving by an agent that has just started: its predecessor had probed it.
    pub fn adopted(thresholds: Thresholds) -> Self {
        Self { thresholds, verdict: Verdict::Ready, streak: 0 }
    }

    /// What holds now.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Takes the result of one probe; returns the verdict after it.
    pub fn note(&mut self, passed: bool) -> Verdict {
        let (needed, next) = match self.verdict {
            Verdict::Unready => (self.thresholds.rise, Verdict::Ready),
            Verdict::Ready => (self.thresholds.fall, Verdict::Unready),
        };
        let contradicts = passed == (self.verdict == Verdict::Unready);
        self.streak = if contradicts { self.streak + 1 } else { 0 };
        if self.streak >= needed {
            self.verdict = next;
            self.streak = 0;
        }
        self.verdict
    }
}

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

    fn check(rise: u32, fall: u32, results: &str, expected: &str) {
        let mut readiness = Readiness::new(Thresholds { rise, fall });
        let verdicts: String = results
            .chars()
            .map(|result| match readiness.note(result == '+') {
                Verdict::Ready => 'R',
                Verdict::Unready => 'u',
            })
            .collect();
        assert_eq!(verdicts, expected, "rise {rise}, fall {fall}, results {results}");
    }

    #[test]
    fn the_verdict_changes_after_enough_results_in_a_row() {
        check(1, 1, "+-+", "RuR");
        check(2, 3, "+-++--+---+", "uuuRRRRRRuu");
        check(3, 1, "++-+++-", "uuuuuRu");
    }

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
