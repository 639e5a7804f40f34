//! Rollouts of the agent's groups: gathers what [`crate::rollout`] decides by, carries out what follows from a failure, and
//! remembers on disk how far each is.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use sherd_topology::{
    model::{Host, Locality},
    plan::{GroupName, Slot, SlotId},
};
use tokio::sync::oneshot;

use super::{
    Reconciler,
    evidence::EvidenceRun,
    group::{Group, Intent},
    order::TurnOrder,
    plan,
    view::{Health, Service, SlotView},
};
use crate::{
    clock,
    control::{RolloutAction, RolloutError},
    rollout::{Finding, Pace, Rollout, Shard, SlotFacts, verdict::Judgement},
    spec::{FailureAction, GroupSpec, RolloutPolicy},
    status::{RolloutPhase, RolloutSlot, RolloutStage, RolloutStatus},
    store::{RolloutRecord, Store},
};

/// A new shard on trial that hasn't accepted for so long has failed.
const HANG_FAILS_AFTER: Duration = Duration::from_secs(1);

/// Why a specification takes another one's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Somebody applied it.
    Apply,
    /// Somebody wants back what ran before.
    Undo,
    /// A new shard failed, for this reason.
    Rollback(String),
}

/// A group's last change.
#[derive(Debug, Default)]
pub(super) struct RolloutRun {
    pub(super) machine: Rollout,
    pub(super) record: Option<RolloutRecord>,
    pub(super) evidence: EvidenceRun,
    /// Slots by the last cache that they share.
    caches: Vec<(SlotId, usize)>,
}

impl RolloutRun {
    /// What a former agent was at. The record of a specification that was never stored is as if it weren't there.
    pub(super) fn adopt(record: Option<RolloutRecord>, text: &str, now: Instant) -> Self {
        let record = record.and_then(|record| match record.is_of(text) {
            true => Some(record),
            false => record.before.map(|before| {
                let mut record = RolloutRecord::begin(text, Some(before), None);
                record.enter(RolloutPhase::Completed, None);
                record
            }),
        });
        let under_way = record.iter().filter(|record| !record.phase.is_over()).flat_map(|record| &record.under_way);
        let machine = Rollout::resume(under_way.map(|slot| SlotId(*slot)), now);
        Self { machine, record, ..Self::default() }
    }

    /// Whether time alone changes it.
    pub(super) fn is_active(&self) -> bool {
        let moves = |record: &RolloutRecord| !record.phase.is_over() && record.phase != RolloutPhase::Paused;
        self.record.as_ref().is_some_and(moves) || !self.machine.turns().is_empty()
    }

    pub(super) fn set_layout(&mut self, host: &Host, slots: &[Slot]) {
        let first_beside = |slot: &Slot| {
            slots.iter().position(|other| host.locality(&other.cpus, &slot.cpus) <= Locality::L3).unwrap_or_default()
        };
        self.caches = slots.iter().map(|slot| (slot.id, first_beside(slot))).collect();
    }

    /// Somebody applied the same specification again: what is paused goes on.
    pub(super) fn go_on(&mut self) {
        if let Some(record) = self.record.as_mut().filter(|record| record.phase == RolloutPhase::Paused) {
            let phase = if record.is_rollback { RolloutPhase::RollingBack } else { RolloutPhase::Progressing };
            record.enter(phase, None);
        }
    }

    fn pace(&self) -> Pace {
        match self.record.as_ref().map(|record| record.phase) {
            Some(RolloutPhase::Paused) => Pace::Paused,
            Some(RolloutPhase::Progressing | RolloutPhase::RollingBack) => Pace::Running,
            Some(RolloutPhase::Completed | RolloutPhase::RolledBack | RolloutPhase::Failed) | None => Pace::Idle,
        }
    }

