//! Which CPUs this process may use, and pinning to some of them; changes no affinity but that of the thread it is given.

use std::{fs, io};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// A list of CPUs is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a list of CPUs: write it as 0-3,8")]
pub struct CpuError {
    text: String,
}

/// The CPUs that this process may use, ascending. CPUs above 1023 are not seen.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Lets the calling thread run on `cpus` only.
pub fn pin_this_thread(cpus: &[usize]) -> io::Result<()> {
    pin_thread(Pid::from_raw(0), cpus)
}

/// Lets one thread of any process run on `cpus` only.
pub fn pin_thread(thread: Pid, cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    Ok(sched_setaffinity(thread, &set)?)
}

/// The NUMA node of a CPU; 0 on a host without any.
pub fn node_of(cpu: usize) -> io::Result<usize> {
    for entry in fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}"))? {
        let name = entry?.file_name();
        if let Some(node) = name.to_str().and_then(|name| name.strip_prefix("node")?.parse().ok()) {
            return Ok(node);
        }
    }
    Ok(0)
}

/// The NUMA nodes of several CPUs, ascending.
pub fn nodes_of(cpus: &[usize]) -> io::Result<Vec<usize>> {
    let mut nodes = cpus.iter().map(|cpu| node_of(*cpu)).collect::<io::Result<Vec<_>>>()?;
    nodes.sort_unstable();
    nodes.dedup();
    Ok(nodes)
}

/// Reads Linux' list format.
pub fn parse_list(text: &str) -> Result<Vec<usize>, CpuError> {
    let bad = || CpuError { text: text.to_owned() };
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.parse().map_err(|_| bad())?;
        let last: usize = last.parse().map_err(|_| bad())?;
        if last < first || last >= CpuSet::count() {
            return Err(bad());
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// Writes it, one CPU after the other.
pub fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        for (text, expected) in [("0", vec![0]), ("0-2,5", vec![0, 1, 2, 5]), ("3,1-3", vec![1, 2, 3])] {
            assert_eq!(parse_list(text).as_deref(), Ok(&*expected), "{text}");
        }
        for text in ["", "a", "2-1", "1-", "0-4000"] {
            assert!(parse_list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pinned_thread_sees_only_its_cpu() {
        std::thread::spawn(|| {
            let last = *allowed_cpus().expect("readable").last().expect("one CPU at least");
            pin_this_thread(&[last]).expect("an allowed CPU");
            assert_eq!(allowed_cpus().expect("readable"), [last]);
        })
        .join()
        .expect("no panic");
    }
}
