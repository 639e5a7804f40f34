//! What the agent reports about itself and its groups: the JSON of the API, read by the command line; plain values only.
//!
//! Additions are compatible, so readers ignore fields they don't know.

use serde::{Deserialize, Serialize};
use sherd_topology::model::{CpuSet, NodeSet};
use sherd_topology::plan::{GroupName, SlotId, Unit};
use utoipa::ToSchema;

pub use self::explanation::{CpuDestination, Destination, Explanation, Level, Outcome};
pub use self::rollout::{RolloutPhase, RolloutSlot, RolloutStage, RolloutStatus};
pub use self::usage::{ForeignSeconds, SlotUsage, UsageReport};

mod explanation;
mod rollout;
mod usage;

/// The agent and everything it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentStatus {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Separates several agents on one host.
    pub instance: String,
    /// When it started, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Host name.
    pub host: String,
    /// PUs that the plan may use.
    #[schema(value_type = String, example = "0-3,8")]
    pub usable_cpus: CpuSet,
    /// PUs kept for the system.
    #[schema(value_type = String, example = "0")]
    pub reserved_cpus: CpuSet,
    /// The runtimes and whether they answer.
    pub runtimes: Vec<RuntimeStatus>,
    /// Groups by name.
    pub groups: Vec<GroupStatus>,
    /// What keeps the agent from its work as a whole, each with what to do.
    pub warnings: Vec<String>,
}

/// One runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuntimeStatus {
    /// `docker` or `process`.
    pub name: String,
    /// Whether it answered the last time it was asked.
    pub available: bool,
    /// Its version, once known.
    pub version: Option<String>,
    /// Why it isn't available.
    pub error: Option<String>,
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupStatus {
    /// Its name.
    #[schema(value_type = String, example = "web")]
    pub name: GroupName,
    /// `docker` or `process`.
    pub runtime: String,
    /// What a slot is a whole of.
    #[schema(value_type = String, example = "core")]
    pub unit: Unit,
    /// Hash of what a shard can only get by a restart.
    pub spec: String,
    /// All its slots together.
    pub state: GroupState,
    /// Why it is in that state, and what to do, when it isn't ready.
    pub message: Option<String>,
    /// Its last change. Absent: nothing of it was ever changed.
    pub rollout: Option<RolloutStatus>,
    /// Published addresses.
    pub ports: Vec<PortStatus>,
    /// Slots by number.
    pub slots: Vec<SlotStatus>,
}

impl GroupStatus {
    /// Number of slots that get connections.
    pub fn ready_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.ready).count()
    }
}

/// State of a group as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GroupState {
    /// Every slot is ready.
    Ready,
    /// On its way there.
    Progressing,
    /// A slot failed, or lost its shard, or the group can't be placed or published as specified.
    Degraded,
    /// Being stopped.
    Stopping,
    /// Nothing of it runs; `sherd apply` starts it again.
    Stopped,
}

impl GroupState {
    /// Every state, for tables and metrics.
    pub const ALL: [Self; 5] = [Self::Ready, Self::Progressing, Self::Degraded, Self::Stopping, Self::Stopped];

    /// The state's name, as in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Progressing => "progressing",
            Self::Degraded => "degraded",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

/// One published address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortStatus {
    /// What is bound, for example `0.0.0.0:8080` or `[::]:8080`.
    #[schema(value_type = String, example = "0.0.0.0:8080")]
    pub address: std::net::SocketAddr,
    /// Where the shard listens.
    pub container_port: u16,
    /// `connection`, `client`, `local` or `balanced`.
    pub policy: String,
    /// Who chooses the listener of a new connection.
    pub steering: Steering,
    /// Why it isn't eBPF.
    pub steering_reason: Option<String>,
    /// How bytes reach the shards: `direct` where at least one accepts them itself.
    pub path: Path,
    /// Why it is `relay` although the shards accept themselves at another address of the same container port.
    pub path_reason: Option<String>,
    /// Why the address isn't bound, and what to do.
    pub error: Option<String>,
}

/// Who chooses the listener of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Steering {
    /// The eBPF program.
    Ebpf,
    /// The classic-BPF program.
    Classic,
    /// Nobody yet: the address isn't bound.
    None,
}

/// How bytes reach the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// The shard accepts its connections itself.
    Direct,
    /// Through a worker of the agent on the slot's CPUs.
    Relay,
}

