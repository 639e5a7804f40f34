//! What tasks report back to the reconcile loop.

use std::{collections::BTreeMap, os::fd::OwnedFd, time::Instant};

use sherd_lb::graft::{Holder, Report};
use sherd_topology::{
    model::Host,
    plan::{GroupName, Slot, SlotId},
};

use super::{
    apply::Reply,
    direct::{Generation, Greeting, ListenCall, ListenerJoin, SharedListener},
    drift::Look,
    inspect::{Reach, Unreached},
    rollout::Change,
    view::Step,
    watch::Found,
};
use crate::{
    runtime::{Listing, RuntimeError, ShardId, ShardKey},
    spec::GroupSpec,
};

/// How a step ended that ran as a task.
#[derive(Debug)]
pub(super) enum Outcome {
    /// As asked.
    Done,
    /// The shard is where this place says.
    Pinned(Slot),
    /// The runtime couldn't.
    Engine(RuntimeError),
    /// The worker couldn't.
    Worker(String),
    /// The kernel says something else than the plan.
    NotPinned(String),
}

/// Whether a report may call for steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consequence {
    /// It told nothing new: most probes, on a host where all is well.
    None,
    /// Slots have to be looked at.
    Plan,
}

/// One report.
#[derive(Debug)]
pub(super) enum Message {
    /// A runtime was asked for all our shards.
    Listed { runtime: &'static str, began: Instant, result: Result<Listing, RuntimeError> },
    /// A runtime told its version.
    Version { runtime: &'static str, version: String },
    /// A step ended.
    Stepped { group: GroupName, slot: SlotId, step: Step, outcome: Outcome, last_lines: Vec<String> },
    /// A shard was probed, by the slot's prober of that number.
    Probed { group: GroupName, slot: SlotId, prober: u64, shard: ShardId, result: Result<Reach, Unreached> },
    /// What a group needs is there, or isn't.
    Prepared {
        spec: Box<GroupSpec>,
        text: String,
        change: (u64, Change),
        result: Result<(), RuntimeError>,
        reply: Reply,
    },
    /// A line of progress of `prepare`.
    Progress { group: GroupName, line: String },
    /// A shard's shim came to its door.
    ShimCame { key: ShardKey, generation: Generation, greeting: Greeting },
    /// A shard calls listen(2), and waits.
    ListenCalled { key: ShardKey, generation: Generation, call: ListenCall },
    /// The listener was looked for that a program which calls listen(2) shares with another of its shard.
    HolderFound {
        key: ShardKey,
        generation: Generation,
        shared: SharedListener,
        found: Option<Holder>,
        call: ListenCall,
    },
    /// A listener for a shard is about to be in its hands.
    ListenerJoins { key: ShardKey, generation: Generation, join: ListenerJoin },
    /// What became of a listen(2).
    Grafted { key: ShardKey, generation: Generation, report: Report },
    /// A shard was seen to accept no more, or again.
    Found(Found),
    /// The listener was looked for whose queue is to be moved.
    ListenerFound { found: Found, listener: Result<OwnedFd, String> },
    /// Steering met an empty place: some shard has closed its listener.
    Missed,
    /// Sockets that were contained have been ended, so many of all that there were.
    ContainedEnded { ended: u64 },
    /// Connections that shards have accepted themselves, by pid.
    DirectCounted { began: Instant, counts: Vec<(ShardKey, u32, u64)> },
    /// Where shards are, as far as it isn't where they should be.
    Looked(Look),
    /// CPU time of a group's shards was read.
    CpuRead { group: GroupName, used: BTreeMap<ShardId, f64> },
    /// The machine has other CPUs.
    HostChanged(Box<Host>),
    /// A shard of no group is gone, or isn't.
    OrphanRemoved { runtime: &'static str, id: ShardId, result: Result<(), RuntimeError> },
}
