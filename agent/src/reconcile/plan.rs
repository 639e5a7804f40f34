//! Decides the next step of every slot. PURE: views and the time in, steps out; nothing is asked or touched here.

use std::{collections::BTreeSet, time::Instant};

use sherd_topology::plan::{Slot, SlotId};

use super::view::{Health, Pinning, Service, ShardView, SlotView, Step, Wanted};
use crate::{rollout::Shard, runtime::ShardState, spec::SpecHash};

/// The next step of each slot of one group that has one; `turns` are those whose former shard may go. Called again after
/// each step, until it is empty.
pub(super) fn next_steps(slots: &[SlotView], turns: &BTreeSet<SlotId>, now: Instant) -> Vec<(SlotId, Step)> {
    slots
        .iter()
        .filter(|slot| !slot.busy)
        .filter_map(|slot| Some((slot.id, next_step(slot, turns.contains(&slot.id), now)?)))
        .collect()
}

/// The shard that a slot has, for whoever decides on rollouts; absent where none is to run.
pub(super) fn shard_of(slot: &SlotView) -> Option<Shard> {
    let Wanted::Run { spec, .. } = &slot.wanted else { return None };
    Some(match kept(&slot.shards, spec) {
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

/// The shard that the slot goes on with: a living one before an ended one, of the wanted specification before
/// another, and then the newest.
fn kept<'a>(shards: &'a [ShardView], spec: &SpecHash) -> Option<&'a ShardView> {
    shards.iter().max_by_key(|shard| {
        (is_alive(&shard.state), shard.spec == *spec, shard.state == ShardState::Created, shard.generation)
    })
}

fn next_step(slot: &SlotView, may_replace: bool, now: Instant) -> Option<Step> {
    match &slot.wanted {
        Wanted::Run { spec, slot: place } => {
            let kept = kept(&slot.shards, spec);
            let surplus = slot.shards.iter().find(|shard| kept.is_some_and(|kept| kept.id != shard.id));
            if let Some(step) = surplus.and_then(dispose) {
                return Some(step);
            }
            match kept {
                None => without_shard(slot, now),
                Some(shard) => with_shard(slot, shard, spec, place, may_replace, now),
            }
        }
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

fn without_shard(slot: &SlotView, now: Instant) -> Option<Step> {
    if let Some(step) = abandon(slot) {
        return Some(step);
    }
    if !slot.equipped {
        return Some(Step::Equip);
    }
    slot.start_after.is_none_or(|after| after <= now).then_some(Step::Create)
}

fn with_shard(
    slot: &SlotView,
    shard: &ShardView,
    spec: &SpecHash,
    place: &Slot,
    may_replace: bool,
    now: Instant,
) -> Option<Step> {
    match &shard.state {
        ShardState::Removing => abandon(slot),
        ShardState::Exited { .. } | ShardState::Dead => abandon(slot).or_else(|| Some(Step::Remove(shard.id.clone()))),
        ShardState::Created if shard.spec != *spec => Some(Step::Remove(shard.id.clone())),
        ShardState::Created if !slot.equipped => Some(Step::Equip),
        ShardState::Created => slot.start_after.is_none_or(|after| after <= now).then(|| Step::Start(shard.id.clone())),
        ShardState::Running { .. } | ShardState::Paused { .. } if shard.spec != *spec => {
            if may_replace {
                wind_down(slot, now).step()
            } else {
                running(slot, shard, place, now)
            }
        }
        ShardState::Running { .. } => running(slot, shard, place, now),
        // Somebody paused it by hand: its connections wait in it, new ones go elsewhere.
        ShardState::Paused { .. } => (slot.service == Service::In).then_some(Step::TakeOut),
    }
}

/// A slot whose shard runs, and may go on running.
fn running(slot: &SlotView, shard: &ShardView, place: &Slot, now: Instant) -> Option<Step> {
    if !slot.equipped {
        return Some(Step::Equip);
    }
    match &slot.pinning {
        Pinning::Unknown => return Some(Step::Verify(shard.id.clone())),
        Pinning::Holds(found) if found != place => return Some(Step::Repin(shard.id.clone())),
        Pinning::Faulty { retry_after } if *retry_after <= now => return Some(Step::Repin(shard.id.clone())),
        Pinning::Holds(_) | Pinning::Faulty { .. } => {}
    }
    if slot.overdue {
        return wind_down(slot, now).step();
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
    match slot.service {
        Service::In => return Winding::Next(Step::Drain),
        // Out of the table for another reason, but what it serves goes on.
        Service::Out if slot.backend.is_some() => return Winding::Next(Step::Drain),
        Service::Draining { until } if slot.open > 0 && now < until => return Winding::Waits,
        Service::Draining { .. } | Service::Out => {}
    }
    if slot.backend.is_some() {
        return Winding::Next(Step::Disconnect);
    }
    let alive = slot.shards.iter().find(|shard| is_alive(&shard.state));
    alive.and_then(dispose).map_or(Winding::Down, Winding::Next)
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
