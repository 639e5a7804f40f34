//! Checks of memory: huge pages, swap, NUMA.

use super::{Check, Findings, Severity, facts::HostFacts};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "transparent-hugepages",
        source: "/sys/kernel/mm/transparent_hugepage/{enabled,defrag}",
        run: hugepages,
    },
    Check { name: "swap", source: "/proc/swaps", run: swap },
    Check { name: "zone-reclaim", source: "/proc/sys/vm/zone_reclaim_mode", run: zone_reclaim },
    Check { name: "numa-balancing", source: "/proc/sys/kernel/numa_balancing", run: numa_balancing },
];

fn hugepages(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(enabled) = findings.known(&facts.memory.thp_enabled) else { return };
    if enabled != "always" {
        return;
    }
    let remedy = "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled";
    if findings.known(&facts.memory.thp_defrag).is_some_and(|defrag| defrag == "always") {
        findings.add(
            Severity::Warning,
            "transparent huge pages are made at every page fault, and memory is compacted for them at once",
            "a request that touches new memory waits for compaction",
            format!("{remedy}; echo madvise >/sys/kernel/mm/transparent_hugepage/defrag"),
        );
        return;
    }
    findings.add(
        Severity::Note,
        "transparent huge pages are made for programs that did not ask for them",
        "they speed up big heaps; programs that fork to save (Redis) copy 2 MiB where they wrote a byte",
        remedy,
    );
}

fn swap(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(swaps) = findings.known(&facts.memory.swaps) else { return };
    if swaps.is_empty() {
        return;
    }
    let areas: Vec<&str> = swaps.iter().map(|(area, _)| area.as_str()).collect();
    let used_mib = swaps.iter().map(|(_, kib)| kib).sum::<u64>() / 1024;
    findings.add(
        Severity::Note,
        format!("there is swap ({}), {used_mib} MiB of it are in use", areas.join(", ")),
        "a shard whose pages were swapped out answers in milliseconds what took microseconds",
        "swapoff -a, and take it out of /etc/fstab",
    );
}

fn zone_reclaim(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(mode) = findings.known(&facts.memory.zone_reclaim) else { return };
    if *mode != 0 && has_several_nodes(facts, findings) {
        findings.add(
            Severity::Warning,
            format!("vm.zone_reclaim_mode is {mode}"),
            "a node that is full throws away file cache before it takes memory of another node, while the program waits",
            "sysctl -w vm.zone_reclaim_mode=0",
        );
    }
}

fn numa_balancing(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(mode) = findings.known(&facts.memory.numa_balancing) else { return };
    let Some(status) = facts.status() else { return };
    // By their cpusets. A process shard has a memory policy too, and what that binds isn't scanned (vma_policy_mof).
    let containers = status.groups.iter().filter(|group| group.runtime == "docker");
    let is_pinned = containers.flat_map(|group| &group.slots).any(|slot| !slot.mems.is_empty());
    if *mode != 0 && is_pinned && has_several_nodes(facts, findings) {
        findings.add(
            Severity::Warning,
            format!("kernel.numa_balancing is {mode}, and containers' memory is pinned to their nodes"),
            "the kernel unmaps pages again and again to see who uses them, and may not move them",
            "sysctl -w kernel.numa_balancing=0",
        );
    }
}

fn has_several_nodes(facts: &HostFacts, findings: &mut Findings<'_>) -> bool {
    findings.known(&facts.memory.nodes).is_some_and(|nodes| nodes.len() > 1)
}
