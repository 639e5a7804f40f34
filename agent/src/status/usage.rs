//! What slots use: the JSON of `/v1/usage`, made from a snapshot and a sample; plain values.

use serde::{Deserialize, Serialize};
use sherd_topology::model::CpuSet;
use sherd_topology::plan::{GroupName, SlotId};
use utoipa::ToSchema;

use super::{SlotState, SlotStatus};
use crate::metrics::{ForeignTime, Sample, Snapshot};

/// What each slot has used up to one moment; rates come from two of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageReport {
    /// When, in seconds on a clock of the agent's that only goes on. Reports asked for within half a second are the same.
    pub at_seconds: f64,
    /// Slots by group and number.
    pub slots: Vec<SlotUsage>,
}

/// What one slot has used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SlotUsage {
    /// The group.
    #[schema(value_type = String)]
    pub group: GroupName,
    /// The slot.
    #[schema(value_type = u32)]
    pub slot: SlotId,
    /// Its PUs.
    #[schema(value_type = String)]
    pub cpus: CpuSet,
    /// Where it is between nothing and ready.
    pub state: SlotState,
    /// Counts the shards this slot has had; CPU time is the present one's.
    pub generation: u64,
    /// CPU time of the shard; absent while there is none.
    pub shard_cpu_seconds: Option<f64>,
    /// Time in which a CPU quota kept the shard from running; absent where no quota can be.
    pub throttled_seconds: Option<f64>,
    /// CPU time on the slot's PUs that was not its shard's. Never falls.
    pub foreign: ForeignSeconds,
    /// Memory of the shard.
    pub memory_bytes: Option<u64>,
    /// Anonymous and file pages on the slot's NUMA nodes; absent where the kernel doesn't tell.
    pub memory_local_bytes: Option<u64>,
    /// The same on other nodes.
    pub memory_remote_bytes: Option<u64>,
    /// Connections established now.
    pub connections: u64,
    /// Connections accepted since the agent's start.
    pub accepted: u64,
}

/// CPU time on a slot's PUs that was not its shard's, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForeignSeconds {
    /// Hardware interrupts.
    pub irq: f64,
    /// Deferred interrupt work, as receiving packets: also the shard's own.
    pub softirq: f64,
    /// Taken by the hypervisor.
    pub steal: f64,
    /// The slot's relay worker.
    pub relay: f64,
    /// All other tasks.
    pub others: f64,
}

impl UsageReport {
    /// The report of one moment.
    pub fn new(snapshot: &Snapshot, sample: &Sample) -> Self {
        let slots = snapshot.status.groups.iter().flat_map(|group| {
            group.slots.iter().map(|slot| {
                let foreign = sample.foreign.get(&(group.name.clone(), slot.slot)).copied().unwrap_or_default();
                SlotUsage::new(&group.name, slot, sample, foreign)
            })
        });
        Self { at_seconds: sample.at.as_secs_f64(), slots: slots.collect() }
    }
}

impl SlotUsage {
    fn new(group: &GroupName, slot: &SlotStatus, sample: &Sample, foreign: ForeignTime) -> Self {
        let usage = sample.of_shard(slot);
        let locality = usage.and_then(|usage| usage.locality(slot));
        let ForeignTime { irq, softirq, steal, relay, others } = foreign;
        Self {
            group: group.clone(),
            slot: slot.slot,
            cpus: slot.cpus.clone(),
            state: slot.state,
            generation: slot.generation,
            shard_cpu_seconds: usage.map(|usage| usage.cpu_seconds),
            throttled_seconds: usage.and_then(|usage| usage.throttled_seconds),
            foreign: ForeignSeconds { irq, softirq, steal, relay, others },
            memory_bytes: usage.and_then(|usage| usage.memory_bytes),
            memory_local_bytes: locality.map(|locality| locality.local_bytes),
            memory_remote_bytes: locality.map(|locality| locality.remote_bytes),
            connections: slot.connections,
            accepted: slot.accepted,
        }
    }
}
