//! `sherd-bench direct`: its options and their defaults.

use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use sherd_bench::scenario::{Entrant, direct};

use super::{
    comparison::{Comparison, check_names, origin},
    field::Field,
};

/// Compares sherd's direct path with the same containers that have the port for themselves, and behind HAProxy.
///
/// One pinned container on each CPU, of an image that is made here; nothing is pulled. Needs root, eBPF and a Docker
/// Engine: `.ci/with-engines.sh sherd-bench direct` brings one. Writes a report with every sample (JSON) and the table that
/// it prints (text).
#[derive(Args)]
pub(crate) struct Direct {
    #[command(flatten)]
    comparison: Comparison,
    #[command(flatten)]
    field: Field,
    /// Who takes part: sherd-direct, bare (containers that share a port by SO_REUSEPORT), bare-2 (the same again, as
    /// control), haproxy (in front of containers on the bridge), haproxy-host (on the host's network), sherd-relay, and
    /// the others of `peers`. The first is the one whose ratios are told.
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "sherd-direct,bare,bare-2,haproxy,haproxy-host"
    )]
    contestants: Vec<Entrant>,
    /// Requests, and connections, over which system calls are counted (with strace); 0 leaves it out.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    counted: u64,
}

impl Direct {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        check_names(self.contestants.iter().map(|entrant| entrant.name()))?;
        ensure!(self.counted <= 100_000, "--counted must be at most 100000");
        let settings = self.comparison.settings()?;
        let options = direct::Options {
            field: self.field.options(&self.contestants, &self.comparison, &settings.cpus),
            counted: self.counted,
            settings,
            origin: origin(),
        };
        self.comparison
            .run("direct", |scratch, progress, interrupt| direct::run(&options, scratch, progress, interrupt))
    }
}
