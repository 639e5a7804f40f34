//! The group that faults happen to: one of the run's own, or one of an agent that runs; asks about it and changes nothing.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::unistd::Pid;

use super::{Options, RunningGroup, schedule::Kind};
use crate::{
    contestant::{Api, Contestant, GroupPath, GroupState, OwnEngine, SlotState},
    interrupt::Interrupt,
    load::{Asks, KeepPlan, Kept, VisitPlan, Visits, fetch},
    report::Progress,
    scenario::{
        ComparisonError,
        trial::{Field, Setting, TrialOptions},
    },
};

/// Between two requests of a kept connection, and how long one is used.
const KEPT_GAP: Duration = Duration::from_millis(50);
const KEPT_LIFE: Duration = Duration::from_secs(4);
/// Of a running group's check.
const CHECK: Duration = Duration::from_millis(400);
const CHECK_VISITS_PER_SECOND: f64 = 20.0;
/// What visits and kept connections of the run's own group ask for.
const ANSWER_BYTES: usize = 128;

/// The group, and whom to ask.
pub(super) struct Target<'a> {
    pub(super) api: Api,
    pub(super) group: String,
    pub(super) address: SocketAddr,
    pub(super) path: GroupPath,
    pub(super) slots: usize,
    /// Of visits.
    pub(super) asks: Asks,
    /// Of kept connections.
    pub(super) kept_path: String,
    /// Its containers' engine's socket; None for processes.
    pub(super) engine: Option<PathBuf>,
    /// The run's own group, which ends before its engine.
    pub(super) field: Option<Field<'a>>,
    pub(super) own_engine: Option<OwnEngine>,
}

impl<'a> Target<'a> {
    /// A group of the run's own on `path`; `engine` is the run's own one, where it needs that.
    pub(super) fn own(
        trial: &'a TrialOptions,
        path: GroupPath,
        own_engine: Option<OwnEngine>,
        scratch: &Path,
        progress: &mut Progress,
        interrupt: &'a Interrupt,
    ) -> Result<Self, ComparisonError> {
        let setting = Setting { path, policy: "connection", on_own_engine: own_engine.is_some() };
        let field = Field::start_as(setting, trial, scratch, progress, interrupt)?;
        Ok(Self {
            api: field.group.api(),
            group: field.group.name().to_owned(),
            address: field.group.addresses()[0],
            path,
            slots: trial.cpus.len(),
            asks: Asks::Bytes(ANSWER_BYTES),
            kept_path: format!("/{ANSWER_BYTES}?slot"),
            engine: Some(trial.docker.clone()),
            field: Some(field),
            own_engine,
        })
    }

