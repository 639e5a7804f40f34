//! Options that all trials of one behaviour have, and those trials' own: `stall`, `failover`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::ensure;
use clap::Args;
use sherd_bench::{
    contestant::{Engine, GroupPath},
    scenario::{failover, stall, trial::TrialOptions},
};

use super::comparison::{choose_cpus, origin, program, run_kept, sherd_beside_us};

/// Options of every trial.
#[derive(Args)]
pub(super) struct Trial {
    /// Under a minute: fewer repetitions.
    #[arg(long)]
    pub(super) quick: bool,
    /// Seed of arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CPUs of shards [default: all; with four or more, the lower half].
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// CPUs of the load [default: all; with four or more, the upper half].
    #[arg(long, value_name = "LIST")]
    load_cpus: Option<String>,
    /// The sherd program [default: the one beside this one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    sherd: Option<PathBuf>,
    /// The Docker Engine's socket [default: $SHERD_TEST_DOCKER, $DOCKER_HOST or /var/run/docker.sock].
    #[arg(long, value_name = "SOCKET")]
    docker: Option<PathBuf>,
    /// Where the report goes.
    #[arg(long, value_name = "DIR", default_value = "sherd-bench-results")]
    pub(super) output: PathBuf,
}

/// Stops shards under half load and asks all of them in a long run at the maximum.
///
/// Tells how long a hung shard gets connections, how long those wait until others serve them, and whether busy shards are
/// taken for hung. Needs root, eBPF, a Docker Engine (`.ci/with-engines.sh sherd-bench stall` brings one) and two CPUs.
#[derive(Args)]
pub(crate) struct Stall {
    #[command(flatten)]
    trial: Trial,
    /// How often a shard is stopped [default: 20; with --quick 4].
    #[arg(long, value_name = "N")]
    stalls: Option<usize>,
    /// Seconds at the maximum, in which no shard may be found hung; 0 leaves it out [default: 600; with --quick 20].
    #[arg(long, value_name = "SECONDS")]
    saturate: Option<u64>,
}

/// Kills shards under half load, with the agent there and with the agent stopped.
///
/// Tells how long new connections fail after a shard's death, and how many do. Needs root, eBPF, a Docker Engine
/// (`.ci/with-engines.sh sherd-bench failover` brings one) and two CPUs.
#[derive(Args)]
pub(crate) struct Failover {
    #[command(flatten)]
    trial: Trial,
    /// How many shards are killed, with the agent there and as many without [default: 30; with --quick 5].
    #[arg(long, value_name = "N")]
    kills: Option<usize>,
}

impl Stall {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let (stalls, seconds) = if self.trial.quick { (4, 20) } else { (20, 600) };
        let options = stall::Options {
            trial: self.trial.options(2)?,
            stalls: self.stalls.unwrap_or(stalls),
            saturate: Duration::from_secs(self.saturate.unwrap_or(seconds)),
            calibrate: self.trial.calibrate(),
        };
        ensure!((1..=1000).contains(&options.stalls), "--stalls must be 1 to 1000");
        ensure!(options.saturate <= Duration::from_secs(86_400), "--saturate must be at most 86400 seconds");
        run_kept("stall", &self.trial.output, |scratch, progress, interrupt| {
            stall::run(&options, scratch, progress, interrupt)
        })
    }
}

impl Failover {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let kills = self.kills.unwrap_or(if self.trial.quick { 5 } else { 30 });
        let options = failover::Options { trial: self.trial.options(2)?, kills, calibrate: self.trial.calibrate() };
        ensure!((1..=1000).contains(&options.kills), "--kills must be 1 to 1000");
        run_kept("failover", &self.trial.output, |scratch, progress, interrupt| {
            failover::run(&options, scratch, progress, interrupt)
        })
    }
}

impl Trial {
    pub(super) fn options(&self, least_cpus: usize) -> anyhow::Result<TrialOptions> {
        let (cpus, load_cpus) = choose_cpus(self.cpus.as_deref(), self.load_cpus.as_deref())?;
        ensure!(cpus.len() >= least_cpus, "this needs shards on {least_cpus} CPUs: give --cpus");
        Ok(TrialOptions {
            cpus,
            load_cpus,
            docker: self.docker.clone().unwrap_or_else(Engine::default_socket),
            sherd: self.sherd.clone().or_else(sherd_beside_us),
            seed: self.seed,
            origin: origin(),
        })
    }

    /// How long the maximum is looked for.
    fn calibrate(&self) -> Duration {
        Duration::from_millis(if self.quick { 500 } else { 3000 })
    }
}

/// A path of sherd's.
pub(super) fn path(name: &str) -> Result<GroupPath, String> {
    match name {
        "direct" => Ok(GroupPath::Direct),
        "relay" => Ok(GroupPath::Relay),
        _ => Err("choose direct, relay or both".to_owned()),
    }
}
