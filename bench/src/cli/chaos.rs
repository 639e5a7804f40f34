//! `sherd-bench chaos`: its options, their defaults, and what it refuses.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use sherd_bench::{
    contestant::GroupPath,
    load::MOST_KEPT,
    scenario::chaos::{self, Kind, LONGEST, Options, RunningGroup, When, parse_duration},
};

use super::{
    comparison::run_kept,
    trial::{Trial, path},
};

/// Shards of the run's own group.
const SHARDS: usize = 2;
/// What the run's own group gets, and a running one: there agent and engine only if they are named.
const OF_OWN: [Kind; 6] = [Kind::Kill, Kind::Stop, Kind::Pause, Kind::Restart, Kind::Drift, Kind::AgentKill];
const OF_RUNNING: [Kind; 5] = [Kind::Kill, Kind::Stop, Kind::Pause, Kind::Restart, Kind::Drift];
/// Visits are remembered.
const MOST_VISITS: f64 = 5e6;

/// Brings faults about under load, and tells of each lost connection which fault took it and why nobody could save it.
///
/// Faults come on a schedule, or drawn from the seed: the same options give the same faults at the same times. Each is undone in its
/// time, and also if this program is killed. Without --group it is done to two containers of the run's own, behind an agent of its
/// own, on the direct path and on the relay path (root, eBPF and a Docker Engine are needed; engine-restart starts an engine
/// of the run's own). With --group it is done to a group of the running agent, to nothing that isn't that group's, and only if
/// --accept-losses says that its clients may feel it.
#[derive(Args)]
#[command(after_help = "\
A schedule has a line for each fault:
  5s kill slot=1
  10s stop slot=0 for=2s
  12.5s agent-kill

Examples:
  sherd-bench chaos --quick
  sherd-bench chaos --seed 7 --duration 10m --dry-run > faults.txt
  sherd-bench chaos --group web --get /healthz --faults kill,pause --every 30s --duration 5m --accept-losses")]
pub(crate) struct Chaos {
    #[command(flatten)]
    trial: Trial,
    /// Paths of the run's own group: direct, relay.
    #[arg(long, value_name = "PATHS", value_delimiter = ',', default_value = "direct,relay", value_parser = path)]
    path: Vec<GroupPath>,
    /// What is done: kill (SIGKILL to a shard), stop (SIGSTOP, SIGCONT), pause (docker pause, unpause), restart (docker restart), drift
    /// (another CPU than its slot's), agent-kill (SIGKILL), engine-restart [default: all but engine-restart; with --group also
    /// without agent-kill].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    faults: Vec<Kind>,
    /// Between two faults, about [default: 5s; with --quick 4s].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    every: Option<Duration>,
    /// Of each path's run [default: 2m; with --quick 30s].
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Faults and their times, instead of drawn ones.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["every", "duration"])]
    schedule: Option<PathBuf>,
    /// Prints the schedule, which --schedule reads, and does nothing.
    #[arg(long)]
    dry_run: bool,
    /// Connections with one request each, in an open loop.
    #[arg(long, value_name = "N", default_value_t = 300.0)]
    visits_per_second: f64,
    /// Connections that are kept, with 20 requests/s each.
    #[arg(long, value_name = "N", default_value_t = 16)]
    kept: usize,
    /// How long a client waits on a kept connection.
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = parse_duration)]
    patience: Duration,
    /// A group of the running agent.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// That agent's socket.
    #[arg(long, value_name = "SOCKET", default_value = "/run/sherd/sherd.sock", requires = "group")]
    socket: PathBuf,
    /// What its clients ask for, by HTTP GET; kept connections need answers with a Content-Length.
    #[arg(long, value_name = "PATH", default_value = "/", requires = "group")]
    get: String,
    /// What restarts its container engine, for engine-restart: every container of the host may feel it.
    #[arg(long, value_name = "COMMAND", requires = "group")]
    restart_engine: Option<String>,
    /// That group's clients may lose connections.
    #[arg(long, requires = "group")]
    accept_losses: bool,
}

impl Chaos {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let options = self.options()?;
        if self.dry_run {
            // A reader that has seen enough is no failure.
            return match io::stdout().write_all(options.dry_run()?.to_string().as_bytes()) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
                _ => Ok(ExitCode::SUCCESS),
            };
        }
        if let Some(group) = &self.group {
            ensure!(
                self.accept_losses,
                "connections of group {group} will be lost: say --accept-losses, or look at --dry-run first"
            );
        }
        run_kept("chaos", &self.trial.output, |scratch, progress, interrupt| {
            chaos::run(&options, scratch, progress, interrupt)
        })
    }

    fn options(&self) -> anyhow::Result<Options> {
        let mut trial = self.trial.options(if self.group.is_some() { 1 } else { SHARDS })?;
        trial.cpus.truncate(SHARDS);
        let kinds = match (&*self.faults, &self.group) {
            ([], None) => OF_OWN.to_vec(),
            ([], Some(_)) => OF_RUNNING.to_vec(),
            (named, _) => named.to_vec(),
        };
        let when = self.when()?;
        if self.group.is_some() && kinds.contains(&Kind::EngineRestart) && self.restart_engine.is_none() {
            bail!("engine-restart with --group needs to be told how: --restart-engine 'systemctl restart docker'");
        }
        let seconds = match &when {
            When::Drawn { duration, .. } => duration.as_secs_f64(),
            When::Given { .. } => LONGEST.as_secs_f64(),
        };
        ensure!((1.0..=100_000.0).contains(&self.visits_per_second), "--visits-per-second must be 1 to 100000");
        ensure!(
            self.visits_per_second * seconds <= MOST_VISITS,
            "--visits-per-second over that time are more than {MOST_VISITS} visits: lower one of them"
        );
        ensure!(self.kept <= MOST_KEPT, "--kept must be at most {MOST_KEPT}");
        ensure!(self.patience >= Duration::from_millis(100), "--patience must be at least 100ms");
        let running = self.group.as_ref().map(|group| RunningGroup {
            group: group.clone(),
            socket: self.socket.clone(),
            path: self.get.clone(),
            restart_engine: self.restart_engine.clone(),
        });
        let (paths, named) = (self.path.clone(), !self.faults.is_empty());
        let (visits_per_second, kept, patience) = (self.visits_per_second, self.kept, self.patience);
        Ok(Options { trial, paths, running, kinds, named, when, visits_per_second, kept, patience })
    }

    fn when(&self) -> anyhow::Result<When> {
        if let Some(file) = &self.schedule {
            return Ok(When::Given { file: file.display().to_string(), text: read(file)? });
        }
        let (every, duration) = if self.trial.quick { (4, 30) } else { (5, 120) };
        let every = self.every.unwrap_or(Duration::from_secs(every));
        let duration = self.duration.unwrap_or(Duration::from_secs(duration));
        ensure!(every >= Duration::from_secs(1), "--every must be at least 1s");
        ensure!(duration <= LONGEST && duration > every, "--duration must be more than --every and at most 1h");
        Ok(When::Drawn { every, duration })
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
}
