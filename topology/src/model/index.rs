//! Tables over a host's parts: which part of each level a CPU is in, and how near two sets of CPUs are.
//! Built once per host, so that planning and steering never search.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Serialize};

use super::{CacheKind, CpuId, CpuSet, Host, HostFault, HostParts, MAX_ID, NodeSet};

/// A kind of part that CPUs can share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// A core. A CPU that hwloc shows outside any core is a core of its own.
    Core,
    /// A (data or unified) L2 cache.
    L2,
    /// A (data or unified) L3 cache.
    L3,
    /// A die. A package that shows no dies is one die.
    Die,
    /// The CPUs with the same nearest NUMA nodes: a node that has nodes inside is here with what is left of it.
    Node,
    /// A package.
    Package,
}

/// How near two sets of CPUs are; the nearest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Locality {
    /// They overlap or share a core.
    Same,
    /// They share an L3 cache.
    L3,
    /// They share a NUMA node.
    Node,
    /// They share a package.
    Package,
    /// They share the host.
    Host,
}

impl Level {
    /// Every level, smallest part first.
    pub const ALL: [Self; 6] = [Self::Core, Self::L2, Self::L3, Self::Die, Self::Node, Self::Package];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Core => "core",
            Self::L2 => "L2",
            Self::L3 => "L3",
            Self::Die => "die",
            Self::Node => "NUMA node",
            Self::Package => "package",
        })
    }
}

/// "In no part of this level".
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    ranks: Ranks,
    levels: [Table; 6],
    /// Per part of `Level::Node`: its nearest nodes.
    nearest_nodes: Vec<NodeSet>,
}

/// CPU number -> place in logical order, or `NONE`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ranks(Vec<u32>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Table {
    /// Rank -> part, or `NONE`.
    part_of: Vec<u32>,
    /// Part -> CPUs, in the order of their first CPU.
    parts: Vec<CpuSet>,
}

impl Host {
    /// The parts of one level by their CPUs, in logical order. Parts without a CPU are not among them.
    pub fn parts_at(&self, level: Level) -> &[CpuSet] {
        &self.index.levels[level as usize].parts
    }

    /// Which of `parts_at(level)` the CPU is in.
    pub fn part_of(&self, level: Level, cpu: CpuId) -> Option<usize> {
        let part = self.index.levels[level as usize].part_of[self.rank(cpu)?];
        (part != NONE).then_some(part as usize)
    }

    /// The CPU's place in logical order.
    pub fn rank(&self, cpu: CpuId) -> Option<usize> {
        self.index.ranks.get(cpu).map(|rank| rank as usize)
    }

    /// The NUMA nodes nearest to the CPUs, with or without memory: of nodes inside each other the innermost.
    pub fn nodes_of(&self, cpus: &CpuSet) -> NodeSet {
        let mut nodes = NodeSet::new();
        let mut last = None;
        for part in cpus.iter().filter_map(|cpu| self.part_of(Level::Node, cpu)) {
            if last.replace(part) != Some(part) {
                nodes.extend(self.index.nearest_nodes[part].iter());
            }
        }
        nodes
    }

    /// How near two sets of CPUs are at their nearest CPUs. Sets without a CPU are `Host` apart.
    pub fn locality(&self, a: &CpuSet, b: &CpuSet) -> Locality {
        if !a.is_disjoint(b) {
            return Locality::Same;
        }
        if a.len() * b.len() <= 64 {
            let pairs = a.iter().flat_map(|x| b.iter().map(move |y| self.locality_of(x, y)));
            return pairs.min().unwrap_or(Locality::Host);
        }
        let meet = |level| {
            let parts = self.distinct_parts(level, a);
            b.iter().filter_map(|cpu| self.part_of(level, cpu)).any(|part| parts.contains(&part))
        };
        match () {
            () if meet(Level::Core) => Locality::Same,
            () if meet(Level::L3) => Locality::L3,
            () if meet(Level::Node) => Locality::Node,
            () if meet(Level::Package) => Locality::Package,
            () => Locality::Host,
        }
    }

    /// How near two CPUs are.
    pub fn locality_of(&self, a: CpuId, b: CpuId) -> Locality {
        let meet = |level| self.part_of(level, a).is_some_and(|part| self.part_of(level, b) == Some(part));
        match () {
            () if a == b || meet(Level::Core) => Locality::Same,
            () if meet(Level::L3) => Locality::L3,
            () if meet(Level::Node) => Locality::Node,
            () if meet(Level::Package) => Locality::Package,
            () => Locality::Host,
        }
    }

    fn distinct_parts(&self, level: Level, cpus: &CpuSet) -> Vec<usize> {
        let mut parts: Vec<usize> = Vec::new();
        for part in cpus.iter().filter_map(|cpu| self.part_of(level, cpu)) {
            if parts.last() != Some(&part) && !parts.contains(&part) {
                parts.push(part);
            }
        }
        parts
    }
}

