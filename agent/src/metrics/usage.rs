//! CPU time and memory of processes as the kernel counts them: of a shard's own control group where it has one, else of
//! its process.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};

use sherd_topology::model::NodeId;

use super::locality::{self, ByNode};
use crate::runtime::procfs;
use crate::status::SlotStatus;

/// What one shard, or the agent, has used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// CPU time, user and system.
    pub cpu_seconds: f64,
    /// Time during which a CPU quota kept it from running; absent where no quota can be.
    pub throttled_seconds: Option<f64>,
    /// CFS periods in which that happened.
    pub throttled_periods: Option<u64>,
    /// Memory that its control group is charged with, page cache too; of a process: what is resident.
    pub memory_bytes: Option<u64>,
    /// Anonymous and file pages by NUMA node; empty where its control group doesn't tell.
    pub memory_by_node: BTreeMap<NodeId, u64>,
}

/// Where memory is, as seen from a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLocality {
    /// On the slot's memory nodes, or where it has none of its own (`memory = "none"`) on the nodes of its PUs.
    pub local_bytes: u64,
    /// On all others.
    pub remote_bytes: u64,
}

impl Usage {
    /// How much of the shard's memory is near the slot; none where the kernel doesn't tell.
    pub fn locality(&self, slot: &SlotStatus) -> Option<MemoryLocality> {
        if self.memory_by_node.is_empty() {
            return None;
        }
        let near = if slot.mems.is_empty() { &slot.node } else { &slot.mems };
        let is_near = |node: &NodeId| near.contains(*node);
        let sum = |wanted: bool| -> u64 {
            let nodes = self.memory_by_node.iter().filter(|(node, _)| is_near(node) == wanted);
            nodes.fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
        };
        Some(MemoryLocality { local_bytes: sum(true), remote_bytes: sum(false) })
    }
}

/// Reads usages. Blocks on small reads of procfs and cgroupfs.
#[derive(Debug, Clone)]
pub struct UsageReader {
    /// `/`, but in tests.
    root: PathBuf,
    mounts: Mounts,
    ticks_per_second: f64,
    page_bytes: u64,
}

impl UsageReader {
    /// Finds the control groups' mount points.
    pub fn new() -> Self {
        Self::below("/".into())
    }

    fn below(root: PathBuf) -> Self {
        let number = |name, default| sysconf(name).ok().flatten().unwrap_or(default);
        Self {
            mounts: Mounts::parse(&std::fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default()),
            root,
            ticks_per_second: number(SysconfVar::CLK_TCK, 100) as f64,
            page_bytes: number(SysconfVar::PAGE_SIZE, 4096) as u64,
        }
    }

    /// Usage of shards by their pids; one that has just ended is left out.
    pub fn of_shards(&self, pids: impl IntoIterator<Item = u32>) -> BTreeMap<u32, Usage> {
        let own = self.membership("self");
        pids.into_iter().filter_map(|pid| Some((pid, self.of_shard(pid, &own)?))).collect()
    }

    /// Usage of this process.
    pub fn of_self(&self) -> Usage {
        let usage = self.of_process("self").unwrap_or_default();
        Usage { memory_bytes: self.resident("self"), ..usage }
    }

    /// Ticks in which /proc/stat counts.
    pub(super) fn ticks_per_second(&self) -> f64 {
        self.ticks_per_second
    }

    /// Memory of one process by node, from its mappings. The kernel walks all its page tables for that, with the lock
    /// held that the process's own page faults need: some milliseconds for each GiB.
    pub(super) fn by_node_of_mappings(&self, pid: u32) -> ByNode {
        let text = self.proc(pid, "numa_maps").unwrap_or_default();
        locality::parse_maps(&text, self.page_bytes)
    }

    /// The shard's own directory. A group that it shares with the agent, or the root group, counts others' use too.
    fn private(
        &self,
        own: &BTreeMap<String, PathBuf>,
        shard: &BTreeMap<String, PathBuf>,
        controller: &str,
    ) -> Option<PathBuf> {
        let path = shard.get(controller).filter(|path| *path != Path::new("/"))?;
        (own.get(controller) != Some(path)).then(|| self.directory(controller, path)).flatten()
    }

    /// Memory that a shard uses and can't give back at once, bytes: of its own control group without inactive file pages, as the
    /// kubelet counts; else what its processes have resident. `None`: it has ended.
    pub fn memory_of(&self, pid: u32) -> Option<u64> {
        let (own, shard) = (self.membership("self"), self.membership(&pid.to_string()));
        let charged = |controller, usage, inactive| {
            let directory = self.private(&own, &shard, controller)?;
            let inactive = keys(&directory.join("memory.stat")).get(inactive).copied().unwrap_or(0);
            Some(number(&directory.join(usage))?.saturating_sub(inactive))
        };
        charged("memory", "memory.usage_in_bytes", "total_inactive_file")
            .or_else(|| charged("", "memory.current", "inactive_file"))
            .or_else(|| {
                let all = procfs::descendants(pid).into_iter().chain([pid]);
                all.filter_map(|pid| self.resident(&pid.to_string())).reduce(u64::saturating_add)
            })
    }

