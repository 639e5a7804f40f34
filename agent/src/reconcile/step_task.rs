//! The steps that take an engine or the kernel a while, as tasks: what they need and how they end.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use sherd_topology::plan::Slot;

use super::{message::Outcome, view::Step, world};
use crate::{
    runtime::{Runtime, RuntimeError, ShardId, ShardKey},
    spec::GroupSpec,
};

/// Lines of a failed shard's output that are kept when it is removed.
const LAST_LINES: usize = 20;
/// How long reading them may hold up a restart.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(2);
/// What a step that runs as a task needs.
pub(super) struct StepTask {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) key: ShardKey,
    pub(super) spec: Arc<GroupSpec>,
    pub(super) place: Option<Slot>,
    pub(super) pid: Option<u32>,
    /// The slot's shards have been failing: what the last one said is worth keeping.
    pub(super) failed: bool,
}

impl StepTask {
    pub(super) async fn run(&self, step: &Step) -> (Outcome, Vec<String>) {
        match step {
            Step::Start(shard) => (outcome(self.runtime.start(shard).await), Vec::new()),
            Step::Stop(shard) => (outcome(self.runtime.stop(shard, self.spec.stop_grace).await), Vec::new()),
            Step::Unpause(shard) => (outcome(self.runtime.unpause(shard).await), Vec::new()),
            Step::Remove(shard) => {
                let lines = if self.failed { last_lines(&*self.runtime, shard).await } else { Vec::new() };
                (outcome(self.runtime.remove(shard).await), lines)
            }
            Step::Verify(_) => (self.verify().await, Vec::new()),
            Step::Repin(shard) => (self.repin(shard).await, Vec::new()),
            // The others are done at once, in `execute`.
            Step::Equip
            | Step::Create
            | Step::Connect(_)
            | Step::Promote(_)
            | Step::TakeIn
            | Step::TakeOut
            | Step::Drain
            | Step::Disconnect
            | Step::Retire => (Outcome::Done, Vec::new()),
        }
    }

    async fn repin(&self, shard: &ShardId) -> Outcome {
        let Some(place) = &self.place else { return Outcome::Done };
        if let Err(error) = self.runtime.update_cpus(shard, place).await {
            return Outcome::Engine(error);
        }
        self.verify().await
    }

    async fn verify(&self) -> Outcome {
        let (Some(place), Some(pid)) = (self.place.clone(), self.pid) else { return Outcome::Done };
        let asked = place.clone();
        match world::blocking(move || world::pinning(pid, &asked)).await {
            Ok(Ok(())) => Outcome::Pinned(place),
            Ok(Err(fault)) => Outcome::NotPinned(super::chain(&fault)),
            Err(panic) => Outcome::NotPinned(format!("asking the kernel failed: {panic}")),
        }
    }
}

/// The end of a shard's output; what can't be had in time is not worth waiting for.
async fn last_lines(runtime: &dyn Runtime, shard: &ShardId) -> Vec<String> {
    let lines = runtime.logs(shard, Some(LAST_LINES), false);
    let lines = lines.take(LAST_LINES).filter_map(|line| async { line.ok().map(|line| line.text) }).collect();
    tokio::time::timeout(LAST_LINES_TIMEOUT, lines).await.unwrap_or_default()
}

pub(super) fn outcome(result: Result<(), RuntimeError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => Outcome::Engine(error),
    }
}
