//! What visits tell of one shard's stop; pure.

use std::time::{Duration, Instant};

use crate::load::Visit;

/// Whoever isn't answered for so long waits for the stopped shard: it moves no queue before 2 s.
const HELD: Duration = Duration::from_secs(1);

/// One shard stopped once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// From the first connection that was queued at the stopped shard to the last; none if none was.
    pub(super) out: Option<Duration>,
    /// From the first to the last answer of them, if others gave all of them.
    pub(super) served: Option<Duration>,
    pub(super) queued: usize,
    /// Of these, those that were answered only when the shard went on.
    pub(super) late: usize,
    /// Begun before the stop, and unanswered for long: most of them had been accepted.
    pub(super) caught: usize,
    pub(super) failed: usize,
}

/// One connection, seen from a stop: seconds from it to the connection's begin, and milliseconds until it ended.
pub(super) fn seen(visits: &[Visit], stopped_at: Instant) -> impl Iterator<Item = (f64, f64)> {
    visits.iter().map(move |visit| {
        let after = visit.began.saturating_duration_since(stopped_at).as_secs_f64();
        let before = stopped_at.saturating_duration_since(visit.began).as_secs_f64();
        (after - before, (visit.ended - visit.began).as_secs_f64() * 1e3)
    })
}

impl Round {
    pub(super) fn of(visits: &[Visit], stopped_at: Instant, continued_at: Instant) -> Self {
        let held = |visit: &&Visit| visit.ended - visit.began >= HELD && visit.began < continued_at;
        let (queued, caught): (Vec<&Visit>, Vec<&Visit>) =
            visits.iter().filter(held).partition(|visit| visit.began >= stopped_at);
        let first = queued.iter().map(|visit| visit.began).min();
        let since_first = |moment: Option<Instant>| Some(moment?.duration_since(first?));
        let late = queued.iter().filter(|visit| visit.ended >= continued_at).count();
        Self {
            out: since_first(queued.iter().map(|visit| visit.began).max()),
            served: since_first(queued.iter().map(|visit| visit.ended).max()).filter(|_| late == 0),
            queued: queued.len(),
            late,
            caught: caught.len(),
            failed: visits.iter().filter(|visit| visit.failure.is_some()).count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Visits as (began, ended) in milliseconds; the shard is stopped from 1,000 to 4,000.
    fn check(visits: &[(u64, u64)], expected: &Round) {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let visits: Vec<Visit> =
            visits.iter().map(|(began, ended)| Visit { began: at(*began), ended: at(*ended), failure: None }).collect();
        assert_eq!(&Round::of(&visits, at(1000), at(4000)), expected, "{visits:?}");
    }

    #[test]
    fn the_last_that_waits_tells_when_the_slot_was_out() {
        let millis = Duration::from_millis;
        check(&[(900, 901), (1100, 1101)], &Round::default());
        let both = Round { out: Some(millis(80)), served: Some(millis(2110)), queued: 2, ..Round::default() };
        check(&[(1010, 3050), (1011, 1012), (1090, 3120), (1095, 1096)], &both);
        let caught = Round { caught: 1, ..both };
        check(&[(999, 4001), (1010, 3050), (1090, 3120)], &caught);
        let late = Round { out: Some(Duration::ZERO), queued: 1, late: 1, ..Round::default() };
        check(&[(1010, 4002)], &late);
    }

    #[test]
    fn connections_are_seen_from_the_stop() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let visits = [(990, 995), (1010, 3010)].map(|(began, ended)| Visit {
            began: at(began),
            ended: at(ended),
            failure: None,
        });
        assert_eq!(seen(&visits, at(1000)).collect::<Vec<_>>(), [(-0.01, 5.0), (0.01, 2000.0)]);
    }
}
