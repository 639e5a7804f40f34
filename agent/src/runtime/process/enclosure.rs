//! The cgroup v2 of one process shard, where the host lets us make one: it holds everything the shard starts, so that
//! nothing of it escapes, and with delegated controllers its CPUs, memory nodes and memory limit too.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sherd_topology::plan::{MemoryBinding, Slot};

use crate::runtime::cgroup::{self, Membership, Mounts};

/// Top of our cgroups where no service manager gives us one.
const TOP: &str = "sherd";
/// Between two looks at dying processes.
const DYING_POLL: Duration = Duration::from_millis(5);
/// How long the kernel may take to notice that a cgroup is empty.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(2);

/// Where the shim runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On its own: its shard's cgroup is ours to put anywhere.
    Detached,
    /// In a unit with a delegated cgroup: its shard's is below that.
    Unit,
}

/// A shard's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Enclosure {
    pub(super) directory: PathBuf,
    pub(super) has_cpuset: bool,
}

/// Makes the shard's cgroup. None where the host has no v2 hierarchy that we may write to.
pub(super) fn make(place: Place, instance: &str, shard: &str, slot: &Slot) -> Option<Enclosure> {
    let mount = Mounts::read().ok()?.v2?;
    let parent = match place {
        Place::Detached => mount.point.join(TOP).join(instance),
        Place::Unit => mount.directory(&Membership::of(std::process::id()).ok()?.v2?),
    };
    let directory = match place {
        Place::Detached => parent.join(shard),
        Place::Unit => parent.join("shard"),
    };
    prepare(&parent, &directory, place).ok()?;
    let has_cpuset = set_cpuset(&directory, slot).is_ok();
    if let Some(limit) = slot.memory_limit_bytes {
        // Without the controller there is no limit; the shard is still told it.
        let _ = fs::write(directory.join("memory.max"), limit.to_string());
    }
    Some(Enclosure { directory, has_cpuset })
}

/// Puts the calling process into the cgroup.
pub(super) fn join(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.procs"), "0")
}

/// Gives the cgroup the slot's CPUs and memory nodes; an error where the cpuset controller isn't delegated.
pub(super) fn set_cpuset(directory: &Path, slot: &Slot) -> io::Result<()> {
    existing(&directory.join("cpuset.cpus"), &slot.cpus.to_string())?;
    let mems = if slot.memory == MemoryBinding::Bind { slot.mems.to_string() } else { String::new() };
    existing(&directory.join("cpuset.mems"), &mems)
}

/// Whether the kernel killed something in it for want of memory.
pub(super) fn had_oom_kill(directory: &Path) -> bool {
    let events = fs::read_to_string(directory.join("memory.events")).unwrap_or_default();
    events.lines().filter_map(|line| line.split_once(' ')).any(|(key, count)| key == "oom_kill" && count != "0")
}

/// Kills everything in it and waits until it is empty.
///
/// # Errors
/// The processes that are left after `patience`.
pub(super) fn kill_all(directory: &Path, patience: Duration) -> Result<(), Vec<u32>> {
    let deadline = Instant::now() + patience;
    loop {
        let pids = match cgroup::processes(directory) {
            Ok(pids) if !pids.is_empty() => pids,
            _ => return Ok(()),
        };
        if Instant::now() > deadline {
            return Err(pids);
        }
        // cgroup.kill (5.14) leaves no time to fork; before it, again and again until nothing is there.
        if fs::write(directory.join("cgroup.kill"), "1").is_err() {
            for pid in pids {
                let _ = kill(pid_of(pid), Signal::SIGKILL);
            }
        }
        thread::sleep(DYING_POLL);
    }
}

/// Removes it, and what was made above it for shards, once that is empty.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let deadline = Instant::now() + REMOVAL_PATIENCE;
    // A process that is dead to cgroup.procs may hold its cgroup for a moment more.
    while let Err(error) = cgroup::remove(directory) {
        if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline {
            return Err(error);
        }
        thread::sleep(DYING_POLL);
    }
    // …/sherd/INSTANCE, then …/sherd; others may be using them.
    for ancestor in directory.ancestors().skip(1).take(2) {
        let is_ours = ancestor.ends_with(TOP) || ancestor.parent().is_some_and(|parent| parent.ends_with(TOP));
        if !is_ours || fs::remove_dir(ancestor).is_err() {
            break;
        }
    }
    Ok(())
}

pub(super) fn pid_of(pid: u32) -> Pid {
    // Pids are below 2^22; 0 and -1 would mean others.
    Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX))
}

fn prepare(parent: &Path, directory: &Path, place: Place) -> io::Result<()> {
    fs::create_dir_all(parent)?;
    if place == Place::Unit {
        // A cgroup that gives controllers to its children may hold no processes itself.
        let leaf = parent.join("shim");
        fs::create_dir_all(&leaf)?;
        join(&leaf)?;
    }
    for controller in ["+cpuset", "+memory", "+cpu"] {
        if place == Place::Detached
            && let Some(top) = parent.parent()
        {
            let _ = existing(&top.join("cgroup.subtree_control"), controller);
        }
        let _ = existing(&parent.join("cgroup.subtree_control"), controller);
    }
    fs::create_dir_all(directory)
}

/// Writes a file of the kernel's; unlike `fs::write` it never makes one. The line end is there because an empty text
/// would be no write at all.
fn existing(path: &Path, text: &str) -> io::Result<()> {
    io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(path)?, format!("{text}\n").as_bytes())
}
