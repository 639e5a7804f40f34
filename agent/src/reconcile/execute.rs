//! Carries out steps, without judgement: what a step does is here, when it is due is [`super::plan`]'s.
//!
//! What takes an engine or the kernel a while runs as a task and reports back; the slot is busy until then. What is a
//! few system calls is done at once.

mod connections;
mod create;
mod promote;
mod worker;

use std::{sync::Arc, time::Duration};

use sherd_topology::plan::{GroupName, SlotId};
use tokio::sync::mpsc;

use self::worker::{failure, pin_to};
use super::{
    Reconciler,
    direct::Failed,
    group::{Group, Running, SlotRun},
    message::{Message, Outcome},
    step_task::StepTask,
    view::{Pinning, Service, Step},
    world,
};
use crate::{
    clock,
    control::StopError,
    runtime::{ShardId, ShardKey, ShardState},
    spec::GroupSpec,
};

/// When a wrong pinning is mended again after the last try.
const REPIN_RETRY: Duration = Duration::from_secs(5);

impl Reconciler {
    pub(super) fn execute(&mut self, group: &GroupName, slot: SlotId, step: Step) {
        match step {
            Step::Equip => self.equip(group, slot),
            Step::Connect(shard) => self.connect(group, slot, shard),
            Step::Promote(shard) => self.promote(group, slot, &shard),
            Step::TakeIn => self.set_service(group, slot, Service::In),
            Step::TakeOut => self.set_service(group, slot, Service::Out),
            Step::Drain => self.drain(group, slot),
            Step::Disconnect => self.disconnect(group, slot),
            Step::Retire => self.retire(group, slot),
            Step::Create => self.create(group, slot),
            Step::Start(_) | Step::Verify(_) | Step::Repin(_) | Step::Unpause(_) | Step::Stop(_) | Step::Remove(_) => {
                self.begin(group, slot, step);
            }
        }
    }

    /// Waits, on a thread for that, until a worker has done what it was told; the slot is busy until then.
    fn await_worker(
        &mut self,
        name: &GroupName,
        id: SlotId,
        step: Step,
        wait: impl FnOnce() -> Outcome + Send + 'static,
    ) {
        let Some(slot) = self.slot_mut(name, id) else { return };
        slot.step = Some(Running { step: step.clone() });
        let (outbox, key) = (self.outbox.clone(), ShardKey { group: name.clone(), slot: id });
        world::blocking(move || {
            let outcome = wait();
            report(&outbox, key, step, outcome, Vec::new());
        });
    }

    fn begin(&mut self, name: &GroupName, id: SlotId, step: Step) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let (spec, place) = (Arc::clone(&group.spec), group.place(id).cloned());
        let Some(runtime) = self.runtimes.of(spec.runtime.kind()) else { return };
        let Some(slot) = group.slots.get_mut(&id) else { return };
        if let Step::Stop(shard) = &step {
            slot.note_overdue(&spec, shard);
            slot.stopping = Some(shard.clone());
        }
        if let (Step::Repin(_), Some(worker), Some(place)) = (&step, &slot.worker, &place) {
            let moved = worker.pin(pin_to(place));
            world::blocking(move || {
                if let Some(cause) = failure(&moved) {
                    tracing::warn!("a relay worker can't be moved with its slot: {cause}");
                }
            });
        }
        slot.step = Some(Running { step: step.clone() });
        let task = StepTask {
            runtime,
            key: ShardKey { group: name.clone(), slot: id },
            pid: match &step {
                Step::Verify(shard) | Step::Repin(shard) => slot.live_of(shard).map(|live| live.pid),
                _ => None,
            },
            failed: slot.backoff.failures() > 0,
            spec,
            place,
        };
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let (outcome, last_lines) = task.run(&step).await;
            report(&outbox, task.key, step, outcome, last_lines);
        });
    }

    pub(super) fn on_stepped(
        &mut self,
        name: &GroupName,
        id: SlotId,
        step: &Step,
        outcome: Outcome,
        last_lines: Vec<String>,
    ) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let spec = Arc::clone(&group.spec);
        let Some(slot) = group.slots.get_mut(&id) else { return };
        let now = clock::now();
        slot.step = None;
        if matches!(step, Step::Create | Step::Start(_) | Step::Unpause(_) | Step::Stop(_) | Step::Remove(_)) {
            (slot.changed, slot.stale) = (Some(now), true);
        }
        if !last_lines.is_empty() {
            slot.last_lines = last_lines;
        }
        let engine_changed = slot.stale;
        match (step, outcome) {
            (Step::Verify(shard) | Step::Repin(shard), outcome) => self.note_pinning(name, id, shard, outcome),
            (Step::Retire, _) => self.on_retired(name, id),
            // One that was never out is reached again.
            (Step::Connect(_), Outcome::Done) if slot.service() == Service::In => self.note_served(name, id),
            (_, Outcome::Done | Outcome::Pinned(_)) => {}
            (_, Outcome::Engine(error)) => {
                let cause = super::chain(&error);
                if matches!(step, Step::Create | Step::Start(_)) && !error.is_outage() {
                    slot.failure = Some((spec.hash(), cause.clone()));
                }
                let of_slot = slot.cause.clone();
                slot.fail(&spec, Duration::ZERO, cause.clone(), now);
                if slot.service() == Service::In && matches!(step, Step::Create | Step::Start(_)) {
                    // The shard that serves is looked after meanwhile: only the one beside it waits.
                    slot.cause = of_slot;
                } else {
                    slot.hold_until_backoff();
                }
                group.tell_stop_waiters(name, id, &cause);
                self.note_not_made(name, id, &error);
                if error.is_outage() {
                    self.note_runtime(spec.runtime.kind(), Err(&error));
                }
            }
            (step, Outcome::Worker(cause) | Outcome::NotPinned(cause)) => {
                slot.backend = None;
                slot.unserved |= *step == Step::Equip;
                slot.fail(&spec, Duration::ZERO, cause, now);
                slot.hold_until_backoff();
            }
        }
        if engine_changed {
            self.observe(spec.runtime.kind());
        }
    }

    fn note_pinning(&mut self, name: &GroupName, id: SlotId, shard: &ShardId, outcome: Outcome) {
        let Some(slot) = self.slot_mut(name, id) else { return };
        let faulty = Pinning::Faulty { retry_after: clock::now() + REPIN_RETRY };
        let (pinning, fault) = match outcome {
            // The place that was asked about: the plan may have another one by now.
            Outcome::Pinned(place) => (Pinning::Holds(place), None),
            Outcome::Done => (Pinning::Unknown, None),
            Outcome::NotPinned(cause) | Outcome::Worker(cause) => (faulty, Some(cause)),
            Outcome::Engine(error) => (faulty, Some(super::chain(&error))),
        };
        let holds = matches!(pinning, Pinning::Holds(_));
        if let Some(live) = slot.live_of_mut(shard) {
            live.pinning = pinning;
        }
        if let Some(cause) = fault {
            tracing::warn!(group = %name, slot = %id, "{name}/{id} is not pinned as planned: {cause}");
            slot.last_error = Some(cause);
            self.counters.note_pinning_fault(name, id);
        } else if holds {
            self.note_placed(name, id);
        }
    }
}