    pub(super) fn is_rollback(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.is_rollback && !record.phase.is_over())
    }

    fn facts(&self, group: &Group, views: &[SlotView], now: Instant) -> Vec<SlotFacts> {
        let fact = |view: &SlotView| {
            let shard = plan::shard_of(view)?;
            let run = group.slots.get(&view.id)?;
            let serving = view.service == Service::In && run.hung.is_none();
            // A machine that is busy for a moment hangs any program; that says nothing of the new one.
            let hangs = run.hung.as_ref().is_some_and(|hung| hung.lasts() >= HANG_FAILS_AFTER);
            let failure = run.failure.as_ref().filter(|(spec, _)| *spec == group.hash).map(|(_, cause)| cause.clone());
            Some(SlotFacts {
                id: view.id,
                cache: self.caches.iter().find(|(id, _)| *id == view.id).map_or(0, |(_, cache)| *cache),
                shard,
                serving,
                // One that is in only because too many fail is none that anybody wants.
                serves_present: view.service == Service::In
                    && view.health != Health::Unready
                    && !hangs
                    && shard == Shard::Present
                    && !run.judged.is_held(),
                failure,
                empties: empties(view, shard, group.spec.stop_grace, now),
                is_worse: None,
            })
        };
        views.iter().filter_map(fact).collect()
    }
}

impl Group {
    /// The slots whose former shard may go, and what was found of those whose turn it was.
    pub(super) fn step_rollout(&mut self, views: &[SlotView], now: Instant) -> (BTreeSet<SlotId>, Vec<Finding>) {
        let mut facts = self.rollout.facts(self, views, now);
        self.judge_traffic(&mut facts, now);
        let policy = match self.rollout.is_rollback() {
            // There is nothing else to go back to.
            true => RolloutPolicy { failure_action: FailureAction::Continue, ..self.spec.rollout.clone() },
            false => self.spec.rollout.clone(),
        };
        let pace = self.rollout.pace();
        let findings = self.rollout.machine.step(&policy, pace, &facts, now);
        (self.rollout.machine.turns(), findings)
    }

    /// The present phase, for whoever asks. Absent: nothing of the group was ever changed.
    pub(super) fn rollout_status(&self) -> Option<RolloutStatus> {
        let record = self.rollout.record.as_ref()?;
        let slot = |view: &SlotView| {
            let stage = match (plan::shard_of(view)?, self.rollout.machine.has_turn(view.id)) {
                (_, true) if self.rollout.machine.is_on_trial(view.id).is_some() => RolloutStage::Trial,
                (Shard::Present, false) => RolloutStage::Present,
                (Shard::Former, false) => RolloutStage::Former,
                (_, _) => RolloutStage::Replacing,
            };
            let order = self.slots.get(&view.id).and_then(|slot| slot.order.as_ref());
            Some(RolloutSlot { slot: view.id, stage, stop_first: order.and_then(TurnOrder::not_asked) })
        };
        Some(RolloutStatus {
            phase: record.phase,
            reason: record.reason.clone(),
            started_unix_s: record.started_unix_s,
            ended_unix_s: record.ended_unix_s,
            can_undo: record.from.is_some(),
            slots: self.views().iter().filter_map(slot).collect(),
        })
    }

    /// The record of a change to `text`, if it is one.
    pub(super) fn record_of(&self, text: &str, change: &Change) -> Option<RolloutRecord> {
        let last = self.rollout.record.as_ref();
        let undo = last.and_then(|last| last.from.clone());
        if let Change::Rollback(reason) = change {
            // What failed is not what anybody wants back.
            let before = last.and_then(|last| last.before.clone());
            let mut record = RolloutRecord::begin(text, before.clone(), before);
            record.is_rollback = true;
            record.enter(RolloutPhase::RollingBack, Some(reason));
            return Some(record);
        }
        if text == self.text {
            return None;
        }
        // What never came to its end was never what ran.
        let unfinished = last.filter(|last| !last.phase.is_over() && !last.is_rollback);
        let from = match unfinished {
            Some(last) => last.from.clone().filter(|from| from != text),
            None => Some(self.text.clone()),
        };
        Some(RolloutRecord::begin(text, from, undo))
    }
}

