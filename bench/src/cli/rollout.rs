//! `sherd-bench rollout`: its options, defaults and bounds.

use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use sherd_bench::{
    contestant::GroupPath,
    load::MOST_KEPT,
    scenario::rollout::{self, Words},
};

use super::{
    comparison::run_kept,
    trial::{Trial, path},
};

/// Changes a group again and again under steady load, and tells what that costs its clients.
///
/// Rollouts (start-first and stop-first), one shard less and more, planned restarts and kills of the agent, on either path: requests that
/// fail, the longest waits over time with marks where a slot's shard takes over, and how long each change takes. Needs root, eBPF, a
/// Docker Engine (`.ci/with-engines.sh sherd-bench rollout` brings one) and two CPUs.
#[derive(Args)]
pub(crate) struct Rollout {
    #[command(flatten)]
    trial: Trial,
    /// Paths: direct, relay.
    #[arg(long, value_name = "PATHS", value_delimiter = ',', default_value = "direct,relay", value_parser = path)]
    path: Vec<GroupPath>,
    /// What is done: rollouts, scale, restarts, kills.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "rollouts,scale,restarts,kills")]
    what: Vec<Words>,
    /// How often each [default: 20; with --quick 3].
    #[arg(long, value_name = "N")]
    times: Option<usize>,
    /// Connections with one request each, in an open loop.
    #[arg(long, value_name = "N", default_value_t = 500.0)]
    visits_per_second: f64,
    /// Connections that are kept, with 20 requests/s each.
    #[arg(long, value_name = "N", default_value_t = 16)]
    kept: usize,
}

impl Rollout {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut trial = self.trial.options(2)?;
        // Rollouts take a time for each slot.
        trial.cpus.truncate(4);
        let times = self.times.unwrap_or(if self.trial.quick { 3 } else { 20 });
        ensure!((1..=1000).contains(&times), "--times must be 1 to 1000");
        ensure!((1.0..=10_000.0).contains(&self.visits_per_second), "--visits-per-second must be 1 to 10000");
        ensure!(self.kept <= MOST_KEPT, "--kept must be at most {MOST_KEPT}");
        let what = self.what.iter().flat_map(|words| words.0.iter().copied()).collect();
        let (paths, visits_per_second, kept) = (self.path.clone(), self.visits_per_second, self.kept);
        let options = rollout::Options { trial, paths, what, times, visits_per_second, kept };
        run_kept("rollout", &self.trial.output, |scratch, progress, interrupt| {
            rollout::run(&options, scratch, progress, interrupt)
        })
    }
}
