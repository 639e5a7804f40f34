//! A group of containers of sherd's, on either of its paths, with an agent of its own; by its public interfaces alone.

use std::{io, net::SocketAddr, path::Path, time::Duration};

use nix::unistd::Pid;
use serde_json::Value;

use super::{
    Contestant, Facts, StartError,
    agent::{Agent, AgentLaunch, GROUP},
    containers::Ground,
    free_address,
};
use crate::{keeper::descendants, load::fetch, measure::cpus};

const GROUP_DEADLINE: Duration = Duration::from_secs(30);

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
    const fn word(self) -> &'static str {
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

/// A running group; dropping it stops it and ends its agent.
#[derive(Debug)]
pub struct Group {
    facts: Facts,
    addresses: [SocketAddr; 1],
    shards: Vec<Pid>,
    agent: Agent,
}

impl Group {
    /// Starts an agent and one container on each CPU. `connections` is what each slot must be able to hold.
    pub fn start(
        path: GroupPath,
        program: Option<&Path>,
        scratch: &Path,
        ground: Ground<'_>,
        connections: usize,
    ) -> Result<Self, StartError> {
        let name = path.name();
        let fail = |source| StartError::Failed { name: name.into(), action: "be given a port".into(), source };
        // Below the run's name: whoever sweeps up after it finds what bears this.
        let instance = format!("{}-{}", ground.engine.run_name(), path.word());
        let mut agent = Agent::start(AgentLaunch {
            name,
            program,
            instance: &instance,
            docker: Some(ground.engine.socket()),
            directory: scratch.join(name),
        })?;
        let address = free_address().map_err(fail)?;
        let text = specification(path, ground, address, connections);
        agent.apply(&text)?;
        let slots = agent.wait_until("its slots were ready", GROUP_DEADLINE, |client| {
            client.slots().ok().filter(|slots| slots.len() == ground.cpus.len() && slots.iter().all(is_ready))
        })?;
        check_path(path, &slots)?;
        agent.wait_until("its published port answered", GROUP_DEADLINE, |_| fetch(address, 1).ok())?;
        let facts = Facts {
            name: name.into(),
            version: agent.version().into(),
            program: Some(agent.program().to_owned()),
            configuration: text,
        };
        Ok(Self { facts, addresses: [address], shards: slots.iter().filter_map(pid).collect(), agent })
    }

    /// The containers' first processes.
    pub fn shards(&self) -> &[Pid] {
        &self.shards
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
}

fn is_ready(slot: &Value) -> bool {
    slot["ready"] == true && pid(slot).is_some()
}

fn pid(slot: &Value) -> Option<Pid> {
    slot["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw)
}

/// A slot that fell back to its relay would be measured as what it is not.
fn check_path(path: GroupPath, slots: &[Value]) -> Result<(), StartError> {
    let Some(other) = slots.iter().find(|slot| slot["path"] != path.word()) else { return Ok(()) };
    let reason = other["path_reason"].as_str().unwrap_or("`sherd ps` tells no reason").to_owned();
    Err(StartError::Failed {
        name: path.name().into(),
        action: format!("be on the {} path", path.word()),
        source: io::Error::other(reason),
    })
}

fn specification(path: GroupPath, ground: Ground<'_>, address: SocketAddr, connections: usize) -> String {
    const PORT: u16 = 80;
    let listens = SocketAddr::from(([0, 0, 0, 0], PORT));
    let command = match path {
        GroupPath::Direct => ground.image.command(listens),
        // No shim is in front of it.
        GroupPath::Relay => ground.image.confined_command(listens),
    };
    // A TOML basic string is written as a JSON string is.
    let command = serde_json::to_string(&command).expect("texts are JSON");
    format!(
        "name = \"{GROUP}\"\npath = \"{path}\"\ndrain = \"1s\"\nstop_grace = \"1s\"\n\n\
         [layout]\nunit = \"pu\"\nshards = {count}\ncpus = \"{cpus}\"\n\n\
         [container]\nimage = \"{image}\"\ncommand = {command}\n\n\
         [[ports]]\npublish = \"{address}:{PORT}\"\n\n\
         [relay]\nmax_connections = {connections}\n",
        path = path.word(),
        count = ground.cpus.len(),
        cpus = cpus::list(ground.cpus),
        image = ground.image.name(),
    )
}
