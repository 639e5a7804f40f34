//! Prometheus metrics: a snapshot of what the agent knows, rendered as text. Owns no counter but
//! those of foreign CPU time.
//!
//! Counters live where things happen (workers, fronts, the reconcile loop). A scrape asks the loop for a [`Snapshot`],
//! adds what the kernel knows of CPU time and memory (a [`Sample`]), and prints it.

use std::net::SocketAddr;

use sherd_topology::plan::{GroupName, SlotId};

use crate::status::AgentStatus;

pub use self::foreign::ForeignTime;
pub use self::render::render;
pub use self::sampler::{Sample, Sampler};
pub use self::server::{BindError, bind, serve};
pub use self::usage::{MemoryLocality, Usage, UsageReader};

mod cpu_ticks;
mod family;
mod foreign;
mod health;
mod locality;
mod mappings;
mod render;
mod sampler;
mod server;
mod telemetry;
mod usage;

/// Everything the metrics are made of, at one moment. Counters are since the agent's start and never fall.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Groups, slots, their states, restarts, pids. Ports give the steering mode of each address.
    pub status: AgentStatus,
    /// What is counted for each slot, in any order.
    pub slots: Vec<SlotCounters>,
    /// What is counted for each published address, in any order.
    pub ports: Vec<PortCounters>,
    /// What is counted for each group, in any order.
    pub groups: Vec<GroupCounters>,
    /// How long passes of the reconcile loop took.
    pub reconcile: Histogram,
    /// Passes that ended because their bound of steps was reached.
    pub reconcile_unsettled: u64,
    /// Slots that plans added, removed or moved: kind and number.
    pub plan_changes: Vec<(&'static str, u64)>,
    /// Times that something was found to be otherwise than planned: whose, if it is a group's, and by what.
    pub drifts: Vec<(Option<GroupName>, &'static str, u64)>,
    /// How often that was repaired, and the seconds that it took altogether.
    pub repairs: (u64, f64),
    /// Descriptors that the holder keeps; absent when it doesn't answer.
    pub held_descriptors: Option<u64>,
    /// Calls of listen(2) that had to wait because their shard makes too many.
    pub delayed_listens: u64,
    /// Connections of shards that somebody made listen on the host; absent where the kernel doesn't count.
    pub contained: Option<u64>,
    /// What became of the connections that the former agent relayed.
    pub handover: HandoverCounters,
}

/// Connections that the former agent handed over.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HandoverCounters {
    /// How many.
    pub handed: u64,
    /// Those that workers have gone on with.
    pub taken_back: u64,
    /// The others by cause; every cause, also at 0.
    pub lost: Vec<(&'static str, u64)>,
}

/// What is counted for one slot.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotCounters {
    /// The group.
    pub group: GroupName,
    /// The slot.
    pub slot: SlotId,
    /// Times its shard was found on other CPUs or memory nodes than planned.
    pub pinning_errors: u64,
    /// Its relay worker; absent when the group publishes no port.
    pub relay: Option<RelayCounters>,
    /// What the kernel counts of it at each published address where it does. An address that is given up takes its own along:
    /// a sum over all of them would fall.
    pub kernel: Vec<(SocketAddr, KernelCounters)>,
    /// Times its shard was found not to accept.
    pub hung: u64,
    /// It doesn't accept now.
    pub is_hung: bool,
    /// Checks of its shards that passed, and those that failed and counted.
    pub checks: (u64, u64),
    /// Times it was taken out of service for its health, by reason; every reason, also at 0.
    pub ejections: Vec<(&'static str, u64)>,
}

/// What the kernel counts of one slot at one address. Bytes, retransmits and distributions are of direct connections that have ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KernelCounters {
    /// Connections that were steered to it.
    pub steered: u64,
    /// Of these, those whose handshake was completed.
    pub established: u64,
    /// Of these, those that have ended.
    pub closed: u64,
    /// Connections that came from a closed listener.
    pub migrated: u64,
    /// What it has to do, as steering sees it.
    pub load: u64,
    /// The load beyond which connections go to their second choice; 0: none.
    pub bound: u64,
    /// From clients.
    pub bytes_in: u64,
    /// To clients.
    pub bytes_out: u64,
    /// Segments that were sent again.
    pub retransmits: u64,
    /// Connections that ended before anything of an answer was acknowledged.
    pub unanswered: u64,
    /// From the handshake to the first answer.
    pub first_answer: Histogram,
    /// Smoothed round-trip times at connections' end.
    pub rtt: Histogram,
    /// How long connections lasted.
    pub duration: Histogram,
}

/// What one relay worker counts.
#[derive(Debug, Clone, PartialEq)]
pub struct RelayCounters {
    /// The kernel's number of its thread.
    pub thread_id: Option<u32>,
    /// Connections accepted from its listeners.
    pub accepted: u64,
    /// Connections that others accepted and handed to it.
    pub adopted: u64,
    /// Connections that it handed to another slot.
    pub handed_over: u64,
    /// Connections of the former agent that it went on with.
    pub resumed: u64,
    /// Connections established to the shard.
    pub established: u64,
    /// Those that the shard ended before it had sent a byte.
    pub unanswered: u64,
    /// Established connections that have ended.
    pub closed: u64,
    /// Connections being connected or relayed now.
    pub active: u64,
    /// Clients that wait in its own queue now.
    pub pending: u64,
    /// Bytes from clients to the shard.
    pub bytes_in: u64,
    /// Bytes from the shard to clients.
    pub bytes_out: u64,
    /// Of both, the bytes that were spliced.
    pub bytes_spliced: u64,
    /// Times it came back from waiting for events.
    pub wakeups: u64,
    /// Failures by cause; every cause it knows, also at 0.
    pub errors: Vec<(&'static str, u64)>,
    /// How long connecting to the shard took.
    pub connect: Histogram,
}

/// What is counted for one published address.
#[derive(Debug, Clone, PartialEq)]
pub struct PortCounters {
    /// The group.
    pub group: GroupName,
    /// The address.
    pub address: SocketAddr,
    /// Connections that steering gave each slot.
    pub picks: Vec<(SlotId, u64)>,
    /// Connections whose slot was out and that another one got.
    pub failovers: u64,
    /// Connections that wait, or waited, at the anchor because no slot was in.
    pub anchored: u64,
    /// Connections that steering refused because no slot was in.
    pub dropped: u64,
    /// Connections that moved from a closed listener to another.
    pub migrated: u64,
    /// Connections that got their second choice because the first had too much to do.
    pub deflected: u64,
    /// Packets whose addresses steering could not read. Anything but 0 is a fault.
    pub unread: u64,
    /// Selections of a listener that was in another SO_REUSEPORT group. Anything but 0 is a fault.
    pub foreign: u64,
    /// Connections that wait to be accepted, by listener; the anchor's has no slot.
    pub queued: Vec<(Option<SlotId>, u64)>,
}

/// What is counted for one group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupCounters {
    /// The group.
    pub group: GroupName,
    /// Connections ended because no shard was ready within the specified wait.
    pub overdue: u64,
    /// New shards that failed in a rollout.
    pub rollout_failures: u64,
    /// Shards that fail and are in service, because too many do.
    pub held: u64,
}

/// A distribution as its owner counts it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    /// Upper bounds of the buckets in seconds, ascending.
    pub bounds_seconds: Vec<f64>,
    /// Observations in each bucket, not cumulative; one more than there are bounds, for what was above them all.
    pub counts: Vec<u64>,
    /// All observations added up.
    pub sum_seconds: f64,
}
