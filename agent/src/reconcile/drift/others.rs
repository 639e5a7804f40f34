//! What others do to shards and containers, as a listing shows it: paused, ended, started again, renamed; and containers
//! that bear our label. Tells what a slot's next step follows from; takes none itself.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use sherd_topology::plan::{GroupName, SlotId};

use super::{Circumstances, DriftCause, End, Whose, end_of};
use crate::{
    reconcile::{Reconciler, chain, group::SlotRun},
    runtime::{Foreign, Renamed, RuntimeError, ShardId, ShardState},
    spec::GroupSpec,
};

/// A shard that somebody paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::reconcile) struct Paused {
    pub(in crate::reconcile) since: Instant,
    pid: u32,
}

/// What a listing shows that somebody did to a slot's shard.
#[derive(Debug)]
pub(in crate::reconcile) struct Disturbance {
    cause: DriftCause,
    reason: String,
    /// It runs again: whatever was known of its process and its namespace is void.
    is_restart: bool,
}

impl SlotRun {
    /// Looks for it in what was just listed, before ends are noted.
    pub(in crate::reconcile) fn disturbed(
        &mut self,
        spec: &GroupSpec,
        engine_was_away: bool,
        now: Instant,
    ) -> Option<Disturbance> {
        let was_paused = self.paused.take();
        let is_slots = |id| self.roles.primary.as_ref().is_none_or(|primary| primary == id);
        let paused = self.shards.iter().find_map(|shard| match shard.state {
            ShardState::Paused { pid } if is_slots(&shard.id) => Some(pid),
            _ => None,
        });
        self.paused = paused.map(|pid| Paused { pid, since: was_paused.map_or(now, |paused| paused.since) });
        if self.paused.is_some() && was_paused.is_none() {
            let until = match spec.health.unpause_after {
                Some(bound) => format!("the agent lets it go on in {bound:?}"),
                None => "the agent leaves it so (`unpause_after`)".to_owned(),
            };
            let reason = format!("somebody paused it; {until}");
            self.cause = Some(reason.clone());
            return Some(Disturbance { cause: DriftCause::Paused, reason, is_restart: false });
        }
        let live = self.live.as_ref().filter(|live| self.stopping.as_ref() != Some(&live.id))?;
        let restarted = self
            .shards
            .iter()
            .find(|shard| shard.id == live.id)
            .is_some_and(|shard| matches!(shard.state, ShardState::Running { pid, .. } if pid != live.pid));
        if restarted {
            let reason = "somebody had the engine start it again".to_owned();
            return Some(Disturbance { cause: DriftCause::Stopped, reason, is_restart: true });
        }
        let End { cause, text } = self.end_of(&live.id, engine_was_away, now)?;
        Some(Disturbance { cause: cause?, reason: text, is_restart: false })
    }

    /// Its shard is paused by somebody.
    pub(in crate::reconcile) fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// The first process of its shard, which runs or is paused: it has the listeners that connections wait at.
    pub(in crate::reconcile) fn living_pid(&self) -> Option<u32> {
        self.live.as_ref().map(|live| live.pid).or(self.paused.map(|paused| paused.pid))
    }

    /// How a shard of the slot has ended, if it has.
    pub(in crate::reconcile) fn end_of(&self, id: &ShardId, engine_was_away: bool, now: Instant) -> Option<End> {
        let state = self.shards.iter().find(|shard| shard.id == *id).map(|shard| shard.state);
        let heard = self.heard.as_ref().filter(|(of, _)| of == id).map(|(_, heard)| *heard);
        end_of(state, Circumstances { heard, engine_was_away, now })
    }
}

impl Reconciler {
    pub(in crate::reconcile) fn note_disturbances(&mut self, disturbed: Vec<(GroupName, SlotId, Disturbance)>) {
        for (name, id, Disturbance { cause, reason, is_restart }) in disturbed {
            if let Some(slot) = self.slot_mut(&name, id).filter(|_| is_restart) {
                slot.reconnect = true;
                slot.restarts += 1;
            }
            self.note_slot_drift(&name, id, cause, &reason);
        }
    }

    /// Containers that claim to be ours and can't be: never touched.
    pub(in crate::reconcile) fn take_foreign(&mut self, kind: &'static str, foreign: &[Foreign]) {
        let subject = |id: &ShardId| format!("{kind}/{id}");
        let present: BTreeSet<String> = foreign.iter().map(|foreign| subject(&foreign.id)).collect();
        self.end_absent(DriftCause::Foreign, kind, &present);
        for Foreign { id, name, reason } in foreign {
            let reason =
                format!("{name} is labelled as ours and isn't ({reason}): left alone; remove it, or its labels");
            self.begin_standing(Whose::Agent, DriftCause::Foreign, &subject(id), &reason);
        }
    }

    /// Shards whose container is called otherwise than it was: they serve as before, and get their name back, by which
    /// another agent would know them.
    pub(in crate::reconcile) fn take_renamed(&mut self, kind: &'static str, renamed: Vec<Renamed>) {
        let subject = |id: &ShardId| format!("{kind}/{id}");
        let present: BTreeSet<String> = renamed.iter().map(|renamed| subject(&renamed.id)).collect();
        self.end_absent(DriftCause::Renamed, kind, &present);
        let Some(runtime) = self.runtimes.of(kind) else { return };
        for Renamed { id, key, name, own_name } in renamed {
            let reason = format!("somebody called its container {name}: it gets back its name, {own_name}");
            self.begin_standing(Whose::Slot(key.group, key.slot), DriftCause::Renamed, &subject(&id), &reason);
            let runtime = Arc::clone(&runtime);
            tokio::spawn(async move {
                // The listing after it shows what came of it, and the next one tries again.
                if let Err(error) = runtime.rename(&id, &own_name).await {
                    tracing::warn!(shard = %id, "it can't be called {own_name}: {}", chain(&error));
                }
            });
        }
    }

    fn end_absent(&mut self, cause: DriftCause, kind: &str, present: &BTreeSet<String>) {
        let is_of = |subject: &String| subject.split('/').next() == Some(kind);
        let gone: Vec<String> =
            self.standing(cause).into_iter().filter(|subject| is_of(subject) && !present.contains(subject)).collect();
        gone.iter().for_each(|subject| self.end_standing(cause, subject));
    }

    /// A shard could not be made.
    pub(in crate::reconcile) fn note_not_made(&mut self, name: &GroupName, id: SlotId, error: &RuntimeError) {
        let is_told = self.slot_mut(name, id).is_some_and(|slot| slot.drifted.contains_key(&DriftCause::Image));
        if matches!(error, RuntimeError::NoSuchImage { .. }) && !is_told {
            self.note_slot_drift(name, id, DriftCause::Image, &chain(error));
        }
    }
}
