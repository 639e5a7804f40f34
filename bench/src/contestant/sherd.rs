//! sherd's relay path, by its public interfaces alone: an agent of its own with directories of its own, a group of
//! process shards given by a specification. The shards it starts are those of all contestants.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use nix::unistd::Pid;

use super::{
    Contestant, Facts, StartError,
    agent::{Agent, AgentLaunch, GROUP},
    free_address,
};
use crate::{load::fetch, measure::cpus, shard::Announcement};

/// Its name in tables.
pub const NAME: &str = "sherd";

const GROUP_DEADLINE: Duration = Duration::from_secs(30);

/// A running agent with its group; dropping it stops the group and ends the agent.
#[derive(Debug)]
pub struct Sherd {
    facts: Facts,
    addresses: [SocketAddr; 1],
    shards: Vec<Announcement>,
    agent: Agent,
}

impl Sherd {
    /// Starts the agent and one shard on each of `cpus`. `connections` is what each slot must be able to hold, `scratch` the
    /// run's own directory.
    pub fn start(
        program: Option<&Path>,
        scratch: &Path,
        cpus: &[usize],
        connections: usize,
    ) -> Result<Self, StartError> {
        let fail = |source| StartError::Failed { name: NAME.into(), action: "be given its files".into(), source };
        // Below the run's name: whoever sweeps up after it finds what bears this.
        let run = scratch.file_name().unwrap_or_default().to_string_lossy();
        let instance = format!("{run}-processes");
        let directory = scratch.join(NAME);
        let mut agent = Agent::start(AgentLaunch {
            name: NAME,
            program,
            instance: &instance,
            docker: None,
            metrics: None,
            directory,
        })?;
        let address = free_address().map_err(fail)?;
        let announced = scratch.join("sherd-shards");
        fs::create_dir(&announced).map_err(fail)?;
        let shard = std::env::current_exe().map_err(fail)?;
        let text = specification_text(&shard, &announced, address, cpus, connections);
        agent.apply(&text)?;
        let shards = agent.wait_until("its shards announced themselves", GROUP_DEADLINE, |_| {
            Announcement::read_all(&announced).ok().filter(|shards| shards.len() == cpus.len())
        })?;
        agent.wait_until("its published port answered", GROUP_DEADLINE, |_| fetch(address, 1).ok())?;
        let facts = Facts {
            name: NAME.into(),
            version: agent.version().into(),
            program: Some(agent.program().to_owned()),
            configuration: text,
        };
        Ok(Self { facts, addresses: [address], shards, agent })
    }

    /// The shards it started.
    pub fn shards(&self) -> &[Announcement] {
        &self.shards
    }
}

impl Contestant for Sherd {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The agent: its relay workers are threads of it. What supervises the shards is not in any connection's way.
    fn balancer(&self) -> Vec<Pid> {
        vec![self.agent.pid()]
    }
}

fn specification_text(
    shard: &Path,
    announced: &Path,
    address: SocketAddr,
    cpus: &[usize],
    connections: usize,
) -> String {
    let command = [shard.display().to_string(), "shard".into(), "--announce".into(), announced.display().to_string()];
    // A TOML basic string is written as a JSON string is.
    let command = serde_json::to_string(&command).expect("texts are JSON");
    format!(
        "name = \"{GROUP}\"\ndrain = \"2s\"\nstop_grace = \"2s\"\n\n[layout]\nunit = \"pu\"\nshards = {count}\ncpus = \"{cpus}\"\n\n\
         [process]\ncommand = {command}\n\n\
         [[ports]]\npublish = \"{address}:80\"\nloopback = true\n\n\
         [relay]\nmax_connections = {connections}\n",
        count = cpus.len(),
        cpus = cpus::list(cpus),
    )
}
