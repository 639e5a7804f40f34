//! `sherd-bench graft`: its options and their defaults.

use std::process::ExitCode;

use anyhow::ensure;
use clap::Args;
use sherd_bench::scenario::graft;

use super::{comparison::run_kept, trial::Trial};

/// Times listen(2) of programs in containers, whose socket is replaced by a listener of the published port.
///
/// Tells how long the call takes as the program sees it, and how many a second there can be. Needs root, eBPF and a Docker
/// Engine: `.ci/with-engines.sh sherd-bench graft` brings one.
#[derive(Args)]
pub(crate) struct Graft {
    #[command(flatten)]
    trial: Trial,
    /// How often a group is started [default: 5; with --quick 1].
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// How often each shard listens, with pauses and again without [default: 400; with --quick 100].
    #[arg(long, value_name = "N")]
    listens: Option<usize>,
}

impl Graft {
    /// Runs it, under a keeper.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        let (rounds, listens) = if self.trial.quick { (1, 100) } else { (5, 400) };
        let options = graft::Options {
            trial: self.trial.options(1)?,
            rounds: self.rounds.unwrap_or(rounds),
            listens: self.listens.unwrap_or(listens),
        };
        ensure!((1..=100).contains(&options.rounds), "--rounds must be 1 to 100");
        // An agent has a slot's programs wait that call more than a thousand times at once.
        ensure!((1..=900).contains(&options.listens), "--listens must be 1 to 900");
        run_kept("graft", &self.trial.output, |scratch, progress, interrupt| {
            graft::run(&options, scratch, progress, interrupt)
        })
    }
}
