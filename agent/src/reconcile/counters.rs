//! What the reconcile loop counts about itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use sherd_topology::plan::{Change, GroupName, SlotId};

use super::drift::DriftCause;

/// Upper bounds of the buckets of reconcile durations, in seconds.
pub(super) const RECONCILE_BUCKETS: [f64; 10] = [0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0];

/// Counters since the agent's start.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Passes of the loop, by the first bucket they fit in; the last counts what fits in none.
    pub reconciles: [u64; RECONCILE_BUCKETS.len() + 1],
    /// Seconds that all passes took.
    pub reconcile_seconds: f64,
    /// Passes that ended because their bound was reached.
    pub unsettled: u64,
    /// Slots added, removed or moved by plans, by what it was.
    pub plan_changes: BTreeMap<&'static str, u64>,
    /// Times that a shard was found elsewhere than planned.
    pub pinning_faults: BTreeMap<(GroupName, SlotId), u64>,
    /// Times that a shard was found not to accept.
    pub hung: BTreeMap<(GroupName, SlotId), u64>,
    /// Calls of listen(2) that had to wait because their slot made too many.
    pub delayed_listens: Arc<AtomicU64>,
    /// Times that something was found to be otherwise than planned.
    pub drifts: BTreeMap<(Option<GroupName>, DriftCause), u64>,
    /// How often it was repaired.
    pub repairs: u64,
    /// How long that took altogether, from when it was found.
    pub repair_seconds: f64,
    /// Times that a new shard failed its rollout.
    pub rollout_failures: BTreeMap<GroupName, u64>,
    /// Connections ended because no shard was ready within the bound.
    pub anchored_overdue: BTreeMap<GroupName, u64>,
    /// What became of the connections that the former agent relayed.
    pub relayed: Relayed,
}

/// Connections that the former agent handed over.
#[derive(Debug, Clone, Default)]
pub struct Relayed {
    /// How many, as far as it could say.
    pub handed: u64,
    /// Those that a worker has gone on with.
    pub taken_back: u64,
    lost: BTreeMap<LostRelayed, u64>,
}

/// Why a connection that was handed over did not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LostRelayed {
    /// The holder had it no longer: its time was over, or its record is damaged.
    Missing,
    /// Its group is gone, or stopped.
    GroupGone,
    /// What came from the holder can't be read.
    Unreadable,
    /// A descriptor could not be made, or its shard was not reached yet and its port is no more.
    Incomplete,
}

impl LostRelayed {
    const ALL: [Self; 4] = [Self::Missing, Self::GroupGone, Self::Unreadable, Self::Incomplete];

    fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::GroupGone => "group_gone",
            Self::Unreadable => "unreadable",
            Self::Incomplete => "incomplete",
        }
    }
}

impl Relayed {
    pub(super) fn note_lost(&mut self, cause: LostRelayed, connections: u64) {
        *self.lost.entry(cause).or_default() += connections;
    }

    /// Of all causes.
    pub(super) fn lost(&self) -> u64 {
        self.lost.values().sum()
    }

    /// Every cause, also at 0.
    pub(super) fn lost_by_cause(&self) -> Vec<(&'static str, u64)> {
        LostRelayed::ALL.iter().map(|cause| (cause.label(), self.lost.get(cause).copied().unwrap_or(0))).collect()
    }
}

impl Counters {
    pub(super) fn note_reconcile(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = RECONCILE_BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(RECONCILE_BUCKETS.len());
        self.reconciles[bucket] += 1;
        self.reconcile_seconds += seconds;
    }

    pub(super) fn note_unsettled(&mut self) {
        self.unsettled += 1;
    }

    pub(super) fn note_plan_changes(&mut self, changes: &[Change]) {
        for change in changes {
            *self.plan_changes.entry(super::report::kind_name(&change.kind)).or_default() += 1;
        }
    }

    pub(super) fn note_pinning_fault(&mut self, group: &GroupName, slot: SlotId) {
        *self.pinning_faults.entry((group.clone(), slot)).or_default() += 1;
    }

    pub(super) fn note_hung(&mut self, group: &GroupName, slot: SlotId) {
        *self.hung.entry((group.clone(), slot)).or_default() += 1;
    }

    pub(super) fn note_drift(&mut self, group: Option<&GroupName>, cause: DriftCause) {
        *self.drifts.entry((group.cloned(), cause)).or_default() += 1;
    }

    pub(super) fn note_repair(&mut self, took: Duration) {
        self.repairs += 1;
        self.repair_seconds += took.as_secs_f64();
    }

    pub(super) fn note_rollout_failure(&mut self, group: &GroupName) {
        *self.rollout_failures.entry(group.clone()).or_default() += 1;
    }

    pub(super) fn note_overdue(&mut self, group: &GroupName, connections: u64) {
        *self.anchored_overdue.entry(group.clone()).or_default() += connections;
    }
}
