//! The window in which requests count, and one thread's count of them; owns the rule of what counts.

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use nix::time::ClockId;

use super::Outcome;

/// The longest latency that is told apart, in nanoseconds: 60 s.
const MAX_LATENCY_NANOS: u64 = 60_000_000_000;

/// When requests count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) opens: Instant,
    pub(super) closes: Instant,
    /// When an open loop gives up on what is unanswered.
    pub(super) grace_ends: Instant,
}

impl Window {
    pub(super) fn contains(&self, moment: Instant) -> bool {
        self.opens <= moment && moment < self.closes
    }
}

/// One thread's count.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) body_bytes: u64,
    pub(super) latency: Histogram<u64>,
    errors: BTreeMap<String, u64>,
    cpu: CpuMark,
}

#[derive(Debug)]
enum CpuMark {
    BeforeWindow,
    Since(Duration),
    Spent(Duration),
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { requests: 0, body_bytes: 0, latency: histogram(), errors: BTreeMap::new(), cpu: CpuMark::BeforeWindow }
    }

    /// Counts an answered request whose latency runs from `since`.
    pub(super) fn answered(&mut self, since: Instant, now: Instant) {
        self.requests += 1;
        self.latency.saturating_record((now - since).as_nanos() as u64);
    }

    /// Counts a failed one.
    pub(super) fn failed(&mut self, error: &io::Error) {
        *self.errors.entry(error.to_string()).or_default() += 1;
    }

    /// Keeps the CPU time of the calling thread between the window's edges; to be called each time round.
    pub(super) fn mark_cpu(&mut self, window: &Window, now: Instant) {
        match self.cpu {
            CpuMark::BeforeWindow if now >= window.opens => self.cpu = CpuMark::Since(thread_cpu()),
            CpuMark::Since(start) if now >= window.closes => self.cpu = CpuMark::Spent(thread_cpu() - start),
            _ => {}
        }
    }

    pub(super) fn add_to(self, outcome: &mut Outcome) {
        outcome.requests += self.requests;
        outcome.body_bytes += self.body_bytes;
        outcome.latency.add(&self.latency).expect("histograms of the same bounds");
        if let CpuMark::Spent(spent) = self.cpu {
            outcome.own_cpu += spent;
        }
        for (error, count) in self.errors {
            *outcome.errors.entry(error).or_default() += count;
        }
    }
}

/// An empty histogram of nanoseconds, exact to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_NANOS, 3).expect("bounds that a histogram can have")
}

fn thread_cpu() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("a thread can read its own clock").into()
}
