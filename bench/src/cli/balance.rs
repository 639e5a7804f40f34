//! `sherd-bench balance`: its options, defaults and bounds.

use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use sherd_bench::{
    contestant::GroupPath,
    scenario::balance::{self, MOST_SLOTS, Policy},
};

use super::{
    comparison::run_kept,
    trial::{Trial, path},
};

/// Counts which slot has how many connections, after bursts and as they come and go.
///
/// Told by the answers: each says which slot gave it. What the fullest slot has above the mean, for policies, paths and numbers of slots; a
/// slot takes a CPU, so a host has as many as it has CPUs. Needs root, eBPF, a Docker Engine
/// (`.ci/with-engines.sh sherd-bench balance` brings one) and two CPUs.
#[derive(Args)]
pub(crate) struct Balance {
    #[command(flatten)]
    trial: Trial,
    /// Paths: direct, relay.
    #[arg(long, value_name = "PATHS", value_delimiter = ',', default_value = "direct,relay", value_parser = path)]
    path: Vec<GroupPath>,
    /// Policies: balanced, connection, client (with an address of each client's own).
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "balanced,connection,client")]
    policies: Vec<Policy>,
    /// Numbers of slots, at most one for each of --cpus [default: 2, 4, 8, … and all, at most 64].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    slots: Vec<usize>,
    /// Bursts of each [default: 100; with --quick 10].
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Connections of a burst, for each slot.
    #[arg(long, value_name = "N", default_value_t = 16)]
    burst: usize,
}

impl Balance {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let trial = self.trial.options(2)?;
        let most = trial.cpus.len().min(MOST_SLOTS);
        let mut slots = self.slots.clone();
        if slots.is_empty() {
            slots = (1..).map(|power| 1 << power).take_while(|count| *count < most).chain([most]).collect();
        }
        for count in &slots {
            ensure!(
                (2..=most).contains(count),
                "--slots {count}: a slot takes one of --cpus, so choose from 2 to {most}"
            );
        }
        let rounds = self.rounds.unwrap_or(if self.trial.quick { 10 } else { 100 });
        ensure!((1..=10_000).contains(&rounds), "--rounds must be 1 to 10000");
        ensure!((1..=128).contains(&self.burst), "--burst must be 1 to 128");
        let (paths, policies, burst) = (self.path.clone(), self.policies.clone(), self.burst);
        let options = balance::Options { trial, paths, policies, slots, rounds, burst };
        run_kept("balance", &self.trial.output, |scratch, progress, interrupt| {
            balance::run(&options, scratch, progress, interrupt)
        })
    }
}
