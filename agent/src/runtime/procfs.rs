//! Processes as /proc tells of them. Reads only; a process that goes away meanwhile is not an error of the caller's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    time::Duration,
};

use nix::{
    time::{ClockId, clock_gettime},
    unistd::{SysconfVar, sysconf},
};

/// The identity of a process: a pid is used again, a pid with its start time is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: u32,
    /// R, S, D, Z, …
    pub(super) state: char,
    /// Clock ticks after boot.
    pub(super) start_ticks: u64,
}

/// One line of a process's life.
pub(super) fn stat(pid: u32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command is in parentheses and may contain both parentheses and spaces.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let parsed = || {
        let state = fields.first()?.chars().next()?;
        Some(Stat { state, parent: fields.get(1)?.parse().ok()?, start_ticks: fields.get(19)?.parse().ok()? })
    };
    parsed().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is not as documented")))
}

/// Whether this process of that start time runs; a zombie doesn't.
pub(super) fn is_alive(pid: u32, start_ticks: u64) -> bool {
    stat(pid).is_ok_and(|stat| stat.start_ticks == start_ticks && !matches!(stat.state, 'Z' | 'X'))
}

/// Whether somebody has stopped the process by a signal (SIGSTOP), and not let it go on. One that is being traced isn't.
pub(crate) fn is_stopped(pid: u32) -> bool {
    stat(pid).is_ok_and(|stat| stat.state == 'T')
}

/// How long a process has been there, by a clock that nobody sets: what `/proc/PID/stat` tells is since boot
/// (proc_pid_stat(5), `starttime`), and suspended time counts. `None`: it is no more.
pub(crate) fn age(pid: u32) -> Option<Duration> {
    let start_ticks = stat(pid).ok()?.start_ticks;
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u32::try_from(ticks).ok())?;
    let since_boot = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?);
    Some(since_boot.saturating_sub(Duration::from_secs_f64(start_ticks as f64 / f64::from(per_second))))
}

/// All processes that this namespace sees.
pub(super) fn pids() -> Vec<u32> {
    numbers("/proc".into()).unwrap_or_default()
}

/// The threads of a process.
pub(super) fn threads(pid: u32) -> io::Result<Vec<u32>> {
    numbers(format!("/proc/{pid}/task").into())
}

/// Children, their children, and so on; not zombies, which nothing can be done to.
pub(crate) fn descendants(ancestor: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<(u32, char)>> = BTreeMap::new();
    for pid in pids() {
        if let Ok(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push((pid, stat.state));
        }
    }
    let mut found = Vec::new();
    let mut pending = vec![ancestor];
    while let Some(parent) = pending.pop() {
        for (pid, state) in children.remove(&parent).unwrap_or_default() {
            pending.push(pid);
            if state != 'Z' {
                found.push(pid);
            }
        }
    }
    found
}

/// Descriptors that [`sockets`] looks at: some 100 ms.
const MAX_LOOKED_AT: usize = 100_000;

/// The inodes of the sockets that a process and its descendants have open, of as many descriptors as can be looked at
/// while others wait.
pub(crate) fn sockets(ancestor: u32) -> BTreeSet<u32> {
    let processes = descendants(ancestor).into_iter().chain([ancestor]);
    let descriptors = processes.filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok()).flatten().flatten();
    let inode = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    descriptors.take(MAX_LOOKED_AT).filter_map(inode).collect()
}

/// Threads whose waiting is looked at.
const MAX_THREADS: usize = 4096;

/// How long each thread of a process and of its descendants has had work and waited for a CPU
/// (`/proc/PID/task/TID/schedstat`, the second number). Empty where the kernel doesn't tell (CONFIG_SCHED_INFO).
pub(crate) fn run_delays(ancestor: u32) -> BTreeMap<u32, Duration> {
    let waited = |tid: u32| -> Option<(u32, Duration)> {
        let text = fs::read_to_string(format!("/proc/{tid}/schedstat")).ok()?;
        Some((tid, Duration::from_nanos(text.split_whitespace().nth(1)?.parse().ok()?)))
    };
    family(ancestor).into_iter().filter_map(waited).collect()
}

/// The threads of a process and of its descendants, at most [`MAX_THREADS`], found by its threads' children: cheaper than
/// to look at every process of the host (CONFIG_PROC_CHILDREN).
fn family(ancestor: u32) -> Vec<u32> {
    let (mut found, mut pending) = (Vec::new(), vec![ancestor]);
    while let Some(pid) = pending.pop().filter(|_| found.len() < MAX_THREADS) {
        for tid in threads(pid).unwrap_or_default() {
            found.push(tid);
            let children = fs::read_to_string(format!("/proc/{pid}/task/{tid}/children")).unwrap_or_default();
            pending.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// Processes that were started with this variable and have not been given another environment since.
pub(super) fn with_variable(name: &str, value: &str) -> Vec<u32> {
    let wanted = format!("{name}={value}");
    let has = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    pids().into_iter().filter(has).collect()
}

/// Lines `Key:\tvalue` of a thread's status.
pub(super) fn thread_status(pid: u32, tid: u32) -> io::Result<BTreeMap<String, String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"))?;
    let pair = |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
    Ok(text.lines().filter_map(pair).collect())
}

/// Whether an error of reading below /proc/PID means that the process is no more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn numbers(directory: PathBuf) -> io::Result<Vec<u32>> {
    let entries = fs::read_dir(directory)?.flatten();
    let mut numbers: Vec<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found() {
        let me = std::process::id();
        let stat = stat(me).unwrap();
        assert!(is_alive(me, stat.start_ticks));
        assert!(!is_alive(me, stat.start_ticks + 1));
        assert!(threads(me).unwrap().contains(&me));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(family(me).contains(&me) && family(me).contains(&child.id()));
        assert!(run_delays(me).contains_key(&child.id()) && run_delays(u32::MAX).is_empty());
        assert!(age(child.id()).unwrap() <= age(me).unwrap() + Duration::from_millis(20));
        assert!(age(child.id()).unwrap() < Duration::from_secs(60));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(age(child.id()), None);
        assert!(descendants(stat.parent).contains(&me));
        assert!(thread_status(me, me).unwrap().contains_key("Cpus_allowed_list"));
        assert!(is_gone(&super::stat(u32::MAX).unwrap_err()));
    }
}
