//! `sherd-bench tune`: its options and their defaults.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use sherd_bench::{
    contestant::Engine,
    load::{Request, Shape},
    report::Settings,
    scenario::tune::{self, Burden, Draft},
};

use super::comparison::{check_connections, choose_cpus, origin, program, run_kept, sherd_beside_us};

const UNITS: [&str; 7] = ["pu", "core", "l2", "l3", "die", "numa", "package"];
const SMTS: [&str; 3] = ["share", "each", "first"];
/// Where no agent has its sockets: what one of this host has placed doesn't matter here.
const NO_AGENT: &str = "/proc/nobody";
const POLICIES: [&str; 4] = ["connection", "balanced", "client", "local"];

/// Tells which layout is best for a program of yours on this machine, by how much, and how sure that is.
///
/// Give an image and its arguments as for `sherd run`, --process and a program, or a specification (--spec). Layouts are its
/// unit, its use of hardware threads and its policy. All run side by side, each with an agent of its own, on free ports of
/// all addresses, and are put under load in turns; what is surely worse than the leader is left out, until one is left,
/// what is left is the same within --margin, or the time is over. "No measurable difference" is a good answer: then the
/// simplest that is left is proposed, which is what the specification said, or sherd's default. What is told holds with 95 %
/// confidence, all of it together.
///
/// The load is built in, or a command of yours (--load). Needs root, and for containers what the direct path needs: eBPF and a
/// Docker Engine. A program with data of its own runs several times at once: give it data to spare.
#[derive(Args)]
#[command(after_help = "\
Examples:
  sherd-bench tune -p 8080:80 --write web.toml -- nginx:1.27
  sherd-bench tune --spec web.toml --path /search?q=x --connections 256 --budget 20m
  sherd-bench tune --spec web.toml --rate 20000                  the p99 latency at a rate
  sherd-bench tune --load './measure.sh' --process -p 9000:9000 -- ./server    ./measure.sh prints requests per second")]
pub(crate) struct Tune {
    /// The specification to start from, as for `sherd apply`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["words", "publish", "process"])]
    spec: Option<PathBuf>,
    /// What the program publishes, as for `sherd run`.
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER", default_value = "8080:80")]
    publish: String,
    /// A program and its arguments instead of an image.
    #[arg(long)]
    process: bool,
    /// The container port that is under load [default: the first that is published].
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Where the specification of the answer goes: a file that isn't there yet.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Units to try: pu, core, l2, l3, die, numa, package. Those that are the same here are tried once.
    #[arg(long, value_name = "UNITS", value_delimiter = ',', default_value = "core,pu,l3,numa,package")]
    units: Vec<String>,
    /// Uses of hardware threads to try: share, each, first.
    #[arg(long, value_name = "HOW", value_delimiter = ',', default_value = "share,first")]
    smt: Vec<String>,
    /// Policies to try: connection, balanced, client, local.
    #[arg(long, value_name = "POLICIES", value_delimiter = ',', default_value = "connection,balanced,client")]
    policies: Vec<String>,
    #[command(flatten)]
    load: LoadOptions,
    /// How long it may take, all of it: 90s, 5m, 1h [default: 5m; with --quick 90s].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    budget: Option<Duration>,
    /// Percent of difference that you don't care about.
    #[arg(long, value_name = "PERCENT", default_value_t = 2.0)]
    margin: f64,
    /// Seconds of each measurement.
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Seconds for which each layout is under load before it is measured.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    warm_up: f64,
    /// Under two minutes.
    #[arg(long)]
    quick: bool,
    /// Seed of orders and arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CPUs of shards [default: those of the specification, else all; with four or more, the lower half].
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
    output: PathBuf,
    /// Image and its arguments; with --process the program and its arguments.
    #[arg(last = true, required_unless_present = "spec")]
    words: Vec<String>,
}

/// What the program is put under.
#[derive(Args)]
#[command(next_help_heading = "Load")]
struct LoadOptions {
    /// What is asked for by GET; any 2xx is an answer.
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// The Host header.
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    host: String,
    /// Connections at a time.
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// From how many addresses they come [default: each from its own, or `client` would send them all to one shard].
    #[arg(long, value_name = "N")]
    clients: Option<usize>,
    /// A connection for each request.
    #[arg(long, conflicts_with = "rate")]
    per_connection: bool,
    /// Requests per second, sent when they are due; what is judged then is the 99th percentile of latencies.
    #[arg(long, value_name = "N")]
    rate: Option<f64>,
    /// A command for a shell instead, which finds ADDRESS:PORT in $SHERD_BENCH_ADDRESS and ends by printing a number above 0.
    /// It runs on the CPUs of the load.
    #[arg(long = "load", value_name = "COMMAND", conflicts_with_all = ["per_connection", "rate", "clients"])]
    command: Option<String>,
    /// Less of that is better.
    #[arg(long, requires = "command")]
    lower_is_better: bool,
}

