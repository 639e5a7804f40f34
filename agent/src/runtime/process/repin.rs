//! Moving a running shard to other CPUs and memory nodes: by its cpuset where it has one, else thread by thread.

use std::{collections::BTreeSet, path::Path};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
};
use sherd_topology::plan::{MemoryBinding, Slot};

use super::{
    enclosure,
    record::{self, Order, Running, Shim},
};
use crate::runtime::{cgroup, procfs};

/// Looks for threads that were started meanwhile by threads not yet moved.
const ROUNDS_MAX: usize = 16;

/// The error says why it can't be done while the shard runs.
pub(super) fn move_to(directory: &Path, order: &Order, slot: &Slot) -> Result<(), String> {
    let shim: Option<Shim> = record::read(directory).map_err(|error| error.to_string())?;
    let Some(shim) = shim else { return Ok(()) };
    if shim.has_cpuset {
        let Some(cgroup) = &shim.cgroup else { return Err("its record names no cgroup".to_owned()) };
        return enclosure::set_cpuset(cgroup, slot).map_err(|error| error.to_string());
    }
    let bound = slot.memory != MemoryBinding::None;
    if bound && slot.mems != order.slot.mems {
        return Err("without a cpuset the memory nodes of a process can't be changed".to_owned());
    }
    let running: Option<Running> = record::read(directory).map_err(|error| error.to_string())?;
    let Some(running) = running else { return Ok(()) };
    let mut cpus = CpuSet::new();
    for cpu in slot.cpus.iter() {
        // glibc's cpu_set_t, which nix wraps, ends there.
        cpus.set(cpu.0 as usize).map_err(|_| format!("CPU {} is beyond {}", cpu.0, CpuSet::count()))?;
    }
    set_affinity(running.process.pid, shim.cgroup.as_deref(), &cpus)
}

fn set_affinity(pid: u32, cgroup: Option<&Path>, cpus: &CpuSet) -> Result<(), String> {
    let mut moved = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let mut processes = cgroup.and_then(|cgroup| cgroup::processes(cgroup).ok()).unwrap_or_default();
        processes.push(pid);
        processes.extend(procfs::descendants(pid));
        let threads = processes.into_iter().flat_map(|pid| procfs::threads(pid).unwrap_or_default());
        let fresh: Vec<u32> = threads.filter(|tid| moved.insert(*tid)).collect();
        if fresh.is_empty() {
            return Ok(());
        }
        for tid in fresh {
            match sched_setaffinity(enclosure::pid_of(tid), cpus) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(format!("thread {tid}: {error}")),
            }
        }
    }
    Err("it starts threads faster than they can be moved".to_owned())
}
