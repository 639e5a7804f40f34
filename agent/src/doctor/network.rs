//! Checks of the network: connection tracking, queues of connections, ports, where packets are handled.

use std::collections::BTreeMap;

use sherd_topology::model::CpuSet;

use super::{
    Check, Findings, Severity,
    facts::{HostFacts, Queue},
    slots::Claims,
};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "conntrack-full", source: "/proc/sys/net/netfilter/nf_conntrack_{count,max}", run: conntrack_full },
    Check { name: "conntrack-path", source: "/proc/net/nf_conntrack", run: conntrack_path },
    Check { name: "somaxconn", source: "/proc/sys/net/core/somaxconn", run: somaxconn },
    Check { name: "syn-backlog", source: "/proc/sys/net/ipv4/{tcp_syncookies,tcp_max_syn_backlog}", run: syn_backlog },
    Check { name: "port-range", source: "/proc/sys/net/ipv4/ip_local_{port_range,reserved_ports}", run: port_range },
    Check { name: "tcp-tw-reuse", source: "/proc/sys/net/ipv4/tcp_tw_reuse", run: tw_reuse },
    Check { name: "rps", source: "/sys/class/net/*/queues/rx-*/rps_cpus", run: rps },
    Check { name: "xps", source: "/sys/class/net/*/queues/tx-*/xps_cpus", run: xps },
];

/// A table that is this full, in percent, may be full in the next burst.
const CONNTRACK_WARNING_PERCENT: u64 = 75;
/// From here on it has no room for a burst at all.
const CONNTRACK_ERROR_PERCENT: u64 = 95;
/// The kernel's own default since Linux 5.4; listeners of sherd ask for as much as there is.
const USUAL_SOMAXCONN: u64 = 4096;

fn conntrack_full(facts: &HostFacts, findings: &mut Findings<'_>) {
    let network = &facts.network;
    let (Some(count), Some(max)) = (findings.known(&network.conntrack_count), findings.known(&network.conntrack_max))
    else {
        return;
    };
    // 0 is no limit.
    let Some(percent) = count.saturating_mul(100).checked_div(*max) else { return };
    let severity = match percent {
        CONNTRACK_ERROR_PERCENT.. => Severity::Error,
        CONNTRACK_WARNING_PERCENT.. => Severity::Warning,
        _ => return,
    };
    findings.add(
        severity,
        format!("{count} of {max} connections are tracked"),
        "when the table is full, the kernel drops the packets of new connections",
        format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(4)),
    );
}

fn conntrack_path(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(claims) = facts.claims() else { return };
    // Nothing can be tracked where there is no table.
    if findings.known(&facts.network.conntrack_max).is_none() {
        return;
    }
    let Some(tracked) = findings.known(&facts.network.tracked_ports) else { return };
    let ports: Vec<String> = claims.ports.intersection(tracked).map(ToString::to_string).collect();
    if let Some(first) = ports.first() {
        findings.add(
            Severity::Note,
            format!("connections to published ports are tracked: {}", ports.join(", ")),
            "each packet looks its connection up, and each connection takes a place in the table; sherd itself needs no NAT",
            format!(
                "if no firewall rule needs their state: iptables -t raw -A PREROUTING -p tcp --dport {first} -j CT --notrack; \
                 iptables -t raw -A OUTPUT -p tcp --sport {first} -j CT --notrack; ip6tables likewise"
            ),
        );
    }
}

fn somaxconn(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(somaxconn) = findings.known(&facts.network.somaxconn) else { return };
    if *somaxconn < USUAL_SOMAXCONN {
        findings.add(
            Severity::Warning,
            format!("net.core.somaxconn is {somaxconn}"),
            "so many connections may wait at a listener, also while no shard is ready or the agent restarts; more are dropped",
            format!(
                "sysctl -w net.core.somaxconn={USUAL_SOMAXCONN}; a listener that exists keeps what it has until its group is \
                 stopped and applied again"
            ),
        );
    }
}

/// The limit counts only without SYN cookies (`tcp_conn_request`); with them a listener's own backlog does.
fn syn_backlog(facts: &HostFacts, findings: &mut Findings<'_>) {
    let network = &facts.network;
    let (Some(cookies), Some(backlog)) =
        (findings.known(&network.syncookies), findings.known(&network.max_syn_backlog))
    else {
        return;
    };
    let Some(somaxconn) = findings.known(&network.somaxconn) else { return };
    if *cookies == 0 && backlog < somaxconn {
        findings.add(
            Severity::Warning,
            format!("net.ipv4.tcp_max_syn_backlog is {backlog}, and SYN cookies are off"),
            "no more handshakes than that can be under way at a listener, whatever its queue holds",
            "sysctl -w net.ipv4.tcp_syncookies=1",
        );
    }
}

