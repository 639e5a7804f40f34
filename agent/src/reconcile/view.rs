//! What planning sees of one slot: plain values, gathered from the engine, the kernel and the workers. PURE.

use std::time::Instant;

use sherd_topology::plan::{Slot, SlotId};

use crate::{
    runtime::{ShardId, ShardState},
    spec::SpecHash,
};

/// What the specifications ask of a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// One shard of this specification, on these CPUs.
    Run {
        /// Which specification.
        spec: SpecHash,
        /// The CPUs and memory nodes it is to have.
        slot: Slot,
    },
    /// No running shard; the ended one stays to be looked at.
    Stopped,
    /// Nothing at all.
    Gone,
}

/// One shard as the engine tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShardView {
    /// The engine's name of it.
    pub(super) id: ShardId,
    /// The specification it was made from.
    pub(super) spec: SpecHash,
    /// Made later than all shards of the slot with a smaller one.
    pub(super) generation: u64,
    /// What the engine says of it.
    pub(super) state: ShardState,
}

/// Whether new connections go to the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// The table skips it.
    Out,
    /// The table names it.
    In,
    /// The table skips it, and what it serves may finish until then.
    Draining {
        /// When what is left is closed.
        until: Instant,
    },
}

/// What the kernel said when it was asked where the running shard may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pinning {
    /// Not asked yet.
    Unknown,
    /// The shard is where this slot says.
    Holds(Slot),
    /// It isn't; the next try to mend it is due then.
    Faulty {
        /// When.
        retry_after: Instant,
    },
}

/// The readiness of the running shard, with what a worker needs to reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    /// Found in service by an agent that has just started, and not reached yet: nothing changes for it.
    Adopted,
    /// Not probed often enough, or failing.
    Unready,
    /// It takes connections.
    Ready,
}

/// One slot.
#[derive(Debug, Clone)]
pub(super) struct SlotView {
    /// Which one.
    pub(super) id: SlotId,
    /// What it is to be.
    pub(super) wanted: Wanted,
    /// Its shards, in no particular order: usually one.
    pub(super) shards: Vec<ShardView>,
    /// A step of it is being executed; nothing else is decided meanwhile.
    pub(super) busy: bool,
    /// No shard is made before that.
    pub(super) start_after: Option<Instant>,
    /// Of the running shard.
    pub(super) health: Health,
    /// All that is done to the slot is that a shard ends which doesn't serve.
    pub(super) ends_beside: bool,
    /// It has had longer than its start time-out and was never ready.
    pub(super) overdue: bool,
    /// Whether it gets connections.
    pub(super) service: Service,
    /// Connections that its worker relays or has accepted, and those in its listeners' queues.
    pub(super) open: u64,
    /// Of these, those that its worker relays.
    pub(super) relayed: u64,
    /// The shard that its worker connects to.
    pub(super) backend: Option<ShardId>,
    /// It has to be told anew where that is.
    pub(super) reconnect: bool,
    /// Where the running shard really is.
    pub(super) pinning: Pinning,
    /// It has a worker and listeners.
    pub(super) equipped: bool,
    /// The living shard that connections go to, or will. Health, pinning and the rest are its.
    pub(super) primary: Option<ShardId>,
    /// The living shard that comes up beside it, to take over.
    pub(super) next: Option<NextView>,
    /// The living shard that was taken over from.
    pub(super) former: Option<FormerView>,
    /// Its turn is start-first: a new shard comes up beside the one that serves.
    pub(super) overlaps: bool,
    /// Its shard is paused, and may be until then; absent: as long as somebody wants.
    pub(super) unpause_at: Option<Instant>,
}

/// A shard that comes up beside the one that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NextView {
    /// The engine's name of it.
    pub(super) id: ShardId,
    /// Whether it could serve.
    pub(super) health: Health,
    /// Where it really is.
    pub(super) pinning: Pinning,
    /// It has had longer than its start time-out and was never ready.
    pub(super) overdue: bool,
}

/// A shard that was taken over from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FormerView {
    /// The engine's name of it.
    pub(super) id: ShardId,
    /// Connections that it still has, as far as known; 0: none.
    pub(super) open: u64,
    /// When they are closed.
    pub(super) until: Instant,
}

/// What is to be done next in one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a worker and listeners for the slot, not yet named by the table.
    Equip,
    /// Make a shard.
    Create,
    /// Start this one.
    Start(ShardId),
    /// Ask the kernel where it runs.
    Verify(ShardId),
    /// Set its CPUs and memory nodes again.
    Repin(ShardId),
    /// Let the worker enter its namespace and connect to it.
    Connect(ShardId),
    /// New connections go to this one, which came up beside the slot's shard; that one finishes those it has.
    Promote(ShardId),
    /// Name the slot in the table.
    TakeIn,
    /// Take the slot out of the table; what it serves goes on.
    TakeOut,
    /// Take the slot out of the table and bound the time of what it serves.
    Drain,
    /// End what the worker still relays and leave the shard's namespace.
    Disconnect,
    /// Let it go on that somebody paused.
    Unpause(ShardId),
    /// SIGTERM, grace, SIGKILL.
    Stop(ShardId),
    /// Let the engine forget it.
    Remove(ShardId),
    /// Dismantle worker and listeners.
    Retire,
}
