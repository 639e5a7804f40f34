//! What a host has: its parts as hwloc names them, checked once. Owns the JSON form of a host; decides nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    CpuId, CpuSet, MAX_ID, NodeId, NodeSet,
    index::{Index, Level},
};

/// A machine: its parts, and tables that answer questions about them without a search.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "HostParts", try_from = "HostParts")]
pub struct Host {
    pub(super) parts: HostParts,
    pub(super) index: Index,
}

/// The parts of a machine, each list in hwloc's logical order (neighbours in the machine are neighbours in the list).
/// This is the JSON of `sherd topology --json`. CPU and node numbers are Linux' (hwloc's OS indexes, `P#`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostParts {
    /// The host's name, where it is known.
    #[serde(default)]
    pub name: Option<String>,
    /// The machine's product name, where it is known.
    #[serde(default)]
    pub product: Option<String>,
    /// Packages (sockets).
    pub packages: Vec<Package>,
    /// Dies, where packages have several.
    #[serde(default)]
    pub dies: Vec<Die>,
    /// NUMA nodes, also those without CPUs or without memory.
    pub nodes: Vec<Node>,
    /// Caches of every level.
    #[serde(default)]
    pub caches: Vec<Cache>,
    /// Cores.
    pub cores: Vec<Core>,
    /// Processing units, in logical order. Those that are offline are not here.
    pub pus: Vec<CpuId>,
    /// Kinds of cores, weakest first. Empty where they are not known.
    #[serde(default)]
    pub core_kinds: Vec<CoreKindInfo>,
    /// Network, storage and other devices.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// CPUs that the machine has, also the offline ones.
    pub present: CpuSet,
    /// CPUs that are online.
    pub online: CpuSet,
    /// CPUs that this process may use (cgroup cpuset and affinity).
    pub allowed: CpuSet,
    /// NUMA nodes that this process may use.
    pub allowed_nodes: NodeSet,
    /// CPUs that the scheduler does not balance on (`isolcpus=`, isolated cpuset partitions).
    #[serde(default)]
    pub isolated: CpuSet,
    /// CPUs without the periodic tick (`nohz_full=`).
    #[serde(default)]
    pub nohz_full: CpuSet,
}

/// A package (socket).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Linux' `physical_package_id`, where it is known.
    pub id: Option<u32>,
    /// The processor's name.
    pub model: Option<String>,
    /// Its CPUs; empty where all are offline or not allowed.
    pub cpus: CpuSet,
}

/// A die of a package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Die {
    /// Linux' `die_id`, where it is known. Unique within its package only.
    pub id: Option<u32>,
    /// Its CPUs.
    pub cpus: CpuSet,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Linux' number.
    pub id: NodeId,
    /// The CPUs that are local to it; empty for a CPU-less node.
    pub cpus: CpuSet,
    /// Its memory in bytes; 0 for a memory-less node.
    pub memory_bytes: u64,
    /// What the firmware says it costs to reach each node from here (10 is local); empty where it says nothing.
    #[serde(default)]
    pub distances: BTreeMap<NodeId, u64>,
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheKind {
    /// Data and instructions.
    Unified,
    /// Data alone.
    Data,
    /// Instructions alone.
    Instruction,
}

/// A cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// 1 for L1, and so on.
    pub level: u8,
    /// What it holds.
    pub kind: CacheKind,
    /// Its size in bytes, where it is known.
    pub size_bytes: Option<u64>,
    /// The CPUs that share it.
    pub cpus: CpuSet,
}

/// A core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Core {
    /// Linux' `core_id`, where it is known. Unique within its package only.
    pub id: Option<u32>,
    /// Its hardware threads.
    pub cpus: CpuSet,
}

/// Cores of one make, in machines that have several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreKindInfo {
    /// The CPUs of this kind.
    pub cpus: CpuSet,
    /// hwloc's ranking: 0 is the weakest and thriftiest. `None` where hwloc could not rank the kinds.
    pub efficiency: Option<u32>,
    /// What hwloc knows beside it: `CoreType`, `FrequencyMaxMHz`, `LinuxCapacity`, …
    #[serde(default)]
    pub info: BTreeMap<String, String>,
}