    fn of_shard(&self, pid: u32, own: &BTreeMap<String, PathBuf>) -> Option<Usage> {
        let shard = self.membership(&pid.to_string());
        let private = |controller: &str| self.private(own, &shard, controller);
        let quota_v1 = private("cpu").map(|dir| keys(&dir.join("cpu.stat"))).unwrap_or_default();
        let unified = private("");
        let v2 = unified.as_ref().map(|dir| keys(&dir.join("cpu.stat"))).unwrap_or_default();
        let v1 = private("cpuacct").and_then(|dir| number(&dir.join("cpuacct.usage")));
        let cpu_seconds = match (v2.get("usage_usec"), v1) {
            // In a hybrid hierarchy either may be the shard's; what isn't its own has been left out above.
            (_, Some(nanos)) => nanos as f64 / 1e9,
            (Some(micros), None) => *micros as f64 / 1e6,
            (None, None) => self.of_process(&pid.to_string())?.cpu_seconds,
        };
        let throttled_v1 = quota_v1.get("throttled_time").map(|nanos| *nanos as f64 / 1e9);
        let (memory_bytes, memory_by_node) = self.memory(private("memory").as_deref(), unified.as_deref());
        Some(Usage {
            cpu_seconds,
            throttled_seconds: throttled_v1.or_else(|| v2.get("throttled_usec").map(|micros| *micros as f64 / 1e6)),
            throttled_periods: quota_v1.get("nr_throttled").or_else(|| v2.get("nr_throttled")).copied(),
            memory_bytes: memory_bytes.or_else(|| self.resident(&pid.to_string())),
            memory_by_node,
        })
    }

    /// Of the groups' memory controllers; both hierarchies may be there, the controller is in one of them.
    fn memory(&self, v1: Option<&Path>, v2: Option<&Path>) -> (Option<u64>, ByNode) {
        let text = |dir: &Path| std::fs::read_to_string(dir.join("memory.numa_stat")).unwrap_or_default();
        let in_v2 = || Some((number(&v2?.join("memory.current"))?, locality::parse_v2(&text(v2?))));
        let in_v1 =
            || Some((number(&v1?.join("memory.usage_in_bytes"))?, locality::parse_v1(&text(v1?), self.page_bytes)));
        let found: Option<(u64, ByNode)> = in_v2().or_else(in_v1);
        found.map_or_else(Default::default, |(bytes, by_node)| (Some(bytes), by_node))
    }

    /// proc_pid_stat(5): fields 14 to 17 are utime, stime, cutime and cstime, counted after the command's last `)`.
    fn of_process(&self, pid: &str) -> Option<Usage> {
        let stat = self.proc(pid, "stat").ok()?;
        let fields = stat.rsplit_once(") ")?.1.split(' ').skip(11).take(4);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        Some(Usage { cpu_seconds: ticks as f64 / self.ticks_per_second, ..Usage::default() })
    }

    fn proc(&self, pid: impl Display, file: &str) -> std::io::Result<String> {
        std::fs::read_to_string(self.root.join(format!("proc/{pid}/{file}")))
    }

    /// `ID:CONTROLLERS:PATH` lines of /proc/PID/cgroup, by controller.
    fn membership(&self, pid: &str) -> BTreeMap<String, PathBuf> {
        let text = self.proc(pid, "cgroup").unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let each = lines.flat_map(|(controllers, path)| controllers.split(',').map(move |name| (name, path)));
        each.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).collect()
    }

    fn directory(&self, controller: &str, cgroup: &Path) -> Option<PathBuf> {
        let directory = self.mounts.directory(controller, cgroup)?;
        Some(self.root.join(directory.strip_prefix("/").unwrap_or(&directory)))
    }

    fn resident(&self, pid: &str) -> Option<u64> {
        let statm = self.proc(pid, "statm").ok()?;
        Some(statm.split(' ').nth(1)?.parse::<u64>().ok()?.saturating_mul(self.page_bytes))
    }
}

impl Default for UsageReader {
    fn default() -> Self {
        Self::new()
    }
}

/// Mount point and visible root of each hierarchy, by controller; the unified one is "".
#[derive(Debug, Clone, Default, PartialEq)]
struct Mounts(BTreeMap<String, (PathBuf, PathBuf)>);

impl Mounts {
    /// proc_pid_mountinfo(5): `36 35 98:0 ROOT POINT options … - TYPE source superoptions`.
    fn parse(mountinfo: &str) -> Self {
        let mut mounts = BTreeMap::new();
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let mut before = before.split(' ').skip(3).map(PathBuf::from);
            let (Some(root), Some(point)) = (before.next(), before.next()) else { continue };
            let mut after = after.split(' ');
            let (kind, options) = (after.next(), after.nth(1).unwrap_or_default());
            let controllers: Vec<&str> = match kind {
                Some("cgroup2") => vec![""],
                Some("cgroup") => options.split(',').collect(),
                _ => continue,
            };
            for controller in controllers {
                mounts.entry(controller.to_owned()).or_insert((point.clone(), root.clone()));
            }
        }
        Self(mounts)
    }

    fn directory(&self, controller: &str, path: &Path) -> Option<PathBuf> {
        let (point, root) = self.0.get(controller)?;
        let below = path.strip_prefix(root).or_else(|_| path.strip_prefix("/")).ok()?;
        Some(point.join(below))
    }
}

/// A file of one number.
fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// A flat keyed file.
fn keys(file: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let pair = |line: &str| line.split_once(' ').and_then(|(key, value)| Some((key.to_owned(), value.parse().ok()?)));
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests;
