//! Which CPUs and memory each slot of each group gets. Owns the decision; touches nothing: the same machine, requests
//! and current layouts give the same plan.
//!
//! Rules that hold in every plan:
//! - a CPU belongs to one exclusive group at most, and shared groups keep away from it;
//! - nothing outside `usable` minus the reserved CPUs is used;
//! - a slot lies within one unit (core, L3, …) and never spans several isolated CPUs;
//! - a slot stays where it is as long as that is legal; what does move says why;
//! - a group is placed whole or not at all.

mod change;
mod fault;
mod memory;
mod place;
mod request;
mod spread;
mod stability;
mod units;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{CpuSet, Host};

pub use change::{Change, ChangeKind, ChangeReason};
pub use fault::{FaultCause, PlanFault, Shortage};
pub use memory::{Note, NoteKind};
pub use request::{
    CoreKind, GroupName, GroupNameError, Layout, LayoutRequest, MemoryBinding, Placement, ShardCount, Sharing, Slot,
    SlotId, Smt, Unit, UnknownWord,
};

/// What was decided for every group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The groups that can be placed, in the order of the requests.
    pub layouts: Vec<Layout>,
    /// What differs from the current layouts, by group and slot.
    pub changes: Vec<Change>,
    /// The groups that can't be placed, each with what is short and what to do.
    pub faults: Vec<PlanFault>,
    /// What is as asked but may surprise: memory from another node, isolated CPUs left out.
    pub notes: Vec<Note>,
    /// The CPUs that were kept from all groups.
    pub reserved: CpuSet,
}

/// Places every group's slots.
///
/// `current` is what runs now; slots keep their places where those are still legal and the right unit, and an
/// existing slot goes before a new one. New slots are placed for groups with a number of shards first (exclusive
/// before shared), then for `auto` groups, each in the order of `requests`; `auto` takes every unit that is left.
/// A group that can't be placed whole is a fault, and the others are planned as if it weren't there.
pub fn plan(host: &Host, reserved: &CpuSet, requests: &[LayoutRequest], current: &[Layout]) -> Plan {
    let mut faults = BTreeMap::new();
    let mut candidates = BTreeMap::new();
    let mut cache = units::Cache::default();
    for (at, request) in requests.iter().enumerate() {
        let duplicate = requests[..at].iter().any(|earlier| earlier.group == request.group);
        match fault::check(host, request, duplicate).and_then(|()| cache.places(host, reserved, request)) {
            Ok(places) => drop(candidates.insert(at, places)),
            Err(cause) => drop(faults.insert(at, cause)),
        }
    }
    let input = place::Input { host, reserved, requests, current, candidates };
    let (assignments, short) = place::assign(&input);
    faults.extend(short);

    let mut plan = Plan { reserved: reserved.clone(), ..Plan::default() };
    for (at, slots) in &assignments {
        let (layout, notes) = memory::layout(host, &requests[*at], &input.candidates[at], slots);
        plan.layouts.push(layout);
        plan.notes.extend(notes);
    }
    let named = |(at, cause): (usize, FaultCause)| PlanFault { group: requests[at].group.clone(), cause };
    plan.faults = faults.into_iter().map(named).collect();
    plan.changes = change::changes(&input, &plan);
    plan
}
