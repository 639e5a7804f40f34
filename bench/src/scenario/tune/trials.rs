//! The measurements: rounds in which all that are in run twice, in an order and its mirror image, until it is decided or the
//! time is over; owns samples and what follows from them so far.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

use super::{
    super::{ComparisonError, rounds::latency},
    Burden, Options, TuneError, command,
    field::Field,
};
use crate::{
    analysis::{
        Noise,
        elimination::{self, Advantage, Elimination},
    },
    contestant::{Contestant, Placed},
    interrupt::Interrupt,
    load::{self, Load, LoadError, Outcome, Request, Shape},
    measure::{HostTime, cpu_time},
    report::Progress,
    sample::{Latency, Sample},
    stats::Random,
};

/// A layout with more failed requests than one in so many is out.
const FAILURES: u64 = 100;
/// Fewer rounds decide nothing.
const MIN_ROUNDS: usize = 4;

pub(super) struct Trials<'a> {
    options: &'a Options,
    scratch: &'a Path,
    interrupt: &'a Interrupt,
    pub(super) race: Elimination,
    pub(super) samples: Vec<Sample>,
    pub(super) remarks: Vec<String>,
    /// The second name of the first candidate.
    pub(super) control_name: String,
    /// Logarithms of its scores under either name, while it is in.
    controls: (Vec<f64>, Vec<f64>),
}

/// One that runs in a round: a candidate, under a name of its own.
#[derive(Debug, Clone)]
struct Entry {
    candidate: usize,
    name: String,
}

/// What has been used up to one edge of a window.
struct Used {
    balancer: Duration,
    shards: Duration,
    host: HostTime,
}

impl Used {
    /// Processes that have ended meanwhile, as workers of some servers do, count no more.
    fn read(balancer: &[Pid], shards: &[Pid]) -> Result<Self, ComparisonError> {
        let all = |processes: &[Pid]| processes.iter().filter_map(|pid| cpu_time(&[*pid]).ok()).sum();
        Ok(Self {
            balancer: all(balancer),
            shards: all(shards),
            host: HostTime::read().map_err(ComparisonError::Host)?,
        })
    }
}

impl<'a> Trials<'a> {
    pub(super) fn new(options: &'a Options, field: &Field, scratch: &'a Path, interrupt: &'a Interrupt) -> Self {
        let names = field.names();
        Self {
            options,
            scratch,
            interrupt,
            race: Elimination::new(names.len(), options.margin),
            samples: Vec::new(),
            remarks: Vec::new(),
            control_name: format!("{} again", names[0]),
            controls: (Vec::new(), Vec::new()),
        }
    }

    /// Puts each layout under load once, which nobody counts: it has to answer.
    pub(super) fn warm_up(&self, field: &mut Field, progress: &mut Progress) -> Result<(), TuneError> {
        let names = field.names();
        for candidate in field.one_of_each_group() {
            progress.say(&format!("warming up {}", names[candidate]));
            let placed = field.ready(candidate, self.options)?;
            let sample = self.sample(placed, &names[candidate], 0, self.options.warm_up)?;
            if sample.requests == 0 && sample.score.is_none() {
                return Err(TuneError::Silent {
                    layout: names[candidate].clone(),
                    failed: sample.errors.values().sum(),
                    cause: sample.errors.into_keys().next().unwrap_or_else(|| "no answer in time".into()),
                });
            }
        }
        Ok(())
    }

    /// Rounds, until it is decided or there is no time for another; the budget began at `clock`.
    pub(super) fn run(&mut self, field: &mut Field, clock: Instant, progress: &mut Progress) -> Result<(), TuneError> {
        let mut random = Random::new(self.options.settings.seed);
        let budget = self.options.budget;
        let mut longest = Duration::ZERO;
        progress.restart();
        let start = clock.elapsed();
        while self.race.leader().is_some() && clock.elapsed() + longest < budget {
            let began = Instant::now();
            let round = self.race.rounds();
            let mut entries = self.entries(&field.names());
            random.shuffle(&mut entries);
            let mut scores = vec![Vec::new(); entries.len()];
            for index in (0..entries.len()).chain((0..entries.len()).rev()) {
                let Entry { candidate, name } = &entries[index];
                let all = budget.saturating_sub(start).as_millis().max(1);
                let spent = (clock.elapsed() - start).as_millis().min(all);
                progress.step(spent as usize, all as usize, &format!("round {}, {name}", round + 1));
                let placed = field.ready(*candidate, self.options)?;
                let duration = Duration::from_secs_f64(self.options.settings.duration_seconds);
                let sample = self.sample(placed, name, round, duration)?;
                scores[index].extend(self.score(*candidate, &sample));
                self.samples.push(sample);
            }
            let decided = self.take(&entries, &scores);
            longest = longest.max(began.elapsed());
            if decided {
                break;
            }
        }
        self.race.finish();
        progress.clear();
        Ok(())
    }

    /// Why nothing should be concluded, if so.
    pub(super) fn complaint(&self, noise: &Noise) -> Option<String> {
        let rounds = self.race.rounds();
        let too_few = (rounds < MIN_ROUNDS && self.race.remaining().len() > 1)
            .then(|| format!("{rounds} rounds are too few, {MIN_ROUNDS} would do: give a longer --budget"));
        let off = self.control().filter(|control| !control.includes(1.0)).map(|control| {
            let Advantage { low, high, .. } = control;
            format!("the control, which should be 1, is {low:.3}–{high:.3}")
        });
        noise.complaint().or(too_few).or(off)
    }

    /// The first candidate against itself.
    pub(super) fn control(&self) -> Option<Advantage> {
        elimination::control(&self.controls.0, &self.controls.1)
    }

