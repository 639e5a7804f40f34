//! `sherd-bench verify`: its options and their defaults.

use std::{path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::Args;
use sherd_bench::{
    contestant::Generator,
    report::Settings,
    scenario::verify::{self, Part},
};

use super::comparison::{check_answer, check_connections, choose_cpus, origin, program, run_kept};

/// Shows whether this harness measures right on this machine, by measuring what is known beforehand.
///
/// Latencies that a server plants, also while it stalls: the open loop must find them. The maximum of a server, which other
/// load generators must find as well (wrk and oha, where they are installed). A difference between shards that is planted,
/// and one that isn't there: a comparison must find the one and not the other. Needs no privilege; two CPUs for the maximum.
/// A host that does something else gives no verdict. The full run takes about three quarters of an hour.
#[derive(Args)]
pub(crate) struct Verify {
    /// Under two minutes: fewer and shorter runs.
    #[arg(long)]
    quick: bool,
    /// What is verified: latencies, maxima (against wrk and oha), differences.
    #[arg(long, value_name = "PARTS", value_delimiter = ',', default_value = "latencies,maxima,differences")]
    parts: Vec<Part>,
    /// How often latencies are planted, and generators run in turn [default: 5 and 12; with --quick 2 and 5].
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Seconds for which latencies are planted [default: 20; with --quick 3].
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// How often differences are looked for [default: 20; with --quick 2].
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Pairs of each run [default: 60; with --quick 20].
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// Seconds of each sample [default: 0.15; with --quick 0.1].
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// The planted difference, in percent of a request's CPU time.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    slowdown: f64,
    /// Connections of closed loops.
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Bytes of answers.
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    answer: usize,
    /// Seed of orders, arrivals and intervals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CPUs of shards [default: all; with four or more, the lower half].
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// CPUs of the load [default: all; with four or more, the upper half].
    #[arg(long, value_name = "LIST")]
    load_cpus: Option<String>,
    /// wrk [default: the one on the PATH].
    #[arg(long, value_name = "PATH", value_parser = program)]
    wrk: Option<PathBuf>,
    /// oha [default: the one on the PATH].
    #[arg(long, value_name = "PATH", value_parser = program)]
    oha: Option<PathBuf>,
    /// Where the report goes.
    #[arg(long, value_name = "DIR", default_value = "sherd-bench-results")]
    output: PathBuf,
}

impl Verify {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let (runs, rounds, seconds) = if self.quick { (2, 2, 3) } else { (20, 5, 20) };
        let (generator_pairs, generator_seconds) = if self.quick { (5, 1) } else { (12, 3) };
        let options = verify::Options {
            settings: self.settings()?,
            runs: self.runs.unwrap_or(runs),
            slowdown: self.slowdown / 100.0,
            parts: self.parts.clone(),
            latency_rounds: self.rounds.unwrap_or(rounds),
            latency_seconds: self.seconds.unwrap_or(seconds),
            generator_pairs: self.rounds.unwrap_or(generator_pairs),
            generator_seconds,
            generators: vec![(Generator::Wrk, self.wrk.clone()), (Generator::Oha, self.oha.clone())],
            origin: origin(),
        };
        ensure!((1..=1000).contains(&options.runs), "--runs must be 1 to 1000");
        ensure!((1..=1000).contains(&options.latency_rounds), "--rounds must be 1 to 1000");
        ensure!((3..=600).contains(&options.latency_seconds), "--seconds must be 3 to 600: a stall takes one");
        ensure!((0.1..=100.0).contains(&self.slowdown), "--slowdown must be 0.1 to 100 percent");
        run_kept("verify", &self.output, |scratch, progress, interrupt| {
            verify::run(&options, scratch, progress, interrupt)
        })
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let (cpus, load_cpus) = choose_cpus(self.cpus.as_deref(), self.load_cpus.as_deref())?;
        // Short samples, near each other: what disturbs a host for a second disturbs both sides of a pair.
        let (pairs, duration, warm_up) = if self.quick { (20, 0.1, 0.03) } else { (60, 0.15, 0.05) };
        let settings = Settings {
            pairs: self.pairs.unwrap_or(pairs),
            duration_seconds: self.duration.unwrap_or(duration),
            warm_up_seconds: warm_up,
            connections: self.connections,
            answer_bytes: self.answer,
            bulk: None,
            open_share: 0.5,
            idle_connections: 0,
            seed: self.seed,
            cpus,
            load_cpus,
        };
        ensure!((1..=1000).contains(&settings.pairs), "--pairs must be 1 to 1000");
        ensure!((0.05..=600.0).contains(&settings.duration_seconds), "--duration must be 0.05 to 600 seconds");
        check_connections("--connections", self.connections, &settings.load_cpus)?;
        check_answer("--answer", self.answer)?;
        Ok(settings)
    }
}
