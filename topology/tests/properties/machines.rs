//! Machines and requests of every odd shape, for property tests.

use std::{collections::BTreeMap, env, num::NonZeroU32};

use proptest::{collection::vec, prelude::*, sample::select};
use sherd_topology::{
    model::{
        Cache, CacheKind, Core, CoreKindInfo, CpuId, CpuSet, Device, DeviceKind, Die, Host, HostParts, Node, NodeId,
        Package,
    },
    plan::{CoreKind, LayoutRequest, MemoryBinding, Placement, ShardCount, Sharing, Smt, Unit},
};

/// A machine and what is asked of it.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) host: Host,
    pub(crate) reserved: CpuSet,
    pub(crate) requests: Vec<LayoutRequest>,
}

/// Cases per property: few by default, many with SHERD_PROVE=1.
pub(crate) fn cases() -> u32 {
    if env::var("SHERD_PROVE").is_ok_and(|value| value == "1") { 2_000 } else { 150 }
}

#[derive(Debug, Clone)]
struct Shape {
    packages: usize,
    dies: usize,
    l3s: usize,
    cores: usize,
    threads: usize,
    numbering: Numbering,
    memory: Memory,
    has: [bool; 4],
}

#[derive(Debug, Clone, Copy)]
enum Numbering {
    /// 0, 1, 2, …
    Dense,
    /// Siblings are half of the machine apart, as on x86.
    Siblings,
    /// Far apart, also above 1024.
    Sparse,
}

#[derive(Debug, Clone, Copy)]
enum Memory {
    PerPackage,
    PerL3,
    /// A node per package and one more inside its first L3.
    Nested,
    /// Every second package has no node.
    Missing,
    /// Two nodes on the same CPUs: ordinary and fast memory.
    Double,
}

/// A machine with at least one CPU that can be used.
pub(crate) fn machine() -> impl Strategy<Value = Host> {
    let numbering = select(vec![Numbering::Dense, Numbering::Siblings, Numbering::Sparse]);
    let memory = select(vec![Memory::PerPackage, Memory::PerL3, Memory::Nested, Memory::Missing, Memory::Double]);
    let counts = (1usize..4, 1usize..3, 1usize..4, 1usize..7, 1usize..5);
    let shape = (counts, numbering, memory, any::<[bool; 4]>()).prop_map(|(counts, numbering, memory, has)| {
        let (packages, dies, l3s, cores, threads) = counts;
        Shape { packages, dies, l3s, cores, threads, numbering, memory, has }
    });
    (shape, vec(any::<u8>(), 64)).prop_map(|(shape, noise)| build(&shape, &noise))
}

/// A machine, reserved CPUs and up to seven groups.
pub(crate) fn scene() -> impl Strategy<Value = Scene> {
    (machine(), vec(any::<u8>(), 32), vec(request(), 1..7)).prop_map(|(host, noise, mut requests)| {
        let present = host.parts().present.clone();
        let some = |salt: usize, keep: u8| -> CpuSet {
            let kept = |(at, _): &(usize, CpuId)| noise[(at * 7 + salt) % noise.len()] < keep;
            present.iter().enumerate().filter(kept).map(|(_, cpu)| cpu).collect()
        };
        for (at, request) in requests.iter_mut().enumerate() {
            request.group = format!("g{at}").parse().unwrap();
            request.cpus = request.cpus.is_some().then(|| some(at, 200));
        }
        let reserved = if noise[0] < 128 { CpuSet::new() } else { some(31, 30) };
        Scene { host, reserved, requests }
    })
}

