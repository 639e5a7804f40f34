//! `sherd-bench sharding`: its options and their defaults.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::ensure;
use clap::Args;
use sherd_bench::{
    contestant::{Engine, Program},
    scenario::sharding,
};

use super::comparison::{Comparison, origin};

/// Seconds of warming up, for what gets faster while it runs: with --quick, and without.
const WARM_UP: (f64, f64) = (2.0, 8.0);

/// Tells whether sharding and pinning help a program: one process on all CPUs against shards of each unit, and unpinned ones.
///
/// All layouts run the same container image, made here of Go programs that allocate and that compute, nginx, and a JVM's own
/// server. "core" and the other units are sherd's, on its direct path; "unsharded" is one container on the host's network;
/// "unpinned" is as many shards as "core" behind the same steering, free to run on all CPUs. Units that are the same on this
/// machine are measured once. Each program has a report of its own. Needs root, eBPF and a Docker Engine
/// (`.ci/with-engines.sh sherd-bench sharding` brings one), and go, nginx or a JDK for the programs.
#[derive(Args)]
pub(crate) struct Sharding {
    #[command(flatten)]
    comparison: Comparison,
    /// Which: go-allocates, go-computes, nginx, jvm.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "go-allocates,go-computes,nginx,jvm")]
    programs: Vec<Program>,
    /// Seconds for which each layout of a program that gets faster while it runs (jvm) is under load before it is measured
    /// [default: 8; with --quick 2].
    #[arg(long, value_name = "SECONDS")]
    warm_up: Option<f64>,
    /// The Docker Engine's socket [default: $SHERD_TEST_DOCKER, $DOCKER_HOST or /var/run/docker.sock].
    #[arg(long, value_name = "SOCKET")]
    docker: Option<PathBuf>,
}

impl Sharding {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        for (index, program) in self.programs.iter().enumerate() {
            ensure!(!self.programs[..index].contains(program), "--programs names {} twice", program.name());
        }
        let warm_up = self.warm_up.unwrap_or(if self.comparison.is_quick() { WARM_UP.0 } else { WARM_UP.1 });
        ensure!((0.0..=600.0).contains(&warm_up), "--warm-up must be 0 to 600 seconds");
        let mut settings = self.comparison.settings()?;
        if self.comparison.is_quick() {
            // Four programs in two minutes.
            let (pairs, duration) = self.comparison.asked();
            settings.pairs = pairs.unwrap_or(4);
            settings.duration_seconds = duration.unwrap_or(0.15);
        }
        let options = sharding::Options {
            settings,
            warm_up: Duration::from_secs_f64(warm_up),
            docker: self.docker.clone().unwrap_or_else(Engine::default_socket),
            peers: self.comparison.peers.clone(),
            sherd: self.comparison.sherd(),
            origin: origin(),
        };
        self.comparison.run_each(&self.programs, sharding::scenario_name, |program, scratch, progress, interrupt| {
            sharding::run(&options, program, scratch, progress, interrupt)
        })
    }
}
