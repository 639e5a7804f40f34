//! `load`: the load generator for itself, against any server.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use sherd_bench::{
    interrupt::Interrupt,
    load::{self, Load as Plan, MAX_ECHO_BYTES, Outcome, Request, Shape},
    measure::raise_open_files,
};

use super::comparison::choose_cpus;

/// Files of this process besides its connections.
const OTHER_FILES: usize = 200;

/// Puts a load on any server and tells what came of it: as the comparisons do, but of one and without a conclusion.
///
/// Ends with 1 if a request failed or a stream broke. Starts nothing, and needs no root.
#[derive(Args)]
pub(crate) struct Load {
    /// Where connections go, each to the next of them.
    #[arg(required = true, value_name = "ADDRESS:PORT")]
    targets: Vec<SocketAddr>,
    /// When requests are sent, and on which connections.
    #[arg(long, value_enum, default_value = "keep-alive")]
    shape: Kind,
    /// Connections at a time.
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Seconds that count.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    duration: f64,
    /// Seconds before them.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.3)]
    warm_up: f64,
    /// What is asked for.
    #[arg(long, default_value = "/")]
    path: String,
    /// Requests per second of the open loop.
    #[arg(long, value_name = "RATE", required_if_eq("shape", "open"))]
    rate: Option<f64>,
    /// Bytes of each echo, and of each block of streams.
    #[arg(long, default_value_t = 128)]
    bytes: usize,
    /// Seed of the open loop's arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// CPUs of the load, one thread on each [default: all; with four or more, the upper half].
    #[arg(long, value_name = "LIST")]
    load_cpus: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The next request when the last is answered, on the same connection.
    KeepAlive,
    /// The same, each on a connection of its own.
    Connections,
    /// When they are due, on kept connections: for latencies.
    Open,
    /// Bytes there and back, without HTTP: the server echoes.
    Echo,
    /// Connections that are open all the time, with bytes both ways, each of them checked: the server echoes.
    Streams,
}

impl Load {
    /// Does so.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let interrupt = Interrupt::on_signals().context("signals cannot be taken")?;
        let plan = self.plan()?;
        let request = Request { path: self.path.clone(), host: self.targets[0].to_string(), clients: 1 };
        let (outcome, (), ()) = load::run_request(&plan, &request, &interrupt, || ())?;
        self.tell(&outcome);
        Ok(if outcome.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let (_, cpus) = choose_cpus(None, self.load_cpus.as_deref())?;
        ensure!(self.connections >= cpus.len(), "--connections must be at least one for each CPU of the load");
        ensure!((0.05..=86_400.0).contains(&self.duration), "--duration must be 0.05 to 86400 seconds");
        ensure!((0.0..=600.0).contains(&self.warm_up), "--warm-up must be 0 to 600 seconds");
        ensure!(self.path.starts_with('/'), "--path must begin with a slash");
        ensure!((1..=MAX_ECHO_BYTES).contains(&self.bytes), "--bytes must be 1 to {MAX_ECHO_BYTES}");
        let rate = self.rate.unwrap_or(1.0);
        ensure!((0.1..=1e7).contains(&rate), "--rate must be 0.1 to 10000000 requests per second");
        let wanted = self.connections + OTHER_FILES;
        let limit = raise_open_files(wanted as u64).context("the limit of open files cannot be read")?;
        ensure!(
            limit >= wanted as u64,
            "--connections {} needs {wanted} open files, and the limit is {limit}",
            self.connections
        );
        Ok(Plan {
            targets: self.targets.clone(),
            connections: self.connections,
            answer_bytes: self.bytes,
            shape: match self.shape {
                Kind::KeepAlive => Shape::KeepAlive,
                Kind::Connections => Shape::ConnectionPerRequest,
                Kind::Open => Shape::Open { requests_per_second: rate, seed: self.seed },
                Kind::Echo => Shape::Echo,
                Kind::Streams => Shape::Streams,
            },
            cpus,
            warm_up: Duration::from_secs_f64(self.warm_up),
            duration: Duration::from_secs_f64(self.duration),
        })
    }

    fn tell(&self, outcome: &Outcome) {
        let seconds = outcome.elapsed.as_secs_f64();
        let what = if self.shape == Kind::Streams { "blocks" } else { "requests" };
        println!("{what}: {} in {seconds:.3} s, {:.1}/s", outcome.requests, outcome.requests_per_second());
        println!("bytes: {}, {:.3} MB/s", outcome.body_bytes, outcome.body_bytes as f64 / seconds / 1e6);
        if self.shape == Kind::Open {
            let micros = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1e3;
            let told = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
            let told = told.map(|(name, quantile)| format!("{name} {:.1}", micros(quantile)));
            println!("latency in microseconds: {}", told.join(", "));
        }
        println!("failed: {}", outcome.failed());
        for (error, count) in &outcome.errors {
            println!("  {count}: {error}");
        }
        println!("CPU of the load itself: {:.3} s", outcome.own_cpu.as_secs_f64());
    }
}