fn request() -> impl Strategy<Value = LayoutRequest> {
    let count = prop_oneof![Just(ShardCount::Auto), (1u32..9).prop_map(exactly), (1u32..64).prop_map(exactly)];
    let common = select(vec![Unit::Pu, Unit::Core, Unit::Core, Unit::Core]);
    let unit = prop_oneof![common, select(Unit::ALL)];
    let memory = select(MemoryBinding::ALL);
    let kinds = select(vec![CoreKind::Any, CoreKind::Any, CoreKind::Performance, CoreKind::Efficiency]);
    let near =
        prop_oneof![4 => Just(None), 2 => Just(Some("eth0".to_owned())), 1 => Just(Some("0000:81:00.0".to_owned()))];
    let smt = prop_oneof![3 => Just(Smt::Share), 1 => Just(Smt::Each), 1 => Just(Smt::First)];
    let sharing = prop_oneof![2 => Just(Sharing::Exclusive), 1 => Just(Sharing::Shared)];
    (count, unit, select(Placement::ALL), smt, kinds, near, sharing, memory, prop::bool::weighted(0.2)).prop_map(
        |(shards, unit, placement, smt, core_kind, near, sharing, memory, restrict)| LayoutRequest {
            shards,
            unit,
            placement,
            smt,
            core_kind,
            near,
            cpus: restrict.then(CpuSet::new),
            sharing,
            memory,
            ..LayoutRequest::new("g".parse().unwrap())
        },
    )
}

fn exactly(number: u32) -> ShardCount {
    ShardCount::Exactly(NonZeroU32::new(number).unwrap())
}

/// All CPUs of all levels, before some go away.
struct Tree {
    pus: Vec<CpuId>,
    cores: Vec<CpuSet>,
    l3s: Vec<CpuSet>,
    dies: Vec<CpuSet>,
    packages: Vec<CpuSet>,
}

fn build(shape: &Shape, noise: &[u8]) -> Host {
    let tree = tree(shape, noise);
    let roll = |at: usize, salt: usize| noise[(at * 13 + salt) % noise.len()];
    let all: CpuSet = tree.pus.iter().copied().collect();
    let pick = |salt: usize, share: u8| -> CpuSet {
        tree.pus.iter().enumerate().filter(|(at, _)| roll(*at, salt) < share).map(|(_, cpu)| *cpu).collect()
    };
    let first = CpuSet::from_iter([tree.pus[0]]);
    let [has_l3, has_dies, is_hybrid, is_troubled] = shape.has;
    let none = CpuSet::new;
    let offline = if is_troubled { pick(1, 25).difference(&first) } else { none() };
    let forbidden = if is_troubled { pick(2, 25).difference(&first) } else { none() };
    let isolated = if roll(3, 3) < 90 { pick(4, 110) } else { none() };
    let online = all.difference(&offline);
    let narrow = |sets: &[CpuSet]| -> Vec<CpuSet> { sets.iter().map(|set| set.intersection(&online)).collect() };
    let cache = |level, cpus| Cache { level, kind: CacheKind::Unified, size_bytes: Some(1 << 20), cpus };
    let caches = narrow(&tree.cores).into_iter().map(|cpus| cache(2, cpus));
    let l3s = narrow(&tree.l3s).into_iter().filter(|_| has_l3).map(|cpus| cache(3, cpus));
    let nodes = nodes(shape, &tree, &online, noise);
    let half: CpuSet = tree.cores.iter().step_by(2).flat_map(CpuSet::iter).collect();
    let kind = |cpus, rank| CoreKindInfo { cpus, efficiency: Some(rank), info: BTreeMap::new() };
    let parts = HostParts {
        packages: narrow(&tree.packages).into_iter().map(|cpus| Package { id: None, model: None, cpus }).collect(),
        dies: narrow(&tree.dies).into_iter().filter(|_| has_dies).map(|cpus| Die { id: None, cpus }).collect(),
        allowed_nodes: nodes.iter().map(|node| node.id).collect(),
        nodes,
        caches: caches.chain(l3s).collect(),
        // CPUs of the last core are in no core where the noise says so.
        cores: narrow(&tree.cores)
            .into_iter()
            .skip(usize::from(roll(5, 5) < 40))
            .map(|cpus| Core { id: None, cpus })
            .collect(),
        pus: tree.pus.iter().copied().filter(|cpu| online.contains(*cpu)).collect(),
        core_kinds: if is_hybrid { vec![kind(half.clone(), 0), kind(all.difference(&half), 1)] } else { Vec::new() },
        devices: vec![
            device("eth0", "0000:01:00.0", &tree.l3s[0]),
            device("eth1", "0000:81:00.0", &tree.packages[shape.packages - 1]),
        ],
        present: all.clone(),
        allowed: all.difference(&forbidden),
        online,
        isolated,
        ..HostParts::default()
    };
    Host::new(parts).unwrap()
}

