//! What a plan changes against what runs now, and why. Owns the reasons; decides nothing.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize, Serializer, ser::SerializeStruct};

use super::{GroupName, Plan, ShardCount, Sharing, Slot, SlotId, place::Input};
use crate::model::CpuSet;

/// A difference between the current layouts and the plan.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Change {
    /// The group.
    pub group: GroupName,
    /// The slot.
    pub slot: SlotId,
    /// What happens to it.
    pub kind: ChangeKind,
    /// Why.
    pub reason: ChangeReason,
}

/// What happens to a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// It is new.
    Added {
        /// Its CPUs.
        to: CpuSet,
    },
    /// It goes away.
    Removed {
        /// Its CPUs until now.
        from: CpuSet,
    },
    /// It gets other CPUs.
    Moved {
        /// Its CPUs until now.
        from: CpuSet,
        /// Its CPUs from now on.
        to: CpuSet,
    },
}

/// Why a slot changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeReason {
    /// The group is new.
    NewGroup,
    /// The group asks for more shards.
    MoreShards,
    /// More units are free for a group with `shards = "auto"`.
    MoreUnits,
    /// The group is no longer asked for.
    GroupRemoved,
    /// The group asks for fewer shards.
    FewerShards,
    /// Fewer units are left for a group with `shards = "auto"`.
    FewerUnits,
    /// The slot's unit has CPUs that it had not: they came online, are allowed now, or were given back.
    UnitGrew {
        /// The CPUs.
        cpus: CpuSet,
    },
    /// CPUs went offline or away.
    Offline {
        /// The CPUs.
        cpus: CpuSet,
    },
    /// CPUs are no longer allowed (cgroup or affinity).
    NotAllowed {
        /// The CPUs.
        cpus: CpuSet,
    },
    /// CPUs are reserved now.
    Reserved {
        /// The CPUs.
        cpus: CpuSet,
    },
    /// The request excludes CPUs now (`cpus` or `core_kind`).
    Excluded {
        /// The CPUs.
        cpus: CpuSet,
    },
    /// Another group has CPUs now.
    TakenBy {
        /// The group.
        group: GroupName,
        /// The CPUs.
        cpus: CpuSet,
    },
    /// The group asks for another unit or another use of hardware threads.
    UnitChanged,
}

impl Change {
    /// Whether the slot stays in its place and only gains or loses CPUs there: a live update is enough.
    pub fn in_place(&self) -> bool {
        matches!(&self.kind, ChangeKind::Moved { from, to } if !from.is_disjoint(to))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, slot, kind, reason } = self;
        match kind {
            ChangeKind::Added { to } => write!(f, "{group}/{slot}: added on CPUs {to}: {reason}"),
            ChangeKind::Removed { from } => write!(f, "{group}/{slot}: removed from CPUs {from}: {reason}"),
            ChangeKind::Moved { from, to } => write!(f, "{group}/{slot}: moved from CPUs {from} to {to}: {reason}"),
        }
    }
}

impl fmt::Display for ChangeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewGroup => f.write_str("the group is new"),
            Self::MoreShards => f.write_str("the group asks for more shards"),
            Self::MoreUnits => f.write_str("shards = \"auto\", and more units are free"),
            Self::GroupRemoved => f.write_str("the group is no longer asked for"),
            Self::FewerShards => f.write_str("the group asks for fewer shards"),
            Self::FewerUnits => f.write_str("shards = \"auto\", and fewer units are left"),
            Self::UnitGrew { cpus } => write!(f, "CPUs {cpus} of its unit can be used now"),
            Self::Offline { cpus } => write!(f, "CPUs {cpus} are offline"),
            Self::NotAllowed { cpus } => write!(f, "CPUs {cpus} are not allowed here any more"),
            Self::Reserved { cpus } => write!(f, "CPUs {cpus} are reserved now"),
            Self::Excluded { cpus } => write!(f, "the group excludes CPUs {cpus} now"),
            Self::TakenBy { group, cpus } => write!(f, "group {group} has CPUs {cpus} now"),
            Self::UnitChanged => f.write_str("the group asks for another unit"),
        }
    }
}

/// With `message`, the sentence that people read.
impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut change = serializer.serialize_struct("Change", 5)?;
        change.serialize_field("group", &self.group)?;
        change.serialize_field("slot", &self.slot)?;
        change.serialize_field("kind", &self.kind)?;
        change.serialize_field("reason", &self.reason)?;
        change.serialize_field("message", &self.to_string())?;
        change.end()
    }
}

