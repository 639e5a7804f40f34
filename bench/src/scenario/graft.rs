//! `sherd-bench graft`: how long a program in a container waits for listen(2) while a listener is put in the place of its
//! socket, and how many a second there can be; owns the order of things and leaves nothing running.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::unistd::Pid;

use super::{
    ComparisonError,
    told::Told,
    trial::{Bystanders, TrialOptions, at_most},
};
use crate::{
    analysis::{Verdict, VerdictWord},
    contestant::{Contestant, Engine, Ground, Group, GroupLaunch, GroupPath, Image, Server},
    interrupt::Interrupt,
    report::{Findings, Progress, Series},
    shard::relisten::{AT_ONCE, Listens, PACED},
};

const CONNECTIONS: usize = 64;
/// How long the host is looked at before.
const BEFORE: Duration = Duration::from_millis(500);
/// How long all calls of a round may take.
const DEADLINE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(200);
const WITHIN_MILLIS: f64 = 1.0;

/// What a run is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What every trial is told.
    pub trial: TrialOptions,
    /// How often a group is started.
    pub rounds: usize,
    /// How often each of its shards listens, of either kind.
    pub listens: usize,
}

/// What all shards of all rounds told.
#[derive(Default)]
struct Found {
    paced: Vec<f64>,
    at_once: Vec<f64>,
    per_second: Vec<f64>,
    calls: usize,
    grafted: usize,
    foreign_percent: Vec<f64>,
}

/// Runs it and reports.
pub fn run(
    options: &Options,
    scratch: &Path,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Findings, ComparisonError> {
    let started = SystemTime::now();
    let trial = &options.trial;
    let (engine, _) = Engine::open(&trial.docker, scratch)?;
    let image =
        Image::make(&engine, Server::Shard, scratch)?.with_arguments(&["--relisten", &options.listens.to_string()]);
    let (mut found, mut told) = (Found::default(), Told::default());
    progress.restart();
    for round in 0..options.rounds {
        progress.step(round, options.rounds, "shards listen and close");
        if interrupt.is_raised() {
            return Err(ComparisonError::Interrupted);
        }
        let others = Bystanders::of(vec![Pid::this()])?;
        thread::sleep(BEFORE);
        found.foreign_percent.push(others.percent()?);
        let scratch = scratch.join(format!("round-{round}"));
        let group = start(trial, &scratch, Ground { engine: &engine, image: &image, cpus: &trial.cpus })?;
        found.take(&engine, trial.cpus.len(), interrupt)?;
        if round == 0 {
            told.contestants.push(group.facts().clone());
        }
    }
    progress.clear();
    found.conclude(trial.cpus.len(), &mut told);
    told.report("graft", &trial.origin, started)
}

fn start(trial: &TrialOptions, scratch: &Path, ground: Ground<'_>) -> Result<Group, ComparisonError> {
    std::fs::create_dir_all(scratch).map_err(ComparisonError::Host)?;
    Ok(Group::start(GroupLaunch {
        path: GroupPath::Direct,
        program: trial.sherd.as_deref(),
        scratch,
        ground,
        connections: CONNECTIONS,
        trial: None,
    })?)
}

impl Found {
    /// What the shards that run now write, when all of them are through.
    fn take(&mut self, engine: &Engine, shards: usize, interrupt: &Interrupt) -> Result<(), ComparisonError> {
        let began = Instant::now();
        let (paced, at_once) = loop {
            let logs = engine.all_logs().map_err(ComparisonError::Host)?;
            let of = |kind| -> Vec<Listens> { logs.iter().filter_map(|log| Listens::read(log, kind)).collect() };
            let told = (of(PACED), of(AT_ONCE));
            if told.0.len() == shards && told.1.len() == shards {
                break told;
            }
            if interrupt.is_raised() {
                return Err(ComparisonError::Interrupted);
            }
            if began.elapsed() > DEADLINE {
                return Err(ComparisonError::InVain { what: "the end of all calls of listen(2)", deadline: DEADLINE });
            }
            thread::sleep(STEP);
        };
        for listens in paced.iter().chain(&at_once) {
            self.calls += listens.micros.len();
            self.grafted += listens.grafted;
        }
        self.per_second.push(at_once.iter().map(|listens| listens.micros.len() as f64 / listens.seconds).sum());
        self.paced.extend(paced.iter().flat_map(|listens| &listens.micros).map(|micros| micros / 1e3));
        self.at_once.extend(at_once.iter().flat_map(|listens| &listens.micros).map(|micros| micros / 1e3));
        Ok(())
    }

    fn conclude(self, shards: usize, told: &mut Told) {
        let paced = Series::new(format!("ms of listen(2), one each 5 ms, in {shards} shards at once"), self.paced);
        let target = "ms of listen(2), 99 of 100";
        told.verdicts.push(at_most(target, &paced, 0.99, WITHIN_MILLIS, &self.foreign_percent));
        let all = self.grafted == self.calls;
        told.verdicts.push(Verdict {
            target: "every listen(2) gets a listener of the published port".into(),
            found: format!("{} of {}", self.grafted, self.calls),
            word: if all { VerdictWord::Held } else { VerdictWord::NotHeld },
            because: None,
        });
        told.series.extend([
            paced,
            Series::new("ms of listen(2), one after the other", self.at_once),
            Series::new("grafts a second, with socket, bind and close, all shards", self.per_second),
            Series::new("% of the CPU time used by others before", self.foreign_percent),
        ]);
    }
}
