//! Whether the outcomes of clients' connections speak against a shard. PURE: counts and the clock in, verdicts out.
//!
//! Counters are looked at now and then, so the order of two connections between two looks isn't known: failures are "in a
//! row" when no connection succeeded between the looks that saw them. HAProxy's `observe` and Envoy's outlier detection
//! are the models.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The time that a rate is of.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Looks of one window that are kept apart; more of them are added up.
const MAX_LOOKS: usize = 64;

/// How many connections succeeded and failed: since some time that is always the same, or between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// Those that the shard took, or answered.
    pub succeeded: u64,
    /// Those that it didn't.
    pub failed: u64,
}

/// What takes a shard out, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Failures in a row; at least 1.
    pub in_a_row: u64,
    /// Failures per hundred connections of a [`WINDOW`].
    pub rate_percent: u32,
    /// Connections of a window below which the rate says nothing.
    pub rate_min: u64,
    /// How long the first time; each further one doubles it.
    pub first: Duration,
    /// The longest, and how long a shard must have been in since for its next time to be the first again.
    pub max: Duration,
}

/// Why a shard is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Too many failures in a row.
    Consecutive,
    /// Too many of its connections failed.
    Rate,
}

/// What a look has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The shard is to be out.
    Ejected {
        /// Why.
        reason: Reason,
        /// For how long.
        bound: Duration,
    },
    /// Its time is over: it may show that it is better.
    Returned,
}

/// One shard.
#[derive(Debug, Clone, Default)]
pub struct Outlier {
    last: Option<Outcomes>,
    in_a_row: u64,
    looks: VecDeque<(Instant, Outcomes)>,
    ejected: Option<(Reason, Instant)>,
    /// Times it was out, since the count last began anew.
    times: u32,
    returned: Option<Instant>,
}

impl Outlier {
    /// Why it is out, and until when.
    pub fn ejected(&self) -> Option<(Reason, Instant)> {
        self.ejected
    }

    /// Takes what has been counted of it by now.
    pub fn note(&mut self, counted: Outcomes, policy: &Policy, now: Instant) -> Option<Change> {
        let since = self.since(counted);
        if let Some((_, until)) = self.ejected {
            // What fails now are connections from before.
            if now < until {
                return None;
            }
            (self.ejected, self.returned, self.in_a_row) = (None, Some(now), 0);
            self.looks.clear();
            return Some(Change::Returned);
        }
        if self.returned.is_some_and(|returned| now.saturating_duration_since(returned) >= policy.max) {
            self.times = 0;
        }
        self.in_a_row = if since.succeeded > 0 { 0 } else { self.in_a_row.saturating_add(since.failed) };
        self.remember(since, now);
        let reason = self.reason(policy)?;
        let bound = policy.first.saturating_mul(1 << self.times.min(31)).min(policy.max);
        self.times = self.times.saturating_add(1);
        self.ejected = Some((reason, now + bound));
        Some(Change::Ejected { reason, bound })
    }

    /// What is new; nothing where it can't be told, as counters began anew.
    fn since(&mut self, counted: Outcomes) -> Outcomes {
        let last = self.last.replace(counted).unwrap_or(counted);
        let new = |now: u64, before: u64| now.checked_sub(before);
        let both = new(counted.succeeded, last.succeeded).zip(new(counted.failed, last.failed));
        both.map_or_else(Outcomes::default, |(succeeded, failed)| Outcomes { succeeded, failed })
    }

    fn remember(&mut self, since: Outcomes, now: Instant) {
        self.looks.retain(|(at, _)| now.saturating_duration_since(*at) < WINDOW);
        let full = self.looks.len() >= MAX_LOOKS;
        match self.looks.back_mut().filter(|_| full) {
            Some((_, last)) => {
                last.succeeded = last.succeeded.saturating_add(since.succeeded);
                last.failed = last.failed.saturating_add(since.failed);
            }
            None => self.looks.push_back((now, since)),
        }
    }