impl Tune {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let options = self.options()?;
        run_kept("tune", &self.output, |scratch, progress, interrupt| tune::run(&options, scratch, progress, interrupt))
    }

    fn options(&self) -> anyhow::Result<tune::Options> {
        for (option, words, known) in [
            ("--units", &self.units, UNITS.as_slice()),
            ("--smt", &self.smt, &SMTS),
            ("--policies", &self.policies, &POLICIES),
        ] {
            if let Some(word) = words.iter().find(|word| !known.contains(&&***word)) {
                bail!("{option} knows no {word:?}: choose from {}", known.join(", "));
            }
        }
        if let Some(path) = self.write.as_ref().filter(|path| path.exists()) {
            bail!("{} is there already: name another file for --write", path.display());
        }
        ensure!((0.0..=100.0).contains(&self.margin), "--margin must be 0 to 100 percent");
        ensure!((0.0..=600.0).contains(&self.warm_up), "--warm-up must be 0 to 600 seconds");
        let budget = self.budget.unwrap_or(Duration::from_secs(if self.quick { 90 } else { 300 }));
        let longest = Duration::from_secs(86_400);
        ensure!((Duration::from_secs(1)..=longest).contains(&budget), "--budget must be 1s to 24h");
        let settings = self.settings()?;
        let sherd = self.sherd.clone().or_else(sherd_beside_us);
        Ok(tune::Options {
            draft: self.draft(sherd.as_deref())?,
            units: self.units.clone(),
            smts: self.smt.clone(),
            policies: self.policies.clone(),
            load: self.load.burden(self.seed)?,
            budget,
            margin: 1.0 + self.margin / 100.0,
            warm_up: Duration::from_secs_f64(self.warm_up),
            cpus_are_given: self.cpus.is_some(),
            settings,
            docker: self.docker.clone().unwrap_or_else(Engine::default_socket),
            sherd,
            write: self.write.clone(),
            origin: origin(),
        })
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let (cpus, load_cpus) = choose_cpus(self.cpus.as_deref(), self.load_cpus.as_deref())?;
        check_connections("--connections", self.load.connections, &load_cpus)?;
        let duration_seconds = self.duration.unwrap_or(if self.quick { 0.3 } else { 0.5 });
        ensure!((0.05..=600.0).contains(&duration_seconds), "--duration must be 0.05 to 600 seconds");
        Ok(Settings {
            pairs: 0,
            duration_seconds,
            warm_up_seconds: 0.1,
            connections: self.load.connections,
            answer_bytes: 0,
            bulk: None,
            open_share: 0.0,
            idle_connections: 0,
            seed: self.seed,
            cpus,
            load_cpus,
        })
    }

    /// The specification: the file's, or what `sherd run` would apply.
    fn draft(&self, sherd: Option<&Path>) -> anyhow::Result<Draft> {
        let text = match &self.spec {
            Some(path) => {
                let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
                check(sherd, path)?;
                text
            }
            None => self.printed(sherd)?,
        };
        let file = self.spec.as_ref().map_or_else(|| "the specification".into(), |path| path.display().to_string());
        Draft::parse(&text, self.port).with_context(|| format!("{file} cannot be tuned"))
    }

    fn printed(&self, sherd: Option<&Path>) -> anyhow::Result<String> {
        let mut words = vec!["run", "--print", "--publish", &self.publish];
        words.extend(self.process.then_some("--process"));
        words.push("--");
        words.extend(self.words.iter().map(String::as_str));
        ask(sherd, &words)
    }
}

/// That `sherd` takes a specification as it is; its own words name line, key and remedy.
fn check(sherd: Option<&Path>, file: &Path) -> anyhow::Result<()> {
    let file = file.to_str().context("a file's name must be text")?;
    ask(sherd, &["plan", "--run-dir", NO_AGENT, "--reserved-cpus", "none", "--json", file]).map(drop)
}

fn ask(sherd: Option<&Path>, words: &[&str]) -> anyhow::Result<String> {
    let sherd = sherd.context(
        "there is no `sherd` beside sherd-bench and none was given by --sherd: cargo build --release -p sherd",
    )?;
    let output = Command::new(sherd).args(words).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{} cannot be run", sherd.display()))?;
    ensure!(output.status.success(), "`sherd {}` says: {}", words[0], String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl LoadOptions {
    fn burden(&self, seed: u64) -> anyhow::Result<Burden> {
        if let Some(command) = &self.command {
            return Ok(Burden::Command { command: command.clone(), lower_is_better: self.lower_is_better });
        }
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(self.path.starts_with('/') && plain(&self.path), "--path must start with / and have no blanks");
        ensure!(!self.host.is_empty() && plain(&self.host), "--host must be a name without blanks");
        let clients = self.clients.unwrap_or(self.connections);
        ensure!((1..=65_536).contains(&clients), "--clients must be 1 to 65536");
        if let Some(rate) = self.rate {
            ensure!((1.0..=10_000_000.0).contains(&rate), "--rate must be 1 to 10000000 requests per second");
        }
        let shape = match (self.rate, self.per_connection) {
            (Some(requests_per_second), _) => Shape::Open { requests_per_second, seed },
            (None, true) => Shape::ConnectionPerRequest,
            (None, false) => Shape::KeepAlive,
        };
        let request = Request { path: self.path.clone(), host: self.host.clone(), clients };
        Ok(Burden::Requests { request, shape })
    }
}

/// `90s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: write it as 90s, 5m or 1h");
    let unit = text.char_indices().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit.1 {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..unit.0].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("1h", 3600), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "m", "1.5m", "5ä", "99999999999999999999h", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
