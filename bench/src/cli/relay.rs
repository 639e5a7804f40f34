//! `sherd-bench relay`: its options and their defaults.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::SystemTime,
};

use anyhow::{Context, ensure};
use clap::Args;
use sherd_bench::{
    contestant::{self, Choice},
    interrupt::Interrupt,
    keeper,
    measure::{allowed_cpus, cpus},
    report::{Progress, Settings, Table, utc},
    scenario::relay,
};

/// Below this many CPUs, load and contestants share all of them.
const CPUS_TO_SEPARATE: usize = 4;

/// Compares sherd's relay path, HAProxy (TCP mode, splice), nginx (stream) and no balancer, in front of the same shards.
///
/// Contestants get one pinned thread on each CPU, behind which runs one pinned shard. Writes a report with every sample
/// (JSON) and the table that it prints (text). Needs no privilege.
#[derive(Args)]
pub(crate) struct Relay {
    /// Under two minutes: fewer and shorter samples, wider intervals.
    #[arg(long)]
    quick: bool,
    /// Pairs of each ratio: each contestant runs twice in each, under every load.
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// Seconds of each sample.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Connections of the small loads.
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Bytes of their answers.
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    answer: usize,
    /// Connections of the bulk load.
    #[arg(long, value_name = "N", default_value_t = 16)]
    bulk_connections: usize,
    /// Bytes of its answers.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    bulk_answer: usize,
    /// Idle connections whose memory is measured; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    idle: usize,
    /// The open loop's rate, as a share of the slowest contestant's maximum.
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    rate: f64,
    /// Seed of orders, arrivals and intervals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CPUs of contestants and shards [default: all; with four or more, the lower half].
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// CPUs of the load [default: all; with four or more, the upper half].
    #[arg(long, value_name = "LIST")]
    load_cpus: Option<String>,
    /// Who takes part: sherd, haproxy (splice-auto), haproxy-splice (always), haproxy-percore (each thread to the shard on
    /// its CPU), nginx, direct. Without sherd, the first is the one whose ratios are told.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "sherd,haproxy,haproxy-splice,nginx,direct"
    )]
    contestants: Vec<Choice>,
    /// The sherd program [default: the one beside this one].
    #[arg(long, value_name = "PATH")]
    sherd: Option<PathBuf>,
    /// HAProxy [default: the installed one].
    #[arg(long, value_name = "PATH")]
    haproxy: Option<PathBuf>,
    /// nginx with its stream module [default: the installed one].
    #[arg(long, value_name = "PATH")]
    nginx: Option<PathBuf>,
    /// Where `sherd-bench install` has put the peers.
    #[arg(long, value_name = "DIR", default_value_os_t = contestant::default_peers())]
    peers: PathBuf,
    /// Where the report goes.
    #[arg(long, value_name = "DIR", default_value = "sherd-bench-results")]
    output: PathBuf,
}

impl Relay {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let options = self.options()?;
        let Some(scratch) = keeper::become_worker().context("the run cannot be kept")? else {
            return keeper::guard(&super::own_arguments()).context("the run cannot be kept");
        };
        let interrupt = Interrupt::on_signals().context("signals cannot be taken")?;
        let started = SystemTime::now();
        let mut progress = Progress::on_standard_error();
        let report = relay::run(&options, &scratch, &mut progress, &interrupt);
        progress.clear();
        let report = report?;
        print!("{}", Table(&report));
        let name = format!("relay-{}", utc(started).replace([':', '-'], ""));
        let path = report.write(&self.output, &name)?;
        println!("\nevery sample: {}", path.display());
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self) -> anyhow::Result<relay::Options> {
        let words: Vec<String> = env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        Ok(relay::Options {
            settings: self.settings()?,
            peers: self.peers.clone(),
            contestants: self.contestants.clone(),
            sherd: self.sherd.clone().or_else(sherd_beside_us),
            haproxy: self.haproxy.clone(),
            nginx: self.nginx.clone(),
            command_line: words.join(" "),
            commit: commit(),
        })
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let (cpus, load_cpus) = self.cpus()?;
        let (pairs, duration, warm_up) = if self.quick { (5, 0.25, 0.08) } else { (12, 1.5, 0.3) };
        let settings = Settings {
            pairs: self.pairs.unwrap_or(pairs),
            duration_seconds: self.duration.unwrap_or(duration),
            warm_up_seconds: warm_up,
            connections: self.connections,
            answer_bytes: self.answer,
            bulk_connections: self.bulk_connections,
            bulk_bytes: self.bulk_answer,
            open_share: self.rate,
            idle_connections: self.idle,
            seed: self.seed,
            cpus,
            load_cpus,
        };
        ensure!((1..=1000).contains(&settings.pairs), "--pairs must be 1 to 1000");
        ensure!((0.05..=600.0).contains(&settings.duration_seconds), "--duration must be 0.05 to 600 seconds");
        ensure!((0.01..=1.0).contains(&settings.open_share), "--rate must be 0.01 to 1");
        for (option, connections) in
            [("--connections", self.connections), ("--bulk-connections", self.bulk_connections)]
        {
            ensure!(
                (settings.load_cpus.len()..=10_000).contains(&connections),
                "{option} must be at least one for each CPU of the load and at most 10000"
            );
        }
        for (option, bytes) in [("--answer", self.answer), ("--bulk-answer", self.bulk_answer)] {
            ensure!(
                bytes <= sherd_bench::shard::MAX_ANSWER_BYTES,
                "{option} must be at most {} bytes",
                sherd_bench::shard::MAX_ANSWER_BYTES
            );
        }
        for (index, choice) in self.contestants.iter().enumerate() {
            ensure!(!self.contestants[..index].contains(choice), "--contestants names {} twice", choice.name());
        }
        ensure!(self.idle <= 100_000, "--idle must be at most 100000");
        Ok(settings)
    }

    fn cpus(&self) -> anyhow::Result<(Vec<usize>, Vec<usize>)> {
        let all = allowed_cpus().context("this process's CPUs cannot be read")?;
        let (lower, upper) = if all.len() < CPUS_TO_SEPARATE { (&*all, &*all) } else { all.split_at(all.len() / 2) };
        let choose = |given: &Option<String>, default: &[usize]| -> anyhow::Result<Vec<usize>> {
            let Some(list) = given else { return Ok(default.to_vec()) };
            let chosen = cpus::parse_list(list)?;
            match chosen.iter().find(|cpu| !all.contains(cpu)) {
                Some(cpu) => anyhow::bail!("CPU {cpu} is not one that this process may use: {}", cpus::list(&all)),
                None => Ok(chosen),
            }
        };
        Ok((choose(&self.cpus, lower)?, choose(&self.load_cpus, upper)?))
    }
}

fn sherd_beside_us() -> Option<PathBuf> {
    let sherd = env::current_exe().ok()?.with_file_name("sherd");
    sherd.is_file().then_some(sherd)
}

/// The commit of the working directory, with `+` when tracked files are changed.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| -> io::Result<String> {
        let output = Command::new("git").args(arguments).current_dir(Path::new(".")).output()?;
        if !output.status.success() {
            return Err(io::Error::other("not a repository"));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "--short=12", "HEAD"]).ok()?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|changes| !changes.is_empty());
    Some(if changed { head + "+" } else { head })
}