    /// All that are in, the first one under its second name too.
    fn entries(&self, names: &[String]) -> Vec<Entry> {
        let remaining = self.race.remaining();
        let again = remaining.contains(&0).then(|| Entry { candidate: 0, name: self.control_name.clone() });
        let entry = |candidate: usize| Entry { candidate, name: names[candidate].clone() };
        remaining.into_iter().map(entry).chain(again).collect()
    }

    /// Takes a round's scores; gives whether there is no need for another.
    fn take(&mut self, entries: &[Entry], scores: &[Vec<f64>]) -> bool {
        let remaining = self.race.remaining();
        let mut of_round = Vec::new();
        for (Entry { candidate, name }, scores) in entries.iter().zip(scores) {
            // One that failed in this round has no say in it any more.
            if !remaining.contains(candidate) || scores.is_empty() {
                continue;
            }
            let score = scores.iter().sum::<f64>() / scores.len() as f64;
            match *name == self.control_name {
                true => self.controls.1.push(score.ln()),
                false => of_round.push((*candidate, score)),
            }
            if *candidate == 0 && *name != self.control_name {
                self.controls.0.push(score.ln());
            }
        }
        self.race.take(&of_round) != elimination::Progress::Open
    }

    /// How good that was, more is better; none where it failed, which ends its part.
    fn score(&mut self, candidate: usize, sample: &Sample) -> Option<f64> {
        let failed: u64 = sample.errors.values().sum();
        let value = self.options.load.measure().of(sample);
        if let Some(value) = value.filter(|value| *value > 0.0 && failed * FAILURES <= sample.requests) {
            return Some(if self.options.load.lower_is_better() { 1.0 / value } else { value });
        }
        if self.race.remaining().contains(&candidate) {
            let cause = sample.errors.keys().next().map_or("nothing was answered", |cause| cause);
            self.remarks.push(format!(
                "{} is out: {failed} requests failed beside {} that were answered: {cause}",
                sample.contestant, sample.requests
            ));
            self.race.fail(candidate);
        }
        None
    }

    fn sample(&self, placed: &Placed, name: &str, block: usize, duration: Duration) -> Result<Sample, TuneError> {
        let (balancer, shards) = (placed.balancer(), placed.processes());
        let used = || Used::read(&balancer, &shards);
        let address = placed.addresses()[0];
        let (mut sample, before, after) = match &self.options.load {
            Burden::Requests { request, shape } => {
                let load = self.load(address, *shape, block, duration);
                let (outcome, before, after) = self.put_on(&load, request, name, used)?;
                (self.of_outcome(&outcome), before?, after?)
            }
            Burden::Command { command, .. } => {
                let before = (Instant::now(), command::cpu_time(), used()?);
                let cpus = &self.options.settings.load_cpus;
                let score = command::run(command, self.scratch, address, cpus, self.options.budget, self.interrupt)?;
                let own_cpu = command::cpu_time().saturating_sub(before.1);
                let sample = Sample {
                    seconds: before.0.elapsed().as_secs_f64(),
                    load_cpu_seconds: own_cpu.as_secs_f64(),
                    score: Some(score),
                    ..self.nothing()
                };
                (sample, before.2, used()?)
            }
        };
        let host = after.host.since(before.host);
        sample.contestant = name.into();
        sample.block = block;
        sample.balancer_cpu_seconds = Some(after.balancer.saturating_sub(before.balancer).as_secs_f64());
        sample.shard_cpu_seconds = after.shards.saturating_sub(before.shards).as_secs_f64();
        (sample.host_cpu_seconds, sample.stolen_seconds) = (host.busy.as_secs_f64(), host.stolen.as_secs_f64());
        Ok(sample)
    }

    fn put_on<S>(
        &self,
        load: &Load,
        request: &Request,
        name: &str,
        snapshot: impl FnMut() -> S,
    ) -> Result<(Outcome, S, S), ComparisonError> {
        load::run_request(load, request, self.interrupt, snapshot).map_err(|source| match source {
            LoadError::Interrupted => ComparisonError::Interrupted,
            source => ComparisonError::Load { contestant: name.into(), source },
        })
    }

    fn load(&self, address: std::net::SocketAddr, shape: Shape, block: usize, duration: Duration) -> Load {
        let settings = &self.options.settings;
        Load {
            targets: vec![address],
            connections: settings.connections,
            answer_bytes: 0,
            shape: match shape {
                // The same arrivals for all of a round.
                Shape::Open { requests_per_second, seed } => {
                    Shape::Open { requests_per_second, seed: seed.wrapping_add(block as u64) }
                }
                shape => shape,
            },
            cpus: settings.load_cpus.clone(),
            warm_up: Duration::from_secs_f64(settings.warm_up_seconds),
            duration,
        }
    }

    fn of_outcome(&self, outcome: &Outcome) -> Sample {
        Sample {
            seconds: outcome.elapsed.as_secs_f64(),
            requests: outcome.requests,
            body_bytes: outcome.body_bytes,
            errors: outcome.errors.clone(),
            load_cpu_seconds: outcome.own_cpu.as_secs_f64(),
            latency_micros: latency(outcome),
            ..self.nothing()
        }
    }

    fn nothing(&self) -> Sample {
        Sample {
            load: self.options.load.kind(),
            contestant: String::new(),
            block: 0,
            seconds: 0.0,
            requests: 0,
            body_bytes: 0,
            errors: std::collections::BTreeMap::new(),
            balancer_cpu_seconds: None,
            shard_cpu_seconds: 0.0,
            load_cpu_seconds: 0.0,
            host_cpu_seconds: 0.0,
            stolen_seconds: 0.0,
            context_switches: None,
            latency_micros: Latency { p50: 0.0, p90: 0.0, p99: 0.0, p999: 0.0, max: 0.0 },
            score: None,
        }
    }
}
