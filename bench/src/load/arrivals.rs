//! When requests of an open loop become due; owns the schedule and no clock.

use std::time::Duration;

use crate::stats::Random;

/// The moments of a Poisson process, as time since the load's start. One of `threads` such processes, each with its
/// share of the rate: together they are a Poisson process of the whole rate.
#[derive(Debug)]
pub(super) struct Arrivals {
    random: Random,
    mean_gap_seconds: f64,
    next_seconds: f64,
}

impl Arrivals {
    pub(super) fn new(requests_per_second: f64, threads: usize, thread: usize, seed: u64) -> Self {
        let mut random = Random::new(seed.wrapping_add((thread as u64) << 32));
        let mean_gap_seconds = threads as f64 / requests_per_second;
        let next_seconds = mean_gap_seconds * random.exponential();
        Self { random, mean_gap_seconds, next_seconds }
    }

    /// When the next is due.
    pub(super) fn next(&self) -> Duration {
        Duration::from_secs_f64(self.next_seconds)
    }

    /// Goes on to the one after.
    pub(super) fn advance(&mut self) {
        self.next_seconds += self.mean_gap_seconds * self.random.exponential();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(seconds: f64, threads: usize, seed: u64) -> Vec<Duration> {
        let mut due = Vec::new();
        for thread in 0..threads {
            let mut arrivals = Arrivals::new(10_000.0, threads, thread, seed);
            while arrivals.next().as_secs_f64() < seconds {
                due.push(arrivals.next());
                arrivals.advance();
            }
        }
        due.sort_unstable();
        due
    }

    #[test]
    fn the_rate_is_kept_whatever_the_threads() {
        for threads in [1, 2, 7] {
            let count = within(10.0, threads, 42).len() as f64;
            // Poisson: the standard deviation of 100,000 is 316.
            assert!((count - 100_000.0).abs() < 1_500.0, "{count} in 10 s on {threads} threads");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_moments() {
        assert_eq!(within(0.1, 2, 42), within(0.1, 2, 42));
        assert_ne!(within(0.1, 2, 42), within(0.1, 2, 43));
    }
}
