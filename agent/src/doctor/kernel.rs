//! Checks of the kernel: its version, control groups, eBPF.

use super::{
    Check, Findings, Severity,
    facts::{CgroupFacts, HostFacts},
};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "kernel-version", source: "/proc/sys/kernel/osrelease", run: version },
    Check { name: "cgroups", source: "/proc/self/mountinfo and cgroup.controllers", run: cgroups },
    Check { name: "cgroup-network", source: "/proc/self/mountinfo", run: network_controllers },
    Check { name: "memory-cgroup", source: "/proc/self/mountinfo, cgroup.controllers and /proc/cgroups", run: memory },
    Check { name: "unprivileged-bpf", source: "/proc/sys/kernel/unprivileged_bpf_disabled", run: unprivileged_bpf },
    Check { name: "bpf-stats", source: "/proc/sys/kernel/bpf_stats_enabled", run: bpf_stats },
    Check { name: "bpf-jit", source: "/proc/sys/net/core/bpf_jit_enable", run: bpf_jit },
];

/// What the process runtime wants of its shards' control groups.
const WANTED: [(&str, &str); 2] = [
    ("cpuset", "process shards keep to their CPUs by affinity alone, which their programs can change"),
    ("memory", "memory limits of process shards are not enforced"),
];

/// Major and minor number of a release such as `6.1.0-18-amd64`.
pub(super) fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel(facts: &HostFacts, findings: &mut Findings<'_>) -> Option<(u32, u32)> {
    parse_release(findings.known(&facts.kernel.release)?)
}

fn version(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some((major, minor)) = kernel(facts, findings) else { return };
    let remedy = "boot a kernel of 6.1 or later, as Debian 12's";
    match (major, minor) {
        (6, 1..) | (7.., _) => {}
        (5, 14..) | (6, 0) => findings.add(
            Severity::Warning,
            format!("the kernel is {major}.{minor}: there is no direct path, groups are relayed"),
            "the direct path needs 6.1, where connections that a shard makes listen on the host can be contained; trapping \
             listen(2) alone needs 5.19",
            remedy,
        ),
        _ => findings.add(
            Severity::Error,
            format!("the kernel is {major}.{minor}, sherd is made for 5.14 and later"),
            "a listener that closes loses the connections in its queue: only since 5.14 they move to another one",
            remedy,
        ),
    }
}

fn cgroups(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(cgroups) = findings.known(&facts.kernel.cgroups) else { return };
    let remedy = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line";
    let Some(v2) = &cgroups.v2 else {
        findings.add(
            Severity::Error,
            "cgroup v2 is not mounted",
            "without it there is no direct path, and what a process shard starts can outlive it",
            remedy,
        );
        return;
    };
    let missing =
        || WANTED.iter().filter(|(controller, _)| !v2.contains(*controller) && cgroups.v1.contains(*controller));
    let names: Vec<&str> = missing().map(|(controller, _)| *controller).collect();
    if !names.is_empty() {
        let lost: Vec<&str> = missing().map(|(_, lost)| *lost).collect();
        findings.add(
            Severity::Warning,
            format!("control groups are hybrid: version 1 has {}", names.join(" and ")),
            lost.join("; "),
            remedy,
        );
    }
}

fn network_controllers(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(cgroups) = findings.known(&facts.kernel.cgroups) else { return };
    let taken: Vec<&str> =
        ["net_cls", "net_prio"].into_iter().filter(|controller| cgroups.v1.contains(*controller)).collect();
    if !taken.is_empty() && kernel(facts, findings).is_some_and(|kernel| kernel < (5, 15)) {
        findings.add(
            Severity::Error,
            format!("cgroup v1 has {}", taken.join(" and ")),
            "before Linux 5.15 a process in one of their groups switches the eBPF programs of its cgroup v2 off: the guard \
             of the direct path would not hold",
            "cgroup_no_v1=net_cls,net_prio on the kernel's command line",
        );
    }
}

fn memory(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(CgroupFacts { v2, v1, enabled }) = findings.known(&facts.kernel.cgroups) else { return };
    let has = |set: &std::collections::BTreeSet<String>| set.contains("memory");
    if !v2.as_ref().is_some_and(has) && !has(v1) && !has(enabled) {
        findings.add(
            Severity::Error,
            "the kernel has no memory controller",
            "memory limits of shards have no effect, and one shard can take the memory of all",
            "cgroup_enable=memory on the kernel's command line (Raspberry Pi OS: /boot/firmware/cmdline.txt)",
        );
    }
}

fn unprivileged_bpf(facts: &HostFacts, findings: &mut Findings<'_>) {
    if findings.known(&facts.kernel.unprivileged_bpf_disabled) == Some(&0) {
        findings.add(
            Severity::Warning,
            "every user may load eBPF programs (kernel.unprivileged_bpf_disabled is 0)",
            "a program in a shard could read the kernel's memory by speculation; the agent has CAP_BPF and needs none of it",
            "sysctl -w kernel.unprivileged_bpf_disabled=2",
        );
    }
}

fn bpf_stats(facts: &HostFacts, findings: &mut Findings<'_>) {
    if findings.known(&facts.kernel.bpf_stats).is_some_and(|enabled| *enabled != 0) {
        findings.add(
            Severity::Warning,
            "run times of eBPF programs are measured (kernel.bpf_stats_enabled)",
            "every run of every program reads the clock twice, steering too",
            "sysctl -w kernel.bpf_stats_enabled=0",
        );
    }
}

fn bpf_jit(facts: &HostFacts, findings: &mut Findings<'_>) {
    if findings.known(&facts.kernel.bpf_jit) == Some(&0) {
        findings.add(
            Severity::Warning,
            "eBPF programs are interpreted (net.core.bpf_jit_enable is 0)",
            "steering costs each new connection several times as much",
            "sysctl -w net.core.bpf_jit_enable=1, then systemctl restart sherd",
        );
    }
}
