//! What checks ask about, as values. Owns their types; reads nothing and judges nothing.

use std::collections::{BTreeMap, BTreeSet};

use sherd_topology::model::{CpuId, CpuSet, NodeSet};

pub use crate::runtime::docker::EngineFacts;
use crate::status::AgentStatus;

/// A fact: what is so, nothing where this host has no such thing, or why it isn't known.
pub type Fact<T> = Result<Option<T>, Unread>;

/// Why something isn't known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// What was to be read.
    pub source: String,
    /// What went wrong.
    pub reason: String,
}

/// Everything that is known of a host.
#[derive(Debug, Clone)]
pub struct HostFacts {
    /// What the agent says, if one answers.
    pub agent: Fact<AgentStatus>,
    /// What the container engine says; nothing where the agent is to have none.
    pub engine: Fact<EngineFacts>,
    /// Why the agent's settings can't be used, if they can't.
    pub settings: Result<(), String>,
    pub(super) cpu: CpuFacts,
    pub(super) memory: MemoryFacts,
    pub(super) network: NetworkFacts,
    pub(super) kernel: KernelFacts,
    pub(super) processes: ProcessesFacts,
    pub(super) units: Fact<UnitFacts>,
}

#[derive(Debug, Clone)]
pub(super) struct CpuFacts {
    pub(super) online: Fact<CpuSet>,
    pub(super) isolated: Fact<CpuSet>,
    pub(super) nohz_full: Fact<CpuSet>,
    pub(super) frequency: Fact<Vec<FrequencyPolicy>>,
    pub(super) irqs: Fact<Vec<Irq>>,
    /// Since boot.
    pub(super) uptime_seconds: Fact<f64>,
    pub(super) irqbalance: Fact<Irqbalance>,
    pub(super) clocksource: Fact<String>,
    pub(super) clocksources: Fact<String>,
}

/// CPUs whose frequency is governed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FrequencyPolicy {
    pub(super) cpus: CpuSet,
    pub(super) governor: String,
    pub(super) available: Vec<String>,
}

/// One interrupt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Irq {
    pub(super) number: u32,
    pub(super) name: String,
    /// Where it goes.
    pub(super) cpus: CpuSet,
    /// How often it came since boot, by CPU.
    pub(super) counts: BTreeMap<CpuId, u64>,
}

/// The daemon that moves interrupts about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Irqbalance {
    pub(super) pid: u32,
    /// CPUs that it leaves alone (`IRQBALANCE_BANNED_CPULIST`).
    pub(super) banned: CpuSet,
}

#[derive(Debug, Clone)]
pub(super) struct MemoryFacts {
    pub(super) thp_enabled: Fact<String>,
    pub(super) thp_defrag: Fact<String>,
    /// Swap areas and the KiB used of each.
    pub(super) swaps: Fact<Vec<(String, u64)>>,
    /// Nodes with memory.
    pub(super) nodes: Fact<NodeSet>,
    pub(super) zone_reclaim: Fact<u64>,
    pub(super) numa_balancing: Fact<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct NetworkFacts {
    pub(super) conntrack_count: Fact<u64>,
    pub(super) conntrack_max: Fact<u64>,
    /// Destination ports of tracked connections.
    pub(super) tracked_ports: Fact<BTreeSet<u16>>,
    pub(super) somaxconn: Fact<u64>,
    pub(super) syncookies: Fact<u64>,
    pub(super) max_syn_backlog: Fact<u64>,
    pub(super) tw_reuse: Fact<u64>,
    /// First and last port that the kernel gives by itself.
    pub(super) local_ports: Fact<(u16, u16)>,
    pub(super) reserved_ports: Fact<Vec<(u16, u16)>>,
    pub(super) queues: Fact<Vec<Queue>>,
}

/// One queue of a network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Queue {
    pub(super) device: String,
    /// `rx-0`, `tx-3`.
    pub(super) name: String,
    /// Of a receive queue: CPUs that handle its packets, by RPS; of a transmit queue: CPUs that use it, by XPS.
    pub(super) cpus: CpuSet,
}

#[derive(Debug, Clone)]
pub(super) struct KernelFacts {
    pub(super) release: Fact<String>,
    pub(super) cgroups: Fact<CgroupFacts>,
    pub(super) unprivileged_bpf_disabled: Fact<u64>,
    pub(super) bpf_stats: Fact<u64>,
    pub(super) bpf_jit: Fact<u64>,
}

/// Control groups as they are mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CgroupFacts {
    /// Controllers of the unified hierarchy; absent where it isn't mounted.
    pub(super) v2: Option<BTreeSet<String>>,
    /// Controllers that version 1 has.
    pub(super) v1: BTreeSet<String>,
    /// Controllers that /proc/cgroups says are enabled.
    pub(super) enabled: BTreeSet<String>,
}

#[derive(Debug, Clone)]
pub(super) struct ProcessesFacts {
    /// The agent that answers; nothing where none does.
    pub(super) agent: Fact<ProcessFacts>,
    /// The holder of the directory that was asked about.
    pub(super) holder: Fact<ProcessFacts>,
}

/// A process of sherd's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProcessFacts {
    pub(super) pid: u32,
    pub(super) capabilities: Fact<u64>,
    /// Files that it may have open.
    pub(super) max_files: Fact<u64>,
    pub(super) open_files: Fact<u64>,
    /// Its program's file has been replaced or removed since it started.
    pub(super) is_replaced: Fact<bool>,
}

/// How systemd knows sherd. There are none where systemd doesn't run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct UnitFacts {
    pub(super) installed: bool,
    pub(super) agent_enabled: bool,
    pub(super) holder_enabled: bool,
}