impl Reconciler {
    /// What follows from what was found of a group's slots; true if its specification is another one now.
    pub(super) fn follow_findings(&mut self, name: &GroupName, findings: Vec<Finding>) -> bool {
        for finding in findings {
            match finding {
                Finding::Good(slot) => {
                    let message = format!("slot {slot} was replaced{}", self.not_compared(name, slot));
                    tracing::info!(group = %name, %slot, "{name}: {message}");
                    self.send_event(super::report::slot_event(name, slot, "rollout", message));
                }
                Finding::Failed(slot, reason) => {
                    if self.on_rollout_failure(name, slot, &reason) {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// What is to be added where nothing was found to compare the slot's new shard with.
    fn not_compared(&self, name: &GroupName, slot: SlotId) -> String {
        match self.groups.get(name).and_then(|group| group.rollout.evidence.outcome(slot)) {
            Some(Judgement::TooLittle(why)) => format!("; its traffic was not compared: {why}"),
            Some(Judgement::Good | Judgement::Bad(_)) | None => String::new(),
        }
    }

    fn on_rollout_failure(&mut self, name: &GroupName, slot: SlotId, reason: &str) -> bool {
        let Some(group) = self.groups.get_mut(name) else { return false };
        let why = format!("slot {slot}: {reason}");
        let action = group.spec.rollout.failure_action;
        // Shards are replaced without a change of the specification too. Then what an earlier change replaced is not what ran.
        let known = group.rollout.record.take().filter(|record| !record.phase.is_over());
        let record = known.unwrap_or_else(|| RolloutRecord::begin(&group.text, None, None));
        let (is_rollback, from) = (record.is_rollback, record.from.clone());
        group.rollout.record = Some(record);
        tracing::warn!(group = %name, %slot, ?action, is_rollback, "the rollout fails: {why}");
        self.counters.note_rollout_failure(name);
        match (action, from) {
            _ if is_rollback => {
                // There is nothing else: it is tried again, as its back-off allows.
                group.rollout.machine.retry_slot(slot);
                group.slots.get_mut(&slot).into_iter().for_each(|slot| slot.failure = None);
                self.remember_rollout(name, |record| record.reason = Some(format!("what ran before fails too: {why}")));
            }
            (FailureAction::Continue, _) => self.remember_rollout(name, |record| record.reason = Some(why)),
            (FailureAction::Rollback, Some(text)) => return self.roll_back(name, &text, &why),
            (FailureAction::Rollback, None) => {
                let why = format!("{why}; there is nothing to go back to");
                self.enter_phase(name, RolloutPhase::Paused, Some(&why));
            }
            (FailureAction::Pause, _) => self.enter_phase(name, RolloutPhase::Paused, Some(&why)),
        }
        false
    }

    fn roll_back(&mut self, name: &GroupName, text: &str, why: &str) -> bool {
        let back =
            GroupSpec::parse(&format!("{name}.toml"), text).map_err(|faults| faults.to_string()).and_then(|spec| {
                let change = Change::Rollback(why.to_owned());
                self.commit(spec, text.to_owned(), &change).map_err(|error| super::chain(&error))
            });
        match back {
            Ok(_) => {
                let message = format!("rolled back: {why}");
                self.send_event(super::report::group_event(name, "rollout", message));
                true
            }
            Err(error) => {
                let why = format!("{why}; what ran before can't be brought back: {error}");
                self.enter_phase(name, RolloutPhase::Paused, Some(&why));
                false
            }
        }
    }

    /// Ends a rollout whose last slot is done, and remembers which slots are under way.
    pub(super) fn tend_rollout(&mut self, name: &GroupName, views: &[SlotView]) {
        let Some(group) = self.groups.get(name) else { return };
        let Some(record) = &group.rollout.record else { return };
        // A group that is stopped, or has no place, has no slots that could say how far it is.
        if record.phase.is_over() || !matches!(group.intent, Intent::Run) || group.layout.is_none() {
            return;
        }
        let facts = group.rollout.facts(group, views, clock::now());
        if record.phase != RolloutPhase::Paused && group.rollout.machine.is_over(&facts) {
            let phase = match (record.is_rollback, group.rollout.machine.has_given_up()) {
                (true, _) => RolloutPhase::RolledBack,
                (false, true) => RolloutPhase::Failed,
                (false, false) => RolloutPhase::Completed,
            };
            let reason = record.reason.clone();
            return self.enter_phase(name, phase, reason.as_deref());
        }
        let under_way: Vec<u32> = group.rollout.machine.turns().into_iter().map(|slot| slot.0).collect();
        if record.under_way != under_way {
            self.remember_rollout(name, |record| record.under_way = under_way);
        }
    }

    fn enter_phase(&mut self, name: &GroupName, phase: RolloutPhase, reason: Option<&str>) {
        self.remember_rollout(name, |record| {
            record.enter(phase, reason);
            record.under_way.clear();
        });
        let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        tracing::info!(group = %name, %phase, "the rollout of {name} is {phase}{why}");
        self.send_event(super::report::group_event(name, "rollout", format!("the rollout is {phase}{why}")));
    }

    fn remember_rollout(&mut self, name: &GroupName, change: impl FnOnce(&mut RolloutRecord)) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(record) = &mut group.rollout.record else { return };
        change(record);
        note_stored(&self.store, name, record);
    }

    /// Answers `sherd rollout`.
    pub(super) fn rollout(
        &mut self,
        name: &GroupName,
        action: RolloutAction,
        reply: oneshot::Sender<Result<RolloutStatus, RolloutError>>,
    ) {
        let Some(group) = self.groups.get(name) else {
            return drop(reply.send(Err(RolloutError::UnknownGroup { group: name.clone() })));
        };
        let phase = group.rollout.record.as_ref().map(|record| record.phase);
        match (action, phase) {
            (RolloutAction::Status, _) => {}
            (RolloutAction::Pause, Some(RolloutPhase::Progressing | RolloutPhase::RollingBack)) => {
                self.enter_phase(name, RolloutPhase::Paused, Some("an operator paused it"));
            }
            (RolloutAction::Resume, Some(RolloutPhase::Paused)) => self.resume_rollout(name),
            (RolloutAction::Pause | RolloutAction::Resume, _) => {
                return drop(reply.send(Err(RolloutError::NotUnderWay { group: name.clone(), action })));
            }
            (RolloutAction::Undo, _) => return self.undo(name, reply),
        }
        drop(reply.send(self.rollout_answer(name)));
    }

    pub(super) fn rollout_answer(&self, name: &GroupName) -> Result<RolloutStatus, RolloutError> {
        let status = self.groups.get(name).and_then(Group::rollout_status);
        status.ok_or_else(|| RolloutError::Unchanged { group: name.clone() })
    }

    /// A slot that failed has its turn once more.
    fn resume_rollout(&mut self, name: &GroupName) {
        let Some(group) = self.groups.get_mut(name) else { return };
        group.rollout.machine.retry();
        for slot in group.slots.values_mut() {
            slot.failure = None;
            slot.backoff.reset();
            slot.held_until = None;
        }
        let is_rollback = group.rollout.is_rollback();
        let phase = if is_rollback { RolloutPhase::RollingBack } else { RolloutPhase::Progressing };
        self.enter_phase(name, phase, None);
    }

    fn undo(&mut self, name: &GroupName, reply: oneshot::Sender<Result<RolloutStatus, RolloutError>>) {
        let from = self.groups.get(name).and_then(|group| group.rollout.record.as_ref()?.from.clone());
        let Some(text) = from else {
            return drop(reply.send(Err(RolloutError::NothingBefore { group: name.clone() })));
        };
        match GroupSpec::parse(&format!("{name}.toml"), &text) {
            Ok(spec) => self.prepare(Box::new(spec), text, Change::Undo, super::apply::Reply::Undo(reply)),
            Err(faults) => {
                let reason = faults.to_string();
                drop(reply.send(Err(RolloutError::Unusable { group: name.clone(), reason })));
            }
        }
    }
}

/// Whether the slot's turn waits for a shard that has its time to finish and to end.
fn empties(view: &SlotView, shard: Shard, grace: Duration, now: Instant) -> bool {
    let until = match (view.service, &view.former) {
        (Service::Draining { until }, _) if shard == Shard::Former => Some(until),
        (_, former) => former.as_ref().map(|former| former.until),
    };
    until.is_some_and(|until| now < until + grace)
}

/// Without it a restarted agent goes on as if the rollout had no history: worth a word, and no reason to stop.
pub(super) fn note_stored(store: &Store, name: &GroupName, record: &RolloutRecord) {
    if let Err(error) = store.put_rollout(name, record) {
        tracing::error!(group = %name, "how far its rollout is can't be remembered: {}", super::chain(&error));
    }
}
