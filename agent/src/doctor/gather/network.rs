//! The network: sysctls, tracked connections, devices' queues.

use std::collections::BTreeSet;

use sherd_topology::model::{CpuId, CpuSet};

use super::Tree;
use crate::doctor::facts::{Fact, NetworkFacts, Queue};

pub(super) fn facts(tree: &Tree) -> NetworkFacts {
    let ipv4 = |name: &str| tree.value(&format!("/proc/sys/net/ipv4/{name}"));
    NetworkFacts {
        conntrack_count: tree.value("/proc/sys/net/netfilter/nf_conntrack_count"),
        conntrack_max: tree.value("/proc/sys/net/netfilter/nf_conntrack_max"),
        tracked_ports: tree.parsed("/proc/net/nf_conntrack", |text| Some(tracked_ports(text))),
        somaxconn: tree.value("/proc/sys/net/core/somaxconn"),
        syncookies: ipv4("tcp_syncookies"),
        max_syn_backlog: ipv4("tcp_max_syn_backlog"),
        tw_reuse: ipv4("tcp_tw_reuse"),
        local_ports: tree.parsed("/proc/sys/net/ipv4/ip_local_port_range", |text| {
            let (first, last) = text.trim().split_once(char::is_whitespace)?;
            Some((first.parse().ok()?, last.trim().parse().ok()?))
        }),
        reserved_ports: tree.parsed("/proc/sys/net/ipv4/ip_local_reserved_ports", |text| {
            text.trim().split(',').filter(|part| !part.is_empty()).map(range).collect()
        }),
        queues: queues(tree),
    }
}

/// `8080` or `8080-8090`.
fn range(part: &str) -> Option<(u16, u16)> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// Each line has two `dport=`; the first is of the direction in which the connection was made.
fn tracked_ports(text: &str) -> BTreeSet<u16> {
    let port = |line: &str| line.split(' ').find_map(|word| word.strip_prefix("dport=")?.parse().ok());
    text.lines().filter(|line| line.contains(" tcp ")).filter_map(port).collect()
}

fn queues(tree: &Tree) -> Fact<Vec<Queue>> {
    let Some(devices) = tree.names("/sys/class/net")? else { return Ok(None) };
    let mut queues = Vec::new();
    for device in devices {
        let directory = format!("/sys/class/net/{device}/queues");
        for name in tree.names(&directory)?.unwrap_or_default() {
            let file = if name.starts_with("rx-") { "rps_cpus" } else { "xps_cpus" };
            // A device with one transmit queue has no XPS: the file is there, and reading it is ENOENT.
            let cpus = tree.parsed(&format!("{directory}/{name}/{file}"), mask)?.unwrap_or_default();
            queues.push(Queue { device: device.clone(), name, cpus });
        }
    }
    Ok(Some(queues))
}

/// `00000001,8000000f`: words of 32 CPUs in hexadecimal, the last has CPU 0.
pub(super) fn mask(text: &str) -> Option<CpuSet> {
    let mut cpus = CpuSet::new();
    for (word, base) in text.trim().split(',').rev().zip((0..).step_by(32)) {
        let word = u32::from_str_radix(word, 16).ok()?;
        cpus.extend((0..32).filter(|bit| word & (1 << bit) != 0).map(|bit| CpuId(base + bit)));
    }
    Some(cpus)
}
