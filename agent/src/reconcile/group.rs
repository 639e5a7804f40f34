//! One group as the reconcile loop holds it: its specification, its layout, its published addresses and the state of
//! each slot. Plain state and its views; execution changes it, nothing here touches the world.

use std::{
    collections::BTreeMap,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use sherd_lb::relay::Cause;
use sherd_topology::{
    model::Host,
    plan::{Layout, Slot, SlotId},
};
use tokio::{
    sync::{Notify, oneshot},
    task::JoinHandle,
};

use super::{
    direct::{DirectRun, Generation, Trial},
    drift::{DriftCause, HeardAct, Paused},
    hung::HungRun,
    inspect::Reach,
    judging::JudgedRun,
    order::TurnOrder,
    publish::Fronts,
    roles::{Former, Roles, effective_spec},
    rollout::RolloutRun,
    view::{FormerView, Health, NextView, Pinning, Service, ShardView, SlotView, Step, Wanted},
    world::Worker,
};
use crate::{
    clock,
    control::StopError,
    health::{Backoff, Readiness, Verdict},
    runtime::{ObservedShard, ShardId, ShardKey, ShardState},
    spec::{GroupSpec, SpecHash},
    status::SlotState,
};

/// What is to become of a group.
#[derive(Debug)]
pub(super) enum Intent {
    /// Its shards run.
    Run,
    /// Its shards end; the specification stays.
    Stop,
    /// Everything of it goes.
    Purge,
}

/// One group.
pub(super) struct Group {
    pub(super) spec: Arc<GroupSpec>,
    pub(super) hash: SpecHash,
    /// The specification as the operator wrote it.
    pub(super) text: String,
    pub(super) intent: Intent,
    /// Absent: the planner has no place for it.
    pub(super) layout: Option<Layout>,
    /// Why it can't be placed or published.
    pub(super) fault: Option<String>,
    pub(super) fronts: Fronts,
    pub(super) slots: BTreeMap<SlotId, SlotRun>,
    /// Policies or weights changed: the tables are due although the layout isn't.
    pub(super) tables_due: bool,
    pub(super) rollout: RolloutRun,
    /// The slots in service when siblings and anchors were last brought in line.
    pub(super) settled: Vec<SlotId>,
    /// Since when no slot is in service.
    pub(super) unready_since: Option<Instant>,
    /// Who waits for the group to be stopped.
    pub(super) stop_waiters: Vec<oneshot::Sender<Result<(), StopError>>>,
}

impl Group {
    pub(super) fn new(spec: GroupSpec, text: String, intent: Intent) -> Self {
        let hash = spec.hash();
        Self {
            fronts: Fronts::none(&spec.name),
            spec: Arc::new(spec),
            hash,
            text,
            intent,
            layout: None,
            fault: None,
            slots: BTreeMap::new(),
            tables_due: false,
            rollout: RolloutRun::default(),
            settled: Vec::new(),
            unready_since: Some(clock::now()),
            stop_waiters: Vec::new(),
        }
    }

    /// Goes on with another specification. Somebody asked for this: earlier failures don't hold it up.
    pub(super) fn set_spec(&mut self, spec: GroupSpec, text: String) {
        let asks_otherwise = spec.ports != self.spec.ports || spec.readiness != self.spec.readiness;
        self.hash = spec.hash();
        self.spec = Arc::new(spec);
        match text == self.text {
            true => self.rollout.machine.retry(),
            false => self.rollout.machine.reset(),
        }
        (self.text, self.intent, self.tables_due) = (text, Intent::Run, true);
        for waiter in self.stop_waiters.drain(..) {
            // Whoever has gone away needs no answer.
            drop(waiter.send(Err(StopError::Applied { group: self.spec.name.clone() })));
        }
        for slot in self.slots.values_mut() {
            slot.failure = None;
            slot.backoff.reset();
            slot.trial = Trial::default();
            slot.held_until = None;
            slot.order = None;
            if asks_otherwise {
                // The loop follows the living shards anew, with the present question.
                (slot.live, slot.next) = (None, None);
                slot.reconnect = true;
            }
        }
    }

    /// Goes on with other places; slots that are new appear, slots that are gone are wound down.
    pub(super) fn set_layout(&mut self, layout: Option<Layout>, host: &Host) {
        // Also of a layout that is the former one: a new agent has it from what runs, before it has the slots.
        for slot in layout.iter().flat_map(|layout| &layout.slots) {
            self.slots.entry(slot.id).or_default();
        }
        if layout == self.layout && !self.tables_due {
            return;
        }
        self.layout = layout;
        self.tables_due = false;
        let slots = self.layout.as_ref().map_or(&[][..], |layout| &layout.slots);
        self.fronts.set_tables(host, slots);
        self.rollout.set_layout(host, slots);
        // Who is near to whom may have changed.
        self.settled.clear();
    }

    /// The slots as planned; none where the group has no place.
    pub(super) fn planned(&self) -> &[Slot] {
        self.layout.as_ref().map_or(&[], |layout| &layout.slots)
    }

    pub(super) fn place(&self, id: SlotId) -> Option<&Slot> {
        self.planned().iter().find(|slot| slot.id == id)
    }

    /// Whether the slot is to have a running shard.
    pub(super) fn wants(&self, id: SlotId) -> bool {
        matches!(self.intent, Intent::Run) && self.place(id).is_some()
    }

    /// Somebody wants nothing of it to be left.
    pub(super) fn is_purged(&self) -> bool {
        matches!(self.intent, Intent::Purge)
    }

    /// Every slot serves, and nothing is waited for but what the world does by itself.
    pub(super) fn is_quiet(&self) -> bool {
        let serves = |slot: &SlotRun| {
            let pinned = slot.live.as_ref().is_some_and(|live| matches!(live.pinning, Pinning::Holds(_)));
            let held = slot.held_until.is_some_and(|until| clock::now() < until);
            let settled = slot.step.is_none() && !held && !slot.stale && slot.shards.len() == 1;
            let relays = slot.worker.is_some() && !slot.unserved && slot.backend.is_some() && !slot.reconnect;
            slot.service() == Service::In && slot.health() != Health::Unready && pinned && relays && settled
        };
        match self.intent {
            Intent::Run => self.fault.is_none() && !self.rollout.is_active() && self.slots.values().all(serves),
            Intent::Stop | Intent::Purge => self.stop_waiters.is_empty() && self.is_wound_down(),
        }
    }

    fn wanted(&self, id: SlotId) -> Wanted {
        match (&self.intent, self.place(id)) {
            (Intent::Run, Some(slot)) => Wanted::Run { spec: self.hash.clone(), slot: slot.clone() },
            (Intent::Stop, _) => Wanted::Stopped,
            (Intent::Run, None) | (Intent::Purge, _) => Wanted::Gone,
        }
    }

    /// Everything that the holder must have of the group.
    pub(super) fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut all = self.fronts.descriptors();
        for (id, slot) in &self.slots {
            all.extend(slot.direct_descriptors(&ShardKey { group: self.spec.name.clone(), slot: *id }));
        }
        all
    }

    /// Whether an address of it is bound.
    pub(super) fn is_published(&self) -> bool {
        !self.fronts.addresses().is_empty()
    }

    /// What planning sees of the group.
    pub(super) fn views(&self) -> Vec<SlotView> {
        let view =
            |(id, slot): (&SlotId, &SlotRun)| slot.view(*id, self.wanted(*id), &self.spec, || self.fronts.queued(*id));
        self.slots.iter().map(view).collect()
    }

    /// Nothing of it is left on the host, or nothing but ended shards where those are to stay.
    pub(super) fn is_wound_down(&self) -> bool {
        self.slots.values().all(|slot| {
            let ended = slot
                .shards
                .iter()
                .all(|shard| matches!(shard.state, ShardState::Exited { .. } | ShardState::Created | ShardState::Dead));
            let shards_done = if matches!(self.intent, Intent::Purge) { slot.shards.is_empty() } else { ended };
            shards_done && slot.worker.is_none() && slot.step.is_none() && !slot.stale
        })
    }
}

