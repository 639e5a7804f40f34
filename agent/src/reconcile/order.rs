//! Whether a slot's new shard comes up beside the one that serves, or that one ends first: decided once, when its turn begins.

use std::{collections::BTreeSet, fmt};

use sherd_topology::plan::{GroupName, Slot, SlotId};

use super::{
    Reconciler,
    group::{Group, SlotRun},
    memory::{Memory, NoRoom},
    view::Service,
    world,
};
use crate::spec::{GroupSpec, Order, RuntimeSpec};

/// How a slot's turn goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TurnOrder {
    /// The new shard comes up beside the one that serves.
    StartFirst {
        /// Memory that it was found room for, bytes.
        needed: u64,
    },
    /// That one ends first.
    StopFirst(StopFirst),
}

/// Why the shard that serves ends first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StopFirst {
    /// The specification says so.
    Asked,
    /// Steering has room for one shard's listener in each slot.
    OnePlace,
    /// There is no memory for two.
    NoRoom(NoRoom),
    /// Whether there is can't be told.
    Unknown(String),
}

impl fmt::Display for StopFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("`order = \"stop-first\"`"),
            Self::OnePlace => f.write_str(
                "an older version of sherd has published its addresses, with room for one listener of a slot; \
                 `sherd stop` and `apply` make room for two",
            ),
            Self::NoRoom(no_room) => no_room.fmt(f),
            Self::Unknown(why) => write!(f, "whether there is memory for a second shard can't be told: {why}"),
        }
    }
}

/// What the decision depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) order: Order,
    /// Both of two shards would want the one place that steering has.
    pub(super) one_place: bool,
    /// What is known of its memory, or why nothing is.
    pub(super) memory: Result<Memory, String>,
}

/// PURE.
pub(super) fn decide(facts: Facts) -> TurnOrder {
    match facts {
        Facts { order: Order::StopFirst, .. } => TurnOrder::StopFirst(StopFirst::Asked),
        Facts { one_place: true, .. } => TurnOrder::StopFirst(StopFirst::OnePlace),
        Facts { memory: Err(why), .. } => TurnOrder::StopFirst(StopFirst::Unknown(why)),
        Facts { memory: Ok(memory), .. } => match memory.check() {
            Ok(()) => TurnOrder::StartFirst { needed: memory.needed },
            Err(no_room) => TurnOrder::StopFirst(StopFirst::NoRoom(no_room)),
        },
    }
}

impl Reconciler {
    /// Decides for slots whose turn has begun, and forgets what was decided for those whose turn is over; whether something
    /// is another way now.
    pub(super) fn decide_orders(&mut self, name: &GroupName, turns: &BTreeSet<SlotId>) -> bool {
        let mut promised: u64 =
            self.groups.values().flat_map(|group| group.slots.values()).map(SlotRun::promised).sum();
        let Some(group) = self.groups.get_mut(name) else { return false };
        let due = |(id, slot): (&SlotId, &SlotRun)| {
            let serves = slot.service() == Service::In && slot.live.is_some();
            (turns.contains(id) && slot.order.is_none() && serves).then_some(*id)
        };
        let decided: Vec<(SlotId, TurnOrder)> = group
            .slots
            .iter()
            .filter_map(due)
            .map(|id| {
                let order = group.order_of(id, &group.spec, group.planned(), promised);
                promised = promised.saturating_add(order.needed());
                (id, order)
            })
            .collect();
        let mut changed = !decided.is_empty();
        for (id, slot) in &mut group.slots {
            let order = decided.iter().find(|(decided, _)| decided == id).map(|(_, order)| order.clone());
            let ended = !turns.contains(id) && slot.order.is_some();
            changed |= ended;
            if ended || order.is_some() {
                slot.order = order;
            }
        }
        let of_need = |(id, order): (SlotId, TurnOrder)| Some((id, order.not_asked()?));
        for (id, why) in decided.into_iter().filter_map(of_need) {
            tracing::warn!(group = %name, slot = %id, "{name}/{id} is replaced stop-first: {why}");
            let message = format!("slot {id} is replaced stop-first: {why}");
            self.send_event(super::report::slot_event(name, id, "rollout", message));
        }
        changed
    }
}