fn tree(shape: &Shape, noise: &[u8]) -> Tree {
    let total = shape.packages * shape.dies * shape.l3s * shape.cores * shape.threads;
    let mut tree = Tree { pus: Vec::new(), cores: Vec::new(), l3s: Vec::new(), dies: Vec::new(), packages: Vec::new() };
    let mut core_number = 0;
    for _ in 0..shape.packages {
        let mut package = CpuSet::new();
        for _ in 0..shape.dies {
            let mut die = CpuSet::new();
            for _ in 0..shape.l3s {
                let mut l3 = CpuSet::new();
                for _ in 0..shape.cores {
                    // Cores of hybrid machines differ in their threads.
                    let threads =
                        if shape.has[2] && noise[core_number % noise.len()] < 128 { 1 } else { shape.threads };
                    let number = |thread: usize| match shape.numbering {
                        Numbering::Dense => core_number * shape.threads + thread,
                        Numbering::Siblings => core_number + thread * (total / shape.threads),
                        Numbering::Sparse => (core_number * shape.threads + thread) * 37 + 5,
                    };
                    let pus: Vec<CpuId> = (0..threads).map(|thread| CpuId(number(thread) as u32)).collect();
                    tree.pus.extend(&pus);
                    l3.extend(pus.iter().copied());
                    tree.cores.push(pus.into_iter().collect());
                    core_number += 1;
                }
                die = die.union(&l3);
                tree.l3s.push(l3);
            }
            package = package.union(&die);
            tree.dies.push(die);
        }
        tree.packages.push(package);
    }
    tree
}

fn nodes(shape: &Shape, tree: &Tree, online: &CpuSet, noise: &[u8]) -> Vec<Node> {
    let mut local: Vec<CpuSet> = match shape.memory {
        Memory::PerPackage => tree.packages.clone(),
        Memory::PerL3 => tree.l3s.clone(),
        Memory::Nested => tree.packages.iter().chain(tree.l3s.first()).cloned().collect(),
        Memory::Missing => tree.packages.iter().step_by(2).cloned().collect(),
        Memory::Double => tree.packages.iter().flat_map(|package| [package.clone(), package.clone()]).collect(),
    };
    // One node without CPUs.
    local.push(CpuSet::new());
    let ids: Vec<NodeId> = (0..local.len()).map(|at| NodeId(at as u32 * if noise[1] < 128 { 1 } else { 9 })).collect();
    let node = |(at, cpus): (usize, CpuSet)| {
        let distance = |other: usize| if other == at { 10 } else { 12 + u64::from(noise[(at + other) % noise.len()]) };
        let row = ids.iter().enumerate().map(|(other, id)| (*id, distance(other)));
        // The first always has memory, or there would be nothing to bind to.
        let memory_bytes = if at > 0 && noise[at % noise.len()] < 60 { 0 } else { 8 << 30 };
        let distances = if noise[2] < 128 { row.collect() } else { BTreeMap::new() };
        Node { id: ids[at], cpus: cpus.intersection(online), memory_bytes, distances }
    };
    local.into_iter().enumerate().map(node).collect()
}

fn device(name: &str, pci: &str, cpus: &CpuSet) -> Device {
    Device { kind: DeviceKind::Network, names: vec![name.to_owned()], pci: Some(pci.to_owned()), cpus: cpus.clone() }
}
