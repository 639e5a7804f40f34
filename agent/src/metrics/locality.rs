//! On which NUMA nodes a shard's memory is. Parses what the kernel says; reads no file.

use std::collections::BTreeMap;

use sherd_topology::model::NodeId;

/// Bytes by node.
pub(super) type ByNode = BTreeMap<NodeId, u64>;

/// cgroup v2's memory.numa_stat: `anon N0=BYTES N1=BYTES`, one line for each kind. Anonymous and file pages, the cgroup's
/// and those of the ones below (Documentation/admin-guide/cgroup-v2.rst).
pub(super) fn parse_v2(text: &str) -> ByNode {
    add_up(text.lines().filter(|line| line.starts_with("anon ") || line.starts_with("file ")), |_| 1)
}

/// cgroup v1's memory.numa_stat: `hierarchical_total=PAGES N0=PAGES`, of pages that can be reclaimed or are locked
/// (Documentation/admin-guide/cgroup-v1/memory.rst, 5.6).
pub(super) fn parse_v1(text: &str, page_bytes: u64) -> ByNode {
    add_up(text.lines().filter(|line| line.starts_with("hierarchical_total=")), |_| page_bytes)
}

/// proc_pid_numa_maps(5): a line for each mapping, `ADDRESS POLICY … N0=PAGES … kernelpagesize_kB=4`.
pub(super) fn parse_maps(text: &str, page_bytes: u64) -> ByNode {
    add_up(text.lines(), |line| {
        let size = line.split(' ').find_map(|word| word.strip_prefix("kernelpagesize_kB=")?.parse::<u64>().ok());
        size.map_or(page_bytes, |kib| kib.saturating_mul(1024))
    })
}

/// The sum of all `N<node>=<count>` words, in units that each line names.
fn add_up<'a>(lines: impl Iterator<Item = &'a str>, unit_bytes: impl Fn(&str) -> u64) -> ByNode {
    let mut sum = ByNode::new();
    for line in lines {
        let unit_bytes = unit_bytes(line);
        for word in line.split(' ') {
            let number = || word.strip_prefix('N')?.split_once('=');
            let Some((node, count)) = number() else { continue };
            let (Ok(node), Ok(count)) = (node.parse(), count.parse::<u64>()) else { continue };
            let bytes = sum.entry(NodeId(node)).or_default();
            *bytes = bytes.saturating_add(count.saturating_mul(unit_bytes));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(expected: &[(u32, u64)]) -> ByNode {
        expected.iter().map(|&(node, bytes)| (NodeId(node), bytes)).collect()
    }

    /// The first from a shard in a guest with Debian 12's kernel and two nodes.
    #[test]
    fn v2_is_in_bytes_and_by_kind() {
        let captured = "anon N0=0 N1=622592\nfile N0=0 N1=0\nkernel_stack N0=0 N1=0\npagetables N0=0 N1=65536\n\
                        sec_pagetables N0=0 N1=0\nshmem N0=0 N1=0\nfile_mapped N0=0 N1=0\nanon_thp N0=0 N1=0\n\
                        inactive_anon N0=0 N1=618496\nactive_anon N0=0 N1=4096\nunevictable N0=0 N1=0\n\
                        slab_reclaimable N0=0 N1=3520\n";
        assert_eq!(parse_v2(captured), nodes(&[(0, 0), (1, 622_592)]));
        let text = "anon N0=4096 N1=8192\nfile N0=1024 N1=0\nshmem N0=1024 N1=0\nactive_file N0=1024 N1=0\n";
        assert_eq!(parse_v2(text), nodes(&[(0, 5120), (1, 8192)]));
        assert_eq!(parse_v2(""), nodes(&[]));
    }

    #[test]
    fn v1_is_in_pages_and_has_the_groups_below_in_a_line_of_its_own() {
        let text = "total=9 N0=4 N1=5\nfile=4 N0=4 N1=0\nanon=5 N0=0 N1=5\nunevictable=0 N0=0 N1=0\n\
                    hierarchical_total=30 N0=10 N1=20\nhierarchical_file=4 N0=4 N1=0\n";
        assert_eq!(parse_v1(text, 4096), nodes(&[(0, 40_960), (1, 81_920)]));
        assert_eq!(parse_v1("total=9 N0=9\n", 4096), nodes(&[]));
    }

    #[test]
    fn maps_have_pages_of_several_sizes() {
        // From the same guest.
        let captured = "55c151f14000 default file=/usr/local/bin/sherd mapped=220 mapmax=10 active=215 N0=6 N1=214 kernelpagesize_kB=4\n\
                        55c152c2d000 default file=/usr/local/bin/sherd anon=58 dirty=58 active=0 N1=58 kernelpagesize_kB=4\n";
        assert_eq!(parse_maps(captured, 4096), nodes(&[(0, 6 * 4096), (1, 272 * 4096)]));
        let text = "55d0a000 default file=/usr/bin/N0=7 mapped=2 N0=2 kernelpagesize_kB=4\n\
                    7f000000 bind:1 anon=3 dirty=3 N0=1 N1=2 kernelpagesize_kB=2048\n\
                    7fff0000 default stack anon=1 N1=1\n7fff8000 default\n";
        let expected = nodes(&[(0, 2 * 4096 + (2 << 20)), (1, (4 << 20) + 4096)]);
        assert_eq!(parse_maps(text, 4096), expected);
        assert_eq!(parse_maps("a N0=99999999999999999999 Nx=1 N1\n", 4096), nodes(&[]));
        assert_eq!(parse_maps(&format!("a N0={}\n", u64::MAX), 4096), nodes(&[(0, u64::MAX)]));
    }
}
