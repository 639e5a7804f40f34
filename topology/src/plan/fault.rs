//! Why a group can't be placed: what is short, by how much, and what to do. Owns these words; decides only whether a
//! request makes sense on the machine at all.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};

use super::{
    CoreKind, GroupName, LayoutRequest, MemoryBinding, ShardCount, Sharing, Smt, Unit,
    place::{Input, Occupancy, Slots},
    units::{self, Places},
};
use crate::model::{CpuSet, Host};

/// Groups and devices that a message names at most.
const MAX_NAMED: usize = 5;

/// A group that can't be placed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("group {group} {cause}")]
pub struct PlanFault {
    /// The group.
    pub group: GroupName,
    /// Why, and what to do.
    pub cause: FaultCause,
}

/// Why a group can't be placed. The text goes on after "group NAME …".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum FaultCause {
    /// The name is taken.
    #[error("is asked for twice: give one of the two another name")]
    Duplicate,
    /// `near` names no device of the machine.
    #[error("wants to be near \"{device}\", which this machine doesn't have: {}", known_devices(.known))]
    UnknownDevice {
        /// What `near` says.
        device: String,
        /// Network interfaces and other named devices that there are.
        known: Vec<String>,
    },
    /// `cpus` names CPUs that the machine does not have.
    #[error("lists CPUs {unknown}, which this machine doesn't have (it has {present}): take them out of `cpus`")]
    UnknownCpus {
        /// The CPUs.
        unknown: CpuSet,
        /// The CPUs that the machine has.
        present: CpuSet,
    },
    /// `smt = "each"` with a unit that is larger than a core.
    #[error(
        "asks for one shard per hardware thread (smt = \"each\") and one per {} at once: use unit = \"core\", or smt = \"share\"",
        noun(*.unit, 1)
    )]
    ThreadsOfLargeUnit {
        /// The unit.
        unit: Unit,
    },
    /// The machine has no unit of that kind.
    #[error("asks for one shard per {}, and this machine shows none: use unit = {}", noun(*.unit, 1), alternatives(.instead))]
    NoSuchUnit {
        /// The unit.
        unit: Unit,
        /// Units that it has, with their numbers.
        instead: Vec<(Unit, u32)>,
    },
    /// The machine has no cores of that kind.
    #[error("asks for {kind} cores, and this machine has one kind of core: leave core_kind out")]
    NoSuchKind {
        /// The kind.
        kind: CoreKind,
    },
    /// No node has memory that may be used.
    #[error(
        "binds memory, and no NUMA node with memory is allowed here: set memory = \"none\" or widen the cgroup's cpuset.mems"
    )]
    NoMemory,
    /// The memory limit does not give each shard a byte.
    #[error("divides {limit_bytes} bytes of memory by {shards} shards: raise memory_limit")]
    MemoryTooSmall {
        /// The limit of the group.
        limit_bytes: u64,
        /// The shards.
        shards: u32,
    },
    /// There are fewer free units than shards.
    #[error("{0}")]
    Short(Box<Shortage>),
}

/// Fewer free units than shards, and where the others are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// Shards asked for; `None` for `auto`.
    pub asked: Option<u32>,
    /// The unit of each.
    pub unit: Unit,
    /// Units that the group could have.
    pub free: u32,
    /// Reserved CPUs.
    pub reserved: CpuSet,
    /// Offline CPUs.
    pub offline: CpuSet,
    /// Online CPUs that are not allowed here.
    pub not_allowed: CpuSet,
    /// Isolated CPUs whose units can't be slots.
    pub isolated: CpuSet,
    /// CPUs that the group's own `cpus` and `core_kind` leave it; `None` where it has neither.
    pub restricted_to: Option<CpuSet>,
    /// Units that other groups hold. A unit that several hold counts for each.
    pub held: BTreeMap<GroupName, u32>,
    /// A smaller unit of which there are enough.
    pub instead: Option<(Unit, u32)>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.asked {
            None => write!(f, "asks for shards on all free {}; ", noun(self.unit, 2))?,
            Some(1) => write!(f, "asks for 1 shard of one {}; ", noun(self.unit, 1))?,
            Some(asked) => write!(f, "asks for {asked} shards of one {} each; ", noun(self.unit, 1))?,
        }
        match self.free {
            0 => write!(f, "no {} is free", noun(self.unit, 1))?,
            1 => write!(f, "1 {} is free", noun(self.unit, 1))?,
            free => write!(f, "{free} {} are free", noun(self.unit, 2))?,
        }
        let why = self.why();
        if !why.is_empty() {
            write!(f, " ({})", why.join("; "))?;
        }
        write!(f, ": {}", self.remedies().join(", or "))
    }
}

