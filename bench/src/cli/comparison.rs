//! What all comparisons have in common on the command line: options, their defaults and bounds, and the way of a run from
//! its keeper to its report.

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::SystemTime,
};

use anyhow::{Context, ensure};
use clap::Args;
use sherd_bench::{
    contestant,
    interrupt::Interrupt,
    keeper,
    measure::{allowed_cpus, cpus},
    report::{Document, Origin, Progress, Report, Settings, utc},
};

/// Below this many CPUs, load and contestants share all of them.
const CPUS_TO_SEPARATE: usize = 4;

/// Options of every comparison.
#[derive(Args)]
pub(super) struct Comparison {
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
    /// The sherd program [default: the one beside this one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    sherd: Option<PathBuf>,
    /// HAProxy [default: the installed one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    pub(super) haproxy: Option<PathBuf>,
    /// Where `sherd-bench install` has put the peers.
    #[arg(long, value_name = "DIR", default_value_os_t = contestant::default_peers())]
    pub(super) peers: PathBuf,
    /// Where the report goes.
    #[arg(long, value_name = "DIR", default_value = "sherd-bench-results")]
    output: PathBuf,
}

impl Comparison {
    /// Runs `compare` under a keeper, prints its report and writes it as `NAME-DATE`.
    pub(super) fn run<E: std::error::Error + Send + Sync + 'static>(
        &self,
        name: &str,
        compare: impl FnOnce(&Path, &mut Progress, &Interrupt) -> Result<Report, E>,
    ) -> anyhow::Result<ExitCode> {
        run_kept(name, &self.output, compare)
    }

    /// The same for a run of several reports, each published when it is there.
    pub(super) fn run_each<T: Copy, E: std::error::Error + Send + Sync + 'static>(
        &self,
        parts: &[T],
        name: impl Fn(T) -> &'static str,
        mut compare: impl FnMut(T, &Path, &mut Progress, &Interrupt) -> Result<Report, E>,
    ) -> anyhow::Result<ExitCode> {
        run_kept_each(|scratch, progress, interrupt| {
            for part in parts {
                let started = SystemTime::now();
                let report = compare(*part, scratch, progress, interrupt)?;
                progress.clear();
                publish(&report, name(*part), &self.output, started)?;
            }
            Ok(())
        })
    }

    /// Whether few and short samples will do.
    pub(super) fn is_quick(&self) -> bool {
        self.quick
    }

    /// What somebody who wants another quick run than all others have must leave as it was asked for.
    pub(super) fn asked(&self) -> (Option<usize>, Option<f64>) {
        (self.pairs, self.duration)
    }

    /// The checked options, without bulk load and idle connections.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        self.settings_of((5, 0.25, 0.08))
    }

    /// The same with other pairs, seconds of each sample and of warming up for `--quick`: many contestants take long.
    pub(super) fn settings_of(&self, quick: (usize, f64, f64)) -> anyhow::Result<Settings> {
        let (cpus, load_cpus) = choose_cpus(self.cpus.as_deref(), self.load_cpus.as_deref())?;
        let (pairs, duration, warm_up) = if self.quick { quick } else { (12, 1.5, 0.3) };
        let settings = Settings {
            pairs: self.pairs.unwrap_or(pairs),
            duration_seconds: self.duration.unwrap_or(duration),
            warm_up_seconds: warm_up,
            connections: self.connections,
            answer_bytes: self.answer,
            bulk: None,
            open_share: self.rate,
            idle_connections: 0,
            seed: self.seed,
            cpus,
            load_cpus,
        };
        ensure!((1..=1000).contains(&settings.pairs), "--pairs must be 1 to 1000");
        ensure!((0.05..=600.0).contains(&settings.duration_seconds), "--duration must be 0.05 to 600 seconds");
        ensure!((0.01..=1.0).contains(&settings.open_share), "--rate must be 0.01 to 1");
        check_connections("--connections", self.connections, &settings.load_cpus)?;
        check_answer("--answer", self.answer)?;
        Ok(settings)
    }

    pub(super) fn sherd(&self) -> Option<PathBuf> {
        self.sherd.clone().or_else(sherd_beside_us)
    }
}