/// A step that is being executed.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) step: Step,
}

/// The shard that runs in a slot, as far as the agent has got with it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: ShardId,
    /// Of its prober.
    pub(super) number: u64,
    pub(super) generation: Generation,
    /// The specification it was made from.
    pub(super) spec: SpecHash,
    pub(super) pid: u32,
    /// As the runtime says, by the wall clock: for the operator only.
    pub(super) started: SystemTime,
    /// When this agent first saw it run.
    pub(super) seen: Instant,
    /// How long it had run by then.
    pub(super) age: Duration,
    pub(super) readiness: Readiness,
    /// It has been ready at least once.
    pub(super) was_ready: bool,
    /// Why its last probe failed, if it did.
    pub(super) trouble: Option<String>,
    /// Its last probe was taken by its kernel alone, as far as one can tell.
    pub(super) silent: bool,
    /// It has been in service at least once.
    pub(super) served: bool,
    pub(super) pinning: Pinning,
    /// How a worker reaches it; known once a probe has found its listener.
    pub(super) reach: Option<Reach>,
    pub(super) prober: JoinHandle<()>,
    /// Wakes the prober before its time.
    pub(super) nudge: Arc<Notify>,
    /// Failed connects of the worker when it was last looked at.
    pub(super) connect_failures: u64,
}