/// How long a worker may take for what it is told: a few system calls, or a queue that has to be emptied.
const WORKER_TIMEOUT: Duration = Duration::from_secs(10);

fn report(
    outbox: &mpsc::UnboundedSender<Message>,
    key: ShardKey,
    step: Step,
    outcome: Outcome,
    last_lines: Vec<String>,
) {
    // Nobody receives when the loop has ended, and then nobody has to know.
    let _ = outbox.send(Message::Stepped { group: key.group, slot: key.slot, step, outcome, last_lines });
}

impl SlotRun {
    /// Keeps planning from trying the same again before the back-off ends.
    fn hold_until_backoff(&mut self) {
        self.held_until = self.backoff.start_after();
    }

    /// A shard that is stopped because it was never ready in time has failed.
    fn note_overdue(&mut self, spec: &GroupSpec, shard: &ShardId) {
        let is_next = self.next.as_ref().is_some_and(|next| next.id == *shard);
        let Some(live) = self.live_of(shard).filter(|live| !live.was_ready) else { return };
        let (ran, silent, spec_of) = (clock::since(live.seen), live.silent, live.spec.clone());
        if ran > spec.readiness.patience() {
            let why = live.trouble.as_deref().unwrap_or("no probe succeeded");
            let cause = format!("not ready within {:?}: {why}", spec.readiness.patience());
            let of_slot = self.cause.clone().filter(|_| is_next);
            self.restarts += u64::from(!is_next);
            self.failure = Some((spec_of, cause.clone()));
            // One that answers, if only that it isn't ready, has accepted: its listener is not to blame.
            if silent {
                self.note_never_ready(spec, shard, Failed::TimedOut, &cause);
            }
            self.fail(spec, ran, cause, clock::now());
            // The slot goes on by the one that serves.
            if is_next {
                self.cause = of_slot;
            }
        }
    }
}

impl Group {
    /// Whoever waits for the group to stop learns that a shard doesn't; the agent goes on trying.
    fn tell_stop_waiters(&mut self, name: &GroupName, slot: SlotId, cause: &str) {
        for waiter in self.stop_waiters.drain(..) {
            let reason = format!("slot {slot}: {cause}");
            drop(waiter.send(Err(StopError::Shards { group: name.clone(), reason })));
        }
    }

    /// Whether a shard of it is alive.
    pub(super) fn has_living_shard(&self) -> bool {
        self.slots
            .values()
            .flat_map(|slot| &slot.shards)
            .any(|shard| matches!(shard.state, ShardState::Running { .. } | ShardState::Paused { .. }))
    }
}