    fn reason(&self, policy: &Policy) -> Option<Reason> {
        if self.in_a_row >= policy.in_a_row {
            return Some(Reason::Consecutive);
        }
        let sum = |of: fn(&Outcomes) -> u64| self.looks.iter().map(|(_, look)| u128::from(of(look))).sum::<u128>();
        let (succeeded, failed) = (sum(|look| look.succeeded), sum(|look| look.failed));
        let all = succeeded + failed;
        let too_many = failed * 100 >= all * u128::from(policy.rate_percent);
        (failed > 0 && all >= u128::from(policy.rate_min) && too_many).then_some(Reason::Rate)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: Policy = Policy {
        in_a_row: 5,
        rate_percent: 50,
        rate_min: 20,
        first: Duration::from_secs(10),
        max: Duration::from_secs(60),
    };

    /// A look each second, with so many successes and failures since the one before: `E` ejected for failures in a row, `r`
    /// for their rate, `b` back, `.` nothing.
    fn check(looks: &[(u64, u64)], expected: &str) {
        let (mut outlier, begin) = (Outlier::default(), Instant::now());
        let mut counted = Outcomes { succeeded: 1000, failed: 1000 };
        outlier.note(counted, &POLICY, begin);
        let mut found = String::new();
        for ((succeeded, failed), second) in looks.iter().zip(1..) {
            counted.succeeded += succeeded;
            counted.failed += failed;
            found.push(match outlier.note(counted, &POLICY, begin + Duration::from_secs(second)) {
                None => '.',
                Some(Change::Ejected { reason: Reason::Consecutive, .. }) => 'E',
                Some(Change::Ejected { reason: Reason::Rate, .. }) => 'r',
                Some(Change::Returned) => 'b',
            });
        }
        assert_eq!(found, expected, "{looks:?}");
    }

    #[test]
    fn failures_in_a_row_eject() {
        check(&[(9, 0), (0, 2), (0, 2), (0, 1), (0, 0)], "...E.");
        check(&[(0, 4), (1, 0), (0, 4), (1, 4), (0, 4)], ".....");
        check(&[(0, 0); 5], ".....");
    }

    #[test]
    fn a_rate_ejects_from_some_number_of_connections_on() {
        check(&[(5, 4), (5, 5)], "..");
        check(&[(5, 5), (5, 5)], ".r");
        check(&[(5, 4), (6, 5)], "..");
        // What is older than the window is no part of it.
        check(
            &[(1, 4), (0, 0), (1, 4), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (1, 4), (1, 4)],
            "............",
        );
    }

    #[test]
    fn it_is_back_after_a_time_and_is_not_judged_by_what_was() {
        check(
            &[(0, 9), (0, 9), (0, 9), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 1), (0, 4), (0, 1)],
            "E.........b.E",
        );
    }

    #[test]
    fn the_time_doubles_up_to_a_bound_and_begins_anew_after_a_good_while() {
        let (mut outlier, mut now) = (Outlier::default(), Instant::now());
        let mut counted = Outcomes::default();
        outlier.note(counted, &POLICY, now);
        let mut eject = |after_s: u64| {
            now += Duration::from_secs(after_s);
            counted.failed += POLICY.in_a_row;
            let Some(Change::Ejected { bound, .. }) = outlier.note(counted, &POLICY, now) else {
                panic!("not ejected")
            };
            now += bound;
            assert_eq!(outlier.note(counted, &POLICY, now), Some(Change::Returned));
            bound.as_secs()
        };
        assert_eq!(
            [eject(1), eject(1), eject(1), eject(1), eject(59), eject(60), eject(1)],
            [10, 20, 40, 60, 60, 10, 20]
        );
    }

    #[test]
    fn counters_that_begin_anew_say_nothing() {
        let (mut outlier, now) = (Outlier::default(), Instant::now());
        outlier.note(Outcomes { succeeded: 0, failed: 100 }, &POLICY, now);
        assert_eq!(outlier.note(Outcomes { succeeded: 0, failed: 50 }, &POLICY, now), None);
        let change = outlier.note(Outcomes { succeeded: 0, failed: 55 }, &POLICY, now);
        assert!(matches!(change, Some(Change::Ejected { .. })), "{change:?}");
    }

    proptest! {
        /// Whoever never fails is never out, and nobody is out for longer than the bound.
        #[test]
        fn the_innocent_stay_and_the_guilty_return(looks: Vec<(u16, u16, u16)>, innocent: bool) {
            let (mut outlier, mut now) = (Outlier::default(), Instant::now());
            let (mut counted, mut out_since) = (Outcomes::default(), None);
            for (succeeded, failed, millis) in looks {
                now += Duration::from_millis(millis.into());
                counted.succeeded += u64::from(succeeded);
                counted.failed += if innocent { 0 } else { u64::from(failed) };
                match outlier.note(counted, &POLICY, now) {
                    Some(Change::Ejected { bound, .. }) => {
                        prop_assert!(!innocent && bound <= POLICY.max && out_since.is_none());
                        out_since = Some(now + bound);
                    }
                    Some(Change::Returned) => prop_assert!(out_since.take().is_some_and(|until| now >= until)),
                    None => prop_assert!(out_since.is_none_or(|until| now < until)),
                }
                prop_assert_eq!(outlier.ejected().is_some(), out_since.is_some());
                prop_assert!(outlier.looks.len() <= MAX_LOOKS);
            }
        }
    }
}
