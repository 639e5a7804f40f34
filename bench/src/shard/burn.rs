//! Work for nothing, in rounds that always take as many instructions: a slowness that can be planted; owns nothing.
//!
//! Rounds, not time: a process that waited by the clock would be charged less CPU time whenever it is preempted.

use std::{hint::black_box, io, thread, time::Duration};

use nix::time::ClockId;

use crate::{
    measure::pin_this_thread,
    stats::{Random, median},
};

/// Does so many rounds.
pub fn burn(rounds: u64) {
    let mut random = Random::new(rounds);
    for _ in 0..rounds {
        black_box(random.bits());
    }
}

/// Nanoseconds of CPU time for one round on `cpu`: the median of many short measurements.
pub fn nanos_per_round(cpu: usize) -> io::Result<f64> {
    const ROUNDS: u64 = 200_000;
    const TIMES: usize = 51;
    let measured = thread::spawn(move || -> io::Result<Vec<f64>> {
        pin_this_thread(&[cpu])?;
        let one = |_| {
            let before = used()?;
            burn(ROUNDS);
            Ok((used()? - before).as_nanos() as f64 / ROUNDS as f64)
        };
        (0..TIMES).map(one).collect()
    });
    let times = measured.join().map_err(|_| io::Error::other("the measuring thread has panicked"))??;
    median(&times).ok_or_else(|| io::Error::other("nothing was measured"))
}

fn used() -> io::Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::allowed_cpus;

    #[test]
    fn rounds_cost_what_was_measured() {
        let cpu = allowed_cpus().expect("readable")[0];
        let nanos = nanos_per_round(cpu).expect("an allowed CPU");
        assert!(nanos > 0.05, "{nanos} ns for one round: it is optimised away");
        let before = used().expect("own clock");
        burn(5_000_000);
        let ratio = (used().expect("own clock") - before).as_nanos() as f64 / (nanos * 5e6);
        // Whoever shares the core's caches and its frequency may change.
        assert!((0.4..2.5).contains(&ratio), "{ratio} times what was measured");
    }
}
