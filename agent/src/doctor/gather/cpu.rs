//! CPUs: frequency, interrupts, isolation, clocks.

use std::collections::BTreeMap;

use sherd_topology::model::{CpuId, CpuSet};

use super::{Tree, network, processes};
use crate::doctor::facts::{CpuFacts, Fact, FrequencyPolicy, Irq, Irqbalance};

const CPUS: &str = "/sys/devices/system/cpu";
const CLOCKS: &str = "/sys/devices/system/clocksource/clocksource0";

pub(super) fn facts(tree: &Tree) -> CpuFacts {
    CpuFacts {
        online: tree.value(&format!("{CPUS}/online")),
        isolated: tree.value(&format!("{CPUS}/isolated")),
        // Some kernels say "(null)" where none is.
        nohz_full: tree.parsed(&format!("{CPUS}/nohz_full"), |text| match text.trim() {
            "(null)" => Some(CpuSet::new()),
            list => list.parse().ok(),
        }),
        frequency: frequency(tree),
        irqs: irqs(tree),
        uptime_seconds: tree.parsed("/proc/uptime", |text| text.split(' ').next()?.parse().ok()),
        irqbalance: irqbalance(tree),
        clocksource: tree.value(&format!("{CLOCKS}/current_clocksource")),
        clocksources: tree.value(&format!("{CLOCKS}/available_clocksource")),
    }
}

fn frequency(tree: &Tree) -> Fact<Vec<FrequencyPolicy>> {
    let directory = format!("{CPUS}/cpufreq");
    let Some(names) = tree.names(&directory)? else { return Ok(None) };
    let mut policies = Vec::new();
    for name in names.iter().filter(|name| name.starts_with("policy")) {
        let file = |file: &str| format!("{directory}/{name}/{file}");
        // Written with blanks: "0 1 2 3".
        let cpus = tree.parsed(&file("affected_cpus"), |text| {
            text.split_whitespace().map(|cpu| cpu.parse().ok().map(CpuId)).collect::<Option<CpuSet>>()
        })?;
        let Some(governor) = tree.value(&file("scaling_governor"))? else { continue };
        let available = tree.text(&file("scaling_available_governors"))?.unwrap_or_default();
        let available = available.split_whitespace().map(str::to_owned).collect();
        policies.push(FrequencyPolicy { cpus: cpus.unwrap_or_default(), governor, available });
    }
    Ok(Some(policies))
}

fn irqs(tree: &Tree) -> Fact<Vec<Irq>> {
    let Some(names) = tree.names("/proc/irq")? else { return Ok(None) };
    let table = tree.text("/proc/interrupts")?.unwrap_or_default();
    let mut counts = counts(&table);
    let mut irqs = Vec::new();
    for number in names.iter().filter_map(|name| name.parse::<u32>().ok()) {
        let directory = format!("/proc/irq/{number}");
        // Before Linux 4.13, or where the interrupt controller doesn't tell, there is only what was asked for.
        let effective = tree.value::<CpuSet>(&format!("{directory}/effective_affinity_list"))?;
        let effective = effective.filter(|cpus| !cpus.is_empty());
        let asked = || tree.value::<CpuSet>(&format!("{directory}/smp_affinity_list"));
        let Some(cpus) = effective.map_or_else(asked, |cpus| Ok(Some(cpus)))? else { continue };
        // Its handlers are directories; all else are files.
        let names = tree.names(&directory)?.unwrap_or_default();
        let handler = names.into_iter().find(|name| tree.path(&format!("{directory}/{name}")).is_dir());
        let Some(name) = handler else { continue };
        irqs.push(Irq { number, name, cpus, counts: counts.remove(&number).unwrap_or_default() });
    }
    Ok(Some(irqs))
}

/// The first line names the online CPUs, the others begin with an interrupt's number and a count for each of them.
fn counts(table: &str) -> BTreeMap<u32, BTreeMap<CpuId, u64>> {
    let mut lines = table.lines();
    let heading = lines.next().unwrap_or_default().split_whitespace();
    let cpus: Vec<CpuId> = heading.filter_map(|word| word.strip_prefix("CPU")?.parse().ok().map(CpuId)).collect();
    let row = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        let counts = rest.split_whitespace().map_while(|word| word.parse::<u64>().ok());
        Some((number.trim().parse().ok()?, cpus.iter().copied().zip(counts).collect()))
    };
    lines.filter_map(row).collect()
}

fn irqbalance(tree: &Tree) -> Fact<Irqbalance> {
    let Some(pid) = processes::named(tree, "irqbalance")? else { return Ok(None) };
    let path = format!("/proc/{pid}/environ");
    let environment = tree.text(&path)?.unwrap_or_default();
    let value =
        |name: &str| environment.split('\0').find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='));
    // irqbalance(1): a list, or as it was before version 1.8 a mask.
    let banned = match (value("IRQBALANCE_BANNED_CPULIST"), value("IRQBALANCE_BANNED_CPUS")) {
        (Some(list), _) => list.parse().ok(),
        (None, Some(mask)) => network::mask(mask),
        (None, None) => Some(CpuSet::new()),
    };
    let not_documented = || super::unread(&path, &"its list of banned CPUs is not as documented");
    Ok(Some(Irqbalance { pid, banned: banned.ok_or_else(not_documented)? }))
}