impl Shortage {
    /// Where the units are that are not free.
    fn why(&self) -> Vec<String> {
        let sets = [(&self.reserved, "reserved"), (&self.offline, "offline"), (&self.not_allowed, "not allowed")];
        let mut why: Vec<String> = sets
            .iter()
            .filter(|(cpus, _)| !cpus.is_empty())
            .map(|(cpus, what)| format!("{} {what}: {cpus}", cpus.len()))
            .collect();
        if !self.isolated.is_empty() {
            why.push(format!(
                "CPUs {} are isolated, and the kernel does not balance a shard's threads over several such",
                self.isolated
            ));
        }
        why.extend(self.restricted_to.as_ref().map(|cpus| format!("limited to CPUs {cpus}")));
        let mut held: Vec<_> = self.held.iter().collect();
        held.sort_by_key(|(group, count)| (std::cmp::Reverse(**count), *group));
        why.extend(held.iter().take(MAX_NAMED).map(|(group, count)| format!("group {group} holds {count}")));
        let rest: u32 = held.iter().skip(MAX_NAMED).map(|(_, count)| **count).sum();
        if rest > 0 {
            why.push(format!("{} more groups hold {rest}", held.len() - MAX_NAMED));
        }
        why
    }

    fn remedies(&self) -> Vec<String> {
        let mut remedies = Vec::new();
        if self.free > 0 && self.asked.is_some() {
            remedies.push(format!("ask for {}", self.free));
        }
        remedies.extend(self.instead.map(|(unit, count)| format!("use unit = \"{unit}\" ({count} are free)")));
        if !self.isolated.is_empty() && self.instead.is_none() {
            remedies.push("use unit = \"pu\" or \"core\" on isolated CPUs".to_owned());
        }
        if remedies.is_empty() {
            let holder = self.held.iter().max_by_key(|(_, count)| **count).map(|(group, _)| group);
            remedies.push(match holder {
                Some(group) => format!("give group {group} fewer shards or other CPUs"),
                None if !self.reserved.is_empty() => "reserve fewer CPUs".to_owned(),
                None if self.restricted_to.is_some() => "widen `cpus` or `core_kind`".to_owned(),
                None => "give this host more CPUs".to_owned(),
            });
        }
        remedies
    }
}

/// With `message`, the sentence that people read.
impl Serialize for PlanFault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fault = serializer.serialize_struct("PlanFault", 3)?;
        fault.serialize_field("group", &self.group)?;
        fault.serialize_field("cause", &self.cause)?;
        fault.serialize_field("message", &self.to_string())?;
        fault.end()
    }
}

/// Whether the request makes sense on this machine, whatever others ask for.
pub(super) fn check(host: &Host, request: &LayoutRequest, duplicate: bool) -> Result<(), FaultCause> {
    let unit = request.unit;
    if duplicate {
        return Err(FaultCause::Duplicate);
    }
    if let Some(device) = request.near.as_ref().filter(|name| host.device(name).is_none()) {
        let named = host.parts().devices.iter().flat_map(|known| known.names.first().or(known.pci.as_ref()).cloned());
        return Err(FaultCause::UnknownDevice { device: device.clone(), known: named.collect() });
    }
    let present = &host.parts().present;
    if let Some(unknown) = request.cpus.as_ref().map(|cpus| cpus.difference(present)).filter(|cpus| !cpus.is_empty()) {
        return Err(FaultCause::UnknownCpus { unknown, present: present.clone() });
    }
    if request.smt == Smt::Each && !matches!(unit, Unit::Pu | Unit::Core) {
        return Err(FaultCause::ThreadsOfLargeUnit { unit });
    }
    let count = |unit| units::level_of(unit).map_or(host.parts().pus.len(), |level| host.parts_at(level).len());
    if count(unit) == 0 {
        let others = Unit::ALL.iter().filter(|other| count(**other) > 0);
        return Err(FaultCause::NoSuchUnit {
            unit,
            instead: others.map(|other| (*other, count(*other) as u32)).collect(),
        });
    }
    if units::of_kind(host, request.core_kind).is_some_and(|cpus| cpus.is_empty()) {
        return Err(FaultCause::NoSuchKind { kind: request.core_kind });
    }
    if request.memory != MemoryBinding::None && host.usable_nodes().is_empty() {
        return Err(FaultCause::NoMemory);
    }
    match (request.memory_limit_bytes, request.shards) {
        (Some(limit_bytes), ShardCount::Exactly(shards)) if limit_bytes < u64::from(shards.get()) => {
            Err(FaultCause::MemoryTooSmall { limit_bytes, shards: shards.get() })
        }
        _ => Ok(()),
    }
}

