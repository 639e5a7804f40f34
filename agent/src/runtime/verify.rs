//! Asks the kernel whether a shard is where its slot says: the cpuset of its cgroup, and the affinity and memory nodes
//! of every thread of every process. Changes nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sherd_topology::{
    model::{CpuSet, NodeSet},
    plan::{MemoryBinding, Slot},
};

use super::{
    cgroup::{self, Membership, Mounts},
    procfs,
};

/// How a shard is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum PinningFault {
    /// It ended.
    #[error("process {pid} is no more")]
    Gone {
        /// Its first process.
        pid: u32,
    },
    /// Its cgroup has other CPUs.
    #[error("cgroup {} has CPUs {found}, and its slot has {wanted}; a CPU is offline, or somebody changed the cpuset", cgroup.display())]
    CgroupCpus {
        /// The cgroup's directory.
        cgroup: PathBuf,
        /// What the slot has.
        wanted: CpuSet,
        /// What is in effect.
        found: CpuSet,
    },
    /// Its cgroup has other memory nodes.
    #[error("cgroup {} has memory nodes {found}, and its slot has {wanted}; somebody changed the cpuset", cgroup.display())]
    CgroupMems {
        /// The cgroup's directory.
        cgroup: PathBuf,
        /// What the slot has.
        wanted: NodeSet,
        /// What is in effect.
        found: NodeSet,
    },
    /// A thread may run elsewhere.
    #[error("thread {tid} of process {pid} may run on CPUs {found}, and its slot has {wanted}")]
    ThreadCpus {
        /// The process.
        pid: u32,
        /// The thread.
        tid: u32,
        /// What the slot has.
        wanted: CpuSet,
        /// What the kernel allows it.
        found: CpuSet,
    },
    /// A thread may take memory from elsewhere.
    #[error("thread {tid} of process {pid} may use memory nodes {found}, and its slot has {wanted}")]
    ThreadMems {
        /// The process.
        pid: u32,
        /// The thread.
        tid: u32,
        /// What the slot has.
        wanted: NodeSet,
        /// What the kernel allows it.
        found: NodeSet,
    },
    /// The kernel's answer can't be had.
    #[error("{} can't be read; the agent needs to see the processes of its shards", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Whether the shard whose first process is `pid` is where `want` says. A thread that keeps to fewer CPUs of the slot
/// by its own choice is where it should be; threads and processes that end meanwhile are, too.
///
/// # Errors
/// The first thing that is not as planned.
pub fn pinning(pid: u32, want: &Slot) -> Result<(), PinningFault> {
    let mounts = Mounts::read().map_err(unreadable("/proc/self/mountinfo"))?;
    let member = membership(pid)?.ok_or(PinningFault::Gone { pid })?;
    let own = membership(std::process::id())?.unwrap_or_default();
    let cpuset = cpuset_directory(&mounts, &member, &own);
    if let Some(directory) = &cpuset {
        check_cpuset(directory, want)?;
    }
    let processes = match shard_directory(&mounts, &member, &own) {
        Some(directory) => cgroup::processes(&directory).unwrap_or_default(),
        None => procfs::descendants(pid),
    };
    let seen = check_process(pid, want)?;
    for process in processes.into_iter().filter(|process| *process != pid) {
        check_process(process, want)?;
    }
    if seen { Ok(()) } else { Err(PinningFault::Gone { pid }) }
}

/// The cgroup that is the shard's alone. The v1 cpuset comes first: where v1 manages containers, all of them may
/// share the v2 cgroup of their engine.
fn shard_directory(mounts: &Mounts, member: &Membership, own: &Membership) -> Option<PathBuf> {
    let (v1, v2) = (alone(&member.cpuset_v1, &own.cpuset_v1), alone(&member.v2, &own.v2));
    mounts.cpuset_v1.as_ref().zip(v1).or(mounts.v2.as_ref().zip(v2)).map(|(mount, cgroup)| mount.directory(cgroup))
}

/// The cgroup whose cpuset is meant for the shard: none where CPUs are given by affinity.
fn cpuset_directory(mounts: &Mounts, member: &Membership, own: &Membership) -> Option<PathBuf> {
    if let Some((mount, cgroup)) = mounts.cpuset_v1.as_ref().zip(alone(&member.cpuset_v1, &own.cpuset_v1)) {
        return Some(mount.directory(cgroup));
    }
    let (mount, cgroup) = mounts.v2.as_ref().zip(alone(&member.v2, &own.v2))?;
    let agent = own.v2.as_deref().unwrap_or(Path::new("/"));
    let is_set =
        |directory: &Path| fs::read_to_string(directory.join("cpuset.cpus")).is_ok_and(|cpus| !cpus.trim().is_empty());
    // A program in the container may have made cgroups of its own below the one with the cpuset.
    cgroup
        .ancestors()
        .take_while(|ancestor| !agent.starts_with(ancestor))
        .map(|ancestor| mount.directory(ancestor))
        .find(|directory| is_set(directory))
}

