//! Whether there is memory for a second shard beside one that serves: what it needs, and what the kernel says is there.

use std::{fs, io};

use sherd_topology::{
    model::NodeSet,
    plan::{MemoryBinding, Slot},
};

use crate::metrics::UsageReader;

const MIB: u64 = 1 << 20;

/// What is known of one slot's memory, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    /// What the new shard needs.
    pub(super) needed: u64,
    /// What programs can get on this host without swapping.
    pub(super) available: u64,
    /// The same of the nodes that the shard is bound to.
    pub(super) on_nodes: Option<u64>,
}

/// There is not enough.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a second shard needs {} MiB, and {} MiB are available {place}", needed.div_ceil(MIB), available / MIB)]
pub(super) struct NoRoom {
    needed: u64,
    available: u64,
    place: &'static str,
}

impl Memory {
    /// PURE.
    pub(super) fn check(self) -> Result<(), NoRoom> {
        let Self { needed, available, on_nodes } = self;
        let no_room = |available, place| Err(NoRoom { needed, available, place });
        match on_nodes {
            Some(on_nodes) if on_nodes < needed => no_room(on_nodes, "on its memory nodes"),
            _ if available < needed => no_room(available, "on this host"),
            _ => Ok(()),
        }
    }

    /// As if so many bytes were used too, wherever they are.
    pub(super) fn without(self, bytes: u64) -> Self {
        let left = |there: u64| there.saturating_sub(bytes);
        Self { available: left(self.available), on_nodes: self.on_nodes.map(left), ..self }
    }

    /// Asks the kernel. A shard with a limit may come to use all of it; one without is taken to need what the one that serves
    /// uses now, and a fifth more.
    ///
    /// # Errors
    /// When what the shard uses, or what is there, can't be read.
    pub(super) fn read(limit_bytes: Option<u64>, place: &Slot, serving_pid: u32) -> io::Result<Self> {
        let needed = match limit_bytes {
            Some(limit) => limit,
            None => {
                let used = UsageReader::new().memory_of(serving_pid);
                let used = used.ok_or_else(|| io::Error::other("what its shard uses can't be read"))?;
                used.saturating_add(used / 5)
            }
        };
        let available = available(&fs::read_to_string("/proc/meminfo")?).ok_or_else(|| not_read("/proc/meminfo"))?;
        let bound = place.memory == MemoryBinding::Bind && !place.mems.is_empty();
        let on_nodes = if bound { Some(on_nodes(&place.mems)?) } else { None };
        Ok(Self { needed, available, on_nodes })
    }
}

fn not_read(path: &str) -> io::Error {
    io::Error::other(format!("{path} is not as documented"))
}

fn on_nodes(nodes: &NodeSet) -> io::Result<u64> {
    let on_node = |node: u32| {
        let path = format!("/sys/devices/system/node/node{node}/meminfo");
        reclaimable(&fs::read_to_string(&path)?).ok_or_else(|| not_read(&path))
    };
    nodes.iter().map(|node| on_node(node.0)).sum()
}

/// MemAvailable of proc_meminfo(5), bytes.
fn available(meminfo: &str) -> Option<u64> {
    kib(meminfo, "MemAvailable:")
}

/// What a node has free, or can free at once, bytes: it has no MemAvailable (`Documentation/ABI/stable/sysfs-devices-node`).
fn reclaimable(meminfo: &str) -> Option<u64> {
    Some(kib(meminfo, "MemFree:")? + kib(meminfo, "Inactive(file):")?)
}

/// The figure after this word, which the kernel gives in KiB.
fn kib(meminfo: &str, word: &str) -> Option<u64> {
    let mut words = meminfo.split_whitespace().skip_while(|found| *found != word).skip(1);
    words.next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_the_host_and_the_nodes_need_room() {
        let check = |needed, available, on_nodes, expected: Option<&str>| {
            let found = Memory { needed, available, on_nodes }.check().map_err(|error| error.to_string());
            match (found, expected) {
                (Ok(()), None) => {}
                (Err(found), Some(expected)) => assert_eq!(found, expected),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        };
        check(MIB, MIB, None, None);
        check(MIB, MIB, Some(MIB), None);
        let (two, host) = (MIB + 1, "a second shard needs 2 MiB, and 1 MiB are available on this host");
        check(two, MIB, None, Some(host));
        check(two, 4 * MIB, Some(MIB), Some("a second shard needs 2 MiB, and 1 MiB are available on its memory nodes"));
        check(two, MIB, Some(4 * MIB), Some(host));
    }

    #[test]
    fn the_kernel_is_read() {
        let host = "MemTotal:       24683560 kB\nMemFree:         5182100 kB\nMemAvailable:   20795328 kB\n";
        assert_eq!(available(host), Some(20_795_328 << 10));
        let node = "Node 0 MemTotal:       24683560 kB\nNode 0 MemFree:         5182100 kB\n\
                    Node 0 Inactive:        9182100 kB\nNode 0 Inactive(file):  8000000 kB\n";
        assert_eq!(reclaimable(node), Some(13_182_100 << 10));
        assert_eq!(available("MemFree: 1 kB\n"), None);
        assert_eq!(reclaimable("Node 0 MemFree: much kB\n"), None);
        let own = UsageReader::new().memory_of(std::process::id());
        assert!(own.is_some_and(|bytes| bytes > 100 << 10), "{own:?}");
        let present = available(&fs::read_to_string("/proc/meminfo").expect("/proc"));
        assert!(present.is_some_and(|bytes| bytes > 0));
    }
}