/// The fault of a group that has not one place, even alone on the machine.
pub(super) fn no_place(host: &Host, reserved: &CpuSet, request: &LayoutRequest, places: &Places) -> FaultCause {
    FaultCause::Short(Box::new(shortage(host, reserved, request, places, 0)))
}

/// The fault of a group that finds `free` places, fewer than it asks for.
pub(super) fn short(
    input: &Input<'_>,
    request: usize,
    occupancy: &Occupancy,
    free: usize,
    slots: &BTreeMap<usize, Slots>,
) -> FaultCause {
    let wanted = &input.requests[request];
    let places = &input.candidates[&request];
    let mut shortage = shortage(input.host, input.reserved, wanted, places, free);
    let is_shared = |other: &usize| input.requests[*other].sharing == Sharing::Shared;
    let shared: Vec<(usize, CpuSet)> = slots
        .iter()
        .filter(|(other, _)| wanted.sharing == Sharing::Exclusive && is_shared(other))
        .map(|(other, slots)| (*other, slots.values().fold(CpuSet::new(), |all, (_, cpus)| all.union(cpus))))
        .collect();
    for place in (0..places.list.len()).filter(|at| !occupancy.admits(input, request, *at)) {
        let claim = &places.list[place].claim;
        let mut holders: Vec<usize> = claim.iter().filter_map(|cpu| occupancy.holder(input.host, cpu)).collect();
        holders.extend(shared.iter().filter(|(_, cpus)| !cpus.is_disjoint(claim)).map(|(other, _)| *other));
        holders.sort_unstable();
        holders.dedup();
        for holder in holders.into_iter().filter(|holder| *holder != request) {
            *shortage.held.entry(input.requests[holder].group.clone()).or_default() += 1;
        }
    }
    shortage.instead = smaller_unit(input, request, occupancy);
    FaultCause::Short(Box::new(shortage))
}

fn shortage(host: &Host, reserved: &CpuSet, request: &LayoutRequest, places: &Places, free: usize) -> Shortage {
    let parts = host.parts();
    let usable = host.usable();
    let asked = match request.shards {
        ShardCount::Auto => None,
        ShardCount::Exactly(number) => Some(number.get()),
    };
    let restricted = request.cpus.is_some() || units::of_kind(host, request.core_kind).is_some();
    Shortage {
        asked,
        unit: if request.smt == Smt::Each { Unit::Pu } else { request.unit },
        free: free as u32,
        reserved: reserved.intersection(&usable),
        offline: parts.present.difference(&parts.online),
        not_allowed: parts.online.difference(&parts.allowed),
        isolated: places.refused.clone(),
        restricted_to: restricted.then(|| units::usable(host, &CpuSet::new(), request)),
        held: BTreeMap::new(),
        instead: None,
    }
}

/// The largest smaller unit of which as many are free as the group asks for.
fn smaller_unit(input: &Input<'_>, request: usize, occupancy: &Occupancy) -> Option<(Unit, u32)> {
    let wanted = &input.requests[request];
    let ShardCount::Exactly(asked) = wanted.shards else { return None };
    let smaller = Unit::ALL.iter().filter(|unit| **unit < wanted.unit && wanted.smt == Smt::Share).rev();
    smaller.copied().find_map(|unit| {
        let places = Places::find(input.host, input.reserved, &LayoutRequest { unit, ..wanted.clone() });
        let is_free = |cpus: &CpuSet| {
            let mut ranks = cpus.iter().filter_map(|cpu| input.host.rank(cpu));
            ranks.all(|rank| occupancy.load(rank) == 0)
        };
        let free = places.list.iter().filter(|place| is_free(&place.claim)).count() as u32;
        (free >= asked.get()).then_some((unit, free))
    })
}

fn noun(unit: Unit, count: usize) -> &'static str {
    let [one, many] = match unit {
        Unit::Pu => ["hardware thread", "hardware threads"],
        Unit::Core => ["core", "cores"],
        Unit::L2 => ["L2 cache", "L2 caches"],
        Unit::L3 => ["L3 cache", "L3 caches"],
        Unit::Die => ["die", "dies"],
        Unit::Numa => ["NUMA node", "NUMA nodes"],
        Unit::Package => ["package", "packages"],
    };
    if count == 1 { one } else { many }
}

fn alternatives(units: &[(Unit, u32)]) -> String {
    let named: Vec<String> = units.iter().map(|(unit, count)| format!("\"{unit}\" ({count})")).collect();
    named.join(", ")
}

fn known_devices(known: &[String]) -> String {
    if known.is_empty() {
        return "no device of it is known, leave `near` out".to_owned();
    }
    let shown = known.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = if known.len() > MAX_NAMED { ", …" } else { "" };
    format!("use one of {shown}{more}")
}