impl Live {
    fn health(&self) -> Health {
        match &self.reach {
            _ if self.readiness.verdict() == Verdict::Unready => Health::Unready,
            None => Health::Adopted,
            Some(_) => Health::Ready,
        }
    }

    fn is_overdue(&self, start_timeout: Duration) -> bool {
        !self.was_ready && clock::since(self.seen) > start_timeout
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.prober.abort();
    }
}

/// One slot.
#[derive(Default)]
pub(super) struct SlotRun {
    pub(super) shards: Vec<ObservedShard>,
    pub(super) step: Option<Running>,
    /// The engine has been changed since it was last asked.
    pub(super) stale: bool,
    /// When the last step that changed the engine ended.
    pub(super) changed: Option<Instant>,
    pub(super) roles: Roles,
    /// The shard that connections go to.
    pub(super) live: Option<Live>,
    /// The one that comes up beside it, to take over.
    pub(super) next: Option<Live>,
    /// The one that was taken over from.
    pub(super) former: Option<Former>,
    /// Whether the slot's turn is start-first; known while it lasts.
    pub(super) order: Option<TurnOrder>,
    /// Counts the probers of its shards.
    pub(super) probers: u64,
    pub(super) backoff: Backoff,
    /// Why a shard of this specification failed here.
    pub(super) failure: Option<(SpecHash, String)>,
    pub(super) service: Option<Service>,
    pub(super) backend: Option<ShardId>,
    /// The worker has to be told anew where it connects: there are other ports, or the shard may be reached otherwise.
    pub(super) reconnect: bool,
    pub(super) worker: Option<Arc<Worker>>,
    /// It may not accept at some address yet: it is told once more, and its answer awaited.
    pub(super) unserved: bool,
    /// What others changed of it, and since when that is known.
    pub(super) drifted: BTreeMap<DriftCause, Instant>,
    /// Its shard is paused by somebody.
    pub(super) paused: Option<Paused>,
    /// What somebody last had the engine do to this shard.
    pub(super) heard: Option<(ShardId, HeardAct)>,
    /// Its shard doesn't accept.
    pub(super) hung: Option<HungRun>,
    /// How its shard is, beyond its readiness.
    pub(super) judged: JudgedRun,
    /// Of its shards that run behind the shim: two while one replaces the other.
    pub(super) directs: BTreeMap<Generation, DirectRun>,
    /// Whether its next shard is to accept its connections itself.
    pub(super) trial: Trial,
    /// Connections that its shard has accepted itself; counted while it is being emptied.
    pub(super) direct_open: u64,
    /// They are not counted before that: a connection may be on its way that no list shows yet.
    pub(super) direct_counted_from: Option<Instant>,
    /// This shard was told to end: its exit is no failure.
    pub(super) stopping: Option<ShardId>,
    pub(super) generation: u64,
    pub(super) restarts: u64,
    pub(super) cause: Option<String>,
    pub(super) last_error: Option<String>,
    /// The end of what the last failed shard wrote.
    pub(super) last_lines: Vec<String>,
    /// A step failed; nothing is tried before that.
    pub(super) held_until: Option<Instant>,
    /// What was last reported, and since when.
    pub(super) reported: Option<(SlotState, SystemTime)>,
}

