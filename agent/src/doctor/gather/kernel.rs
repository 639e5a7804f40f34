//! The kernel: its version, control groups, eBPF.

use std::collections::BTreeSet;

use super::Tree;
use crate::doctor::facts::{CgroupFacts, Fact, KernelFacts};

pub(super) fn facts(tree: &Tree) -> KernelFacts {
    KernelFacts {
        release: tree.value("/proc/sys/kernel/osrelease"),
        cgroups: cgroups(tree),
        unprivileged_bpf_disabled: tree.value("/proc/sys/kernel/unprivileged_bpf_disabled"),
        bpf_stats: tree.value("/proc/sys/kernel/bpf_stats_enabled"),
        bpf_jit: tree.value("/proc/sys/net/core/bpf_jit_enable"),
    }
}

fn cgroups(tree: &Tree) -> Fact<CgroupFacts> {
    let Some(mountinfo) = tree.text("/proc/self/mountinfo")? else { return Ok(None) };
    let mut cgroups = CgroupFacts::default();
    for line in mountinfo.lines() {
        // proc_pid_mountinfo(5): the mount point is the fifth field, the type comes after " - ".
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        match (after.next(), before.split(' ').nth(4)) {
            (Some("cgroup2"), Some(point)) if cgroups.v2.is_none() => {
                let controllers = tree.text(&format!("{point}/cgroup.controllers"))?.unwrap_or_default();
                cgroups.v2 = Some(controllers.split_whitespace().map(str::to_owned).collect());
            }
            // Some options are no controllers (`rw`, `name=systemd`); nobody asks for them.
            (Some("cgroup"), _) => cgroups.v1.extend(after.nth(1).unwrap_or_default().split(',').map(str::to_owned)),
            _ => {}
        }
    }
    let table = tree.text("/proc/cgroups")?.unwrap_or_default();
    cgroups.enabled = enabled(&table);
    Ok(Some(cgroups))
}

/// cgroups(7): name, hierarchy, number of groups, enabled.
fn enabled(table: &str) -> BTreeSet<String> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(3) == Some(&"1")).then(|| words[0].to_owned())
    };
    table.lines().filter(|line| !line.starts_with('#')).filter_map(row).collect()
}
