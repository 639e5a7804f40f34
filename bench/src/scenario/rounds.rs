//! The interleaved part: blocks in which every contestant runs twice under every load, in an order and its mirror image
//! (A B C … C B A), so that an even drift hits all the same.

use std::time::Duration;

use nix::unistd::Pid;

use super::ComparisonError;
use crate::{
    contestant::Contestant,
    interrupt::Interrupt,
    load::{self, Load, LoadError, MAX_ECHO_BYTES, Outcome, Shape},
    measure::{HostTime, Switches, cpu_time},
    report::{Progress, Settings},
    sample::{Latency, LoadKind, Sample},
    stats::Random,
};

/// What of a stream counts as a request.
const STREAM_BLOCK_BYTES: usize = 64 << 10;
/// A rate below this is no load.
const MIN_OPEN_RATE: f64 = 10.0;

/// One that runs: a contestant, under a name of its own.
#[derive(Clone)]
pub(super) struct Entry<'a> {
    pub(super) name: String,
    pub(super) contestant: &'a dyn Contestant,
    /// Who answers.
    pub(super) shards: &'a [Pid],
}

pub(super) struct Rounds<'a> {
    entries: &'a [Entry<'a>],
    loads: &'a [LoadKind],
    settings: &'a Settings,
    interrupt: &'a Interrupt,
    pub(super) open_requests_per_second: f64,
}

/// What has been used up to one edge of a window.
struct Used {
    balancer: Duration,
    shards: Duration,
    switches: Switches,
    host: HostTime,
}

impl Used {
    fn read(contestant: &str, balancer: &[Pid], shards: &[Pid]) -> Result<Self, ComparisonError> {
        let cpu = |processes: &[Pid]| {
            cpu_time(processes).map_err(|source| ComparisonError::Process { contestant: contestant.into(), source })
        };
        let switches = Switches::read(&[balancer, shards].concat())
            .map_err(|source| ComparisonError::Process { contestant: contestant.into(), source })?;
        let host = HostTime::read().map_err(ComparisonError::Host)?;
        Ok(Self { balancer: cpu(balancer)?, shards: cpu(shards)?, switches, host })
    }
}

impl<'a> Rounds<'a> {
    /// Puts each contestant under full load once, which warms it up, and takes the open loop's rate from the slowest.
    pub(super) fn prepare(
        entries: &'a [Entry<'a>],
        loads: &'a [LoadKind],
        settings: &'a Settings,
        interrupt: &'a Interrupt,
        progress: &mut Progress,
    ) -> Result<Self, ComparisonError> {
        progress.say("finding the slowest contestant's maximum");
        let mut rounds = Self { entries, loads, settings, interrupt, open_requests_per_second: MIN_OPEN_RATE };
        let mut slowest = f64::INFINITY;
        for entry in entries {
            let sample = rounds.sample(entry, LoadKind::KeepAlive, 0)?;
            if sample.requests == 0 {
                return Err(ComparisonError::Silent {
                    contestant: entry.name.clone(),
                    failed: sample.errors.values().sum(),
                    cause: sample.errors.into_keys().next().unwrap_or_else(|| "no answer in time".into()),
                });
            }
            slowest = slowest.min(sample.requests as f64 / sample.seconds);
        }
        rounds.open_requests_per_second = (slowest * settings.open_share).max(MIN_OPEN_RATE);
        Ok(rounds)
    }

    /// All blocks.
    pub(super) fn run(&self, progress: &mut Progress) -> Result<Vec<Sample>, ComparisonError> {
        let mut random = Random::new(self.settings.seed);
        let mut order: Vec<&Entry<'_>> = self.entries.iter().collect();
        let total = self.settings.pairs * self.loads.len() * order.len() * 2;
        let mut samples = Vec::with_capacity(total);
        progress.restart();
        for block in 0..self.settings.pairs {
            for &load in self.loads {
                random.shuffle(&mut order);
                for entry in order.iter().chain(order.iter().rev()) {
                    progress.step(samples.len(), total, &format!("{}, {}", load.name(), entry.name));
                    samples.push(self.sample(entry, load, block)?);
                }
            }
        }
        progress.clear();
        Ok(samples)
    }

    fn sample(&self, entry: &Entry<'_>, kind: LoadKind, block: usize) -> Result<Sample, ComparisonError> {
        let load = self.load(entry, kind, block);
        let balancer = entry.contestant.balancer();
        let used = || Used::read(&entry.name, &balancer, entry.shards);
        let (outcome, before, after) = load::run(&load, self.interrupt, used).map_err(|source| match source {
            LoadError::Interrupted => ComparisonError::Interrupted,
            source => ComparisonError::Load { contestant: entry.name.clone(), source },
        })?;
        let (before, after) = (before?, after?);
        let host = after.host.since(before.host);
        let has_balancer = !balancer.is_empty();
        Ok(Sample {
            load: kind,
            contestant: entry.name.clone(),
            block,
            seconds: outcome.elapsed.as_secs_f64(),
            requests: outcome.requests,
            body_bytes: outcome.body_bytes,
            balancer_cpu_seconds: has_balancer.then(|| (after.balancer - before.balancer).as_secs_f64()),
            shard_cpu_seconds: (after.shards - before.shards).as_secs_f64(),
            context_switches: Some(after.switches.since(&before.switches)),
            load_cpu_seconds: outcome.own_cpu.as_secs_f64(),
            host_cpu_seconds: host.busy.as_secs_f64(),
            stolen_seconds: host.stolen.as_secs_f64(),
            latency_micros: latency(&outcome),
            score: None,
            errors: outcome.errors,
        })
    }

    fn load(&self, entry: &Entry<'_>, kind: LoadKind, block: usize) -> Load {
        let settings = self.settings;
        let (connections, answer_bytes) = match (kind, settings.bulk) {
            (LoadKind::Bulk, Some(bulk)) => (bulk.connections, bulk.answer_bytes),
            (LoadKind::Echo, _) => (settings.connections, settings.answer_bytes.clamp(1, MAX_ECHO_BYTES)),
            (LoadKind::Streams, _) => (settings.connections, STREAM_BLOCK_BYTES),
            _ => (settings.connections, settings.answer_bytes),
        };
        let shape = match kind {
            // Nobody but `tune` has commands.
            LoadKind::KeepAlive | LoadKind::Bulk | LoadKind::Command => Shape::KeepAlive,
            LoadKind::Connections => Shape::ConnectionPerRequest,
            LoadKind::Echo => Shape::Echo,
            LoadKind::Streams => Shape::Streams,
            LoadKind::Open => Shape::Open {
                requests_per_second: self.open_requests_per_second,
                // The same arrivals for all of a block.
                seed: settings.seed.wrapping_add(block as u64),
            },
        };
        Load {
            targets: entry.contestant.addresses().to_vec(),
            connections,
            answer_bytes,
            shape,
            cpus: settings.load_cpus.clone(),
            warm_up: Duration::from_secs_f64(settings.warm_up_seconds),
            duration: Duration::from_secs_f64(settings.duration_seconds),
        }
    }
}

pub(super) fn latency(outcome: &Outcome) -> Latency {
    let micros = |quantile: f64| outcome.latency.value_at_quantile(quantile) as f64 / 1000.0;
    Latency { p50: micros(0.5), p90: micros(0.9), p99: micros(0.99), p999: micros(0.999), max: micros(1.0) }
}
