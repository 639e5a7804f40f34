//! From a layout on a machine to the table that steers its connections. PURE.

use std::collections::BTreeMap;

use sherd_lb::table::{CpuEntry, Policy, SlotEntry, SlotIndex, SteeringTable};
use sherd_topology::{
    model::{CpuId, CpuSet, Host, Locality},
    plan::{Slot, SlotId},
};

use crate::health::slow_start;

/// What differs from port to port of a group.
#[derive(Debug, Clone, Copy)]
pub(super) struct PortChoice<'a> {
    /// How a connection finds its slot.
    pub(super) policy: Policy,
    /// Share of each slot, in the order of slots; equal where absent.
    pub(super) weights: Option<&'a [u32]>,
    /// Per cent of its share that a slot gets for now; all of it where absent.
    pub(super) shares: &'a BTreeMap<SlotId, u32>,
    /// Length of the Maglev table.
    pub(super) table_len: u32,
}

/// The kernel's name of a slot.
pub(super) fn index_of(slot: SlotId) -> SlotIndex {
    // `apply` refuses more than MAX_SLOTS slots before a layout gets here.
    SlotIndex(u16::try_from(slot.0).unwrap_or(u16::MAX))
}

/// The table of a port of a group with these slots.
pub(super) fn build(host: &Host, slots: &[Slot], choice: PortChoice<'_>) -> SteeringTable {
    let entries = slots.iter().enumerate().map(|(position, slot)| SlotEntry {
        index: index_of(slot.id),
        weight: weight(position, slot.id, choice.weights, choice.shares),
        levels: levels(host, slots, &slot.cpus, [Locality::L3, Locality::Node, Locality::Package]),
    });
    let online = host.online();
    let cpus = online.iter().map(|cpu| CpuEntry { cpu: cpu.0, levels: cpu_levels(host, slots, cpu) });
    SteeringTable {
        policy: choice.policy,
        slots: entries.collect(),
        cpus: if choice.policy == Policy::Local { cpus.collect() } else { Vec::new() },
        table_len: choice.table_len,
    }
}

/// The weight of a slot, in the order of slots: as specified (equal where it isn't), times its share for now. While all have
/// all of theirs, it is as specified.
pub(super) fn weight(position: usize, id: SlotId, weights: Option<&[u32]>, shares: &BTreeMap<SlotId, u32>) -> u32 {
    let specified = weights.and_then(|weights| weights.get(position)).copied().unwrap_or(1);
    let share = if shares.is_empty() { 1 } else { shares.get(&id).copied().unwrap_or(slow_start::WHOLE_PERCENT) };
    specified.saturating_mul(share)
}

fn cpu_levels(host: &Host, slots: &[Slot], cpu: CpuId) -> [Vec<SlotIndex>; 4] {
    let here = CpuSet::from_iter([cpu]);
    let owning = slots.iter().filter(|slot| slot.cpus.contains(cpu)).map(|slot| index_of(slot.id)).collect();
    let [l3, node, package] = levels(host, slots, &here, [Locality::L3, Locality::Node, Locality::Package]);
    [owning, l3, node, package]
}

/// The slots that are at most that far from `origin`, for each of the given distances.
fn levels(host: &Host, slots: &[Slot], origin: &CpuSet, within: [Locality; 3]) -> [Vec<SlotIndex>; 3] {
    let distances: Vec<_> = slots.iter().map(|slot| (index_of(slot.id), host.locality(origin, &slot.cpus))).collect();
    within.map(|bound| distances.iter().filter(|(_, distance)| *distance <= bound).map(|(index, _)| *index).collect())
}

/// The other slots, nearest first; equally near ones in an order that starts behind `slot`, so that the slots of one
/// cache don't all turn to the same one.
pub(super) fn nearest_first(host: &Host, slots: &[Slot], slot: &Slot) -> Vec<SlotId> {
    let count = slots.len();
    let Some(position) = slots.iter().position(|other| other.id == slot.id) else { return Vec::new() };
    let mut others: Vec<&Slot> = (1..count).map(|step| &slots[(position + step) % count]).collect();
    others.sort_by_key(|other| host.locality(&slot.cpus, &other.cpus));
    others.into_iter().map(|other| other.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_the_specified_weight() {
        let check = |weights: Option<&[u32]>, shares: &[(u32, u32)], expected: [u32; 3]| {
            let shares = shares.iter().map(|(id, percent)| (SlotId(*id), *percent)).collect();
            let found = [0, 1, 2].map(|position| weight(position, SlotId(position as u32), weights, &shares));
            assert_eq!(found, expected, "{weights:?} {shares:?}");
        };
        check(None, &[], [1, 1, 1]);
        check(Some(&[1, 3]), &[], [1, 3, 1]);
        check(None, &[(1, 10)], [100, 10, 100]);
        check(Some(&[0, 3, u32::MAX]), &[(1, 10)], [0, 30, u32::MAX]);
    }
}