/// One slot and the shard in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotStatus {
    /// Its number in the group.
    #[schema(value_type = u32)]
    pub slot: SlotId,
    /// PUs it owns.
    #[schema(value_type = String, example = "2,34")]
    pub cpus: CpuSet,
    /// NUMA nodes its memory comes from.
    #[schema(value_type = String, example = "0")]
    pub mems: NodeSet,
    /// NUMA nodes of its PUs.
    #[schema(value_type = String, example = "0")]
    pub node: NodeSet,
    /// Where it is between nothing and ready.
    pub state: SlotState,
    /// How bytes reach the shard; absent when the group publishes no port.
    pub path: Option<Path>,
    /// Why the path isn't the direct one, where the specification asks for that.
    pub path_reason: Option<String>,
    /// The shard, as its runtime names it.
    pub shard: Option<String>,
    /// Process id of the shard on the host.
    pub pid: Option<u32>,
    /// The shard that comes up beside it, to take over.
    pub next: Option<BesideStatus>,
    /// The shard that it took over from, while that finishes its connections.
    pub former: Option<BesideStatus>,
    /// Numbers the shards this slot has had, ascending; not every number is used.
    pub generation: u64,
    /// When it entered its state, milliseconds since 1970.
    pub since_unix_ms: u64,
    /// When its shard started, milliseconds since 1970.
    pub shard_started_unix_ms: Option<u64>,
    /// Restarts by the agent since it was given this slot.
    pub restarts: u64,
    /// Whether it gets connections.
    pub ready: bool,
    /// How its shard is; absent without a running shard.
    pub health: Option<HealthStatus>,
    /// Connections established now.
    pub connections: u64,
    /// Connections accepted since the agent's start.
    pub accepted: u64,
    /// Why it is in this state, in a few words.
    pub cause: Option<String>,
    /// The last thing that went wrong, also when it is ready again.
    pub last_error: Option<String>,
}

/// How the shard of a slot is, as checks and its connections tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthStatus {
    /// What is asked of it: `tcp`, `http`, `command` or `image`.
    pub check: String,
    /// Whether the last checks passed.
    pub passing: bool,
    /// Why its connections keep it out of service, and for how long; absent when they don't.
    pub ejected: Option<String>,
    /// It fails, and stays in service because too many shards of its group fail.
    pub held: bool,
    /// Checks that failed since the agent's start, but for those of start periods.
    pub checks_failed: u64,
    /// Per cent of its share of connections that it gets; below 100 in its slow start.
    pub share_percent: u32,
}

/// A shard beside the one that its slot's connections go to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BesideStatus {
    /// The shard, as its runtime names it.
    pub shard: String,
    /// Process id on the host.
    pub pid: u32,
    /// Its number among the slot's shards.
    pub generation: u64,
    /// What it is about.
    pub message: String,
}

/// Where a slot is between nothing and ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SlotState {
    /// Without a shard, until its back-off ends.
    Waiting,
    /// The runtime makes its shard, or pulls the image.
    Creating,
    /// The shard runs and hasn't been ready yet.
    Starting,
    /// It gets connections.
    Ready,
    /// It was ready and fails its checks, or its connections do: it gets no new ones.
    Unready,
    /// It fails and gets connections all the same, because too many shards of its group fail.
    Unhealthy,
    /// No new connections; the ones there are finish.
    Draining,
    /// Its shard was told to end.
    Stopping,
    /// Its shard can't be made or started, or isn't pinned as planned.
    Failed,
    /// No shard.
    Absent,
}

impl SlotState {
    /// Every state, for tables and metrics.
    pub const ALL: [Self; 10] = [
        Self::Waiting,
        Self::Creating,
        Self::Starting,
        Self::Ready,
        Self::Unready,
        Self::Unhealthy,
        Self::Draining,
        Self::Stopping,
        Self::Failed,
        Self::Absent,
    ];

    /// The state's name, as in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Absent => "absent",
        }
    }
}

impl std::fmt::Display for SlotState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// What applying a specification does, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanReport {
    /// True when nothing was changed.
    pub dry_run: bool,
    /// Every group's slots as planned, groups by name.
    pub layouts: Vec<GroupLayout>,
    /// What differs from now; empty when nothing does.
    pub changes: Vec<PlanChange>,
    /// Why a group can't be placed, each with what to do.
    pub faults: Vec<String>,
}

/// Planned slots of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupLayout {
    /// The group.
    #[schema(value_type = String)]
    pub group: GroupName,
    /// Its slots by number.
    pub slots: Vec<SlotLayout>,
}

/// One planned slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotLayout {
    /// Its number.
    #[schema(value_type = u32)]
    pub slot: SlotId,
    /// Its PUs.
    #[schema(value_type = String)]
    pub cpus: CpuSet,
    /// Its memory nodes.
    #[schema(value_type = String)]
    pub mems: NodeSet,
}

/// One difference between now and the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanChange {
    /// The group.
    #[schema(value_type = String)]
    pub group: GroupName,
    /// The slot; absent when the change is the whole group's.
    #[schema(value_type = Option<u32>)]
    pub slot: Option<SlotId>,
    /// `added`, `removed`, `moved`, `restarted` or `updated`.
    pub kind: String,
    /// What changes and why, as one sentence.
    pub message: String,
}

/// Something that happened; a line of the event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Whose.
    #[schema(value_type = Option<String>)]
    pub group: Option<GroupName>,
    /// Which slot's.
    #[schema(value_type = Option<u32>)]
    pub slot: Option<SlotId>,
    /// What sort of event: `group-applied`, `group-stopped`, `group-panic`, `group-panic-over`, `rollout`, `drift`, `drift-repaired`, `slot-state`, `slot-hung`,
    /// `slot-accepts`, `slot-ejected`, `slot-returned`, `progress`, `plan`, `runtime`, `lagged`.
    pub kind: String,
    /// The slot's state, for `slot-state`.
    pub state: Option<SlotState>,
    /// One sentence.
    pub message: String,
}
