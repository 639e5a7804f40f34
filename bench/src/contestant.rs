//! What stands between the load and the shards: each contestant is found, configured, started, pinned and stopped here;
//! owns their processes and files below a scratch directory, and measures nothing.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub use self::{
    agent::GROUP,
    api::{AgentState, Api, ApiError, Event, Events, GroupState, RolloutState, SlotState},
    choice::{Choice, ChoiceError},
    confine::{CONFINE_COMMAND, run_confined},
    containers::{Bare, Containers, Ground, Unsharded},
    direct::Direct,
    engine::{Engine, Network, OwnEngine, sweep, tell},
    fronted::Fronted,
    generator::{Generator, Installed as InstalledGenerator, Order as GeneratorOrder},
    group::{Change, Group, GroupLaunch, GroupPath, Order, Trial},
    image::{Image, Server, ServerError},
    install::{InstallError, default_peers, install},
    layout::Slots,
    metrics::MetricsError,
    peer::Peer,
    placed::{Placed, Placement},
    probe::Probe,
    program::{Program, ProgramError},
    shards::Shards,
    sherd::Sherd,
    stage::{STAGE_COMMAND, run_stage},
    undo::{Container, Process, Undo, UndoList, set_affinity, undo_all},
    whole::Whole,
};

mod agent;
mod api;
mod child;
mod choice;
mod confine;
mod containers;
mod direct;
mod engine;
pub mod envoy;
mod fronted;
mod generator;
mod group;
pub mod haproxy;
mod image;
mod install;
mod layout;
mod metrics;
pub mod nginx;
mod peer;
mod placed;
mod probe;
mod program;
mod shards;
pub mod sherd;
mod stage;
mod undo;
mod whole;

/// Something that takes connections for the shards. Dropping it ends it.
pub trait Contestant {
    /// What a report says of it.
    fn facts(&self) -> &Facts;
    /// Where the load goes.
    fn addresses(&self) -> &[SocketAddr];
    /// The processes whose CPU time and memory are the balancer's; none where there is no balancer.
    fn balancer(&self) -> Vec<Pid>;
    /// The cgroup whose eBPF programs are its own, where it has one.
    fn cgroup(&self) -> Option<PathBuf> {
        None
    }
}

/// What a report says of a contestant.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Facts {
    /// Its name in tables.
    pub name: String,
    /// What it says its version is.
    pub version: String,
    /// The program.
    pub program: Option<PathBuf>,
    /// What it was told, word for word.
    pub configuration: String,
}

/// What a contestant is started with.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// For its files; removed after the run.
    pub scratch: &'a Path,
    /// One thread of it on each of these.
    pub cpus: &'a [usize],
    /// What it balances to.
    pub shards: &'a [SocketAddr],
    /// How many connections it must be able to hold at a time.
    pub connections: usize,
    /// Where installed peers are.
    pub peers: &'a Path,
}

/// A contestant does not take part.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It isn't on this machine.
    #[error("{name} is missing: {reason}; to install it: {install}")]
    Missing {
        /// Its name.
        name: &'static str,
        /// What was looked for.
        reason: String,
        /// The command that installs it.
        install: String,
    },
    /// It is there and doesn't work.
    #[error("{name} cannot {action}")]
    Failed {
        /// Its name.
        name: String,
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended or didn't answer.
    #[error("{name} {what}; the end of its log:\n{log}")]
    NotReady {
        /// Its name.
        name: String,
        /// What happened instead.
        what: String,
        /// Its last words.
        log: String,
    },
}

/// An address on loopback that nobody uses, below the ports the kernel gives to connecting sockets.
pub fn free_address() -> io::Result<SocketAddr> {
    const FIRST: u16 = 21_000;
    const PORTS: u16 = 11_000;
    let start = (std::process::id() % u32::from(PORTS)) as u16;
    (0..PORTS)
        .map(|step| SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + (start + step) % PORTS)))
        .find(|address| TcpListener::bind(address).is_ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::AddrInUse, "all ports from 21000 to 31999 are in use"))
}
