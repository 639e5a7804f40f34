//! Whether a shard is ready, from the results of its checks. PURE.

use std::time::Instant;

/// What the last checks of a shard amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Too few successes so far, or too many failures.
    Unready,
    /// Enough successes in a row; failures since then are still fewer than `fall`.
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
    /// Failures before that don't count; gone with the first success.
    start_period_until: Option<Instant>,
}

impl Readiness {
    /// An unready shard that may fail until then without that counting.
    pub fn new(thresholds: Thresholds, start_period_until: Instant) -> Self {
        Self { thresholds, verdict: Verdict::Unready, streak: 0, start_period_until: Some(start_period_until) }
    }

    /// A shard found serving by an agent that has just started: its predecessor had checked it.
    pub fn adopted(thresholds: Thresholds) -> Self {
        Self { thresholds, verdict: Verdict::Ready, streak: 0, start_period_until: None }
    }

    /// What holds now.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether a failure would not count.
    pub fn is_starting(&self, now: Instant) -> bool {
        self.start_period_until.is_some_and(|until| now < until)
    }

    /// Takes the result of one check; returns the verdict after it.
    pub fn note(&mut self, passed: bool, now: Instant) -> Verdict {
        if passed {
            self.start_period_until = None;
        } else if self.is_starting(now) {
            return self.verdict;
        }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// One result a second, with a start period of so many.
    fn check(rise: u32, fall: u32, start_period_s: u64, results: &str, expected: &str) {
        let begin = Instant::now();
        let mut readiness = Readiness::new(Thresholds { rise, fall }, begin + Duration::from_secs(start_period_s));
        let verdicts: String = results
            .chars()
            .zip(0..)
            .map(|(result, second)| match readiness.note(result == '+', begin + Duration::from_secs(second)) {
                Verdict::Ready => 'R',
                Verdict::Unready => 'u',
            })
            .collect();
        assert_eq!(verdicts, expected, "rise {rise}, fall {fall}, start period {start_period_s}, results {results}");
    }

    #[test]
    fn the_verdict_changes_after_enough_results_in_a_row() {
        check(1, 1, 0, "+-+", "RuR");
        check(2, 3, 0, "+-++--+---+", "uuuRRRRRRuu");
        check(3, 1, 0, "++-+++-", "uuuuuRu");
    }

    #[test]
    fn failures_of_the_start_period_do_not_count_until_the_first_success() {
        check(1, 1, 3, "---+-", "uuuRu");
        check(1, 1, 60, "-+-", "uRu");
        // The success has ended it: what follows counts.
        check(2, 1, 60, "-+-++", "uuuuR");
    }

    #[test]
    fn a_start_period_is_told() {
        let begin = Instant::now();
        let mut readiness = Readiness::new(Thresholds { rise: 2, fall: 1 }, begin + Duration::from_secs(1));
        assert!(readiness.is_starting(begin) && !readiness.is_starting(begin + Duration::from_secs(1)));
        readiness.note(true, begin);
        assert!(!readiness.is_starting(begin));
        assert!(!Readiness::adopted(Thresholds { rise: 1, fall: 1 }).is_starting(begin));
    }

    proptest! {
        /// Ready means: the last `rise` successes came in a row, and no `fall` failures did since.
        #[test]
        fn ready_is_what_the_last_results_say(rise in 1..5u32, fall in 1..5u32, results: Vec<bool>) {
            let begin = Instant::now();
            let mut readiness = Readiness::new(Thresholds { rise, fall }, begin);
            let (mut ready, mut successes, mut failures) = (false, 0, 0);
            for passed in results {
                (successes, failures) = if passed { (successes + 1, 0) } else { (0, failures + 1) };
                ready = if ready { failures < fall } else { successes >= rise };
                prop_assert_eq!(readiness.note(passed, begin) == Verdict::Ready, ready);
            }
        }
    }
}
