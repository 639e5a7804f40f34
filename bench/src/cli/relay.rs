//! `sherd-bench relay`: its options and their defaults.

use std::{path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::Args;
use sherd_bench::{
    contestant::Choice,
    report::{Bulk, Settings},
    sample::LoadKind,
    scenario::relay,
};

use super::comparison::{Comparison, check_answer, check_connections, check_names, origin, program};

/// Compares sherd's relay path, HAProxy (TCP mode, splice), nginx (stream) and no balancer, in front of the same shards.
///
/// Contestants get one pinned thread on each CPU, behind which runs one pinned shard. Writes a report with every sample
/// (JSON) and the table that it prints (text). Needs no privilege.
#[derive(Args)]
pub(crate) struct Relay {
    #[command(flatten)]
    comparison: Comparison,
    /// Connections of the bulk load.
    #[arg(long, value_name = "N", default_value_t = 16)]
    bulk_connections: usize,
    /// Bytes of its answers.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    bulk_answer: usize,
    /// Idle connections whose memory is measured; 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    idle: usize,
    /// Who takes part: sherd, haproxy (splice-auto), haproxy-splice (always), haproxy-percore (each thread to the shard on
    /// its CPU), nginx, envoy, direct. Without sherd, the first is the one whose ratios are told.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "sherd,haproxy,haproxy-splice,nginx,direct"
    )]
    contestants: Vec<Choice>,
    /// What is put on them: keep-alive, connections (one for each request), bulk, open (a rate for all, for latencies), echo
    /// (raw bytes), streams (bytes both ways without a pause, each checked).
    #[arg(long, value_name = "LOADS", value_delimiter = ',', default_value = "keep-alive,connections,bulk,open")]
    loads: Vec<LoadKind>,
    /// nginx with its stream module [default: the installed one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    nginx: Option<PathBuf>,
    /// Envoy [default: the installed one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    envoy: Option<PathBuf>,
}

impl Relay {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let options = relay::Options {
            settings: self.settings()?,
            peers: self.comparison.peers.clone(),
            contestants: self.contestants.clone(),
            loads: self.loads.clone(),
            sherd: self.comparison.sherd(),
            haproxy: self.comparison.haproxy.clone(),
            nginx: self.nginx.clone(),
            envoy: self.envoy.clone(),
            origin: origin(),
        };
        self.comparison.run("relay", |scratch, progress, interrupt| relay::run(&options, scratch, progress, interrupt))
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = self.comparison.settings()?;
        check_connections("--bulk-connections", self.bulk_connections, &settings.load_cpus)?;
        check_answer("--bulk-answer", self.bulk_answer)?;
        check_names(self.contestants.iter().map(|choice| choice.name()))?;
        ensure!(self.idle <= 100_000, "--idle must be at most 100000");
        settings.bulk = Some(Bulk { connections: self.bulk_connections, answer_bytes: self.bulk_answer });
        settings.idle_connections = self.idle;
        Ok(settings)
    }
}
