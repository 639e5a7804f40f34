//! Which memory a slot gets: the nodes of its CPUs, or the nearest ones that have memory, and its share of the limit.
//! Owns the notes that say where a plan may surprise.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{GroupName, Layout, LayoutRequest, MemoryBinding, Slot, SlotId, place::Slots, units::Places};
use crate::model::{CpuSet, Host, Level, NodeId, NodeSet};

/// Something in a plan that is as asked but may surprise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The group.
    pub group: GroupName,
    /// What it is.
    pub kind: NoteKind,
}

/// What a note says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoteKind {
    /// The slot's CPUs have no node with memory of their own.
    MemoryElsewhere {
        /// The slot.
        slot: SlotId,
        /// Its CPUs.
        cpus: CpuSet,
        /// The nodes of its CPUs, all without (usable) memory; may be empty.
        local: NodeSet,
        /// The nodes that it gets.
        mems: NodeSet,
    },
    /// Isolated CPUs of the slots' units that the slots do without, because none may have several.
    IsolatedLeftOut {
        /// The CPUs.
        cpus: CpuSet,
    },
    /// Exclusive groups have part of the slot's unit.
    Narrowed {
        /// The slot.
        slot: SlotId,
        /// The CPUs of its unit that it doesn't get.
        without: CpuSet,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, kind } = self;
        match kind {
            NoteKind::MemoryElsewhere { slot, cpus, local, mems } if local.is_empty() => {
                write!(f, "group {group}, slot {slot}: CPUs {cpus} have no NUMA node; memory comes from node {mems}")
            }
            NoteKind::MemoryElsewhere { slot, local, mems, .. } => write!(
                f,
                "group {group}, slot {slot}: node {local} has no usable memory; it comes from node {mems}, the nearest"
            ),
            NoteKind::IsolatedLeftOut { cpus } => write!(
                f,
                "group {group}: isolated CPUs {cpus} are left out of its slots, the kernel does not balance a shard's \
                 threads over them; with unit = \"pu\" each becomes a slot"
            ),
            NoteKind::Narrowed { slot, without } => {
                write!(f, "group {group}, slot {slot}: exclusive groups have CPUs {without} of its unit")
            }
        }
    }
}

/// The group's layout from the places of its slots.
pub(super) fn layout(host: &Host, request: &LayoutRequest, places: &Places, slots: &Slots) -> (Layout, Vec<Note>) {
    let note = |kind| Note { group: request.group.clone(), kind };
    let mut notes = Vec::new();
    let share = request.memory_limit_bytes.map(|limit| limit / slots.len().max(1) as u64);
    let mut layout = Layout { group: request.group.clone(), slots: Vec::with_capacity(slots.len()) };
    for (&id, (place, cpus)) in slots {
        let mut mems = NodeSet::new();
        if request.memory != MemoryBinding::None {
            let local = host.nodes_of(cpus);
            let elsewhere;
            (mems, elsewhere) = memory_of(host, cpus, &local);
            if elsewhere {
                let (cpus, mems) = (cpus.clone(), mems.clone());
                notes.push(note(NoteKind::MemoryElsewhere { slot: id, cpus, local, mems }));
            }
        }
        let without = places.list[*place].cpus.difference(cpus);
        if !without.is_empty() {
            notes.push(note(NoteKind::Narrowed { slot: id, without }));
        }
        layout.slots.push(Slot { id, cpus: cpus.clone(), mems, memory: request.memory, memory_limit_bytes: share });
    }
    let left_out: CpuSet = slots.values().flat_map(|(place, _)| places.list[*place].left_out.iter()).collect();
    if !left_out.is_empty() {
        notes.push(note(NoteKind::IsolatedLeftOut { cpus: left_out }));
    }
    (layout, notes)
}

/// The nodes that memory of these CPUs comes from, and whether they are not the CPUs' own.
fn memory_of(host: &Host, cpus: &CpuSet, local: &NodeSet) -> (NodeSet, bool) {
    let usable = host.usable_nodes();
    let own = local.intersection(&usable);
    if !own.is_empty() {
        return (own, false);
    }
    // A CPU-less node's distances are as good as any other's; where the firmware gives none, the tree decides.
    let distance = |node: NodeId| {
        let rows = local.iter().filter_map(|from| host.node(from));
        rows.filter_map(|from| from.distances.get(&node).copied()).min().unwrap_or(u64::MAX)
    };
    let shares_package = |node: NodeId| {
        let near = host.node(node).map(|node| &node.cpus);
        let package = |cpu| host.part_of(Level::Package, cpu);
        let home = cpus.first().and_then(package);
        near.is_some_and(|near| home.is_some() && near.iter().any(|cpu| package(cpu) == home))
    };
    let nearest = usable.iter().min_by_key(|node| (distance(*node), !shares_package(*node), *node));
    (nearest.into_iter().collect(), true)
}
