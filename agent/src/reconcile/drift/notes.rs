//! What others changed, told once and counted, and told again when it is as it should be: of a slot, or of something that
//! no slot has (an engine, a directory, a container that isn't ours).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sherd_topology::plan::{GroupName, SlotId};

use super::cause::DriftCause;
use crate::{
    clock,
    reconcile::{
        Reconciler,
        report::{agent_event, group_event, slot_event},
    },
};

/// Things of one cause that are told of one by one; of more only the number is.
const MAX_TOLD: usize = 32;

/// What is otherwise than it should be and is no slot's, since when, by what it is about.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct Standing(BTreeMap<(DriftCause, String), Since>);

#[derive(Debug)]
struct Since {
    began: Instant,
    whose: Whose,
    is_told: bool,
}

impl Standing {
    fn of(&self, cause: DriftCause) -> impl Iterator<Item = &String> {
        self.0.keys().filter(move |(other, _)| *other == cause).map(|(_, subject)| subject)
    }
}

/// Whose it is.
#[derive(Debug, Clone)]
pub(in crate::reconcile) enum Whose {
    Agent,
    Group(GroupName),
    Slot(GroupName, SlotId),
}

impl Reconciler {
    /// Something is otherwise than it should be: an event, a counter, a line in the log.
    pub(in crate::reconcile) fn note_drift(&mut self, whose: &Whose, cause: DriftCause, reason: &str) {
        self.counters.note_drift(whose.group(), cause);
        self.tell_drift(whose, cause, reason);
    }

    fn tell_drift(&self, whose: &Whose, cause: DriftCause, reason: &str) {
        tracing::warn!(cause = cause.name(), "{whose} is not as planned: {reason}");
        self.send_event(whose.event("drift", format!("{}: {reason}", cause.name())));
    }

    fn note_repair(&mut self, whose: &Whose, cause: DriftCause, took: Duration) {
        self.counters.note_repair(took);
        tracing::info!(cause = cause.name(), ?took, "{whose} is as planned again");
        let message = format!("{} repaired in {:.3} s", cause.name(), took.as_secs_f64());
        self.send_event(whose.event("drift-repaired", message));
    }

    /// A slot isn't as it should be, since now or since it was first found.
    pub(in crate::reconcile) fn note_slot_drift(
        &mut self,
        name: &GroupName,
        id: SlotId,
        cause: DriftCause,
        reason: &str,
    ) {
        let Some(slot) = self.slot_mut(name, id) else { return };
        slot.drifted.entry(cause).or_insert_with(clock::now);
        self.note_drift(&Whose::Slot(name.clone(), id), cause, reason);
    }

    /// A shard is where it should be again.
    pub(in crate::reconcile) fn note_placed(&mut self, name: &GroupName, id: SlotId) {
        self.note_slot_repaired(name, id, DriftCause::is_of_place);
    }

    /// A slot serves again, whatever it was that kept it from that.
    pub(in crate::reconcile) fn note_served(&mut self, name: &GroupName, id: SlotId) {
        self.note_slot_repaired(name, id, |cause| !cause.is_of_place());
    }

    fn note_slot_repaired(&mut self, name: &GroupName, id: SlotId, is_it: impl Fn(DriftCause) -> bool) {
        let Some(slot) = self.slot_mut(name, id) else { return };
        let (repaired, left) = std::mem::take(&mut slot.drifted).into_iter().partition(|(cause, _)| is_it(*cause));
        slot.drifted = left;
        let repaired: BTreeMap<DriftCause, Instant> = repaired;
        for (cause, since) in repaired {
            self.note_repair(&Whose::Slot(name.clone(), id), cause, clock::since(since));
        }
    }

    /// Something that is no slot's isn't as it should be: told and counted once, until [`Reconciler::end_standing`].
    pub(in crate::reconcile) fn begin_standing(
        &mut self,
        whose: Whose,
        cause: DriftCause,
        subject: &str,
        reason: &str,
    ) {
        let key = (cause, subject.to_owned());
        if self.drift.standing.0.contains_key(&key) {
            return;
        }
        let is_told = self.drift.standing.of(cause).count() < MAX_TOLD;
        self.counters.note_drift(whose.group(), cause);
        match is_told {
            true => self.tell_drift(&whose, cause, reason),
            false => tracing::debug!(cause = cause.name(), subject, "{reason}"),
        }
        self.drift.standing.0.insert(key, Since { began: clock::now(), whose, is_told });
    }

    /// It is again.
    pub(in crate::reconcile) fn end_standing(&mut self, cause: DriftCause, subject: &str) {
        let Some(since) = self.drift.standing.0.remove(&(cause, subject.to_owned())) else { return };
        if since.is_told {
            self.note_repair(&since.whose, cause, clock::since(since.began));
        } else {
            self.counters.note_repair(clock::since(since.began));
        }
    }

    /// What of a cause is standing.
    pub(in crate::reconcile) fn standing(&self, cause: DriftCause) -> Vec<String> {
        self.drift.standing.of(cause).cloned().collect()
    }
}

impl Whose {
    fn group(&self) -> Option<&GroupName> {
        match self {
            Self::Agent => None,
            Self::Group(name) | Self::Slot(name, _) => Some(name),
        }
    }

    fn event(&self, kind: &str, message: String) -> crate::status::Event {
        match self {
            Self::Agent => agent_event(kind, message),
            Self::Group(name) => group_event(name, kind, message),
            Self::Slot(name, id) => slot_event(name, *id, kind, message),
        }
    }
}

impl std::fmt::Display for Whose {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Agent => f.write_str("the host"),
            Self::Group(name) => write!(f, "{name}"),
            Self::Slot(name, id) => write!(f, "{name}/{id}"),
        }
    }
}
