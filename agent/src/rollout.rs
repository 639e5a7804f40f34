//! Rollouts as a state machine: which slots may give up their shard for one of the group's present specification, when
//! the new one counts as good, and when the rollout has failed. PURE: facts and the clock come in, findings go out.

pub mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use sherd_topology::plan::SlotId;

use crate::spec::{FailureAction, RolloutPolicy};

/// The shard that a slot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shard {
    /// None that lives.
    None,
    /// Of another specification than the group's present one.
    Former,
    /// Of the present one.
    Present,
}

/// What is known of one slot that is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotFacts {
    /// Which one.
    pub id: SlotId,
    /// Slots that share their last cache have the same number.
    pub cache: usize,
    /// What it has; the new one where it has both.
    pub shard: Shard,
    /// It gets connections.
    pub serving: bool,
    /// Connections go to the shard of the present specification.
    pub serves_present: bool,
    /// Why a shard of the present specification failed in it.
    pub failure: Option<String>,
    /// Its new shard waits until a former one has finished and ended, which has bounds of its own.
    pub empties: bool,
    /// What its new shard's traffic is like, beside its siblings'. Absent: nothing is known, or not enough.
    pub is_worse: Option<String>,
}

/// Whether new slots may be begun with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nothing is known of a change: only shards of a former specification are one.
    Idle,
    /// As the policy says.
    Running,
    /// What is under way is brought to its end, and no more.
    Paused,
}

/// What a step has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The slot's new shard counts as good.
    Good(SlotId),
    /// It doesn't, for this reason.
    Failed(SlotId, String),
}

/// One slot's replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    began: Instant,
    /// Since when its new shard serves.
    serves: Option<Instant>,
}

/// The slots that are being replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rollout {
    turns: BTreeMap<SlotId, Turn>,
    /// Slots that failed: one that still serves by its former shard goes on so, the others are left to their restarts.
    given_up: BTreeSet<SlotId>,
    /// When a slot's turn last ended.
    ended: Option<Instant>,
}

impl Rollout {
    /// Goes on with slots that a former agent was replacing.
    pub fn resume(slots: impl IntoIterator<Item = SlotId>, now: Instant) -> Self {
        let turn = Turn { began: now, serves: None };
        Self { turns: slots.into_iter().map(|slot| (slot, turn)).collect(), ..Self::default() }
    }

    /// Slots whose turn it is, ascending.
    pub fn turns(&self) -> BTreeSet<SlotId> {
        self.turns.keys().copied().collect()
    }

    /// Whether it is this slot's turn: its former shard may end.
    pub fn has_turn(&self, slot: SlotId) -> bool {
        self.turns.contains_key(&slot)
    }

    /// Whether its new shard serves and is looked at.
    pub fn is_on_trial(&self, slot: SlotId) -> Option<Instant> {
        self.turns.get(&slot)?.serves
    }

    /// Whether slots failed and were left to their restarts.
    pub fn has_given_up(&self) -> bool {
        !self.given_up.is_empty()
    }

    /// Whether nothing of it is left to do. The last slot that serves is left as it is where all others were given up.
    pub fn is_over(&self, slots: &[SlotFacts]) -> bool {
        let is_lost = |slot: &SlotFacts| self.given_up.contains(&slot.id);
        let is_spared = |slot: &SlotFacts| {
            let mut others = slots.iter().filter(|other| other.id != slot.id);
            slots.len() > 1 && slot.serving && others.all(|other| is_lost(other) && !other.serving)
        };
        let is_done = |slot: &SlotFacts| slot.shard == Shard::Present || is_lost(slot) || is_spared(slot);
        self.turns.is_empty() && !slots.is_empty() && slots.iter().all(is_done)
    }

    /// The group's specification is another one.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// What failed is to be tried again.
    pub fn retry(&mut self) {
        self.given_up.clear();
    }

    /// The same of one slot.
    pub fn retry_slot(&mut self, slot: SlotId) {
        self.given_up.remove(&slot);
    }