/// What a device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A network interface.
    Network,
    /// An InfiniBand or other fabric adapter.
    Fabric,
    /// A disk.
    Storage,
    /// A graphics processor.
    Gpu,
    /// Another accelerator.
    Accelerator,
    /// A memory device.
    Memory,
    /// A device that the operating system gave no name.
    Other,
}

/// A device and where it is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What it is for.
    pub kind: DeviceKind,
    /// The operating system's names (`eth0`, `nvme0n1`); may be empty for a PCI device.
    pub names: Vec<String>,
    /// Its PCI address, `0000:81:00.0`.
    pub pci: Option<String>,
    /// The CPUs near it. All of them where the machine does not say.
    pub cpus: CpuSet,
}

/// Parts that don't make a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostFault {
    /// Not one CPU.
    #[error("the machine has no CPU: list at least one in `pus`")]
    NoCpus,
    /// A CPU number that no Linux host has.
    #[error("CPU {cpu} is above {MAX_ID}, the largest number accepted")]
    TooLarge {
        /// The CPU.
        cpu: CpuId,
    },
    /// A CPU twice.
    #[error("CPU {cpu} is listed twice in `pus`")]
    TwicePu {
        /// The CPU.
        cpu: CpuId,
    },
    /// A CPU in two parts of the same kind.
    #[error("CPU {cpu} is in two parts of level {level}: parts of one level must not overlap")]
    Overlap {
        /// The level.
        level: Level,
        /// The CPU.
        cpu: CpuId,
    },
    /// A node twice.
    #[error("NUMA node {node} is listed twice")]
    TwiceNode {
        /// The node.
        node: NodeId,
    },
}

impl Host {
    /// Checks the parts and makes the tables. CPUs that a part names but `pus` does not are left out of the tables.
    ///
    /// # Errors
    /// A machine without CPUs, and parts of one level that overlap.
    pub fn new(mut parts: HostParts) -> Result<Self, HostFault> {
        let pus: CpuSet = parts.pus.iter().copied().collect();
        parts.present = parts.present.union(&pus);
        let index = Index::new(&parts)?;
        Ok(Self { parts, index })
    }

    /// The parts.
    pub fn parts(&self) -> &HostParts {
        &self.parts
    }

    /// The CPUs that are online.
    pub fn online(&self) -> &CpuSet {
        &self.parts.online
    }

    /// The CPUs that shards may be put on: online and allowed, before any reservation.
    pub fn usable(&self) -> CpuSet {
        let pus: CpuSet = self.parts.pus.iter().copied().collect();
        pus.intersection(&self.parts.online).intersection(&self.parts.allowed)
    }

    /// The nodes that memory may be bound to: allowed and with memory, as `cpuset.mems` (and Docker's
    /// `--cpuset-mems`) accepts them. Where no node shows any memory (hwloc's synthetic machines, unless they say
    /// `[numa(memory=…)]`), its sizes are unknown and every node counts.
    pub fn usable_nodes(&self) -> NodeSet {
        let unknown = self.parts.nodes.iter().all(|node| node.memory_bytes == 0);
        let with_memory = self.parts.nodes.iter().filter(|node| unknown || node.memory_bytes > 0).map(|node| node.id);
        with_memory.collect::<NodeSet>().intersection(&self.parts.allowed_nodes)
    }

    /// A node by its number.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.parts.nodes.iter().find(|node| node.id == id)
    }

    /// A device by one of its names or its PCI address (the domain may be left out: `81:00.0`).
    pub fn device(&self, name: &str) -> Option<&Device> {
        let wanted = name.to_ascii_lowercase();
        let is_pci =
            |pci: &String| *pci == wanted || pci.strip_prefix("0000:").is_some_and(|short| short == wanted.as_str());
        let by_name = self.parts.devices.iter().find(|device| device.names.iter().any(|known| known == name));
        by_name.or_else(|| self.parts.devices.iter().find(|device| device.pci.as_ref().is_some_and(is_pci)))
    }
}

impl From<Host> for HostParts {
    fn from(host: Host) -> Self {
        host.parts
    }
}

impl TryFrom<HostParts> for Host {
    type Error = HostFault;

    fn try_from(parts: HostParts) -> Result<Self, HostFault> {
        Self::new(parts)
    }
}
