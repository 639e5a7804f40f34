//! `sherd-bench steer`: its options and their defaults.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, ensure};
use clap::Args;
use sherd_bench::{measure::allowed_cpus, scenario::steer};

use super::comparison::{origin, program, run_kept};

/// Times updates of the steering until the next SYN obeys them, and what steering costs a connection, for 1 to 256 slots.
///
/// Runs programs that use sherd's library for connections alone, without an agent: `cargo build --release -p sherd-lb
/// --examples` makes them. Needs root and eBPF.
#[derive(Args)]
pub(crate) struct Steer {
    /// About a minute: fewer repetitions.
    #[arg(long)]
    quick: bool,
    /// How often each number of slots has a turn [default: 20; with --quick 5].
    #[arg(long, value_name = "N")]
    blocks: Option<usize>,
    /// Numbers of slots, ascending, 1 to 256.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,4,16,64,256")]
    slots: Vec<u16>,
    /// Updates of each kind in each turn.
    #[arg(long, value_name = "N", default_value_t = 200)]
    updates: usize,
    /// Seed of orders and intervals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The CPU on which it runs [default: the first that may be used].
    #[arg(long, value_name = "CPU")]
    cpu: Option<usize>,
    /// Where the programs are [default: examples/ beside this one].
    #[arg(long, value_name = "DIR", value_parser = program)]
    probes: Option<PathBuf>,
    /// Where the report goes.
    #[arg(long, value_name = "DIR", default_value = "sherd-bench-results")]
    output: PathBuf,
}

impl Steer {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let all = allowed_cpus().context("this process's CPUs cannot be read")?;
        let options = steer::Options {
            probes: self.probes.clone(),
            blocks: self.blocks.unwrap_or(if self.quick { 5 } else { 20 }),
            slots: self.slots.clone(),
            updates: self.updates,
            cpu: self.cpu.unwrap_or(all[0]),
            seed: self.seed,
            origin: origin(),
        };
        ensure!((1..=1000).contains(&options.blocks), "--blocks must be 1 to 1000");
        ensure!(
            options.slots.len() > 1
                && options.slots.is_sorted_by(|a, b| a < b)
                && options.slots.iter().all(|slots| (1..=256).contains(slots)),
            "--slots must be two numbers or more from 1 to 256, ascending"
        );
        ensure!((1..=10_000).contains(&options.updates), "--updates must be 1 to 10000");
        ensure!(all.contains(&options.cpu), "--cpu {} is not one that this process may use", options.cpu);
        run_kept("steer", &self.output, |_, progress, interrupt| steer::run(&options, progress, interrupt))
    }
}
