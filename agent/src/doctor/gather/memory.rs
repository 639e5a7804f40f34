//! Memory: huge pages, swap, NUMA.

use super::Tree;
use crate::doctor::facts::MemoryFacts;

pub(super) fn facts(tree: &Tree) -> MemoryFacts {
    let hugepages = "/sys/kernel/mm/transparent_hugepage";
    MemoryFacts {
        thp_enabled: tree.parsed(&format!("{hugepages}/enabled"), chosen),
        thp_defrag: tree.parsed(&format!("{hugepages}/defrag"), chosen),
        // Below a heading: file, type, size in KiB, used KiB, priority.
        swaps: tree.parsed("/proc/swaps", |text| {
            let area = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                Some(((*words.first()?).to_owned(), words.get(3)?.parse().ok()?))
            };
            text.lines().skip(1).map(area).collect()
        }),
        nodes: tree.value("/sys/devices/system/node/has_memory"),
        zone_reclaim: tree.value("/proc/sys/vm/zone_reclaim_mode"),
        numa_balancing: tree.value("/proc/sys/kernel/numa_balancing"),
    }
}

/// `always [madvise] never`
fn chosen(text: &str) -> Option<String> {
    text.split_whitespace().find_map(|word| Some(word.strip_prefix('[')?.strip_suffix(']')?.to_owned()))
}
