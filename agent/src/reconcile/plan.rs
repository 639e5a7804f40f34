//! Decides the next step of every slot. PURE: views and the time in, steps out; nothing is asked or touched here.

use std::{collections::BTreeSet, time::Instant};

use sherd_topology::plan::{Slot, SlotId};

use super::view::{FormerView, Health, NextView, Pinning, Service, ShardView, SlotView, Step, Wanted};
use crate::{
    rollout::Shard,
    runtime::{ShardId, ShardState},
    spec::SpecHash,
};

/// The next step of each slot of one group that has one; `turns` are those whose former shard may go. Called again after
/// each step, until it is empty.
pub(super) fn next_steps(slots: &[SlotView], turns: &BTreeSet<SlotId>, now: Instant) -> Vec<(SlotId, Step)> {
    slots
        .iter()
        .filter_map(|slot| match slot.busy {
            // Its shard has failed while another one ends, which may take as long as its grace.
            true => {
                let fails = slot.ends_beside && slot.health == Health::Unready && slot.service == Service::In;
                fails.then_some((slot.id, Step::TakeOut))
            }
            false => Some((slot.id, next_step(slot, turns.contains(&slot.id), now)?)),
        })
        .collect()
}

/// The shard that a slot has, for whoever decides on rollouts; absent where none is to run.
pub(super) fn shard_of(slot: &SlotView) -> Option<Shard> {
    let Wanted::Run { spec, .. } = &slot.wanted else { return None };
    Some(match main_shard(slot, spec) {
        Some(shard) if shard.spec == *spec && (is_alive(&shard.state) || shard.state == ShardState::Created) => {
            Shard::Present
        }
        Some(shard) if is_alive(&shard.state) => Shard::Former,
        _ => Shard::None,
    })
}

fn is_alive(state: &ShardState) -> bool {
    matches!(state, ShardState::Running { .. } | ShardState::Paused { .. })
}

/// The shard that the slot goes on with: the one that connections go to; else a living one before an ended one, of the wanted
/// specification before another, and then the newest.
fn main_shard<'a>(slot: &'a SlotView, spec: &SpecHash) -> Option<&'a ShardView> {
    slot.shards.iter().max_by_key(|shard| {
        let alive = is_alive(&shard.state);
        let primary = slot.primary.as_ref() == Some(&shard.id);
        let former = slot.former.as_ref().is_some_and(|former| former.id == shard.id);
        let created = shard.state == ShardState::Created;
        (alive && primary, alive && !former, alive, shard.spec == *spec, created, shard.generation)
    })
}

fn find<'a>(slot: &'a SlotView, id: &ShardId) -> Option<&'a ShardView> {
    slot.shards.iter().find(|shard| shard.id == *id && is_alive(&shard.state))
}

/// A slot that is to run, as the rules see it.
struct Run<'a> {
    slot: &'a SlotView,
    spec: &'a SpecHash,
    place: &'a Slot,
    /// It is its turn: its shard of a former specification may go.
    may_replace: bool,
    now: Instant,
}

fn next_step(slot: &SlotView, may_replace: bool, now: Instant) -> Option<Step> {
    match &slot.wanted {
        Wanted::Run { spec, slot: place } => Run { slot, spec, place, may_replace, now }.step(),
        Wanted::Stopped => match wind_down(slot, now) {
            Winding::Next(step) => Some(step),
            Winding::Waits => None,
            Winding::Down => slot.equipped.then_some(Step::Retire),
        },
        Wanted::Gone => match wind_down(slot, now) {
            Winding::Next(step) => Some(step),
            Winding::Waits => None,
            Winding::Down => slot
                .shards
                .iter()
                .find_map(dispose)
                .or_else(|| (slot.equipped && slot.shards.is_empty()).then_some(Step::Retire)),
        },
    }
}

