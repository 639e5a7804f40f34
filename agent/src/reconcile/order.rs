//! Whether a slot's new shard comes up beside the one that serves, or that one ends first: decided once, when its turn begins.

use std::{collections::BTreeSet, fmt};

use sherd_topology::plan::{GroupName, SlotId};

use super::{Reconciler, group::Group, view::Service};
use crate::spec::Order;

/// How a slot's turn goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TurnOrder {
    /// The new shard comes up beside the one that serves.
    StartFirst,
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
}

impl fmt::Display for StopFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("`order = \"stop-first\"`"),
            Self::OnePlace => f.write_str(
                "an older version of sherd has published its addresses, with room for one listener of a slot; \
                 `sherd stop` and `apply` make room for two",
            ),
        }
    }
}

/// What the decision depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) order: Order,
    /// Both of two shards would want the one place that steering has.
    pub(super) one_place: bool,
}

/// PURE.
pub(super) fn decide(facts: Facts) -> TurnOrder {
    match facts {
        Facts { order: Order::StopFirst, .. } => TurnOrder::StopFirst(StopFirst::Asked),
        Facts { one_place: true, .. } => TurnOrder::StopFirst(StopFirst::OnePlace),
        Facts { .. } => TurnOrder::StartFirst,
    }
}

impl Reconciler {
    /// Decides for slots whose turn has begun, and forgets what was decided for those whose turn is over; whether something
    /// is another way now.
    pub(super) fn decide_orders(&mut self, name: &GroupName, turns: &BTreeSet<SlotId>) -> bool {
        let Some(group) = self.groups.get_mut(name) else { return false };
        let due = |(id, slot): (&SlotId, &super::group::SlotRun)| {
            let serves = slot.service() == Service::In && slot.live.is_some();
            (turns.contains(id) && slot.order.is_none() && serves).then_some(*id)
        };
        let decided: Vec<(SlotId, TurnOrder)> =
            group.slots.iter().filter_map(due).map(|id| (id, group.order_of())).collect();
        let mut changed = !decided.is_empty();
        for (id, slot) in &mut group.slots {
            let order = decided.iter().find(|(decided, _)| decided == id).map(|(_, order)| order.clone());
            let ended = !turns.contains(id) && slot.order.is_some();
            changed |= ended;
            if ended || order.is_some() {
                slot.order = order;
            }
        }
        changed
    }
}

impl Group {
    /// How a slot of it would be replaced now.
    pub(super) fn order_of(&self) -> TurnOrder {
        decide(Facts {
            order: self.spec.rollout.order,
            one_place: self.spec.is_behind_shim() && self.fronts.have_one_place(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_serves_ends_first_only_for_a_reason() {
        let check = |order, one_place, expected| assert_eq!(decide(Facts { order, one_place }), expected);
        check(Order::StartFirst, false, TurnOrder::StartFirst);
        check(Order::StartFirst, true, TurnOrder::StopFirst(StopFirst::OnePlace));
        check(Order::StopFirst, false, TurnOrder::StopFirst(StopFirst::Asked));
        check(Order::StopFirst, true, TurnOrder::StopFirst(StopFirst::Asked));
    }
}
