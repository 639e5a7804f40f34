//! A group of sherd's after any specification, with an agent of its own; by its public interfaces alone.

use std::{fs, io, net::SocketAddr, path::Path, time::Duration};

use nix::unistd::Pid;
use serde_json::Value;

use super::{
    Contestant, Facts, StartError,
    agent::{Agent, AgentLaunch},
    engine::Engine,
    group::{GroupPath, check_path, is_ready, pid},
};
use crate::{
    keeper::descendants,
    measure::cpus::{self, nodes_of, parse_list},
};

/// From the end of `sherd apply --wait` until all is as it was asked for.
const DEADLINE: Duration = Duration::from_secs(60);

/// How to start one.
#[derive(Debug, Clone, Copy)]
pub struct Placement<'a> {
    /// In tables; also the name of its directory.
    pub name: &'a str,
    /// The `sherd` program, where there is one.
    pub program: Option<&'a Path>,
    /// For the agent's files.
    pub scratch: &'a Path,
    /// The agent's name among all of the host.
    pub instance: &'a str,
    /// Where containers run; none for processes.
    pub docker: Option<&'a Path>,
    /// Of a group with the name [`GROUP`](super::GROUP).
    pub specification: &'a str,
    /// Where that publishes.
    pub address: SocketAddr,
    /// How many slots it has.
    pub slots: usize,
    /// The path on which it must be; any, if none is named.
    pub path: Option<GroupPath>,
}

/// A running group; dropping it stops it and ends its agent.
#[derive(Debug)]
pub struct Placed {
    facts: Facts,
    addresses: [SocketAddr; 1],
    slots: Vec<Value>,
    /// First processes of shards and what they have started.
    shards: Vec<Pid>,
    agent: Agent,
}

impl Placed {
    /// Starts an agent and its group; whether that answers as it should is not asked.
    pub fn start(placement: Placement<'_>) -> Result<Self, StartError> {
        let Placement { name, specification, .. } = placement;
        let mut agent = Agent::start(AgentLaunch {
            name,
            program: placement.program,
            instance: placement.instance,
            docker: placement.docker,
            metrics: None,
            directory: placement.scratch.join(name),
        })?;
        agent.apply(specification)?;
        let slots = agent.wait_until("its slots were ready", DEADLINE, |client| {
            client.slots().ok().filter(|slots| slots.len() == placement.slots && slots.iter().all(is_ready))
        })?;
        if let Some(path) = placement.path {
            check_path(name, path, &slots)?;
        }
        let facts = Facts {
            name: name.into(),
            version: agent.version().into(),
            program: Some(agent.program().to_owned()),
            configuration: specification.into(),
        };
        let mut placed = Self { facts, addresses: [placement.address], slots, shards: Vec::new(), agent };
        placed.shards = placed.processes();
        Ok(placed)
    }

    /// Gives the group another specification that replaces no shard, as one with another policy does not.
    pub fn change(&mut self, specification: &str) -> Result<(), StartError> {
        self.agent.apply(specification)
    }

    /// Fails if a shard was started again or is on another path: then it was not measured as what it was at the start.
    pub fn check(&mut self) -> Result<(), StartError> {
        let slots = self.agent.wait_until("its slots could be asked", DEADLINE, |client| client.slots().ok())?;
        let of = |slot: &Value| (slot["slot"].clone(), pid(slot), slot["path"].clone());
        if slots.iter().map(of).eq(self.slots.iter().map(of)) {
            return Ok(());
        }
        Err(StartError::Failed {
            name: self.facts.name.clone(),
            action: "be believed".into(),
            source: io::Error::other("a shard was started again, or changed its path, while it was measured"),
        })
    }

    /// The path that the slots are on; `mixed`, with the first reason, if they aren't on one.
    pub fn path(&self) -> String {
        let of = |slot: &Value| slot["path"].as_str().unwrap_or("unknown").to_owned();
        let first = self.slots.first().map_or_else(|| "unknown".into(), of);
        let reason = self.slots.iter().find_map(|slot| slot["path_reason"].as_str());
        let name = if self.slots.iter().all(|slot| of(slot) == first) { first } else { "mixed".into() };
        reason.map_or_else(|| name.clone(), |reason| format!("{name}, {reason}"))
    }

    /// Its shards' processes when it had started.
    pub fn shards(&self) -> &[Pid] {
        &self.shards
    }

    /// Its shards' processes now: first ones, and what they have started.
    pub fn processes(&self) -> Vec<Pid> {
        let first: Vec<Pid> = self.slots.iter().filter_map(pid).collect();
        first.iter().flat_map(|pid| [vec![*pid], descendants(*pid)].concat()).collect()
    }

    /// The agent's own process.
    pub fn agent(&self) -> Pid {
        self.agent.pid()
    }

    /// Lets every shard run on all of `cpus`. The agent would undo it: it has to be stopped.
    pub fn unpin(&self, engine: &Engine, cpus: &[usize]) -> Result<(), StartError> {
        let failed =
            |source| StartError::Failed { name: self.facts.name.clone(), action: "be unpinned".into(), source };
        let nodes = nodes_of(cpus).map_err(failed)?;
        for container in self.slots.iter().filter_map(|slot| slot["shard"].as_str()) {
            engine.confine_to(container, &cpus::list(cpus), &cpus::list(&nodes)).map_err(failed)?;
        }
        for pid in &self.shards {
            let allowed = allowed_cpus(*pid).map_err(failed)?;
            if allowed != cpus {
                let what = format!("process {pid} may use CPUs {} and not {}", cpus::list(&allowed), cpus::list(cpus));
                return Err(failed(io::Error::other(what)));
            }
        }
        Ok(())
    }
}

impl Contestant for Placed {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The agent and what it started, but for shards.
    fn balancer(&self) -> Vec<Pid> {
        let shards = self.processes();
        let started = descendants(self.agent.pid());
        [self.agent.pid()].into_iter().chain(started.into_iter().filter(|pid| !shards.contains(pid))).collect()
    }
}

/// CPUs that a process may use, from `Cpus_allowed_list` of /proc/PID/status.
fn allowed_cpus(pid: Pid) -> io::Result<Vec<usize>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    parse_list(list.unwrap_or_default()).map_err(io::Error::other)
}
