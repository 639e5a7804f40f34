//! What trials of one behaviour have in common: containers behind an agent of sherd's own, a load that is half of what they
//! bear, and what else the host does meanwhile; owns the group, and knows no target.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::unistd::Pid;

pub use self::bounds::at_most;
pub(super) use self::{bystanders::Bystanders, signals::Stopped};
use super::ComparisonError;
use crate::{
    analysis::Verdict,
    contestant::{Contestant, Engine, Ground, Group, GroupLaunch, GroupPath, Image, Server, Trial},
    interrupt::Interrupt,
    load::{self, Asks, Load, Outcome, Shape, VisitPlan},
    measure::{HostFacts, raise_open_files},
    report::{Findings, Origin, Progress, Series, utc},
};

mod bounds;
mod bystanders;
pub(super) mod signals;

/// Of all answers.
const ANSWER_BYTES: usize = 128;
/// Connections at a time when the maximum is looked for.
const CONNECTIONS: usize = 64;
/// What each slot's relay must be able to hold: in an open loop also those that wait.
const RELAY_CONNECTIONS: usize = 8192;
const OPEN_FILES: u64 = 20_000;
/// Of one stall or death, whoever forgets to end it.
const LONGEST_VISITS: Duration = Duration::from_secs(60);
const WARM_UP: Duration = Duration::from_millis(200);
/// How often an interruptible wait looks up.
const STEP: Duration = Duration::from_millis(50);

/// What every trial is told.
#[derive(Debug, Clone)]
pub struct TrialOptions {
    /// CPUs of shards: one on each.
    pub cpus: Vec<usize>,
    /// CPUs of the load: one thread on each.
    pub load_cpus: Vec<usize>,
    /// The engine's socket.
    pub docker: PathBuf,
    /// The `sherd` program, where there is one.
    pub sherd: Option<PathBuf>,
    /// Of arrivals.
    pub seed: u64,
    /// What the report says of where it comes from.
    pub origin: Origin,
}

/// What a trial's group is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) path: GroupPath,
    pub(super) policy: &'static str,
    /// The engine is the run's own.
    pub(super) on_own_engine: bool,
}

/// A group that answers, and whom to ask.
pub(super) struct Field<'a> {
    pub(super) options: &'a TrialOptions,
    pub(super) interrupt: &'a Interrupt,
    pub(super) group: Group,
    started: SystemTime,
}

impl<'a> Field<'a> {
    pub(super) fn start(
        options: &'a TrialOptions,
        policy: &'static str,
        scratch: &Path,
        progress: &mut Progress,
        interrupt: &'a Interrupt,
    ) -> Result<Self, ComparisonError> {
        let setting = Setting { path: GroupPath::Direct, policy, on_own_engine: false };
        Self::start_as(setting, options, scratch, progress, interrupt)
    }

    /// On either path.
    pub(super) fn start_as(
        setting: Setting,
        options: &'a TrialOptions,
        scratch: &Path,
        progress: &mut Progress,
        interrupt: &'a Interrupt,
    ) -> Result<Self, ComparisonError> {
        let Setting { path, policy, on_own_engine } = setting;
        let started = SystemTime::now();
        raise_open_files(OPEN_FILES).map_err(|errno| ComparisonError::Host(errno.into()))?;
        progress.say("starting an agent and its containers");
        let (engine, _) = Engine::open(&options.docker, scratch)?;
        let image = Image::make(&engine, Server::Shard, scratch)?;
        let group = Group::start(GroupLaunch {
            path,
            program: options.sherd.as_deref(),
            scratch,
            ground: Ground { engine: &engine, image: &image, cpus: &options.cpus },
            connections: RELAY_CONNECTIONS,
            trial: Some(Trial { policy, on_own_engine }),
        })?;
        Ok(Self { options, interrupt, group, started })
    }

    /// A connection for each request, as many as can be had, for so long.
    pub(super) fn saturate(&self, duration: Duration) -> Result<Outcome, ComparisonError> {
        let load = Load {
            targets: self.group.addresses().to_vec(),
            connections: CONNECTIONS,
            answer_bytes: ANSWER_BYTES,
            shape: Shape::ConnectionPerRequest,
            cpus: self.options.load_cpus.clone(),
            warm_up: WARM_UP,
            duration,
        };
        let (outcome, (), ()) = load::run(&load, self.interrupt, || ()).map_err(|source| match source {
            load::LoadError::Interrupted => ComparisonError::Interrupted,
            source => self.load_error(source),
        })?;
        Ok(outcome)
    }

    /// Half of what was just found to be the maximum.
    pub(super) fn half_load(&self, maximum: &Outcome) -> VisitPlan {
        VisitPlan {
            target: self.group.addresses()[0],
            asks: Asks::Bytes(ANSWER_BYTES),
            visits_per_second: (maximum.requests_per_second() / 2.0).max(1.0),
            cpus: self.options.load_cpus.clone(),
            seed: self.options.seed,
            longest: LONGEST_VISITS,
        }
    }

    pub(super) fn load_error(&self, source: load::LoadError) -> ComparisonError {
        ComparisonError::Load { contestant: self.group.facts().name.clone(), source }
    }

    /// All processes of the run.
    pub(super) fn processes(&self) -> Vec<Pid> {
        let shards = self.group.shards().iter().copied();
        self.group.balancer().into_iter().chain(shards).chain([Pid::this()]).collect()
    }

    /// Waits, unless somebody wants the run to end.
    pub(super) fn pause(&self, duration: Duration) -> Result<(), ComparisonError> {
        let until = Instant::now() + duration;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if self.interrupt.is_raised() {
                return Err(ComparisonError::Interrupted);
            }
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(STEP));
        }
    }

    /// Waits until `condition` holds.
    pub(super) fn wait_until(
        &self,
        what: &'static str,
        deadline: Duration,
        mut condition: impl FnMut() -> Result<bool, ComparisonError>,
    ) -> Result<(), ComparisonError> {
        let start = Instant::now();
        while !condition()? {
            if start.elapsed() > deadline {
                return Err(ComparisonError::InVain { what, deadline });
            }
            self.pause(STEP)?;
        }
        Ok(())
    }

    pub(super) fn report(
        &self,
        scenario: &'static str,
        series: Vec<Series>,
        remarks: Vec<String>,
        verdicts: Vec<Verdict>,
    ) -> Result<Findings, ComparisonError> {
        Ok(Findings {
            scenario: scenario.into(),
            origin: self.options.origin.clone(),
            started: utc(self.started),
            took_seconds: self.started.elapsed().map_or(0.0, |took| took.as_secs_f64()),
            host: HostFacts::read().map_err(ComparisonError::Host)?,
            contestants: vec![self.group.facts().clone()],
            series,
            timelines: Vec::new(),
            remarks,
            verdicts,
        })
    }
}

/// For figures of reports.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
