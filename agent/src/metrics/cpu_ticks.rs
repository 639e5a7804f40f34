//! What each CPU did since boot, as /proc/stat counts it. Parses text; reads no file.

use std::collections::BTreeMap;

use sherd_topology::model::CpuId;

/// Clock ticks of one CPU since boot (proc_stat(5)), by what they mean for whoever wanted to run there.
///
/// Without `nohz_full` the kernel samples: a tick counts as a whole for what it interrupts. An hour of it is exact to about a
/// second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CpuTicks {
    /// Tasks, in user mode or in the kernel: `user` (which has `guest` in it), `nice` and `system`.
    pub(super) tasks: u64,
    /// Hardware interrupts.
    pub(super) irq: u64,
    /// Deferred interrupt work, as receiving packets.
    pub(super) softirq: u64,
    /// Taken by the hypervisor while something wanted to run.
    pub(super) steal: u64,
}

/// The `cpuN` lines. A CPU that is offline has none; a line that is not as documented is left out.
pub(super) fn parse(stat: &str) -> BTreeMap<CpuId, CpuTicks> {
    stat.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<(CpuId, CpuTicks)> {
    let mut words = line.strip_prefix("cpu")?.split(' ');
    // The first line, of all CPUs, has no number.
    let cpu = words.next()?.parse().ok()?;
    let ticks: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
    let &[user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = ticks.as_slice() else { return None };
    let tasks = user.saturating_add(nice).saturating_add(system);
    Some((CpuId(cpu), CpuTicks { tasks, irq, softirq, steal }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_read_and_nothing_else() {
        let check = |text: &str, expected: &[(u32, [u64; 4])]| {
            let expected = expected
                .iter()
                .map(|&(cpu, [tasks, irq, softirq, steal])| (CpuId(cpu), CpuTicks { tasks, irq, softirq, steal }));
            assert_eq!(parse(text), expected.collect(), "{text}");
        };
        check(
            "cpu  30 3 9 99 9 9 9 9 0 0\ncpu0 10 2 3 40 50 6 7 8 9 0\ncpu12 1 0 1 0 0 0 0 0 0 0\nintr 5 0\nctxt 7\n",
            &[(0, [15, 6, 7, 8]), (12, [2, 0, 0, 0])],
        );
        check("cpu0 1 2 3 4 5 6 7\ncpux 1 2 3 4 5 6 7 8\ncpu3\n", &[]);
        check(&format!("cpu0 {max} {max} 1 0 0 0 0 0", max = u64::MAX), &[(0, [u64::MAX, 0, 0, 0])]);
        check("", &[]);
    }
}