fn port_range(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(claims) = facts.claims() else { return };
    let network = &facts.network;
    let Some((first, last)) = findings.known(&network.local_ports) else { return };
    let Some(reserved) = findings.known(&network.reserved_ports) else { return };
    let is_reserved = |port: &u16| reserved.iter().any(|(first, last)| (first..=last).contains(&port));
    let open = claims.ports.iter().filter(|port| (first..=last).contains(port) && !is_reserved(port));
    let open: Vec<String> = open.map(ToString::to_string).collect();
    if !open.is_empty() {
        let kept = reserved.iter().map(|(first, last)| format!("{first}-{last},")).collect::<String>();
        findings.add(
            Severity::Warning,
            format!(
                "published ports are in the range {first}-{last} that outgoing connections get: {}",
                open.join(", ")
            ),
            "after a reboot another program's connection may have the port before sherd binds it",
            format!("sysctl -w net.ipv4.ip_local_reserved_ports={kept}{}", open.join(",")),
        );
    }
}

fn tw_reuse(facts: &HostFacts, findings: &mut Findings<'_>) {
    if findings.known(&facts.network.tw_reuse) == Some(&1) {
        findings.add(
            Severity::Note,
            "net.ipv4.tcp_tw_reuse is 1: for connections to everywhere",
            "sherd sets it where it needs it, in shards' namespaces; on the host, 2 (loopback alone) is the kernel's choice",
            "sysctl -w net.ipv4.tcp_tw_reuse=2",
        );
    }
}

fn rps(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(claims) = facts.claims() else { return };
    let Some(queues) = findings.known(&facts.network.queues) else { return };
    let steered: Vec<&Queue> =
        queues.iter().filter(|queue| queue.name.starts_with("rx-") && !queue.cpus.is_empty()).collect();
    for queue in &steered {
        let cpus = queue.cpus.intersection(&claims.quiet);
        if !cpus.is_empty() {
            findings.add(
                Severity::Warning,
                format!("packets of {} {} are handled on CPUs {cpus} of slots (RPS)", queue.device, queue.name),
                "every shard's packets take time of these shards' CPUs",
                format!("echo 0 >/sys/class/net/{}/queues/{}/rps_cpus", queue.device, queue.name),
            );
        }
    }
    local_without_packets(&claims, queues, findings);
}

/// Under `local` the CPU that handles the first packet says which slot it is: one that handles none gets none.
fn local_without_packets(claims: &Claims, queues: &[Queue], findings: &mut Findings<'_>) {
    let mut devices: BTreeMap<&str, (CpuSet, bool)> = BTreeMap::new();
    for queue in queues.iter().filter(|queue| queue.name.starts_with("rx-")) {
        let (cpus, by_interrupt) = devices.entry(&queue.device).or_default();
        *cpus = cpus.union(&queue.cpus);
        *by_interrupt |= queue.cpus.is_empty();
    }
    for (group, cpus) in &claims.local {
        for (device, (handled, _)) in devices.iter().filter(|(_, (_, by_interrupt))| !by_interrupt) {
            let without = cpus.difference(handled);
            if !without.is_empty() {
                findings.add(
                    Severity::Warning,
                    format!("no packet of {device} is handled on CPUs {without} of group {group} (RPS)"),
                    "its policy is `local`: the slots of these CPUs get no connections from there",
                    format!("for queue in /sys/class/net/{device}/queues/rx-*; do echo 0 >$queue/rps_cpus; done"),
                );
            }
        }
    }
}

fn xps(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(queues) = findings.known(&facts.network.queues) else { return };
    let mut devices: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
    for queue in queues.iter().filter(|queue| queue.name.starts_with("tx-")) {
        let (count, has_any) = devices.entry(&queue.device).or_default();
        *count += 1;
        *has_any |= !queue.cpus.is_empty();
    }
    for (device, (count, _)) in devices.iter().filter(|(_, (count, has_any))| *count > 1 && !has_any) {
        findings.add(
            Severity::Note,
            format!("{device} has {count} transmit queues, and no CPU has one of its own (XPS is off)"),
            "a connection's queue is chosen by hash: shards on different CPUs wait for the same queue's lock",
            format!("for each queue N and its CPUs' mask M: echo M >/sys/class/net/{device}/queues/tx-N/xps_cpus"),
        );
    }
}
