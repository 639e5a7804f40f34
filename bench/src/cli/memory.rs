//! `sherd-bench memory`: its options and their defaults.

use std::{path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::Args;
use sherd_bench::{
    contestant::{self, Engine, Server},
    scenario::{Entrant, FieldOptions, memory},
};

use super::comparison::{check_answer, check_names, choose_cpus, origin, program, run_kept, sherd_beside_us};

/// Measures what an idle connection costs in memory: of the balancer, of the shards, and of the kernel.
///
/// Each contestant is started alone, several times, and given more and more connections; what is told is the slope of memory
/// over their number, with an interval. Needs root, eBPF and a Docker Engine: `.ci/with-engines.sh sherd-bench memory` brings
/// one. A full run takes about 15 minutes.
#[derive(Args)]
pub(crate) struct Memory {
    /// Under two minutes: fewer rounds, sizes and connections.
    #[arg(long)]
    quick: bool,
    /// The most idle connections; fewer where the limit of open files doesn't allow them [default: 100000; with --quick 1500].
    #[arg(long, value_name = "N")]
    idle: Option<usize>,
    /// Sizes up to that [default: 8; with --quick 3].
    #[arg(long, value_name = "N")]
    sizes: Option<usize>,
    /// How often each contestant is started [default: 5; with --quick 2].
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Bytes of the one answer that each connection has had.
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    answer: usize,
    /// Seed of orders and intervals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Who takes part; see `sherd-bench peers --help`.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "sherd-direct,sherd-relay,bare,bare-2,unsharded,docker-port,haproxy-host,nginx-host,envoy-host"
    )]
    contestants: Vec<Entrant>,
    /// The server in the image: shard (this program's own) or go (net/http; needs go).
    #[arg(long, value_name = "NAME", default_value = "shard")]
    image_server: Server,
    /// CPUs of contestants and shards [default: all; with four or more, the lower half].
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    /// The Docker Engine's socket [default: $SHERD_TEST_DOCKER, $DOCKER_HOST or /var/run/docker.sock].
    #[arg(long, value_name = "SOCKET")]
    docker: Option<PathBuf>,
    /// The sherd program [default: the one beside this one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    sherd: Option<PathBuf>,
    /// HAProxy [default: the installed one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    haproxy: Option<PathBuf>,
    /// nginx with its stream module [default: the installed one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    nginx: Option<PathBuf>,
    /// Envoy [default: the installed one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    envoy: Option<PathBuf>,
    /// Where `sherd-bench install` has put the peers.
    #[arg(long, value_name = "DIR", default_value_os_t = contestant::default_peers())]
    peers: PathBuf,
    /// Where the report goes.
    #[arg(long, value_name = "DIR", default_value = "sherd-bench-results")]
    output: PathBuf,
}

impl Memory {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        check_names(self.contestants.iter().map(|entrant| entrant.name()))?;
        check_answer("--answer", self.answer)?;
        let (connections, sizes, rounds) = if self.quick { (1500, 3, 2) } else { (100_000, 8, 5) };
        let options = memory::Options {
            field: self.field()?,
            connections: self.idle.unwrap_or(connections),
            sizes: self.sizes.unwrap_or(sizes),
            rounds: self.rounds.unwrap_or(rounds),
            answer_bytes: self.answer,
            seed: self.seed,
            origin: origin(),
        };
        ensure!((2..=100).contains(&options.sizes), "--sizes must be 2 to 100: fewer are no line");
        ensure!((options.sizes..=100_000).contains(&options.connections), "--idle must be --sizes to 100000");
        ensure!((1..=100).contains(&options.rounds), "--rounds must be 1 to 100");
        run_kept("memory", &self.output, |scratch, progress, interrupt| {
            memory::run(&options, scratch, progress, interrupt)
        })
    }

    fn field(&self) -> anyhow::Result<FieldOptions> {
        // Connections are opened by one thread that isn't pinned: nothing is timed.
        let (cpus, _) = choose_cpus(self.cpus.as_deref(), None)?;
        Ok(FieldOptions {
            contestants: self.contestants.clone(),
            server: self.image_server,
            cpus,
            docker: self.docker.clone().unwrap_or_else(Engine::default_socket),
            peers: self.peers.clone(),
            sherd: self.sherd.clone().or_else(sherd_beside_us),
            haproxy: self.haproxy.clone(),
            nginx: self.nginx.clone(),
            envoy: self.envoy.clone(),
        })
    }
}
