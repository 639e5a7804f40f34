//! How long connections have waited in an anchor's queue. PURE: queue lengths and times in, a number of connections
//! that waited too long out.
//!
//! The connections must stay in the kernel's queue, where they outlive the agent, and the kernel doesn't tell when
//! each came. But a queue is first in, first out: while nothing leaves it, whatever was in it `bound` ago has waited
//! at least `bound`.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The queue lengths of one anchor over the last `bound`. Holds at most one sample for each observation of that time.
#[derive(Debug, Clone, Default)]
pub(super) struct AnchorAge {
    samples: VecDeque<(Instant, u32)>,
}

impl AnchorAge {
    /// Notes the present length; returns how many at the head of the queue have waited for `bound` or longer. The
    /// caller takes exactly those out.
    pub(super) fn overdue(&mut self, length: u32, bound: Duration, now: Instant) -> u32 {
        // Someone else took connections out: the ones that left were the oldest, so no earlier sample can hold more.
        for (_, earlier) in &mut self.samples {
            *earlier = (*earlier).min(length);
        }
        self.samples.push_back((now, length));
        let mut overdue = 0;
        while let Some((at, earlier)) = self.samples.front().copied()
            && now.duration_since(at) >= bound
        {
            overdue = earlier;
            self.samples.pop_front();
        }
        for (_, earlier) in &mut self.samples {
            *earlier -= overdue.min(*earlier);
        }
        overdue
    }

    /// Forgets all samples: a shard serves again.
    pub(super) fn clear(&mut self) {
        self.samples.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row: (milliseconds, queue length seen) -> how many must be taken out then.
    fn check(rows: &[(u64, u32, u32)]) {
        let (start, mut age, bound) = (Instant::now(), AnchorAge::default(), Duration::from_secs(10));
        for &(at, length, expected) in rows {
            let overdue = age.overdue(length, bound, start + Duration::from_millis(at));
            assert_eq!(overdue, expected, "at {at} ms of {rows:?}");
        }
    }

    #[test]
    fn a_connection_is_overdue_when_the_bound_has_passed_since_it_was_seen() {
        check(&[
            (0, 0, 0),
            (1_000, 3, 0),
            (5_000, 5, 0),
            (10_000, 5, 0),
            (11_000, 5, 3),
            (15_000, 2, 2),
            (30_000, 0, 0),
        ]);
    }

    #[test]
    fn connections_that_left_meanwhile_are_not_counted() {
        check(&[(0, 5, 0), (4_000, 2, 0), (10_000, 4, 2), (14_000, 2, 0), (20_000, 2, 2)]);
    }

    #[test]
    fn an_empty_queue_has_nothing_overdue() {
        check(&[(0, 0, 0), (20_000, 0, 0), (40_000, 7, 0), (49_999, 7, 0), (50_000, 7, 7)]);
    }
}
