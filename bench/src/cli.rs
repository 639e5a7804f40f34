//! Arguments to calls; owns the words of the command line.

use std::{
    env,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use sherd_bench::{
    contestant, keeper,
    measure::cpus,
    shard::{Announcement, relisten::relisten},
};

mod balance;
mod chaos;
mod comparison;
mod direct;
mod field;
mod graft;
mod load;
mod memory;
mod peers;
mod plan;
mod relay;
mod reports;
mod rollout;
mod sharding;
mod steer;
mod trial;
mod tune;
mod verify;

/// Measures sherd side by side with what else could stand in front of a service.
///
/// Everything runs on loopback, is started, pinned and stopped by this program, and is gone afterwards, however the
/// run ends. Results are ratios between contestants that ran interleaved on the same host, each with an interval that
/// holds it with 95 % confidence, and a control: a contestant against itself.
#[derive(Parser)]
#[command(name = "sherd-bench", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Peers(Box<peers::Peers>),
    Direct(Box<direct::Direct>),
    Relay(Box<relay::Relay>),
    Memory(Box<memory::Memory>),
    Sharding(Box<sharding::Sharding>),
    Tune(Box<tune::Tune>),
    Stall(Box<trial::Stall>),
    Failover(Box<trial::Failover>),
    Rollout(Box<rollout::Rollout>),
    Balance(Box<balance::Balance>),
    Chaos(Box<chaos::Chaos>),
    Graft(Box<graft::Graft>),
    Steer(Box<steer::Steer>),
    Plan(Box<plan::Plan>),
    Load(load::Load),
    Verify(Box<verify::Verify>),
    Compare(reports::Compare),
    Targets(reports::Targets),
    Render(reports::Render),
    Figure(reports::Figure),
    Install(Install),
    #[command(hide = true)]
    Shard(Shard),
    #[command(name = keeper::KEEPER_COMMAND, hide = true)]
    Keep(Keep),
    #[command(name = contestant::STAGE_COMMAND, hide = true)]
    Stage(Stage),
    #[command(name = contestant::CONFINE_COMMAND, hide = true)]
    Confine(Confine),
}

/// Installs the peers into a directory of this user's own: HAProxy, nginx and Envoy. Needs python3, and apt-get for
/// Debian's nginx.
#[derive(Args)]
struct Install {
    /// The directory.
    #[arg(long, value_name = "DIR", default_value_os_t = contestant::default_peers())]
    peers: PathBuf,
}

/// Serves as a shard: answers `GET /N` with N bytes.
#[derive(Args)]
struct Shard {
    /// The port on loopback; 0 takes any.
    #[arg(long, env = "PORT", default_value_t = 0)]
    port: u16,
    /// Where to write a file that says where it listens.
    #[arg(long, value_name = "DIR", required_unless_present = "listen")]
    announce: Option<PathBuf>,
    /// Listens and closes so often before it serves, with pauses and without, and tells how long each listen(2) took.
    #[arg(long, value_name = "TIMES", requires = "listen")]
    relisten: Option<usize>,
    /// Rounds of work for nothing before each answer.
    #[arg(long, value_name = "ROUNDS", default_value_t = 0)]
    burn: u64,
    /// An address that others may have as well, instead of a port of its own.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "announce")]
    listen: Option<SocketAddr>,
    /// Threads that serve, beside one that accepts for them; with 1, the whole process is one.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
}

/// Confines itself as sherd's shim would and becomes a program.
#[derive(Args)]
struct Confine {
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Keeps a run.
#[derive(Args)]
struct Keep {
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Becomes a contestant's program.
#[derive(Args)]
struct Stage {
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    cpus: String,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Does what the command line says.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Peers(peers) => peers.run(),
        Command::Direct(direct) => direct.run(),
        Command::Relay(relay) => relay.run(),
        Command::Memory(memory) => memory.run(),
        Command::Sharding(sharding) => sharding.run(),
        Command::Tune(tune) => tune.run(),
        Command::Stall(stall) => stall.run(),
        Command::Failover(failover) => failover.run(),
        Command::Rollout(rollout) => rollout.run(),
        Command::Balance(balance) => balance.run(),
        Command::Chaos(chaos) => chaos.run(),
        Command::Graft(graft) => graft.run(),
        Command::Steer(steer) => steer.run(),
        Command::Plan(plan) => plan.run(),
        Command::Load(load) => load.run(),
        Command::Verify(verify) => verify.run(),
        Command::Compare(compare) => Ok(compare.run()),
        Command::Targets(targets) => targets.run(),
        Command::Render(render) => render.run(),
        Command::Figure(figure) => figure.run(),
        Command::Install(install) => install.run(),
        Command::Shard(shard) => shard.run(),
        Command::Keep(keep) => keeper::keep(&keep.arguments).context("the run cannot be kept"),
        Command::Stage(stage) => stage.run(),
        Command::Confine(confine) => confine.run(),
    }
}

impl Install {
    fn run(&self) -> anyhow::Result<ExitCode> {
        contestant::install(&self.peers)?;
        println!("peers are in {}", self.peers.display());
        Ok(ExitCode::SUCCESS)
    }
}

impl Shard {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let address = self.listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
        if let Some(times) = self.relisten {
            relisten(address, times).with_context(|| format!("the shard cannot listen at {address}"))?;
        }
        let bound = match self.listen {
            Some(_) => sherd_bench::shard::Shard::bind_beside_others(address),
            None => sherd_bench::shard::Shard::bind(address),
        };
        let shard = bound.with_context(|| format!("the shard cannot listen at {address}"))?;
        let mut shard = shard.burning(self.burn);
        if let Some(directory) = &self.announce {
            let announcement = Announcement { pid: std::process::id() as i32, address: shard.address()? };
            announcement.write(directory)?;
        }
        let served = if self.threads == 1 { shard.serve() } else { shard.serve_on_threads(self.threads.into()) };
        served.context("the shard cannot go on")?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Confine {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let (program, arguments) = self.command.split_first().context("no program")?;
        let error = contestant::run_confined(program, arguments);
        Err(error).with_context(|| format!("{} cannot be started", program.display()))
    }
}

impl Stage {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let cpus = if self.cpus.is_empty() { Vec::new() } else { cpus::parse_list(&self.cpus)? };
        let (program, arguments) = self.command.split_first().context("no program")?;
        let error = contestant::run_stage(self.parent, &cpus, program, arguments);
        Err(error).with_context(|| format!("{} cannot be started", program.display()))
    }
}

/// The arguments of this process, the program left out.
fn own_arguments() -> Vec<OsString> {
    env::args_os().skip(1).collect()
}