impl Index {
    pub(super) fn new(parts: &HostParts) -> Result<Self, HostFault> {
        let ranks = Ranks::new(&parts.pus)?;
        let table = |level, sets: Vec<&CpuSet>| Table::new(level, &ranks, &parts.pus, &sets);
        let cache = |level| {
            let data = |cache: &&super::Cache| cache.level == level && cache.kind != CacheKind::Instruction;
            parts.caches.iter().filter(data).map(|cache| &cache.cpus).collect::<Vec<_>>()
        };
        let packages: Vec<&CpuSet> = parts.packages.iter().map(|package| &package.cpus).collect();
        let mut core = table(Level::Core, parts.cores.iter().map(|core| &core.cpus).collect())?;
        core.fill_gaps(&parts.pus, None);
        let package = table(Level::Package, packages)?;
        let mut die = table(Level::Die, parts.dies.iter().map(|die| &die.cpus).collect())?;
        die.fill_gaps(&parts.pus, Some(&package));
        let (node, nearest_nodes) = node_table(parts, &ranks)?;
        let levels = [core, table(Level::L2, cache(2))?, table(Level::L3, cache(3))?, die, node, package];
        Ok(Self { ranks, levels, nearest_nodes })
    }
}

impl Ranks {
    fn new(pus: &[CpuId]) -> Result<Self, HostFault> {
        let largest = pus.iter().max().ok_or(HostFault::NoCpus)?;
        if largest.0 > MAX_ID {
            return Err(HostFault::TooLarge { cpu: *largest });
        }
        let mut ranks = vec![NONE; largest.0 as usize + 1];
        for (cpu, rank) in pus.iter().zip(0..) {
            if std::mem::replace(&mut ranks[cpu.0 as usize], rank) != NONE {
                return Err(HostFault::TwicePu { cpu: *cpu });
            }
        }
        Ok(Self(ranks))
    }

    fn get(&self, cpu: CpuId) -> Option<u32> {
        self.0.get(cpu.0 as usize).copied().filter(|rank| *rank != NONE)
    }
}

impl Table {
    fn new(level: Level, ranks: &Ranks, pus: &[CpuId], sets: &[&CpuSet]) -> Result<Self, HostFault> {
        let mut part_of = vec![NONE; pus.len()];
        for (set, part) in sets.iter().zip(0..) {
            for (cpu, rank) in set.iter().filter_map(|cpu| ranks.get(cpu).map(|rank| (cpu, rank))) {
                if part_of[rank as usize] != NONE {
                    return Err(HostFault::Overlap { level, cpu });
                }
                part_of[rank as usize] = part;
            }
        }
        Ok(Self::numbered(part_of, pus))
    }

    /// Numbers the parts by their first CPU and collects their CPUs.
    fn numbered(mut part_of: Vec<u32>, pus: &[CpuId]) -> Self {
        let mut numbers = HashMap::new();
        let mut parts: Vec<CpuSet> = Vec::new();
        for (part, cpu) in part_of.iter_mut().zip(pus).filter(|(part, _)| **part != NONE) {
            *part = *numbers.entry(*part).or_insert_with(|| {
                parts.push(CpuSet::new());
                parts.len() as u32 - 1
            });
            parts[*part as usize].insert(*cpu);
        }
        Self { part_of, parts }
    }

    /// Puts CPUs that are in no part into one per part of `outer`, or into one each.
    fn fill_gaps(&mut self, pus: &[CpuId], outer: Option<&Self>) {
        let base = self.parts.len() as u32;
        let mut part_of = std::mem::take(&mut self.part_of);
        for (rank, part) in part_of.iter_mut().enumerate().filter(|(_, part)| **part == NONE) {
            let own = outer.map_or(rank as u32, |outer| outer.part_of[rank]);
            *part = if own == NONE { NONE } else { base + own };
        }
        *self = Self::numbered(part_of, pus);
    }
}

fn node_table(parts: &HostParts, ranks: &Ranks) -> Result<(Table, Vec<NodeSet>), HostFault> {
    let mut seen = NodeSet::new();
    if let Some(twice) = parts.nodes.iter().find(|node| !seen.insert(node.id)) {
        return Err(HostFault::TwiceNode { node: twice.id });
    }
    // Nodes can lie inside each other (fast memory inside a package's node) and beside each other on the same CPUs:
    // the wide ones first, so that the innermost is written last.
    let mut order: Vec<usize> = (0..parts.nodes.len()).filter(|at| !parts.nodes[*at].cpus.is_empty()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(parts.nodes[*at].cpus.len()));
    let mut part_of = vec![NONE; parts.pus.len()];
    for at in order {
        let same = parts.nodes.iter().position(|node| node.cpus == parts.nodes[at].cpus).unwrap_or(at);
        for rank in parts.nodes[at].cpus.iter().filter_map(|cpu| ranks.get(cpu)) {
            part_of[rank as usize] = same as u32;
        }
    }
    let mut nearest = Vec::new();
    let mut known = Vec::new();
    for part in part_of.iter().filter(|part| **part != NONE) {
        if !known.contains(part) {
            known.push(*part);
            let cpus = &parts.nodes[*part as usize].cpus;
            nearest.push(parts.nodes.iter().filter(|node| node.cpus == *cpus).map(|node| node.id).collect());
        }
    }
    Ok((Table::numbered(part_of, &parts.pus), nearest))
}
