//! Containers of a run without sherd, one pinned to each CPU and confined as behind sherd's shim; owns them, and knows neither
//! load nor balancer.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

use super::{
    Contestant, Facts, StartError,
    engine::{Engine, Network, Order},
    free_address,
    image::{Image, confined},
};
use crate::{keeper::descendants, load::fetch, measure::cpus};

/// How long a container may take from its start to its first answer.
const DEADLINE: Duration = Duration::from_secs(20);
/// Where servers listen in a network of their own.
pub(super) const PORT: u16 = 80;

/// What containers are made with.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// Where.
    pub engine: &'a Engine,
    /// Of what.
    pub image: &'a Image,
    /// One on each.
    pub cpus: &'a [usize],
}

/// Running containers; dropping it removes them.
#[derive(Debug)]
pub struct Containers {
    name: &'static str,
    engine: Engine,
    ids: Vec<String>,
    addresses: Vec<SocketAddr>,
    processes: Vec<Pid>,
}

impl Containers {
    /// All listen at one address of the host (SO_REUSEPORT) and nothing is in front of them.
    pub fn at_one_address(name: &'static str, ground: Ground<'_>) -> Result<Self, StartError> {
        let address = free_address().map_err(failed(name, "be given a port"))?;
        let mut containers = Self::none(name, ground.engine);
        for cpu in ground.cpus {
            containers.start_one(ground, *cpu, Network::Host, address)?;
        }
        containers.wait_until_all_answer()?;
        containers.addresses.truncate(1);
        Ok(containers)
    }

