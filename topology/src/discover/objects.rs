//! From hwloc's tree to `HostParts`. Decides nothing but which of hwloc's objects matter.

use std::{collections::BTreeMap, ffi::CStr};

use hwlocality::{
    Topology,
    bitmap::BitmapIndex,
    object::{
        TopologyObject,
        attributes::ObjectAttributes,
        types::{CacheType, OSDeviceType, ObjectType},
    },
};

use crate::model::{
    Cache, CacheKind, Core, CoreKindInfo, CpuId, CpuSet, Device, DeviceKind, Die, HostParts, Id, IdSet, Node, NodeId,
    Package,
};

/// The parts of a loaded topology. `online` and `allowed` are hwloc's; nothing is isolated.
pub(super) fn parts(topology: &Topology) -> HostParts {
    let root = topology.root_object();
    let objects = |kind| topology.objects_with_type(kind);
    HostParts {
        name: info(root, "HostName"),
        product: info(root, "DMIProductName"),
        packages: objects(ObjectType::Package).map(package).collect(),
        dies: objects(ObjectType::Die).map(|die| Die { id: os_index(die), cpus: cpus(die) }).collect(),
        nodes: nodes(topology),
        caches: caches(topology),
        cores: objects(ObjectType::Core).map(|core| Core { id: os_index(core), cpus: cpus(core) }).collect(),
        pus: objects(ObjectType::PU).filter_map(|pu| os_index(pu).map(CpuId)).collect(),
        core_kinds: core_kinds(topology),
        devices: devices(topology),
        present: set(&topology.complete_cpuset()),
        online: set(&topology.cpuset()),
        allowed: set(&topology.allowed_cpuset()),
        allowed_nodes: set(&topology.allowed_nodeset()),
        isolated: CpuSet::new(),
        nohz_full: CpuSet::new(),
    }
}

fn package(package: &TopologyObject) -> Package {
    let model = info(package, "CPUModel").map(|model| model.split_whitespace().collect::<Vec<_>>().join(" "));
    Package { id: os_index(package), model: model.filter(|model| !model.is_empty()), cpus: cpus(package) }
}

fn nodes(topology: &Topology) -> Vec<Node> {
    let mut distances: BTreeMap<NodeId, BTreeMap<NodeId, u64>> = BTreeMap::new();
    // Linux' SLIT; a topology without one has no such matrix, which is no error.
    for matrix in topology.distances_with_name("NUMALatency").unwrap_or_default() {
        for ((from, to), distance) in matrix.object_distances() {
            if let (Some(from), Some(to)) = (from.and_then(os_index), to.and_then(os_index)) {
                distances.entry(NodeId(from)).or_default().insert(NodeId(to), distance);
            }
        }
    }
    let node = |node: &TopologyObject| {
        let id = NodeId(os_index(node)?);
        let memory = match node.attributes() {
            Some(ObjectAttributes::NUMANode(attributes)) => attributes.local_memory(),
            _ => None,
        };
        let memory_bytes = memory.map_or(0, Into::into);
        Some(Node { id, cpus: cpus(node), memory_bytes, distances: distances.get(&id).cloned().unwrap_or_default() })
    };
    topology.objects_with_type(ObjectType::NUMANode).filter_map(node).collect()
}

fn caches(topology: &Topology) -> Vec<Cache> {
    let kinds = [
        (ObjectType::L1Cache, 1),
        (ObjectType::L1ICache, 1),
        (ObjectType::L2Cache, 2),
        (ObjectType::L2ICache, 2),
        (ObjectType::L3Cache, 3),
        (ObjectType::L3ICache, 3),
        (ObjectType::L4Cache, 4),
        (ObjectType::L5Cache, 5),
    ];
    let cache = |object: &TopologyObject, level| {
        let Some(ObjectAttributes::Cache(attributes)) = object.attributes() else { return None };
        let kind = match attributes.cache_type() {
            CacheType::Data => CacheKind::Data,
            CacheType::Instruction => CacheKind::Instruction,
            _ => CacheKind::Unified,
        };
        Some(Cache { level, kind, size_bytes: attributes.size().map(Into::into), cpus: cpus(object) })
    };
    kinds
        .into_iter()
        .flat_map(|(kind, level)| topology.objects_with_type(kind).filter_map(move |object| cache(object, level)))
        .collect()
}

