//! `sherd-bench plan`: its options and their defaults.

use std::{path::PathBuf, process::ExitCode};

use anyhow::ensure;
use clap::Args;
use sherd_bench::scenario::plan;

use super::comparison::{origin, program, run_kept, sherd_beside_us};

/// Times `sherd plan` for made-up machines of 1 to 4,096 cores, for one group and for up to 64.
///
/// Tells what planning adds to a command that plans nothing, and how it grows. Needs no privilege.
#[derive(Args)]
pub(crate) struct Plan {
    /// Well under a minute: fewer repetitions.
    #[arg(long)]
    quick: bool,
    /// How often each machine is planned for [default: 50; with --quick 10].
    #[arg(long, value_name = "N")]
    times: Option<usize>,
    /// Seed of orders.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The sherd program [default: the one beside this one].
    #[arg(long, value_name = "PATH", value_parser = program)]
    sherd: Option<PathBuf>,
    /// Where the report goes.
    #[arg(long, value_name = "DIR", default_value = "sherd-bench-results")]
    output: PathBuf,
}

impl Plan {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let times = self.times.unwrap_or(if self.quick { 10 } else { 50 });
        ensure!((1..=10_000).contains(&times), "--times must be 1 to 10000");
        let sherd = self.sherd.clone().or_else(sherd_beside_us);
        let options = plan::Options { sherd, times, seed: self.seed, origin: origin() };
        run_kept("plan", &self.output, |scratch, progress, interrupt| plan::run(&options, scratch, progress, interrupt))
    }
}
