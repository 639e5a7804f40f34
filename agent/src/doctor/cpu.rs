//! Checks of CPUs: their frequency, who interrupts them, how they tell the time.

use sherd_topology::model::{CpuId, CpuSet};

use super::{
    Check, Findings, Severity,
    facts::{HostFacts, Irq},
};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "cpu-governor", source: "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor", run: governor },
    Check {
        name: "irq-affinity",
        source: "/proc/irq/*/effective_affinity_list, /proc/interrupts and /proc/uptime against the agent's slots",
        run: interrupts,
    },
    Check { name: "irqbalance", source: "/proc/*/comm and the daemon's environment", run: irqbalance },
    Check { name: "isolcpus", source: "/sys/devices/system/cpu/isolated", run: isolated },
    Check { name: "nohz-full", source: "/sys/devices/system/cpu/nohz_full", run: nohz_full },
    Check {
        name: "clocksource",
        source: "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        run: clocksource,
    },
];

/// On average since boot; fewer are lost in a timer's own 100 or more a second.
const MANY_IRQS_PER_SECOND: f64 = 10.0;

/// Interrupts that are named; the others are counted.
const NAMED_IRQS: usize = 3;

/// Reading these takes a system call and a device access, where others take some 20 ns in user mode.
const SLOW_CLOCKS: [&str; 5] = ["hpet", "acpi_pm", "jiffies", "refined-jiffies", "pit"];

fn governor(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(policies) = findings.known(&facts.cpu.frequency) else { return };
    let claimed = facts.claims().map(|claims| claims.cpus).filter(|cpus| !cpus.is_empty());
    let slow = policies.iter().filter(|policy| {
        policy.governor != "performance" && claimed.as_ref().is_none_or(|claimed| !policy.cpus.is_disjoint(claimed))
    });
    let mut cpus = CpuSet::new();
    let (mut governors, mut possible) = (Vec::new(), true);
    for policy in slow {
        cpus = cpus.union(&policy.cpus);
        possible &= policy.available.iter().any(|available| available == "performance");
        if !governors.contains(&&policy.governor) {
            governors.push(&policy.governor);
        }
    }
    if cpus.is_empty() {
        return;
    }
    let names = governors.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    findings.add(
        Severity::Warning,
        format!("CPUs {cpus} have the frequency governor {names}"),
        "a core that was idle answers its first requests at a low frequency",
        match possible {
            true => format!("cpupower --cpu {cpus} frequency-set --governor performance"),
            false => "modprobe cpufreq_performance, then cpupower frequency-set --governor performance".to_owned(),
        },
    );
}

fn interrupts(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(claims) = facts.claims() else { return };
    let (Some(irqs), Some(online)) = (findings.known(&facts.cpu.irqs), findings.known(&facts.cpu.online)) else {
        return;
    };
    let Some(&uptime) = findings.known(&facts.cpu.uptime_seconds) else { return };
    let mut on_slots: Vec<(&Irq, u64)> = irqs.iter().map(|irq| (irq, came(irq, &claims.quiet))).collect();
    on_slots.retain(|(_, count)| *count > 0);
    on_slots.sort_by_key(|(irq, count)| (std::cmp::Reverse(*count), irq.number));
    let Some((first, _)) = on_slots.first() else { return };
    let per_second = on_slots.iter().map(|(_, count)| *count as f64).sum::<f64>() / uptime.max(1.0);
    let what = format!(
        "interrupts go to CPUs of slots, {per_second:.1} a second since boot: {}",
        named(&on_slots, &claims.quiet)
    );
    let why = "each of them takes time from a shard and lines from its caches; `sherd top` says how much";
    let free = claims.left_over(online);
    let few = per_second < MANY_IRQS_PER_SECOND;
    let severity = if few || free.is_empty() { Severity::Note } else { Severity::Warning };
    let remedy = match free.is_empty() {
        true => "no CPU is without a slot: reserved_cpus in /etc/sherd/sherd.toml, if that is worth a shard".to_owned(),
        false => format!(
            "echo {free} >/proc/irq/{}/smp_affinity_list, and so for the others; the kernel refuses it (EIO) for those \
             that it manages itself",
            first.number
        ),
    };
    findings.add(severity, what, why, remedy);
}