    /// A group of an agent that runs.
    pub(super) fn running(options: &Options, running: &RunningGroup) -> Result<Self, ComparisonError> {
        let api = Api::at(&running.socket);
        let state = group_state(&api, &running.group)?;
        let refused = |why: &str| ComparisonError::Group { group: running.group.clone(), why: why.to_owned() };
        let Some(port) = state.ports.first() else {
            return Err(refused("it publishes no port, so nobody can connect"));
        };
        let mut address = port.address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv6() { [0, 0, 0, 0, 0, 0, 0, 1].into() } else { [127, 0, 0, 1].into() });
        }
        if !state.slots.iter().all(|slot| slot.ready) || state.slots.is_empty() {
            return Err(refused("not all its slots are ready: see `sherd ps`"));
        }
        let is_direct = state.slots.iter().any(|slot| slot.path.as_deref() == Some("direct"));
        let engine = (state.runtime == "docker").then(|| options.trial.docker.clone());
        let impossible = |kind: &&Kind| options.named && kind.needs_an_engine() && engine.is_none();
        if let Some(kind) = options.kinds.iter().find(impossible) {
            return Err(refused(&format!(
                "it runs processes, and {} is for containers: leave it out of --faults",
                kind.name()
            )));
        }
        Ok(Self {
            api,
            group: running.group.clone(),
            address,
            path: if is_direct { GroupPath::Direct } else { GroupPath::Relay },
            slots: state.slots.len(),
            asks: Asks::Path(running.path.clone()),
            kept_path: running.path.clone(),
            engine,
            field: None,
            own_engine: None,
        })
    }

    /// What its agent says of a slot.
    pub(super) fn slot(&self, number: u32) -> Result<SlotState, ComparisonError> {
        let slots = group_state(&self.api, &self.group)?.slots;
        let missing = || ComparisonError::Group { group: self.group.clone(), why: format!("it has no slot {number}") };
        slots.into_iter().find(|slot| slot.slot == number).ok_or_else(missing)
    }

    /// All processes of its shards.
    pub(super) fn shards(&self) -> Result<Vec<Pid>, ComparisonError> {
        Ok(group_state(&self.api, &self.group)?.slots.iter().filter_map(SlotState::process).collect())
    }

    /// Its agent's process.
    pub(super) fn agent(&self) -> Result<Pid, ComparisonError> {
        Ok(self.api.status()?.process())
    }

    /// Whether all its slots serve, and nothing is under way.
    pub(super) fn is_whole(&self) -> bool {
        let state = group_state(&self.api, &self.group);
        state.is_ok_and(|state| {
            state.slots.len() == self.slots && state.slots.iter().all(|slot| slot.ready && slot.is_settled())
        })
    }

    /// Whether it answers, before anything is done to it.
    pub(super) fn check(&self, options: &Options) -> Result<(), ComparisonError> {
        match &self.asks {
            Asks::Bytes(bytes) => fetch(self.address, *bytes)
                .map(drop)
                .map_err(|source| ComparisonError::Wrong { contestant: self.group.clone(), source }),
            Asks::Path(path) => self.check_as_clients_do(options, path),
        }
    }

    /// A few visits and one kept connection, as the load's.
    fn check_as_clients_do(&self, options: &Options, path: &str) -> Result<(), ComparisonError> {
        let fail = |source| ComparisonError::Load { contestant: self.group.clone(), source };
        let refused = |why: String| ComparisonError::Group { group: self.group.clone(), why };
        let (mut visits, mut kept) = (self.visits(options, CHECK), self.kept(options, CHECK));
        visits.visits_per_second = CHECK_VISITS_PER_SECOND;
        kept.connections = kept.connections.min(1);
        let (visits, kept) = (Visits::start(&visits), Kept::start(&kept));
        thread::sleep(CHECK);
        let (visits, kept) = (visits.finish().map_err(fail)?, kept.finish().map_err(fail)?);
        if let Some(failure) = visits.into_iter().find_map(|visit| visit.failure) {
            let (address, error) = (self.address, failure.error);
            return Err(refused(format!(
                "GET {path} at {address} fails: {error}; --get says what its clients ask for"
            )));
        }
        if let Some(lost) = kept.lost.first() {
            let error = &lost.failure.error;
            return Err(refused(format!(
                "a kept connection fails: {error}; --kept 0 does without, or ask for something else by --get"
            )));
        }
        Ok(())
    }

    /// Connections with one request each.
    pub(super) fn visits(&self, options: &Options, longest: Duration) -> VisitPlan {
        VisitPlan {
            target: self.address,
            asks: self.asks.clone(),
            visits_per_second: options.visits_per_second,
            cpus: options.trial.load_cpus.clone(),
            seed: options.trial.seed,
            longest,
        }
    }

    /// Connections that are asked again and again.
    pub(super) fn kept(&self, options: &Options, longest: Duration) -> KeepPlan {
        KeepPlan {
            target: self.address,
            path: self.kept_path.clone(),
            connections: options.kept,
            gap: KEPT_GAP,
            life: KEPT_LIFE,
            patience: options.patience,
            cpus: options.trial.load_cpus.clone(),
            longest,
        }
    }
}

/// An engine of the run's own, if a fault is one of the engine's.
pub(super) fn own_engine(options: &Options, scratch: &Path) -> Result<Option<OwnEngine>, ComparisonError> {
    let is_needed = options.kinds.contains(&Kind::EngineRestart);
    Ok(is_needed.then(|| OwnEngine::start(scratch)).transpose()?)
}

fn group_state(api: &Api, group: &str) -> Result<GroupState, ComparisonError> {
    let missing = || ComparisonError::Group {
        group: group.to_owned(),
        why: format!("the agent at {} has none of that name: see `sherd ps`", api.socket().display()),
    };
    api.status()?.into_group(group).ok_or_else(missing)
}

/// Where an engine is, for those that need one.
pub(super) fn engine_of(target: &Target<'_>) -> io::Result<PathBuf> {
    target.engine.clone().ok_or_else(|| io::Error::other("the group has no container engine"))
}
