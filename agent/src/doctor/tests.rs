//! Each check on a tree of files: a host without a fault, and the same with one.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path};

use serde_json::{Value, json};

use super::*;
use crate::status::AgentStatus;

/// A host of four CPUs and two nodes whose agent (pid 100) runs two slots on CPUs 1 and 2 behind port 8080. `->` is a
/// link.
const HEALTHY: &[(&str, &str)] = &[
    ("sys/devices/system/cpu/online", "0-3\n"),
    ("sys/devices/system/cpu/isolated", "\n"),
    ("sys/devices/system/cpu/nohz_full", "(null)\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/affected_cpus", "0 1 2 3\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance\n"),
    ("sys/devices/system/cpu/cpufreq/policy0/scaling_available_governors", "performance powersave\n"),
    (
        "proc/interrupts",
        "           CPU0       CPU1       CPU2       CPU3\n 24:    700   10   5000    3  PCI-MSI 5-edge  eth0\nERR: 0\n",
    ),
    ("proc/uptime", "100.5 390.1\n"),
    ("proc/irq/24/effective_affinity_list", "0\n"),
    ("proc/irq/24/smp_affinity_list", "0-3\n"),
    ("proc/irq/24/eth0/handler", ""),
    ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
    ("sys/devices/system/clocksource/clocksource0/available_clocksource", "tsc hpet acpi_pm \n"),
    ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
    ("sys/kernel/mm/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never\n"),
    ("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"),
    ("sys/devices/system/node/has_memory", "0-1\n"),
    ("proc/sys/vm/zone_reclaim_mode", "0\n"),
    ("proc/sys/kernel/numa_balancing", "0\n"),
    ("proc/sys/net/netfilter/nf_conntrack_count", "12\n"),
    ("proc/sys/net/netfilter/nf_conntrack_max", "262144\n"),
    (
        "proc/net/nf_conntrack",
        "ipv4     2 tcp      6 9 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=8080 dport=22 src=10.0.0.2 dst=10.0.0.1 sport=22 dport=8080 [ASSURED] use=1\n",
    ),
    ("proc/sys/net/core/somaxconn", "4096\n"),
    ("proc/sys/net/core/bpf_jit_enable", "1\n"),
    ("proc/sys/net/ipv4/tcp_syncookies", "1\n"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "1024\n"),
    ("proc/sys/net/ipv4/tcp_tw_reuse", "2\n"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
    ("proc/sys/net/ipv4/ip_local_reserved_ports", "\n"),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0\n"),
    ("sys/class/net/eth0/queues/rx-1/rps_cpus", "00000000,00000000\n"),
    ("sys/class/net/eth0/queues/tx-0/xps_cpus", "3\n"),
    ("sys/class/net/eth0/queues/tx-1/xps_cpus", "c\n"),
    ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
    ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"),
    ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
    ("proc/cgroups", "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpuset\t0\t9\t1\nmemory\t0\t9\t1\n"),
    ("proc/sys/kernel/unprivileged_bpf_disabled", "2\n"),
    ("proc/sys/kernel/bpf_stats_enabled", "0\n"),
    ("proc/100/comm", "sherd\n"),
    ("proc/100/cmdline", "/usr/local/bin/sherd\0agent\0"),
    ("proc/100/status", "Name:\tsherd\nCapEff:\t000001ffffffffff\n"),
    (
        "proc/100/limits",
        "Limit    Soft Limit   Hard Limit  Units\nMax open files            1048576              1048576              files\n",
    ),
    ("proc/100/fd/0", ""),
    ("proc/100/exe", "->/usr/local/bin/sherd"),
    ("proc/99/comm", "sherd\n"),
    ("proc/99/cmdline", "/usr/local/bin/sherd\0holder\0--socket\0/run/sherd/holder.sock\0"),
    ("proc/99/status", "CapEff:\t0000000000000000\n"),
    ("proc/99/limits", "Max open files            unlimited              unlimited              files\n"),
    ("proc/99/fd/0", ""),
    ("proc/99/exe", "->/usr/local/bin/sherd"),
    ("run/systemd/system/x", ""),
    ("usr/local/lib/systemd/system/sherd.service", ""),
    ("etc/systemd/system/multi-user.target.wants/sherd.service", "->/usr/local/lib/systemd/system/sherd.service"),
    (
        "etc/systemd/system/multi-user.target.wants/sherd-holder.service",
        "->/usr/local/lib/systemd/system/sherd-holder.service",
    ),
];

fn slot(number: u32, cpus: &str) -> Value {
    json!({
        "slot": number, "cpus": cpus, "mems": "0", "node": "0", "state": "ready", "path": "direct", "path_reason": null,
        "shard": "a", "pid": 7, "generation": 1, "since_unix_ms": 0, "shard_started_unix_ms": 0, "restarts": 0,
        "ready": true, "connections": 0, "accepted": 0, "cause": null, "last_error": null,
    })
}

fn group(name: &str, policy: &str, cpus: &[&str]) -> Value {
    let slots: Vec<Value> = (0..).zip(cpus).map(|(number, cpus)| slot(number, cpus)).collect();
    json!({
        "name": name, "runtime": "docker", "unit": "core", "spec": "0", "state": "ready", "message": null,
        "ports": [{
            "address": "[::]:8080", "container_port": 80, "policy": policy, "steering": "ebpf",
            "steering_reason": null, "path": "direct", "error": null,
        }],
        "slots": slots,
    })
}

fn status(groups: &[Value]) -> AgentStatus {
    serde_json::from_value(json!({
        "version": "0", "pid": 100, "instance": "default", "started_unix_ms": 0, "host": "h", "usable_cpus": "0-3",
        "reserved_cpus": "0", "groups": groups, "warnings": [],
        "runtimes": [{"name": "docker", "available": true, "version": "1", "error": null}],
    }))
    .unwrap()
}

/// What is asked, before it is gathered.
struct Host {
    files: BTreeMap<&'static str, &'static str>,
    agent: Fact<AgentStatus>,
    engine: Fact<EngineFacts>,
    settings: Result<(), String>,
}

fn healthy() -> Host {
    let engine = EngineFacts { name: "Engine".into(), version: "27.0".into(), api: (1, 46), live_restore: true };
    Host {
        files: HEALTHY.iter().copied().collect(),
        agent: Ok(Some(status(&[group("web", "connection", &["1", "2"])]))),
        engine: Ok(Some(engine)),
        settings: Ok(()),
    }
}

fn diagnose(host: &Host) -> Diagnosis {
    let root = tempfile::tempdir().unwrap();
    for (file, text) in &host.files {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match text.strip_prefix("->") {
            Some(target) => symlink(target, path).unwrap(),
            None => fs::write(path, text).unwrap(),
        }
    }
    let (agent, engine) = (host.agent.clone(), host.engine.clone());
    examine(&gather(root.path(), Path::new("/run/sherd"), agent, engine, host.settings.clone()))
}

/// The findings: severity, check, and parts of what and remedy.
#[track_caller]
fn check_host(host: &Host, expected: &[(Severity, &str, &str, &str)]) {
    let diagnosis = diagnose(host);
    assert_eq!(diagnosis.findings.len(), expected.len(), "{:#?}", diagnosis.findings);
    for (finding, (severity, check, what, remedy)) in diagnosis.findings.iter().zip(expected) {
        assert_eq!((finding.severity, &*finding.check), (*severity, *check), "{finding:#?}");
        assert!(finding.what.contains(what), "{what:?} is not in {finding:#?}");
        assert!(finding.remedy.contains(remedy), "{remedy:?} is not in {finding:#?}");
        assert!(!finding.why.is_empty() && !finding.source.is_empty());
    }
    assert_eq!(diagnosis.unchecked, []);
}

/// The same for a host whose files differ so; `None` is a file that isn't there.
#[track_caller]
fn check(files: &[(&'static str, Option<&'static str>)], expected: &[(Severity, &str, &str, &str)]) {
    let mut host = healthy();
    for (file, text) in files {
        match text {
            Some(text) => _ = host.files.insert(file, text),
            None => _ = host.files.remove(file),
        }
    }
    check_host(&host, expected);
}

use Severity::{Error, Note, Warning};

const POLICY: &str = "sys/devices/system/cpu/cpufreq/policy0/scaling_governor";

#[test]
fn a_host_without_a_fault_has_no_finding() {
    let diagnosis = diagnose(&healthy());
    assert_eq!((diagnosis.findings, diagnosis.unchecked), (vec![], vec![]));
}

#[test]
fn what_a_host_does_not_have_is_no_fault() {
    let kept = |file: &str| {
        ["proc/100", "proc/99", "etc/", "usr/", "run/", "proc/self", "sys/fs"].iter().any(|kept| file.starts_with(kept))
    };
    let mut host = healthy();
    host.files.retain(|file, _| kept(file));
    check_host(&host, &[]);
}

#[test]
fn frequency() {
    check(
        &[(POLICY, Some("schedutil\n"))],
        &[(Warning, "cpu-governor", "CPUs 0-3 have the frequency governor schedutil", "cpupower --cpu 0-3")],
    );
    let available = "sys/devices/system/cpu/cpufreq/policy0/scaling_available_governors";
    check(
        &[(POLICY, Some("ondemand\n")), (available, Some("ondemand\n"))],
        &[(Warning, "cpu-governor", "ondemand", "modprobe")],
    );
    // No slot has these.
    check(
        &[(POLICY, Some("powersave\n")), ("sys/devices/system/cpu/cpufreq/policy0/affected_cpus", Some("0 3\n"))],
        &[],
    );
}

#[test]
fn interrupts() {
    let effective = "proc/irq/24/effective_affinity_list";
    check(
        &[(effective, Some("2\n"))],
        &[(
            Warning,
            "irq-affinity",
            "49.8 a second since boot: 24 (eth0, 5000 times on CPUs 2)",
            "echo 0,3 >/proc/irq/24/smp_affinity_list",
        )],
    );
    check(&[(effective, None)], &[(Warning, "irq-affinity", "5010 times on CPUs 1-2", "echo 0,3")]);
    // It may go there, and never did.
    check(&[(effective, Some("2\n")), ("proc/interrupts", Some("     CPU0 CPU1 CPU2 CPU3\n 24: 9 9 0 9 PCI\n"))], &[]);
    check(
        &[(effective, Some("2\n")), ("proc/uptime", Some("50000.0 1.0\n"))],
        &[(Note, "irq-affinity", "0.1 a second since boot", "echo 0,3")],
    );
    // Nobody handles it.
    check(&[(effective, Some("2\n")), ("proc/irq/24/eth0/handler", None)], &[]);
    let all = Host { agent: Ok(Some(status(&[group("web", "connection", &["0-1", "2-3"])]))), ..healthy() };
    check_host(&all, &[(Note, "irq-affinity", "24 (eth0, 700 times on CPUs 0)", "no CPU is without a slot")]);
    // Their packets belong on the slots' CPUs.
    check_host(&Host { agent: Ok(Some(status(&[group("web", "local", &["0-1", "2-3"])]))), ..healthy() }, &[]);
    // Shared CPUs are nobody's own.
    let shared = [group("web", "connection", &["0"]), group("api", "connection", &["0"])];
    check_host(&Host { agent: Ok(Some(status(&shared))), ..healthy() }, &[]);
}

#[test]
fn irqbalance() {
    let comm = ("proc/50/comm", Some("irqbalance\n"));
    let found =
        (Warning, "irqbalance", "irqbalance (pid 50) may move interrupts to CPUs 1-2", "IRQBALANCE_BANNED_CPULIST=1-2");
    check(&[comm], &[found]);
    check(
        &[comm, ("proc/50/environ", Some("A=1\0IRQBALANCE_BANNED_CPULIST=1\0"))],
        &[(Warning, "irqbalance", "CPUs 2 of slots", "=1-2")],
    );
    check(&[comm, ("proc/50/environ", Some("IRQBALANCE_BANNED_CPULIST=1-2\0"))], &[]);
    check(
        &[comm, ("sys/devices/system/cpu/isolated", Some("1\n")), ("sys/devices/system/cpu/nohz_full", Some("2\n"))],
        &[(Note, "nohz-full", "CPUs 2 of slots", "nohz_full=")],
    );
}

#[test]
fn isolation() {
    check(
        &[("sys/devices/system/cpu/isolated", Some("1-3\n"))],
        &[(Note, "isolcpus", "CPUs 3 are isolated and no slot has them", "isolcpus=")],
    );
    let host = Host { agent: Ok(Some(status(&[group("web", "connection", &["1-2"])]))), ..healthy() };
    let isolated = Host {
        files: host
            .files
            .iter()
            .map(|(file, text)| (*file, if file.ends_with("isolated") { "1-2\n" } else { text }))
            .collect(),
        ..host
    };
    check_host(&isolated, &[(Warning, "isolcpus", "web/0 has several isolated CPUs: 1-2", "unit = \"pu\"")]);
}

#[test]
fn clocks() {
    let current = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    let available = "sys/devices/system/clocksource/clocksource0/available_clocksource";
    check(&[(current, Some("hpet\n"))], &[(Warning, "clocksource", "the clock source is hpet", "echo tsc >")]);
    check(
        &[(current, Some("acpi_pm\n")), (available, Some("acpi_pm \n"))],
        &[(Warning, "clocksource", "acpi_pm", "dmesg")],
    );
    for good in ["kvm-clock\n", "arch_sys_counter\n", "hyperv_clocksource_tsc_page\n"] {
        check(&[(current, Some(good))], &[]);
    }
}

#[test]
fn memory() {
    let enabled = ("sys/kernel/mm/transparent_hugepage/enabled", Some("[always] madvise never\n"));
    check(&[enabled], &[(Note, "transparent-hugepages", "did not ask for them", "echo madvise >")]);
    check(
        &[enabled, ("sys/kernel/mm/transparent_hugepage/defrag", Some("[always] defer madvise never\n"))],
        &[(Warning, "transparent-hugepages", "at every page fault", "defrag")],
    );
    check(
        &[("proc/swaps", Some("Filename Type Size Used Priority\n/dev/sda2 partition 1048576 2048 -2\n"))],
        &[(Note, "swap", "there is swap (/dev/sda2), 2 MiB of it are in use", "swapoff")],
    );
    let nodes = ("sys/devices/system/node/has_memory", Some("0\n"));
    let reclaim = ("proc/sys/vm/zone_reclaim_mode", Some("1\n"));
    check(&[reclaim], &[(Warning, "zone-reclaim", "vm.zone_reclaim_mode is 1", "sysctl -w vm.zone_reclaim_mode=0")]);
    check(&[reclaim, nodes], &[]);
    let balancing = ("proc/sys/kernel/numa_balancing", Some("1\n"));
    check(&[balancing], &[(Warning, "numa-balancing", "kernel.numa_balancing is 1", "=0")]);
    check(&[balancing, nodes], &[]);
    // A process shard's memory policy is respected, its mappings aren't scanned.
    let mut processes = status(&[group("web", "connection", &["1"])]);
    processes.groups[0].runtime = "process".into();
    let mut host = Host { agent: Ok(Some(processes)), ..healthy() };
    host.files.insert(balancing.0, "1\n");
    check_host(&host, &[]);
}

#[test]
fn connection_tracking() {
    let count = "proc/sys/net/netfilter/nf_conntrack_count";
    check(&[(count, Some("200000\n"))], &[(Warning, "conntrack-full", "200000 of 262144", "nf_conntrack_max=1048576")]);
    check(&[(count, Some("262000\n"))], &[(Error, "conntrack-full", "262000 of 262144", "nf_conntrack_max=1048576")]);
    check(&[("proc/sys/net/netfilter/nf_conntrack_max", Some("0\n"))], &[]);
    let table = "proc/net/nf_conntrack";
    let tracked = "ipv4     2 tcp      6 9 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=5 dport=8080 src=10.0.0.2 dst=10.0.0.1 sport=8080 dport=5 use=1\n";
    check(
        &[(table, Some(tracked))],
        &[(Note, "conntrack-path", "published ports are tracked: 8080", "--dport 8080 -j CT --notrack")],
    );
    let udp = "ipv4     2 udp      17 9 src=10.0.0.1 dst=10.0.0.2 sport=5 dport=8080 src=10.0.0.2 dst=10.0.0.1 sport=8080 dport=5 use=1\n";
    check(&[(table, Some(udp))], &[]);
}

#[test]
fn queues_of_connections() {
    let somaxconn = ("proc/sys/net/core/somaxconn", Some("128\n"));
    check(&[somaxconn], &[(Warning, "somaxconn", "net.core.somaxconn is 128", "net.core.somaxconn=4096")]);
    let cookies = ("proc/sys/net/ipv4/tcp_syncookies", Some("0\n"));
    check(&[cookies], &[(Warning, "syn-backlog", "tcp_max_syn_backlog is 1024", "tcp_syncookies=1")]);
    check(&[cookies, ("proc/sys/net/ipv4/tcp_max_syn_backlog", Some("4096\n"))], &[]);
}

#[test]
fn ports() {
    let range = ("proc/sys/net/ipv4/ip_local_port_range", Some("1024\t65535\n"));
    let reserved = "proc/sys/net/ipv4/ip_local_reserved_ports";
    check(&[range], &[(Warning, "port-range", "outgoing connections get: 8080", "ip_local_reserved_ports=8080")]);
    check(
        &[range, (reserved, Some("90,7000-7100\n"))],
        &[(Warning, "port-range", "1024-65535", "=90-90,7000-7100,8080")],
    );
    check(&[range, (reserved, Some("90,8000-8100\n"))], &[]);
    check(&[("proc/sys/net/ipv4/tcp_tw_reuse", Some("1\n"))], &[(Note, "tcp-tw-reuse", "tcp_tw_reuse is 1", "=2")]);
    check(&[("proc/sys/net/ipv4/tcp_tw_reuse", Some("0\n"))], &[]);
}

#[test]
fn packets() {
    let (rx0, rx1) = ("sys/class/net/eth0/queues/rx-0/rps_cpus", "sys/class/net/eth0/queues/rx-1/rps_cpus");
    check(
        &[(rx1, Some("00000000,0000000e\n"))],
        &[(
            Warning,
            "rps",
            "packets of eth0 rx-1 are handled on CPUs 1-2 of slots",
            "echo 0 >/sys/class/net/eth0/queues/rx-1/rps_cpus",
        )],
    );
    check(&[(rx1, Some("9\n"))], &[]);
    let local = |first: &'static str, second: &'static str| {
        let mut host = Host { agent: Ok(Some(status(&[group("web", "local", &["1", "2"])]))), ..healthy() };
        host.files.extend([(rx0, first), (rx1, second)]);
        host
    };
    check_host(
        &local("1\n", "3\n"),
        &[(Warning, "rps", "no packet of eth0 is handled on CPUs 2 of group web", "/sys/class/net/eth0/")],
    );
    check_host(&local("2\n", "4\n"), &[]);
    // The other queue's packets are handled where its interrupts go.
    check_host(&local("1\n", "0\n"), &[]);
    let (tx0, tx1) = ("sys/class/net/eth0/queues/tx-0/xps_cpus", "sys/class/net/eth0/queues/tx-1/xps_cpus");
    check(&[(tx0, Some("0\n")), (tx1, Some("0\n"))], &[(Note, "xps", "eth0 has 2 transmit queues", "tx-N/xps_cpus")]);
    // One queue has no XPS.
    check(&[(tx0, None), (tx1, None), ("sys/class/net/eth0/queues/tx-0/tx_maxrate", Some("0\n"))], &[]);
}

#[test]
fn kernels() {
    let release = "proc/sys/kernel/osrelease";
    check(&[(release, Some("5.10.0-9\n"))], &[(Error, "kernel-version", "the kernel is 5.10", "6.1")]);
    for relayed in ["5.14.0-503.el9\n", "5.19.1\n", "6.0.0\n"] {
        check(&[(release, Some(relayed))], &[(Warning, "kernel-version", "no direct path", "6.1")]);
    }
    for good in ["6.18.44-x\n", "7.0-rc1\n", "10.2\n"] {
        check(&[(release, Some(good))], &[]);
    }
    check(
        &[("proc/sys/kernel/unprivileged_bpf_disabled", Some("0\n"))],
        &[(Warning, "unprivileged-bpf", "every user", "=2")],
    );
    check(
        &[("proc/sys/kernel/bpf_stats_enabled", Some("1\n"))],
        &[(Warning, "bpf-stats", "measured", "bpf_stats_enabled=0")],
    );
    check(
        &[("proc/sys/net/core/bpf_jit_enable", Some("0\n"))],
        &[(Warning, "bpf-jit", "interpreted", "bpf_jit_enable=1")],
    );
}

#[test]
fn control_groups() {
    let mounts = "proc/self/mountinfo";
    let v1 =
        "31 25 0:27 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n32 25 0:28 / /cg/memory rw - cgroup cgroup rw,memory\n";
    check(&[(mounts, Some(v1))], &[(Error, "cgroups", "cgroup v2 is not mounted", "unified_cgroup_hierarchy=1")]);
    let hybrid =
        "31 25 0:27 / /cg/cpuset rw - cgroup cgroup rw,cpuset\n33 25 0:29 / /cg/unified rw - cgroup2 cgroup2 rw\n";
    check(
        &[(mounts, Some(hybrid)), ("cg/unified/cgroup.controllers", Some("memory hugetlb\n"))],
        &[(Warning, "cgroups", "version 1 has cpuset", "unified_cgroup_hierarchy=1")],
    );
    let net_cls = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n31 25 0:27 / /cg/net rw - cgroup cgroup rw,net_cls,net_prio\n";
    check(&[(mounts, Some(net_cls))], &[]);
    check(
        &[(mounts, Some(net_cls)), ("proc/sys/kernel/osrelease", Some("5.14.0\n"))],
        &[
            (Error, "cgroup-network", "cgroup v1 has net_cls and net_prio", "cgroup_no_v1="),
            (Warning, "kernel-version", "5.14", ""),
        ],
    );
    let controllers = ("sys/fs/cgroup/cgroup.controllers", Some("cpuset cpu io pids\n"));
    check(
        &[controllers, ("proc/cgroups", Some("#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t1\t0\n"))],
        &[(Error, "memory-cgroup", "no memory controller", "cgroup_enable=memory")],
    );
    check(&[("proc/cgroups", None)], &[]);
}

#[test]
fn the_agent() {
    let nobody = Unread { source: "/run/sherd/sherd.sock".into(), reason: "nobody listens there".into() };
    let absent = || Host { agent: Err(nobody.clone()), ..healthy() };
    check_host(&absent(), &[(Error, "agent", "no agent answers on /run/sherd/sherd.sock", "systemctl status sherd")]);
    let mut without_systemd = absent();
    without_systemd.files.retain(|file, _| !file.starts_with("run/"));
    check_host(&without_systemd, &[(Note, "agent", "nobody listens there", "systemctl start sherd")]);
    let faulty = Host { settings: Err("sherd.toml:3: x: no\nsherd.toml:4: y: no".into()), ..healthy() };
    check_host(&faulty, &[(Error, "settings", "sherd.toml:3: x: no; sherd.toml:4: y: no", "as it says")]);
    let mut warned = status(&[group("web", "connection", &["1"])]);
    warned.warnings = vec!["the holder is gone: start it".into()];
    warned.runtimes[0].error = Some("it is away".into());
    check_host(
        &Host { agent: Ok(Some(warned)), ..healthy() },
        &[
            (Error, "agent-warnings", "the holder is gone", "as it says"),
            (Error, "agent-warnings", "runtime docker doesn't answer: it is away", "systemctl restart docker"),
        ],
    );
    check(
        &[("proc/100/status", Some("CapEff:\t000000000000a4a4\n"))],
        &[(
            Error,
            "agent-capabilities",
            "lacks CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_NICE, CAP_SYS_RESOURCE, CAP_BPF",
            "sherd.service",
        )],
    );
    check(&[("proc/100/status", Some("CapEff:\t0000008001a81424\n"))], &[]);
    check(
        &[("proc/100/status", Some("CapEff:\t000001fffeffffff\n"))],
        &[(Warning, "agent-capabilities", "lacks CAP_SYS_RESOURCE", "sherd.service")],
    );
    check(
        &[("proc/100/limits", Some("Max open files  1024  1024  files\n"))],
        &[(Warning, "agent-files", "the agent (pid 100) may have 1024 files open, and has 1", "LimitNOFILE=8388608")],
    );
    check(
        &[("proc/100/limits", Some("Max open files  1  1  files\n"))],
        &[(Error, "agent-files", "may have 1 files", "")],
    );
    check(
        &[("proc/100/exe", Some("->/usr/local/bin/sherd (deleted)"))],
        &[(
            Warning,
            "agent-version",
            "the agent (pid 100) runs a program that has been replaced",
            "systemctl restart sherd",
        )],
    );
}

#[test]
fn the_holder_and_the_units() {
    let line = "proc/99/cmdline";
    check(
        &[(line, Some("sherd\0holder\0--socket\0/other/holder.sock\0"))],
        &[(Error, "holder", "no holder runs", "sherd-holder")],
    );
    check(
        &[("proc/99/limits", Some("Max open files  1024  1024  files\n"))],
        &[(Warning, "holder-files", "the holder (pid 99) may have 1024 files open", "LimitNOFILE=1048576")],
    );
    check(
        &[("proc/99/exe", Some("->/usr/local/bin/sherd (deleted)"))],
        &[(
            Note,
            "holder-version",
            "the holder (pid 99) runs a program that has been replaced",
            "restart sherd-holder",
        )],
    );
    let wants = [
        "etc/systemd/system/multi-user.target.wants/sherd.service",
        "etc/systemd/system/multi-user.target.wants/sherd-holder.service",
    ];
    check(&[(wants[0], None)], &[(Warning, "units", "not enabled: sherd", "systemctl enable sherd")]);
    check(
        &[(wants[0], None), (wants[1], None)],
        &[(Warning, "units", "sherd and sherd-holder", "enable sherd sherd-holder")],
    );
    check(&[("usr/local/lib/systemd/system/sherd.service", None)], &[(Note, "units", "not installed", "make install")]);
}

#[test]
fn the_engine() {
    let engine = |name: &str, api, live_restore| Host {
        engine: Ok(Some(EngineFacts { name: name.into(), version: "4".into(), api, live_restore })),
        ..healthy()
    };
    check_host(
        &engine("Engine", (1, 46), false),
        &[(Warning, "live-restore", "Engine 4 runs without live-restore", "daemon.json")],
    );
    check_host(&engine("Podman Engine", (1, 41), false), &[]);
    check_host(&engine("Engine", (1, 40), true), &[(Error, "engine-version", "speaks API 1.40", "20.10")]);
    check_host(&Host { engine: Ok(None), ..healthy() }, &[]);
    let away = || Err(Unread { source: "/var/run/docker.sock".into(), reason: "no".into() });
    let mut unavailable = status(&[group("web", "connection", &["1"])]);
    unavailable.runtimes[0].available = false;
    let host = Host { agent: Ok(Some(unavailable)), engine: away(), ..healthy() };
    check_host(
        &host,
        &[(Error, "engine", "no container engine answers on /var/run/docker.sock: no", "systemctl start docker")],
    );
    let mut without = status(&[]);
    without.runtimes.clear();
    check_host(
        &Host { agent: Ok(Some(without)), engine: away(), ..healthy() },
        &[(Note, "engine", "no container engine", "")],
    );
    // The agent has one: which, its settings don't tell.
    let elsewhere = diagnose(&Host { engine: away(), ..healthy() });
    assert_eq!((elsewhere.findings.len(), &*elsewhere.unchecked[0].check), (0, "engine"));
}

#[test]
fn what_can_not_be_read_is_said_and_found_by_nobody() {
    let unknown = |file: &'static str, text: &'static str, checks: &[&str]| {
        let mut host = healthy();
        host.files.insert(file, text);
        let diagnosis = diagnose(&host);
        assert_eq!(diagnosis.findings, [], "{file}");
        let found: Vec<&str> = diagnosis.unchecked.iter().map(|unchecked| &*unchecked.check).collect();
        assert_eq!(found, checks, "{:?}", diagnosis.unchecked);
        assert!(diagnosis.unchecked.iter().all(|unchecked| unchecked.source == format!("/{file}")));
    };
    unknown("proc/sys/net/core/somaxconn", "many\n", &["somaxconn", "syn-backlog"]);
    unknown("proc/swaps", "Filename\nx\n", &["swap"]);
    unknown("sys/class/net/eth0/queues/rx-0/rps_cpus", "zz\n", &["rps", "xps"]);
    unknown("sys/kernel/mm/transparent_hugepage/enabled", "always\n", &["transparent-hugepages"]);
    unknown("proc/100/status", "CapEff:\tall\n", &["agent-capabilities"]);
    unknown("sys/devices/system/cpu/online", "\u{fffd}\n", &["irq-affinity"]);
}

#[test]
fn every_check_has_a_name_of_its_own() {
    let tables = [cpu::CHECKS, memory::CHECKS, network::CHECKS, kernel::CHECKS, agent::CHECKS, engine::CHECKS];
    let mut names: Vec<&str> = tables.into_iter().flatten().map(|check| check.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert_eq!(diagnose(&healthy()).checks, count);
}