/// All changes, by group in the order of the plan, then groups that go away. Groups with a fault are not among them.
pub(super) fn changes(input: &Input<'_>, plan: &Plan) -> Vec<Change> {
    let mut changes = Vec::new();
    for layout in &plan.layouts {
        let before = input.current.iter().find(|current| current.group == layout.group);
        let mut old: BTreeMap<SlotId, &Slot> =
            before.iter().flat_map(|before| before.slots.iter().map(|slot| (slot.id, slot))).collect();
        let auto = input.requests.iter().any(|r| r.group == layout.group && r.shards == ShardCount::Auto);
        let mut push = |slot, kind, reason| changes.push(Change { group: layout.group.clone(), slot, kind, reason });
        for slot in &layout.slots {
            let to = slot.cpus.clone();
            match old.remove(&slot.id) {
                None if before.is_none() => push(slot.id, ChangeKind::Added { to }, ChangeReason::NewGroup),
                None if auto => push(slot.id, ChangeKind::Added { to }, ChangeReason::MoreUnits),
                None => push(slot.id, ChangeKind::Added { to }, ChangeReason::MoreShards),
                Some(old) if old.cpus != to => {
                    let reason = why_moved(input, plan, &layout.group, &old.cpus, &to);
                    push(slot.id, ChangeKind::Moved { from: old.cpus.clone(), to }, reason);
                }
                Some(_) => {}
            }
        }
        for slot in old.into_values() {
            let reason = if auto { ChangeReason::FewerUnits } else { ChangeReason::FewerShards };
            push(slot.id, ChangeKind::Removed { from: slot.cpus.clone() }, reason);
        }
    }
    let asked = |group: &GroupName| input.requests.iter().any(|request| request.group == *group);
    for gone in input.current.iter().filter(|layout| !asked(&layout.group)) {
        changes.extend(gone.slots.iter().map(|slot| Change {
            group: gone.group.clone(),
            slot: slot.id,
            kind: ChangeKind::Removed { from: slot.cpus.clone() },
            reason: ChangeReason::GroupRemoved,
        }));
    }
    changes
}

/// Why a slot can't have its CPUs any more: what the machine says before what requests say.
fn why_moved(input: &Input<'_>, plan: &Plan, group: &GroupName, from: &CpuSet, to: &CpuSet) -> ChangeReason {
    let host = input.host.parts();
    let lost = from.difference(to);
    if lost.is_empty() {
        return ChangeReason::UnitGrew { cpus: to.difference(from) };
    }
    let known: CpuSet = host.pus.iter().copied().collect();
    let offline = lost.difference(&known.intersection(&host.online));
    let not_allowed = lost.difference(&host.allowed);
    let reserved = lost.intersection(input.reserved);
    let request = input.requests.iter().find(|request| request.group == *group);
    let excluded = request.map_or_else(CpuSet::new, |request| {
        lost.difference(&super::units::usable(input.host, &CpuSet::new(), request))
    });
    match () {
        () if !offline.is_empty() => ChangeReason::Offline { cpus: offline },
        () if !not_allowed.is_empty() => ChangeReason::NotAllowed { cpus: not_allowed },
        () if !reserved.is_empty() => ChangeReason::Reserved { cpus: reserved },
        () if !excluded.is_empty() => ChangeReason::Excluded { cpus: excluded },
        () => taken_by(input, plan, group, &lost).unwrap_or(ChangeReason::UnitChanged),
    }
}

fn taken_by(input: &Input<'_>, plan: &Plan, group: &GroupName, lost: &CpuSet) -> Option<ChangeReason> {
    let sharing = |of: &GroupName| input.requests.iter().find(|request| request.group == *of).map(|r| r.sharing);
    let both_shared = |other| sharing(group) == Some(Sharing::Shared) && sharing(other) == Some(Sharing::Shared);
    plan.layouts.iter().filter(|layout| layout.group != *group && !both_shared(&layout.group)).find_map(|layout| {
        let theirs = layout.slots.iter().fold(CpuSet::new(), |all, slot| all.union(&slot.cpus.intersection(lost)));
        (!theirs.is_empty()).then(|| ChangeReason::TakenBy { group: layout.group.clone(), cpus: theirs })
    })
}
