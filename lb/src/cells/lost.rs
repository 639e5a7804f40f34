//! Connections that are picked and never established: their client gave up, or its packets were forged. Pure: what is
//! pending and time come in, corrections go out.

use std::time::{Duration, Instant};

/// A handshake that takes longer counts as lost, until it is complete after all: the next correction takes it back.
const WINDOW: Duration = Duration::from_secs(1);

/// The fewest that were pending at any look within a window: so many were pending all the time.
#[derive(Debug, Clone, Copy, Default)]
pub struct LostConnections {
    least: Option<(Instant, i64)>,
}

impl LostConnections {
    /// Takes a look in. What to add to [`lost`](super::CellReading::lost), once in a window.
    pub fn observe(&mut self, now: Instant, pending: i64) -> Option<i64> {
        let (since, least) = self.least.map_or((now, pending), |(since, least)| (since, least.min(pending)));
        if now.duration_since(since) < WINDOW {
            self.least = Some((since, least));
            return None;
        }
        self.least = None;
        (least != 0).then_some(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is pending every 100 ms, and the corrections that are made of it.
    fn check(pending: &[i64], expected: &[i64]) {
        let (start, mut lost) = (Instant::now(), LostConnections::default());
        let at = |n: usize| start + Duration::from_millis(100 * n as u64);
        let corrections = pending.iter().enumerate().filter_map(|(n, pending)| lost.observe(at(n), *pending));
        assert_eq!(corrections.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn only_what_is_pending_all_the_time_is_lost() {
        check(&[3; 10], &[]);
        check(&[3; 11], &[3]);
        check(&[9, 9, 9, 0, 9, 9, 9, 9, 9, 9, 9], &[]);
        check(&[9, 8, 7, 8, 9, 9, 9, 9, 9, 9, 9], &[7]);
        // They were established after all.
        check(&[-2; 11], &[-2]);
        check(&[5; 22], &[5, 5]);
    }
}
