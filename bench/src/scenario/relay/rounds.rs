//! The interleaved part: blocks in which every contestant runs twice under every load, in an order and its mirror image
//! (A B C … C B A), so that an even drift hits all the same; the subject runs under two names, as the control.

use std::time::Duration;

use nix::unistd::Pid;

use super::{RelayError, field::Field};
use crate::{
    contestant::Contestant,
    interrupt::Interrupt,
    load::{self, Load, LoadError, Outcome, Shape},
    measure::{HostTime, cpu_time},
    report::{Progress, Settings},
    sample::{Latency, LoadKind, Sample},
    stats::Random,
};

/// A rate below this is no load.
const MIN_OPEN_RATE: f64 = 10.0;

pub(super) struct Rounds<'a> {
    field: &'a Field,
    settings: &'a Settings,
    interrupt: &'a Interrupt,
    pub(super) open_requests_per_second: f64,
}

/// One that runs: a contestant, or the control.
struct Entry<'a> {
    name: String,
    contestant: &'a dyn Contestant,
}

/// What has been used up to one edge of a window.
struct Used {
    balancer: Duration,
    shards: Duration,
    host: HostTime,
}

impl Used {
    fn read(contestant: &str, balancer: &[Pid], shards: &[Pid]) -> Result<Self, RelayError> {
        let cpu = |processes: &[Pid]| {
            cpu_time(processes).map_err(|source| RelayError::Process { contestant: contestant.into(), source })
        };
        let host = HostTime::read().map_err(RelayError::Host)?;
        Ok(Self { balancer: cpu(balancer)?, shards: cpu(shards)?, host })
    }
}

impl<'a> Rounds<'a> {
    /// Puts each contestant under full load once, which warms it up, and takes the open loop's rate from the slowest.
    pub(super) fn prepare(
        field: &'a Field,
        settings: &'a Settings,
        interrupt: &'a Interrupt,
        progress: &mut Progress,
    ) -> Result<Self, RelayError> {
        progress.say("finding the slowest contestant's maximum");
        let mut rounds = Self { field, settings, interrupt, open_requests_per_second: MIN_OPEN_RATE };
        let mut slowest = f64::INFINITY;
        for entry in rounds.entries() {
            let sample = rounds.sample(&entry, LoadKind::KeepAlive, 0)?;
            if sample.requests == 0 {
                return Err(RelayError::Silent {
                    contestant: entry.name,
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
    pub(super) fn run(&self, progress: &mut Progress) -> Result<Vec<Sample>, RelayError> {
        let mut random = Random::new(self.settings.seed);
        let mut order = self.entries();
        let total = self.settings.pairs * LoadKind::ALL.len() * order.len() * 2;
        let mut samples = Vec::with_capacity(total);
        progress.restart();
        for block in 0..self.settings.pairs {
            for load in LoadKind::ALL {
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

    fn entries(&self) -> Vec<Entry<'a>> {
        let field: &'a Field = self.field;
        let named = |contestant: &'a dyn Contestant| Entry { name: contestant.facts().name.clone(), contestant };
        let control = Entry { name: field.control(), contestant: field.contestants[0].as_ref() };
        field.contestants.iter().map(|contestant| named(contestant.as_ref())).chain([control]).collect()
    }

    fn sample(&self, entry: &Entry<'_>, kind: LoadKind, block: usize) -> Result<Sample, RelayError> {
        let load = self.load(entry, kind, block);
        let balancer = entry.contestant.balancer();
        let used = || Used::read(&entry.name, &balancer, &self.field.shards);
        let (outcome, before, after) = load::run(&load, self.interrupt, used).map_err(|source| match source {
            LoadError::Interrupted => RelayError::Interrupted,
            source => RelayError::Load { contestant: entry.name.clone(), source },
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
            load_cpu_seconds: outcome.own_cpu.as_secs_f64(),
            host_cpu_seconds: host.busy.as_secs_f64(),
            stolen_seconds: host.stolen.as_secs_f64(),
            latency_micros: latency(&outcome),
            errors: outcome.errors,
        })
    }

    fn load(&self, entry: &Entry<'_>, kind: LoadKind, block: usize) -> Load {
        let settings = self.settings;
        let (connections, answer_bytes) = match kind {
            LoadKind::Bulk => (settings.bulk_connections, settings.bulk_bytes),
            _ => (settings.connections, settings.answer_bytes),
        };
        let shape = match kind {
            LoadKind::KeepAlive | LoadKind::Bulk => Shape::KeepAlive,
            LoadKind::Connections => Shape::ConnectionPerRequest,
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

fn latency(outcome: &Outcome) -> Latency {
    let micros = |quantile: f64| outcome.latency.value_at_quantile(quantile) as f64 / 1000.0;
    Latency { p50: micros(0.5), p90: micros(0.9), p99: micros(0.99), p999: micros(0.999), max: micros(1.0) }
}
