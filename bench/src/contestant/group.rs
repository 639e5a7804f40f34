//! A group of containers of sherd's, on either of its paths, with an agent of its own; by its public interfaces alone.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::Value;

pub use self::change::{Change, Order};
use super::{
    Api, Contestant, Facts, StartError,
    agent::{Agent, AgentLaunch, GROUP},
    containers::Ground,
    engine::guard,
    free_address,
    metrics::{Metrics, MetricsError},
};
use crate::{keeper::descendants, load::fetch, measure::cpus};

mod change;

pub(super) const GROUP_DEADLINE: Duration = Duration::from_secs(30);
const PATH_DEADLINE: Duration = Duration::from_secs(15);

/// How bytes reach the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupPath {
    /// They accept their connections themselves.
    Direct,
    /// Through workers of the agent.
    Relay,
}

impl GroupPath {
    /// In specifications and in what `ps` tells.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
        }
    }

    /// The contestant's name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "sherd-direct",
            Self::Relay => "sherd-relay",
        }
    }
}

/// How to start a group.
#[derive(Debug, Clone, Copy)]
pub struct GroupLaunch<'a> {
    /// How bytes reach it.
    pub path: GroupPath,
    /// The `sherd` program, where there is one.
    pub program: Option<&'a Path>,
    /// For the agent's files.
    pub scratch: &'a Path,
    /// What its containers are made with.
    pub ground: Ground<'a>,
    /// What each slot must be able to hold.
    pub connections: usize,
    /// For trials: the agent serves metrics, and shards are started again soon.
    pub trial: Option<Trial>,
}

/// What a trial wants of a group that a comparison leaves out.
#[derive(Debug, Clone, Copy)]
pub struct Trial {
    /// How the published port is steered.
    pub policy: &'static str,
    /// The engine is the run's own: it has no bridge, and is stopped under its containers.
    pub on_own_engine: bool,
}

/// A running group; dropping it stops it and ends its agent.
#[derive(Debug)]
pub struct Group {
    path: GroupPath,
    facts: Facts,
    addresses: [SocketAddr; 1],
    shards: Vec<Pid>,
    /// How many shards it was started with.
    planned: usize,
    metrics: Option<Metrics>,
    instance: String,
    agent: Agent,
}

impl Group {
    /// Starts an agent and one container on each CPU.
    pub fn start(launch: GroupLaunch<'_>) -> Result<Self, StartError> {
        let GroupLaunch { path, program, scratch, ground, trial, .. } = launch;
        let name = path.name();
        let fail = |source| StartError::Failed { name: name.into(), action: "be given a port".into(), source };
        // Below the run's name: whoever sweeps up after it finds what bears this.
        let instance = format!("{}-{}", ground.engine.run_name(), path.word());
        let metrics = trial.map(|_| free_address()).transpose().map_err(fail)?;
        let mut agent = Agent::start(AgentLaunch {
            name,
            program,
            instance: &instance,
            docker: Some(ground.engine.socket()),
            metrics,
            directory: scratch.join(name),
        })?;
        if let Some(metrics) = metrics {
            // Until it has that port, it is free for the published one too.
            agent.wait_until("its metrics were served", GROUP_DEADLINE, |_| TcpStream::connect(metrics).ok())?;
        }
        let address = free_address().map_err(fail)?;
        let text = specification(&launch, address);
        agent.apply(&text)?;
        let slots = agent.wait_until("its slots were ready", GROUP_DEADLINE, |client| {
            client.slots().ok().filter(|slots| slots.len() == ground.cpus.len() && slots.iter().all(is_ready))
        })?;
        let slots = settle(&mut agent, path, slots)?;
        agent.wait_until("its published port answered", GROUP_DEADLINE, |_| fetch(address, 1).ok())?;
        let facts = Facts {
            name: name.into(),
            version: agent.version().into(),
            program: Some(agent.program().to_owned()),
            configuration: text,
        };
        let shards: Vec<Pid> = slots.iter().filter_map(pid).collect();
        let (planned, metrics) = (shards.len(), metrics.map(Metrics::at));
        Ok(Self { path, facts, addresses: [address], shards, planned, metrics, instance, agent })
    }

    /// The containers' first processes, by slot.
    pub fn shards(&self) -> &[Pid] {
        &self.shards
    }