impl Run<'_> {
    fn step(&self) -> Option<Step> {
        let Run { slot, spec, .. } = *self;
        let main = main_shard(slot, spec);
        // One whose primary has ended is the main one itself.
        let next = slot.next.as_ref().filter(|next| main.is_some_and(|main| main.id != next.id));
        if let Some(step) = self.unwanted(main, next) {
            return Some(step);
        }
        match (main, next) {
            (None, _) => self.without_shard(),
            (Some(shard), Some(next)) => self.beside(shard, next),
            (Some(shard), None) => self.with_shard(shard),
        }
    }

    /// Gets rid of what nobody wants, or waits for, any more. What serves, what is to take over from it, and connections that
    /// may still finish are none of that.
    fn unwanted(&self, main: Option<&ShardView>, next: Option<&NextView>) -> Option<Step> {
        let slot = self.slot;
        if let Some(next) = next.and_then(|next| find(slot, &next.id)).filter(|next| next.spec != *self.spec) {
            return dispose(next);
        }
        let is_main = |id: &ShardId| main.is_some_and(|main| main.id == *id);
        let former = slot.former.as_ref().filter(|former| !is_main(&former.id) && find(slot, &former.id).is_some());
        if let Some(step) = former.and_then(|former| end_former(slot, former, self.now)) {
            return Some(step);
        }
        let coming = main.and_then(|main| self.coming(main));
        let is_kept = |shard: &ShardView| {
            let is_former = former.is_some_and(|former| former.id == shard.id);
            let is_next = next.is_some_and(|next| next.id == shard.id) && is_alive(&shard.state);
            is_main(&shard.id) || is_former || is_next || coming.is_some_and(|coming| coming.id == shard.id)
        };
        slot.shards.iter().filter(|shard| main.is_some() && !is_kept(shard)).find_map(dispose)
    }

    /// Whether a new shard is to come up beside this one: it serves, and goes on until that takes over.
    fn replaces_beside(&self, main: &ShardView) -> bool {
        let serves = is_alive(&main.state) && self.slot.service == Service::In;
        serves && main.spec != *self.spec && self.may_replace && self.slot.overlaps
    }

    /// The shard that was made to come up beside this one, and isn't started yet.
    fn coming(&self, main: &ShardView) -> Option<&ShardView> {
        let made = |shard: &&ShardView| shard.state == ShardState::Created && shard.spec == *self.spec;
        let made = self.slot.shards.iter().filter(made).max_by_key(|shard| shard.generation);
        made.filter(|_| self.replaces_beside(main) && self.slot.next.is_none() && self.slot.former.is_none())
    }

    fn may_start(&self) -> bool {
        self.slot.start_after.is_none_or(|after| after <= self.now)
    }

    fn without_shard(&self) -> Option<Step> {
        if let Some(step) = abandon(self.slot) {
            return Some(step);
        }
        if !self.slot.equipped {
            return Some(Step::Equip);
        }
        self.may_start().then_some(Step::Create)
    }

    fn with_shard(&self, shard: &ShardView) -> Option<Step> {
        let Run { slot, spec, now, .. } = *self;
        match &shard.state {
            ShardState::Removing => abandon(slot),
            ShardState::Exited { .. } | ShardState::Dead => {
                abandon(slot).or_else(|| Some(Step::Remove(shard.id.clone())))
            }
            ShardState::Created if shard.spec != *spec => Some(Step::Remove(shard.id.clone())),
            ShardState::Created if !slot.equipped => Some(Step::Equip),
            ShardState::Created => self.may_start().then(|| Step::Start(shard.id.clone())),
            ShardState::Running { .. } | ShardState::Paused { .. } if self.replaces_beside(shard) => {
                self.running(shard).or_else(|| self.start_beside(shard))
            }
            ShardState::Running { .. } | ShardState::Paused { .. } if shard.spec != *spec && self.may_replace => {
                wind_down(slot, now).step()
            }
            ShardState::Running { .. } | ShardState::Paused { .. } if slot.overdue => wind_down(slot, now).step(),
            ShardState::Running { .. } | ShardState::Paused { .. } => self.running(shard),
        }
    }

    /// A slot whose shard lives, and may go on living.
    fn running(&self, shard: &ShardView) -> Option<Step> {
        let slot = self.slot;
        if matches!(shard.state, ShardState::Paused { .. }) {
            // Somebody paused it by hand: its connections wait in it, new ones go elsewhere.
            let is_due = slot.unpause_at.is_some_and(|at| at <= self.now);
            return match slot.service {
                Service::In => Some(Step::TakeOut),
                Service::Out | Service::Draining { .. } => is_due.then(|| Step::Unpause(shard.id.clone())),
            };
        }
        if !slot.equipped {
            return Some(Step::Equip);
        }
        if let Some(step) = self.pin(&shard.id, &slot.pinning) {
            return Some(step);
        }
        match (slot.health, slot.service) {
            (Health::Ready, _) if slot.backend.as_ref() != Some(&shard.id) || slot.reconnect => {
                Some(Step::Connect(shard.id.clone()))
            }
            (Health::Ready, Service::Out | Service::Draining { .. }) => Some(Step::TakeIn),
            (Health::Unready, Service::In) => Some(Step::TakeOut),
            (Health::Ready, Service::In) | (Health::Unready | Health::Adopted, _) => None,
        }
    }

    fn pin(&self, shard: &ShardId, pinning: &Pinning) -> Option<Step> {
        match pinning {
            Pinning::Unknown => Some(Step::Verify(shard.clone())),
            Pinning::Holds(found) if found != self.place => Some(Step::Repin(shard.clone())),
            Pinning::Faulty { retry_after } if *retry_after <= self.now => Some(Step::Repin(shard.clone())),
            Pinning::Holds(_) | Pinning::Faulty { .. } => None,
        }
    }

    /// A slot that serves, and whose turn it is: the new shard comes up beside the one that does. Before that the former one of
    /// an earlier turn ends: there is room for two.
    fn start_beside(&self, main: &ShardView) -> Option<Step> {
        if self.slot.former.is_some() || !self.may_start() {
            return None;
        }
        Some(self.coming(main).map_or(Step::Create, |made| Step::Start(made.id.clone())))
    }

    /// A slot with a shard that comes up beside the one that serves. This one goes on as if the other weren't there.
    fn beside(&self, main: &ShardView, next: &NextView) -> Option<Step> {
        if let Some(step) = if is_alive(&main.state) { self.running(main) } else { None } {
            return Some(step);
        }
        if !self.slot.equipped {
            return Some(Step::Equip);
        }
        if let Some(step) = self.pin(&next.id, &next.pinning) {
            return Some(step);
        }
        if next.overdue {
            return Some(Step::Stop(next.id.clone()));
        }
        // One at a time: that of an earlier turn has its time.
        let may_take_over = next.health == Health::Ready && self.slot.former.is_none();
        may_take_over.then(|| Step::Promote(next.id.clone()))
    }
}