impl SlotRun {
    pub(super) fn service(&self) -> Service {
        self.service.unwrap_or(Service::Out)
    }

    pub(super) fn health(&self) -> Health {
        match &self.live {
            Some(_) if self.fails() && !self.judged.is_held() => Health::Unready,
            Some(live) if live.reach.is_none() => Health::Adopted,
            Some(_) => Health::Ready,
            None => Health::Unready,
        }
    }

    /// Whether all that is being done is that a shard ends which doesn't serve: that hides nothing of the one that does.
    pub(super) fn ends_beside(&self) -> bool {
        let ends = |running: &Running| match &running.step {
            Step::Stop(shard) | Step::Remove(shard) => self.roles.primary.as_ref() != Some(shard),
            _ => false,
        };
        self.roles.primary.is_some() && self.step.as_ref().is_some_and(ends)
    }

    /// Connections that its worker relays.
    pub(super) fn relayed(&self) -> u64 {
        self.worker.as_ref().map_or(0, |worker| worker.stats().active.get())
    }

    /// Connections that its worker has.
    pub(super) fn open(&self) -> u64 {
        self.worker.as_ref().map_or(0, |worker| worker.stats().active.get() + worker.stats().pending.get())
    }

    /// How often its worker could not connect to a shard.
    pub(super) fn connect_failures(&self) -> u64 {
        let causes = [Cause::ConnectRefused, Cause::ConnectTimeout, Cause::ConnectFailed];
        let count = |worker: &Arc<Worker>| causes.iter().map(|cause| worker.stats().errors(*cause)).sum();
        self.worker.as_ref().map_or(0, count)
    }

    fn view(&self, id: SlotId, wanted: Wanted, spec: &GroupSpec, queued: impl FnOnce() -> u64) -> SlotView {
        let patience = spec.readiness.patience();
        let waiting_or_relayed = self.open();
        let accepted = self.direct_open + self.former.as_ref().map_or(0, |former| former.direct_open);
        // The queues matter only to a slot that is being emptied, and asking for them costs system calls.
        let open = match self.service() {
            Service::In => waiting_or_relayed,
            Service::Out | Service::Draining { .. } => waiting_or_relayed + queued() + accepted,
        };
        let shards = self.shards.iter().map(|shard| ShardView {
            id: shard.id.clone(),
            spec: effective_spec(shard, spec),
            generation: shard.generation,
            state: shard.state,
        });
        SlotView {
            id,
            shards: shards.collect(),
            busy: self.step.is_some() || self.stale || self.held_until.is_some_and(|until| clock::now() < until),
            start_after: self.backoff.start_after(),
            health: self.health(),
            overdue: self.live.as_ref().is_some_and(|live| live.is_overdue(patience)),
            ends_beside: self.ends_beside(),
            service: self.service(),
            open,
            relayed: self.relayed(),
            backend: self.backend.clone(),
            reconnect: self.reconnect,
            pinning: self.live.as_ref().map_or(Pinning::Unknown, |live| live.pinning.clone()),
            // Whatever it has is given up where the slot isn't to run.
            equipped: self.worker.is_some() && !(self.unserved && matches!(wanted, Wanted::Run { .. })),
            wanted,
            primary: self.roles.primary.clone(),
            next: self.next.as_ref().map(|next| NextView {
                id: next.id.clone(),
                health: next.health(),
                pinning: next.pinning.clone(),
                overdue: next.is_overdue(patience),
            }),
            former: self.former.as_ref().map(|former| FormerView {
                id: former.id.clone(),
                open: u64::from(!former.relayed_done) + former.direct_open,
                until: former.until,
            }),
            overlaps: matches!(self.order, Some(TurnOrder::StartFirst { .. })),
            unpause_at: self.paused.zip(spec.health.unpause_after).map(|(paused, bound)| paused.since + bound),
        }
    }
}