    /// The group's name.
    pub fn name(&self) -> &'static str {
        GROUP
    }

    /// The agent's API.
    pub fn api(&self) -> Api {
        self.agent.api()
    }

    /// Has it changed; comes back when that has begun.
    pub fn change(&self, change: Change) -> Result<(), StartError> {
        self.agent.change(&change.over(&self.facts.configuration, self.planned))
    }

    /// Ends the agent's process by `signal`, which ends no shard; comes back when it has ended.
    pub fn end_agent(&mut self, signal: Signal) -> Result<(), StartError> {
        self.agent.end_by(signal)
    }

    /// Starts the agent again; comes back at once.
    pub fn begin_agent(&mut self) -> Result<(), StartError> {
        self.agent.begin_again()
    }

    /// Waits until the agent can be asked.
    pub fn wait_for_agent(&mut self) -> Result<(), StartError> {
        self.agent.wait_for_api()
    }

    /// The agent's own process.
    pub fn agent(&self) -> Pid {
        self.agent.pid()
    }

    /// A metric's value for each slot; of a group for a trial.
    pub fn metric(&self, name: &str) -> Result<Vec<f64>, MetricsError> {
        let metrics = self.metrics.as_ref().ok_or(MetricsError::Off)?;
        (0..self.shards.len()).map(|slot| metrics.of_slot(name, slot)).collect()
    }

    /// Waits until every slot serves on its path, none of them with `former` as its process.
    pub fn wait_until_whole(&mut self, former: Option<Pid>) -> Result<(), StartError> {
        let count = self.shards.len();
        let slots = self.agent.wait_until("all its slots were ready again", GROUP_DEADLINE, |client| {
            let slots = client.slots().ok().filter(|slots| slots.len() == count && slots.iter().all(is_ready))?;
            slots.iter().all(|slot| pid(slot) != former).then_some(slots)
        })?;
        check_path(self.path.name(), self.path, &slots)?;
        self.shards = slots.iter().filter_map(pid).collect();
        Ok(())
    }
}

impl Contestant for Group {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The agent and what it started.
    fn balancer(&self) -> Vec<Pid> {
        let mut processes = vec![self.agent.pid()];
        processes.extend(descendants(self.agent.pid()));
        processes
    }

    fn cgroup(&self) -> Option<PathBuf> {
        guard::of_instance(&self.instance)
    }
}

pub(super) fn is_ready(slot: &Value) -> bool {
    slot["ready"] == true && pid(slot).is_some()
}

pub(super) fn pid(slot: &Value) -> Option<Pid> {
    slot["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw)
}

/// A program that has closed its listener is relayed until it listens again; waits for that, and gives the slots then.
fn settle(agent: &mut Agent, path: GroupPath, slots: Vec<Value>) -> Result<Vec<Value>, StartError> {
    if check_path(path.name(), path, &slots).is_ok() {
        return Ok(slots);
    }
    let on_path = |slots: &Vec<Value>| slots.iter().all(is_ready) && check_path(path.name(), path, slots).is_ok();
    let settled =
        agent.wait_until("its slots were on their path", PATH_DEADLINE, |client| client.slots().ok().filter(on_path));
    // The reason why one isn't says more than that the time is over.
    settled.or_else(|_| check_path(path.name(), path, &slots).map(|()| slots))
}

/// A slot that fell back to its relay would be measured as what it is not.
pub(super) fn check_path(name: &str, path: GroupPath, slots: &[Value]) -> Result<(), StartError> {
    let Some(other) = slots.iter().find(|slot| slot["path"] != path.word()) else { return Ok(()) };
    let reason = other["path_reason"].as_str().unwrap_or("`sherd ps` tells no reason").to_owned();
    Err(StartError::Failed {
        name: name.into(),
        action: format!("be on the {} path", path.word()),
        source: io::Error::other(reason),
    })
}

fn specification(launch: &GroupLaunch<'_>, address: SocketAddr) -> String {
    const PORT: u16 = 80;
    let GroupLaunch { path, ground, connections, trial, .. } = launch;
    let listens = SocketAddr::from(([0, 0, 0, 0], PORT));
    let command = match path {
        GroupPath::Direct => ground.image.command(listens),
        // No shim is in front of it.
        GroupPath::Relay => ground.image.confined_command(listens),
    };
    // A TOML basic string is written as a JSON string is.
    let command = serde_json::to_string(&command).expect("texts are JSON");
    // The programs have no handler for SIGTERM: an engine that stops would wait 10 s for each.
    let on_own_engine = trial.is_some_and(|trial| trial.on_own_engine);
    let engine = if on_own_engine { "network = \"none\"\nextra = { StopTimeout = 1 }\n" } else { "" };
    let policy = trial.map(|trial| format!("policy = \"{}\"\n", trial.policy)).unwrap_or_default();
    // A shard that a trial ends is wanted back at once.
    let backoff = if trial.is_some() { "\n[backoff]\nfirst = \"50ms\"\nmax = \"100ms\"\n" } else { "" };
    format!(
        "name = \"{GROUP}\"\npath = \"{path}\"\ndrain = \"1s\"\nstop_grace = \"1s\"\n\n\
         [layout]\nunit = \"pu\"\nshards = {count}\ncpus = \"{cpus}\"\n\n\
         [container]\nimage = \"{image}\"\ncommand = {command}\n{engine}\n\
         [[ports]]\npublish = \"{address}:{PORT}\"\n{policy}\n\
         [relay]\nmax_connections = {connections}\n{backoff}",
        path = path.word(),
        count = ground.cpus.len(),
        cpus = cpus::list(ground.cpus),
        image = ground.image.name(),
    )
}