fn alone<'a>(cgroup: &'a Option<PathBuf>, own: &Option<PathBuf>) -> Option<&'a Path> {
    cgroup.as_deref().filter(|cgroup| *cgroup != Path::new("/") && Some(*cgroup) != own.as_deref())
}

fn check_cpuset(directory: &Path, want: &Slot) -> Result<(), PinningFault> {
    // v2's name and v1's.
    let cpus: Option<CpuSet> = effective(directory, ["cpuset.cpus.effective", "cpuset.effective_cpus"])?;
    let mems: Option<NodeSet> = effective(directory, ["cpuset.mems.effective", "cpuset.effective_mems"])?;
    if let Some(found) = cpus.filter(|found| *found != want.cpus) {
        return Err(PinningFault::CgroupCpus { cgroup: directory.to_owned(), wanted: want.cpus.clone(), found });
    }
    let bound = want.memory == MemoryBinding::Bind;
    if let Some(found) = mems.filter(|found| bound && *found != want.mems) {
        return Err(PinningFault::CgroupMems { cgroup: directory.to_owned(), wanted: want.mems.clone(), found });
    }
    Ok(())
}

/// The first of the files that is there.
fn effective<T: std::str::FromStr>(directory: &Path, names: [&str; 2]) -> Result<Option<T>, PinningFault> {
    for name in names {
        let path = directory.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => return list(&path, &text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unreadable(path)(error)),
        }
    }
    Ok(None)
}

/// Whether the process was there to be looked at.
fn check_process(pid: u32, want: &Slot) -> Result<bool, PinningFault> {
    let threads = match procfs::threads(pid) {
        Ok(threads) => threads,
        Err(error) if procfs::is_gone(&error) => return Ok(false),
        Err(error) => return Err(unreadable(format!("/proc/{pid}/task"))(error)),
    };
    for tid in threads {
        check_thread(pid, tid, want)?;
    }
    Ok(true)
}

fn check_thread(pid: u32, tid: u32, want: &Slot) -> Result<(), PinningFault> {
    let path = PathBuf::from(format!("/proc/{pid}/task/{tid}/status"));
    let status = match procfs::thread_status(pid, tid) {
        Ok(status) => status,
        Err(error) if procfs::is_gone(&error) => return Ok(()),
        Err(error) => return Err(unreadable(path)(error)),
    };
    // A zombie runs nowhere.
    if status.get("State").is_some_and(|state| state.starts_with(['Z', 'X'])) {
        return Ok(());
    }
    let field = |name: &str| status.get(name).map_or("", String::as_str);
    let cpus: CpuSet = list(&path, field("Cpus_allowed_list"))?;
    if !cpus.is_subset(&want.cpus) || cpus.is_empty() {
        return Err(PinningFault::ThreadCpus { pid, tid, wanted: want.cpus.clone(), found: cpus });
    }
    let mems: NodeSet = list(&path, field("Mems_allowed_list"))?;
    let bound = want.memory == MemoryBinding::Bind;
    if bound && !mems.is_subset(&want.mems) && !bound_by_policy(pid, &want.mems) {
        return Err(PinningFault::ThreadMems { pid, tid, wanted: want.mems.clone(), found: mems });
    }
    Ok(())
}

/// Without a cpuset it is the memory policy that binds. numa_maps(5) shows the process's policy at each mapping that
/// has none of its own.
fn bound_by_policy(pid: u32, wanted: &NodeSet) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/numa_maps")).unwrap_or_default();
    let policies = maps.lines().filter_map(|line| line.split(' ').nth(1));
    policies.into_iter().any(|policy| {
        let nodes = policy.strip_prefix("bind").and_then(|rest| rest.split_once(':')).map(|(_, nodes)| nodes);
        nodes.and_then(|nodes| nodes.parse::<NodeSet>().ok()).is_some_and(|nodes| nodes.is_subset(wanted))
    })
}

fn membership(pid: u32) -> Result<Option<Membership>, PinningFault> {
    match Membership::of(pid) {
        Ok(membership) => Ok(Some(membership)),
        Err(error) if procfs::is_gone(&error) => Ok(None),
        Err(error) => Err(unreadable(format!("/proc/{pid}/cgroup"))(error)),
    }
}

fn list<T: std::str::FromStr>(path: &Path, text: &str) -> Result<T, PinningFault> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is no list of numbers", text.trim()));
    text.trim().parse().map_err(|_| unreadable(path)(bad()))
}

fn unreadable(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> PinningFault {
    let path = path.into();
    move |source| PinningFault::Unreadable { path, source }
}
