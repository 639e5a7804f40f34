//! Checks one shard for as long as it runs: asks, waits, asks again, and tells the loop what came of it. Judges nothing.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use sherd_topology::plan::{GroupName, SlotId};
use tokio::sync::{Notify, mpsc};

use super::{
    inspect::{PortQuestion, Question, Unreached},
    message::Message,
    world,
};
use crate::{
    health::pace::{Intervals, Pace},
    runtime::{End, EngineHealth, Executed, ObservedShard, Runtime, ShardId},
    spec::{Check, GroupSpec, Readiness},
};

/// Time between two probes of a shard that is ready and checked by TCP only. Its end is told by the runtime and its
/// refusals by the worker; this is the net below both.
const SETTLED_TCP: Duration = Duration::from_secs(60);
/// The same where the engine checks, which tells of each change.
const SETTLED_IMAGE: Duration = Duration::from_secs(10);
/// The first wait while a shard has never been reached.
const FIRST_WAIT: Duration = Duration::from_millis(10);
/// The same where asking starts a process.
const FIRST_WAIT_OF_COMMAND: Duration = Duration::from_millis(200);

/// See the module. The loop ends this task with its shard.
pub(super) struct Prober {
    pub(super) number: u64,
    pub(super) outbox: mpsc::UnboundedSender<Message>,
    pub(super) group: GroupName,
    pub(super) slot: SlotId,
    pub(super) shard: ShardId,
    pub(super) question: Arc<Question>,
    pub(super) spec: Arc<GroupSpec>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) nudge: Arc<Notify>,
}

impl Prober {
    pub(super) async fn run(self) {
        let (mut known, mut pace) = (None, Pace::new(intervals(&self.spec.readiness), self.seed()));
        let mut proven = self.question.proven;
        loop {
            let (question, reach) = (Arc::clone(&self.question), known.take());
            let Ok(reached) = world::blocking(move || world::ask(&question, reach, proven)).await else { return };
            known = reached.as_ref().ok().cloned();
            proven |= reached.is_ok();
            let result = match reached {
                Ok(reach) => self.ask_runtime().await.map(|()| reach),
                Err(unreached) => Err(unreached),
            };
            let wait = pace.after(result.is_ok());
            if let Err(Unreached::Runtime(error)) = &result
                && error.is_outage()
            {
                // That the engine is away says nothing of its shards.
                tracing::debug!(group = %self.group, slot = %self.slot, "it can't be checked: {error}");
                tokio::time::sleep(wait).await;
                continue;
            }
            let (group, shard) = (self.group.clone(), self.shard.clone());
            let probed = Message::Probed { group, slot: self.slot, prober: self.number, shard, result };
            if self.outbox.send(probed).is_err() {
                return;
            }
            tokio::select! {
                // A nudge is taken with the end of the wait, should both be there: one check is enough.
                biased;
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Tells the probers of this host apart.
    fn seed(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.group, self.slot, &self.shard).hash(&mut hasher);
        hasher.finish()
    }

    /// What a connection doesn't tell.
    async fn ask_runtime(&self) -> Result<(), Unreached> {
        let Readiness { check, timeout, .. } = &self.spec.readiness;
        match check {
            Check::Tcp | Check::Http(_) => Ok(()),
            Check::Command(command) => {
                let run = self.runtime.exec(&self.shard, self.question.pid, command, *timeout).await;
                verdict_of_command(&run.map_err(Unreached::Runtime)?)
            }
            Check::Image => verdict_of_engine(self.runtime.health(&self.shard).await.map_err(Unreached::Runtime)?),
        }
    }
}

fn intervals(readiness: &Readiness) -> Intervals {
    let usual = readiness.interval;
    let (first, settled) = match readiness.check {
        Check::Tcp => (FIRST_WAIT, usual.max(SETTLED_TCP)),
        Check::Http(_) => (FIRST_WAIT, usual),
        Check::Command(_) => (FIRST_WAIT_OF_COMMAND, usual),
        Check::Image => (FIRST_WAIT_OF_COMMAND, usual.max(SETTLED_IMAGE)),
    };
    Intervals { first, usual, settled, rise: readiness.rise }
}

fn verdict_of_command(run: &Executed) -> Result<(), Unreached> {
    let Executed { end, output } = run;
    let output = if output.is_empty() { "it wrote nothing".to_owned() } else { output.clone() };
    match *end {
        End::Exited(0) => Ok(()),
        End::Exited(code) => Err(Unreached::Command { code, output }),
        End::TimedOut(after) => Err(Unreached::CommandTimedOut { after, output }),
        End::Escaped(after) => Err(Unreached::CommandEscaped { after, output }),
    }
}

fn verdict_of_engine(health: EngineHealth) -> Result<(), Unreached> {
    match health {
        EngineHealth::Healthy => Ok(()),
        EngineHealth::Starting => Err(Unreached::Starting),
        EngineHealth::Unhealthy { output } => Err(Unreached::Unhealthy { output }),
        EngineHealth::None => Err(Unreached::NoHealthcheck),
    }
}

pub(super) fn question_for(spec: &GroupSpec, shard: &ObservedShard, pid: u32) -> Question {
    let ports = spec.ports.iter().map(|port| PortQuestion {
        container: port.container,
        port: shard
            .process_ports
            .iter()
            .find(|(container, _)| *container == port.container)
            .map_or(port.container.0, |(_, port)| *port),
        loopback: port.loopback,
    });
    Question {
        pid,
        ports: ports.collect(),
        direct: Vec::new(),
        answering: None,
        proven: false,
        former: false,
        check: spec.readiness.check.clone(),
        only: spec.readiness.port,
        timeout: spec.readiness.timeout,
    }
}