/// The end of a shard that was taken over from, once it has nothing to finish or its time is up.
fn end_former(slot: &SlotView, former: &FormerView, now: Instant) -> Option<Step> {
    let is_done = former.open == 0 || former.until <= now;
    find(slot, &former.id).filter(|_| is_done).and_then(dispose)
}

/// The slot has no living shard: no new connection, and nothing of ours stays in its namespace.
fn abandon(slot: &SlotView) -> Option<Step> {
    if slot.service != Service::Out {
        return Some(Step::TakeOut);
    }
    slot.backend.is_some().then_some(Step::Disconnect)
}

/// How far a slot is on its way out.
enum Winding {
    /// This comes next.
    Next(Step),
    /// Connections may still finish.
    Waits,
    /// No shard of it lives, and nothing of ours is in one.
    Down,
}

impl Winding {
    fn step(self) -> Option<Step> {
        match self {
            Winding::Next(step) => Some(step),
            Winding::Waits | Winding::Down => None,
        }
    }
}

/// Takes a slot out of service in order: out of the table, drained, disconnected, stopped. Ended shards are left.
fn wind_down(slot: &SlotView, now: Instant) -> Winding {
    // Nobody uses the one that comes up.
    if let Some(step) = slot.next.as_ref().and_then(|next| find(slot, &next.id)).and_then(dispose) {
        return Winding::Next(step);
    }
    if let Some(step) = slot.former.as_ref().and_then(|former| end_former(slot, former, now)) {
        return Winding::Next(step);
    }
    match slot.service {
        Service::In => return Winding::Next(Step::Drain),
        // Out of the table for another reason, but what it serves goes on: also what a former agent began to empty, and handed
        // over.
        Service::Out if slot.backend.is_some() || slot.relayed > 0 => return Winding::Next(Step::Drain),
        Service::Draining { until } if slot.open > 0 && now < until => return Winding::Waits,
        Service::Draining { .. } | Service::Out => {}
    }
    if slot.backend.is_some() {
        return Winding::Next(Step::Disconnect);
    }
    let finishes = |shard: &ShardView| slot.former.as_ref().is_some_and(|former| former.id == shard.id);
    let mut alive = slot.shards.iter().filter(|shard| is_alive(&shard.state)).peekable();
    let is_down = alive.peek().is_none();
    match alive.find(|shard| !finishes(shard)).and_then(dispose) {
        Some(step) => Winding::Next(step),
        None if is_down => Winding::Down,
        None => Winding::Waits,
    }
}

/// Gets rid of a shard that gets no connections.
fn dispose(shard: &ShardView) -> Option<Step> {
    match &shard.state {
        ShardState::Running { .. } | ShardState::Paused { .. } => Some(Step::Stop(shard.id.clone())),
        ShardState::Created | ShardState::Exited { .. } | ShardState::Dead => Some(Step::Remove(shard.id.clone())),
        ShardState::Removing => None,
    }
}

#[cfg(test)]
mod tests;