fn core_kinds(topology: &Topology) -> Vec<CoreKindInfo> {
    let Ok(kinds) = topology.cpu_kinds() else { return Vec::new() };
    kinds
        .map(|kind| CoreKindInfo {
            cpus: set(&kind.cpuset),
            efficiency: kind.efficiency.and_then(|rank| u32::try_from(rank).ok()),
            info: kind.infos.iter().map(|info| (text(info.name()), text(info.value()))).collect(),
        })
        .collect()
}

/// PCI devices with the names that the system gave them, then named devices that are on no PCI device.
fn devices(topology: &Topology) -> Vec<Device> {
    let mut by_pci: BTreeMap<String, Device> = BTreeMap::new();
    for object in topology.pci_devices() {
        if let Some(pci) = pci_address(object) {
            let device = Device { kind: DeviceKind::Other, names: Vec::new(), pci: None, cpus: near(topology, object) };
            by_pci.insert(pci.clone(), Device { pci: Some(pci), ..device });
        }
    }
    let mut others = Vec::new();
    for object in topology.os_devices() {
        let Some(name) = object.name().map(text) else { continue };
        let kind = device_kind(object);
        match object.ancestors().find_map(pci_address).and_then(|pci| by_pci.get_mut(&pci)) {
            Some(device) => {
                device.kind = device.kind.min(kind);
                device.names.push(name);
            }
            None => others.push(Device { kind, names: vec![name], pci: None, cpus: near(topology, object) }),
        }
    }
    by_pci.into_values().chain(others).collect()
}

fn pci_address(object: &TopologyObject) -> Option<String> {
    let Some(ObjectAttributes::PCIDevice(pci)) = object.attributes() else { return None };
    Some(format!("{:04x}:{:02x}:{:02x}.{:x}", pci.domain(), pci.bus_id(), pci.bus_device(), pci.function()))
}

fn device_kind(object: &TopologyObject) -> DeviceKind {
    let Some(ObjectAttributes::OSDevice(attributes)) = object.attributes() else { return DeviceKind::Other };
    match attributes.device_type() {
        OSDeviceType::Network => DeviceKind::Network,
        OSDeviceType::OpenFabrics => DeviceKind::Fabric,
        OSDeviceType::Storage => DeviceKind::Storage,
        OSDeviceType::GPU => DeviceKind::Gpu,
        OSDeviceType::CoProcessor | OSDeviceType::DMA => DeviceKind::Accelerator,
        _ => DeviceKind::Other,
    }
}

/// The CPUs of the smallest part that the device is attached to and that has some.
fn near(topology: &Topology, object: &TopologyObject) -> CpuSet {
    let parts = object.ancestors().filter_map(TopologyObject::cpuset);
    let near = parts.map(|cpus| set(&cpus)).find(|cpus: &CpuSet| !cpus.is_empty());
    near.unwrap_or_else(|| set(&topology.cpuset()))
}

fn cpus(object: &TopologyObject) -> CpuSet {
    object.cpuset().map_or_else(CpuSet::new, |cpus| set(&cpus))
}

/// hwloc's bitmaps may be infinite; CPU and node sets of a loaded topology never are.
fn set<'a, I: Id, Set>(bitmap: &'a Set) -> IdSet<I>
where
    &'a Set: IntoIterator<Item = BitmapIndex>,
{
    bitmap.into_iter().map_while(|index| u32::try_from(usize::from(index)).ok()).map(I::from).collect()
}

fn os_index(object: &TopologyObject) -> Option<u32> {
    object.os_index().and_then(|index| u32::try_from(index).ok())
}

fn info(object: &TopologyObject, key: &str) -> Option<String> {
    object.info(key).map(text).filter(|value| !value.is_empty())
}

fn text(text: &CStr) -> String {
    text.to_string_lossy().trim().to_owned()
}