fn named(irqs: &[(&Irq, u64)], slots: &CpuSet) -> String {
    let each = irqs.iter().take(NAMED_IRQS);
    let each: Vec<String> = each
        .map(|(irq, count)| {
            format!("{} ({}, {count} times on CPUs {})", irq.number, irq.name, irq.cpus.intersection(slots))
        })
        .collect();
    match irqs.len().saturating_sub(NAMED_IRQS) {
        0 => each.join(", "),
        more => format!("{} and {more} more", each.join(", ")),
    }
}

/// How often the interrupt came on those of the CPUs that it goes to now.
fn came(irq: &Irq, cpus: &CpuSet) -> u64 {
    let now = irq.cpus.intersection(cpus);
    let count = |cpu: CpuId| irq.counts.get(&cpu).copied().unwrap_or(0);
    now.iter().map(count).sum()
}

fn irqbalance(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(daemon) = findings.known(&facts.cpu.irqbalance) else { return };
    let isolated = findings.known(&facts.cpu.isolated).cloned().unwrap_or_default();
    let nohz_full = findings.known(&facts.cpu.nohz_full).cloned().unwrap_or_default();
    let Some(claims) = facts.claims() else { return };
    // irqbalance(1): isolated and nohz_full CPUs are banned unless a list is given.
    let banned = if daemon.banned.is_empty() { isolated.union(&nohz_full) } else { daemon.banned.clone() };
    let open = claims.quiet.difference(&banned);
    if !open.is_empty() {
        findings.add(
            Severity::Warning,
            format!("irqbalance (pid {}) may move interrupts to CPUs {open} of slots", daemon.pid),
            "what was moved off a slot's CPUs comes back",
            format!(
                "echo 'IRQBALANCE_BANNED_CPULIST={}' >>/etc/default/irqbalance && systemctl restart irqbalance",
                claims.quiet
            ),
        );
    }
}

fn isolated(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(isolated) = findings.known(&facts.cpu.isolated) else { return };
    let Some(status) = facts.status() else { return };
    for group in &status.groups {
        for slot in &group.slots {
            let cpus = slot.cpus.intersection(isolated);
            if cpus.len() > 1 {
                findings.add(
                    Severity::Warning,
                    format!("{}/{} has several isolated CPUs: {cpus}", group.name, slot.slot),
                    "the kernel doesn't balance threads over isolated CPUs: all of a shard's stay on one",
                    "unit = \"pu\" in the group's [layout], or take isolcpus= off the kernel's command line",
                );
            }
        }
    }
    let claimed = facts.claims().map(|claims| claims.cpus).unwrap_or_default();
    let idle = isolated.difference(&claimed);
    if !idle.is_empty() && !claimed.is_empty() {
        findings.add(
            Severity::Note,
            format!("CPUs {idle} are isolated and no slot has them"),
            "nothing runs there unless it is pinned there",
            "take them off isolcpus= on the kernel's command line, or give them to a group",
        );
    }
}

fn nohz_full(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(nohz_full) = findings.known(&facts.cpu.nohz_full) else { return };
    let slots = facts.claims().map(|claims| claims.cpus.intersection(nohz_full)).unwrap_or_default();
    if !slots.is_empty() {
        findings.add(
            Severity::Note,
            format!("CPUs {slots} of slots run without a tick (nohz_full)"),
            "each system call and interrupt costs more there: it serves programs that compute, not those that answer requests",
            "take nohz_full= off the kernel's command line, or compare both with sherd-bench",
        );
    }
}

fn clocksource(facts: &HostFacts, findings: &mut Findings<'_>) {
    let Some(current) = findings.known(&facts.cpu.clocksource) else { return };
    if !SLOW_CLOCKS.contains(&current.as_str()) {
        return;
    }
    let available = findings.known(&facts.cpu.clocksources).map_or("", String::as_str);
    let better = available.split_whitespace().find(|clock| !SLOW_CLOCKS.contains(clock));
    findings.add(
        Severity::Warning,
        format!("the clock source is {current}"),
        "asking for the time is a system call and a slow device access, and most servers ask for each request",
        match better {
            Some(better) => format!(
                "echo {better} >/sys/devices/system/clocksource/clocksource0/current_clocksource; `dmesg | grep -i \
                 clocksource` says why the kernel left it"
            ),
            None => "dmesg | grep -i -e tsc -e clocksource: it says why there is no other".to_owned(),
        },
    );
}