impl SlotRun {
    /// Memory that its next shard was found room for and doesn't use yet, bytes.
    fn promised(&self) -> u64 {
        let is_up = self.next.as_ref().is_some_and(|next| next.was_ready);
        self.order.as_ref().filter(|_| !is_up && self.former.is_none()).map_or(0, TurnOrder::needed)
    }
}

impl TurnOrder {
    fn needed(&self) -> u64 {
        match self {
            Self::StartFirst { needed } => *needed,
            Self::StopFirst(_) => 0,
        }
    }

    /// Why the shard that serves ends first, although nobody asked for that.
    pub(super) fn not_asked(&self) -> Option<String> {
        match self {
            Self::StopFirst(why) if *why != StopFirst::Asked => Some(why.to_string()),
            Self::StartFirst { .. } | Self::StopFirst(_) => None,
        }
    }
}

impl Group {
    /// How a slot that serves would be replaced now by a shard of `spec`, whose slots are these. What other slots were promised
    /// is not there. Reads a few small files of the kernel's.
    fn order_of(&self, id: SlotId, spec: &GroupSpec, slots: &[Slot], promised: u64) -> TurnOrder {
        let memory = self.memory_of(id, spec, slots);
        decide(Facts {
            order: spec.rollout.order,
            one_place: spec.is_behind_shim() && self.fronts.have_one_place(),
            memory: memory.map(|memory| memory.without(promised)),
        })
    }

    fn memory_of(&self, id: SlotId, spec: &GroupSpec, slots: &[Slot]) -> Result<Memory, String> {
        let place = slots.iter().find(|slot| slot.id == id).ok_or("it has no place")?;
        let live = self.slots.get(&id).and_then(|slot| slot.live.as_ref()).ok_or("it has no shard")?;
        let limit = match &spec.runtime {
            RuntimeSpec::Docker(container) => container.memory_bytes,
            RuntimeSpec::Process(_) => None,
        };
        world::memory(limit.or(place.memory_limit_bytes), place, live.pid).map_err(|error| error.to_string())
    }

    /// In words, how the shards that serve would be replaced now by those of `spec`, whose slots are these.
    pub(super) fn order_in_words(&self, spec: &GroupSpec, slots: &[Slot]) -> String {
        if spec.rollout.order == Order::StopFirst {
            return format!("stop-first, as {} says", StopFirst::Asked);
        }
        let serves =
            |id: &SlotId| self.slots.get(id).is_some_and(|slot| slot.service() == Service::In && slot.live.is_some());
        let serving = slots.iter().map(|slot| slot.id).filter(serves);
        let mut in_need = serving.filter_map(|id| Some((id, self.order_of(id, spec, slots, 0).not_asked()?)));
        match in_need.next() {
            Some((id, why)) => format!("start-first where that can be, and stop-first as now slot {id}: {why}"),
            None => "start-first: a new shard takes over from the one that serves when it is ready".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_serves_ends_first_only_for_a_reason() {
        let enough = Memory { needed: 1, available: 1, on_nodes: None };
        let check = |order, one_place, expected| {
            assert_eq!(decide(Facts { order, one_place, memory: Ok(enough) }), expected);
        };
        check(Order::StartFirst, false, TurnOrder::StartFirst { needed: 1 });
        check(Order::StartFirst, true, TurnOrder::StopFirst(StopFirst::OnePlace));
        check(Order::StopFirst, false, TurnOrder::StopFirst(StopFirst::Asked));
        check(Order::StopFirst, true, TurnOrder::StopFirst(StopFirst::Asked));
        let facts = |memory| Facts { order: Order::StartFirst, one_place: false, memory };
        let no_room = decide(facts(Ok(Memory { needed: 2, ..enough })));
        assert!(matches!(no_room, TurnOrder::StopFirst(StopFirst::NoRoom(_))), "{no_room:?}");
        assert!(no_room.not_asked().is_some_and(|why| why.contains("needs 1 MiB")));
        let unknown = decide(facts(Err("it ended".into())));
        assert_eq!(unknown, TurnOrder::StopFirst(StopFirst::Unknown("it ended".into())));
    }
}