/// Runs `measure` under a keeper, prints what it leaves and writes it into `output` as `NAME-DATE`.
pub(super) fn run_kept<D: Document, E: std::error::Error + Send + Sync + 'static>(
    name: &str,
    output: &Path,
    measure: impl FnOnce(&Path, &mut Progress, &Interrupt) -> Result<D, E>,
) -> anyhow::Result<ExitCode> {
    run_kept_each(|scratch, progress, interrupt| {
        let started = SystemTime::now();
        let document = measure(scratch, progress, interrupt);
        progress.clear();
        publish(&document?, name, output, started)
    })
}

/// Runs `measure`, which publishes each of its documents itself, under a keeper.
pub(super) fn run_kept_each(
    measure: impl FnOnce(&Path, &mut Progress, &Interrupt) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let Some(scratch) = keeper::become_worker().context("the run cannot be kept")? else {
        return keeper::guard(&super::own_arguments()).context("the run cannot be kept");
    };
    let interrupt = Interrupt::on_signals().context("signals cannot be taken")?;
    let mut progress = Progress::on_standard_error();
    let measured = measure(&scratch, &mut progress, &interrupt);
    progress.clear();
    measured.map(|()| ExitCode::SUCCESS)
}

/// Prints a document and writes it into `output` as `NAME-DATE`.
pub(super) fn publish(document: &impl Document, name: &str, output: &Path, started: SystemTime) -> anyhow::Result<()> {
    print!("{}", document.text());
    let name = format!("{name}-{}", utc(started).replace([':', '-'], ""));
    let path = document.write(output, &name)?;
    println!("\nevery sample: {}", path.display());
    Ok(())
}

/// CPUs of contestants and shards, and of the load.
pub(super) fn choose_cpus(cpus: Option<&str>, load_cpus: Option<&str>) -> anyhow::Result<(Vec<usize>, Vec<usize>)> {
    let all = allowed_cpus().context("this process's CPUs cannot be read")?;
    let (lower, upper) = if all.len() < CPUS_TO_SEPARATE { (&*all, &*all) } else { all.split_at(all.len() / 2) };
    let choose = |given: Option<&str>, default: &[usize]| -> anyhow::Result<Vec<usize>> {
        let Some(list) = given else { return Ok(default.to_vec()) };
        let chosen = cpus::parse_list(list)?;
        match chosen.iter().find(|cpu| !all.contains(cpu)) {
            Some(cpu) => anyhow::bail!("CPU {cpu} is not one that this process may use: {}", cpus::list(&all)),
            None => Ok(chosen),
        }
    };
    Ok((choose(cpus, lower)?, choose(load_cpus, upper)?))
}

/// Contestants have another working directory; a name without a slash is looked for on the PATH, wherever that is.
pub(super) fn program(text: &str) -> io::Result<PathBuf> {
    if text.contains('/') { std::path::absolute(text) } else { Ok(text.into()) }
}

/// As typed, and from what it was built, as far as is known.
pub(super) fn origin() -> Origin {
    let words: Vec<String> = env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    Origin { command_line: words.join(" "), commit: commit() }
}

pub(super) fn check_connections(option: &str, connections: usize, load_cpus: &[usize]) -> anyhow::Result<()> {
    ensure!(
        (load_cpus.len()..=10_000).contains(&connections),
        "{option} must be at least one for each CPU of the load and at most 10000"
    );
    Ok(())
}

pub(super) fn check_answer(option: &str, bytes: usize) -> anyhow::Result<()> {
    const MAX: usize = sherd_bench::shard::MAX_ANSWER_BYTES;
    ensure!(bytes <= MAX, "{option} must be at most {MAX} bytes");
    Ok(())
}

/// Each name once.
pub(super) fn check_names<'a>(names: impl Iterator<Item = &'a str>) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    for name in names {
        ensure!(!seen.contains(&name), "--contestants names {name} twice");
        seen.push(name);
    }
    Ok(())
}

pub(super) fn sherd_beside_us() -> Option<PathBuf> {
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