    /// Each has an address of its own, for a balancer: on the engine's bridge, or a port of the host's.
    pub fn behind_a_balancer(name: &'static str, ground: Ground<'_>, network: Network) -> Result<Self, StartError> {
        let mut containers = Self::none(name, ground.engine);
        for cpu in ground.cpus {
            let address = match network {
                Network::Bridge | Network::Published(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
                Network::Host => free_address().map_err(failed(name, "be given a port"))?,
            };
            containers.start_one(ground, *cpu, network, address)?;
            // Its port is not free any more when the next one looks for one.
            containers.wait_until_all_answer()?;
        }
        Ok(containers)
    }

    /// A single one on all CPUs, whose `command` serves at `listens`.
    pub(super) fn one(
        name: &'static str,
        ground: Ground<'_>,
        network: Network,
        listens: SocketAddr,
        command: Vec<String>,
    ) -> Result<Self, StartError> {
        Self::alone(name, ground.engine, (ground.image.name(), command), ground.cpus, (network, listens))
    }

    /// The same of an image that isn't the ground's, with its command.
    pub(super) fn alone(
        name: &'static str,
        engine: &Engine,
        program: (&str, Vec<String>),
        cpus: &[usize],
        at: (Network, SocketAddr),
    ) -> Result<Self, StartError> {
        let mut containers = Self::none(name, engine);
        containers.start(program, cpus, at)?;
        containers.wait_until_all_answer()?;
        Ok(containers)
    }

    /// Where they can be reached.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Their first processes, in the order of their CPUs.
    pub fn processes(&self) -> &[Pid] {
        &self.processes
    }

    fn none(name: &'static str, engine: &Engine) -> Self {
        let engine = engine.clone();
        Self { name, engine, ids: Vec::new(), addresses: Vec::new(), processes: Vec::new() }
    }

    /// A shard of the ground's on one CPU.
    fn start_one(
        &mut self,
        ground: Ground<'_>,
        cpu: usize,
        network: Network,
        at: SocketAddr,
    ) -> Result<(), StartError> {
        self.start((ground.image.name(), ground.image.confined_command(at)), &[cpu], (network, at))
    }

    fn start(
        &mut self,
        (image, command): (&str, Vec<String>),
        cpus: &[usize],
        (network, listens): (Network, SocketAddr),
    ) -> Result<(), StartError> {
        let mems = cpus::nodes_of(cpus).map_err(failed(self.name, "be given memory near its CPUs"))?;
        let order = &Order { image, network, cpus: cpus::list(cpus), mems: cpus::list(&mems), command };
        let id = self.engine.start(order)?;
        self.ids.push(id.clone());
        let ended = || io::Error::other(format!("it ended: {}", self.engine.logs(&id)));
        let (pid, address) = self.engine.inspect(&id).map_err(failed(self.name, "be asked for its process"))?;
        self.processes.push(pid.ok_or_else(ended).map_err(failed(self.name, "be started"))?);
        self.addresses.push(match order.network {
            Network::Host => listens,
            Network::Published(at) => at,
            Network::Bridge => {
                let none = || io::Error::other("the engine has no bridge network");
                let ip = address.ok_or_else(none).map_err(failed(self.name, "be given an address"))?;
                SocketAddr::from((ip, PORT))
            }
        });
        Ok(())
    }

    fn wait_until_all_answer(&self) -> Result<(), StartError> {
        let start = Instant::now();
        for address in &self.addresses {
            while let Err(error) = fetch(*address, 1) {
                if start.elapsed() > DEADLINE {
                    let log = self.ids.iter().map(|id| self.engine.logs(id)).collect::<Vec<_>>().join("\n");
                    let what = format!("did not answer within {DEADLINE:?} ({error})");
                    return Err(StartError::NotReady { name: self.name.into(), what, log });
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            // What is left is found by its label.
            let _ = self.engine.remove(&self.ids);
        }
    }
}

/// Containers that take connections themselves: nothing is in front of them.
#[derive(Debug)]
pub struct Bare {
    facts: Facts,
    containers: Containers,
}

impl Bare {
    /// Starts them under a name of their own.
    pub fn start(name: &'static str, ground: Ground<'_>, engine_version: &str) -> Result<Self, StartError> {
        let containers = Containers::at_one_address(name, ground)?;
        let command = ground.image.confined_command(containers.addresses[0]).join(" ");
        let facts = Facts {
            name: name.into(),
            version: format!("Docker {engine_version}"),
            program: None,
            configuration: format!("docker run --network host --cpuset-cpus CPU IMAGE {command}"),
        };
        Ok(Self { facts, containers })
    }

    /// Their processes.
    pub fn shards(&self) -> &[Pid] {
        self.containers.processes()
    }
}

impl Contestant for Bare {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn addresses(&self) -> &[SocketAddr] {
        self.containers.addresses()
    }

    fn balancer(&self) -> Vec<Pid> {
        Vec::new()
    }
}

/// A container that is nobody's shard: the program alone on all CPUs, as it comes, on the host's network.
#[derive(Debug)]
pub struct Unsharded {
    facts: Facts,
    containers: Containers,
}

impl Unsharded {
    /// Starts `command` of an image that was assembled here, confined as a shard; it listens at `address`.
    pub fn start(
        name: &'static str,
        engine: &Engine,
        engine_version: &str,
        image: &str,
        cpus: &[usize],
        command: Vec<String>,
        address: SocketAddr,
    ) -> Result<Self, StartError> {
        let facts = Facts {
            name: name.into(),
            version: format!("Docker {engine_version}"),
            program: None,
            configuration: format!("docker run --network host IMAGE {}", command.join(" ")),
        };
        let at = (Network::Host, address);
        let containers = Containers::alone(name, engine, (image, confined(command)), cpus, at)?;
        Ok(Self { facts, containers })
    }

    /// Its first process and what that has started.
    pub fn processes(&self) -> Vec<Pid> {
        let first = self.containers.processes();
        first.iter().flat_map(|pid| [vec![*pid], descendants(*pid)].concat()).collect()
    }
}

impl Contestant for Unsharded {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn addresses(&self) -> &[SocketAddr] {
        self.containers.addresses()
    }

    fn balancer(&self) -> Vec<Pid> {
        Vec::new()
    }
}

pub(super) fn failed(name: &str, action: &str) -> impl FnOnce(io::Error) -> StartError {
    let (name, action) = (name.to_owned(), action.to_owned());
    move |source| StartError::Failed { name, action, source }
}
