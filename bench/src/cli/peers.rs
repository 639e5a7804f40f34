//! `sherd-bench peers`: its options and their defaults.

use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use sherd_bench::{
    report::{Bulk, Settings},
    scenario::{Entrant, peers},
};

use super::{
    comparison::{Comparison, check_answer, check_connections, check_names, origin},
    field::Field,
};

/// Pairs, seconds of each sample and of warming up of a quick run: ten contestants under four loads.
const QUICK: (usize, f64, f64) = (4, 0.12, 0.05);

/// Compares both of sherd's paths with all else that can stand in front of the same containers, under all loads.
///
/// Tells ratios of each path to each other contestant: maxima, CPU time of the whole path and of the balancer alone, latencies at
/// one rate, context switches, system calls, and run times of eBPF programs. Who isn't installed is listed with the command
/// that installs it. Needs root, eBPF and a Docker Engine: `.ci/with-engines.sh sherd-bench peers` brings one. A full run
/// takes about 40 minutes. Turns kernel.bpf_stats_enabled on for some seconds.
#[derive(Args)]
pub(crate) struct Peers {
    #[command(flatten)]
    comparison: Comparison,
    #[command(flatten)]
    field: Field,
    /// Who takes part. sherd-direct, sherd-relay: a container on each CPU, on either path. bare, bare-2 (control): the same
    /// containers on the host's network, sharing a port by SO_REUSEPORT. unsharded: one container on all CPUs, a thread on
    /// each. docker-port: the same behind a port that the engine publishes (which can't lead to several). haproxy-host,
    /// haproxy-splice (told to splice always), nginx-host, envoy-host: in front of containers on the host's network.
    /// haproxy: in front of containers on the bridge. The first is the one whose ratios are told, beside those of sherd's.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "sherd-direct,sherd-relay,bare,bare-2,unsharded,docker-port,haproxy-host,haproxy-splice,nginx-host,envoy-host"
    )]
    contestants: Vec<Entrant>,
    /// Connections of the bulk load.
    #[arg(long, value_name = "N", default_value_t = 16)]
    bulk_connections: usize,
    /// Bytes of its answers.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    bulk_answer: usize,
    /// Requests, and connections, over which system calls are counted (with strace); 0 leaves it out [default: 1000; with
    /// --quick 100].
    #[arg(long, value_name = "N")]
    counted: Option<u64>,
}

impl Peers {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        check_names(self.contestants.iter().map(|entrant| entrant.name()))?;
        let counted = self.counted.unwrap_or(if self.comparison.is_quick() { 100 } else { 1000 });
        ensure!(counted <= 100_000, "--counted must be at most 100000");
        let settings = self.settings()?;
        let options = peers::Options {
            field: self.field.options(&self.contestants, &self.comparison, &settings.cpus),
            counted,
            settings,
            origin: origin(),
        };
        self.comparison.run("peers", |scratch, progress, interrupt| peers::run(&options, scratch, progress, interrupt))
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = self.comparison.settings_of(QUICK)?;
        check_connections("--bulk-connections", self.bulk_connections, &settings.load_cpus)?;
        check_answer("--bulk-answer", self.bulk_answer)?;
        settings.bulk = Some(Bulk { connections: self.bulk_connections, answer_bytes: self.bulk_answer });
        Ok(settings)
    }
}