    /// Looks at the slots that are to run; ends turns, and begins new ones.
    pub fn step(&mut self, policy: &RolloutPolicy, pace: Pace, slots: &[SlotFacts], now: Instant) -> Vec<Finding> {
        self.turns.retain(|id, _| slots.iter().any(|slot| slot.id == *id));
        let any_former = slots.iter().any(|slot| slot.shard == Shard::Former);
        if pace != Pace::Idle || !self.turns.is_empty() || any_former {
            // What comes up beside a rollout shows as well as any other whether the new specification is good.
            let comes_up = |slot: &&SlotFacts| match slot.shard {
                Shard::None => true,
                Shard::Former => false,
                Shard::Present => pace == Pace::Running && !slot.serves_present,
            };
            for slot in slots.iter().filter(comes_up).filter(|slot| !self.given_up.contains(&slot.id)) {
                self.turns.entry(slot.id).or_insert(Turn { began: now, serves: None });
            }
        }
        let findings: Vec<Finding> = slots.iter().filter_map(|slot| self.look(policy, slot, now)).collect();
        let mut failed = false;
        for finding in &findings {
            let (Finding::Good(slot) | Finding::Failed(slot, _)) = finding;
            self.turns.remove(slot);
            self.ended = Some(now);
            if let Finding::Failed(slot, _) = finding {
                failed = true;
                self.given_up.insert(*slot);
            }
        }
        // What follows from a failure is decided before anything else is touched.
        let may_begin = pace != Pace::Paused && (!failed || policy.failure_action == FailureAction::Continue);
        if may_begin && self.ended.is_none_or(|ended| now.duration_since(ended) >= policy.delay) {
            self.begin(policy, slots, now);
        }
        findings
    }

    fn look(&mut self, policy: &RolloutPolicy, slot: &SlotFacts, now: Instant) -> Option<Finding> {
        let turn = self.turns.get_mut(&slot.id)?;
        let failed = |reason: String| Some(Finding::Failed(slot.id, reason));
        if let Some(reason) = &slot.failure {
            return failed(reason.clone());
        }
        if slot.empties && turn.serves.is_none() {
            turn.began = now;
        }
        match (slot.serves_present, turn.serves) {
            (true, None) => turn.serves = Some(now),
            (false, Some(since)) => {
                let served = now.duration_since(since);
                return failed(format!("it stopped being ready {served:.1?} after it had begun to serve"));
            }
            _ => {}
        }
        if let Some(reason) = slot.is_worse.as_ref().filter(|_| turn.serves.is_some()) {
            return failed(reason.clone());
        }
        if turn.serves.is_some_and(|since| now.duration_since(since) >= policy.trial()) {
            return Some(Finding::Good(slot.id));
        }
        let late = now.duration_since(turn.began) >= policy.deadline;
        late.then(|| Finding::Failed(slot.id, format!("not replaced within {:?}", policy.deadline)))
    }

    fn begin(&mut self, policy: &RolloutPolicy, slots: &[SlotFacts], now: Instant) {
        while self.turns.len() < policy.parallelism as usize {
            let Some(next) = self.next(slots) else { return };
            self.turns.insert(next, Turn { began: now, serves: None });
        }
    }

    /// Who comes next. Slots that don't serve come first: they have nothing to lose. One that serves is touched only while
    /// all others do that aren't being replaced or given up, and never the last one that does; and not beside a
    /// neighbour of its cache while there is a candidate elsewhere.
    fn next(&self, slots: &[SlotFacts]) -> Option<SlotId> {
        let excused = |slot: &SlotFacts| self.turns.contains_key(&slot.id) || self.given_up.contains(&slot.id);
        let candidates: Vec<&SlotFacts> =
            slots.iter().filter(|slot| slot.shard == Shard::Former && !excused(slot)).collect();
        if let Some(broken) = candidates.iter().find(|slot| !slot.serving) {
            return Some(broken.id);
        }
        if !slots.iter().all(|slot| slot.serving || excused(slot)) {
            return None;
        }
        let others_serve = |id: SlotId| {
            let stays = |slot: &&SlotFacts| slot.id != id && slot.serving && !self.turns.contains_key(&slot.id);
            slots.len() == 1 || slots.iter().any(|slot| stays(&slot))
        };
        let is_beside = |slot: &SlotFacts| {
            slots.iter().any(|other| self.turns.contains_key(&other.id) && other.cache == slot.cache)
        };
        let fit = |slot: &&&SlotFacts| others_serve(slot.id);
        let apart = candidates.iter().filter(fit).find(|slot| !is_beside(slot));
        // All that are left are neighbours: one after the other, unless every slot shares one cache.
        let one_cache = slots.iter().all(|slot| slot.cache == slots[0].cache);
        let beside = candidates.iter().filter(fit).find(|_| self.turns.is_empty() || one_cache);
        apart.or(beside).map(|slot| slot.id)
    }
}

#[cfg(test)]
mod tests;
