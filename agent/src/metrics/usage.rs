//! CPU time of processes as the kernel counts it: of a shard's own control group where it has one, else of its process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::unistd::{SysconfVar, sysconf};

/// What one shard, or the agent, has used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// CPU time, user and system.
    pub cpu_seconds: f64,
    /// Time during which a CPU quota kept it from running; absent where no quota can be.
    pub throttled_seconds: Option<f64>,
    /// CFS periods in which that happened.
    pub throttled_periods: Option<u64>,
    /// Resident memory; only of a single process.
    pub resident_bytes: Option<u64>,
}

/// Reads usages. Blocks on small reads of procfs and cgroupfs.
#[derive(Debug, Clone)]
pub struct UsageReader {
    mounts: Mounts,
    ticks_per_second: f64,
    page_bytes: u64,
}

impl UsageReader {
    /// Finds the control groups' mount points.
    pub fn new() -> Self {
        let number = |name, default| sysconf(name).ok().flatten().unwrap_or(default);
        Self {
            mounts: Mounts::parse(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()),
            ticks_per_second: number(SysconfVar::CLK_TCK, 100) as f64,
            page_bytes: number(SysconfVar::PAGE_SIZE, 4096) as u64,
        }
    }

    /// Usage of shards by their pids; one that has just ended is left out.
    pub fn of_shards(&self, pids: impl IntoIterator<Item = u32>) -> BTreeMap<u32, Usage> {
        let own = membership("self");
        pids.into_iter().filter_map(|pid| Some((pid, self.of_shard(pid, &own)?))).collect()
    }

    /// Usage of this process.
    pub fn of_self(&self) -> Usage {
        let mut usage = self.of_process("self").unwrap_or_default();
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let resident = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        usage.resident_bytes = resident.map(|pages| pages * self.page_bytes);
        usage
    }

    fn of_shard(&self, pid: u32, own: &BTreeMap<String, PathBuf>) -> Option<Usage> {
        let shard = membership(&pid.to_string());
        // A group that the shard shares with the agent, or the root group, counts others' time too.
        let private = |controller: &str| {
            let path = shard.get(controller).filter(|path| *path != Path::new("/"))?;
            (own.get(controller) != Some(path)).then(|| self.mounts.directory(controller, path)).flatten()
        };
        let quota_v1 = private("cpu").map(|dir| keys(&dir.join("cpu.stat"))).unwrap_or_default();
        let v2 = private("").map(|dir| keys(&dir.join("cpu.stat"))).unwrap_or_default();
        let v1 = private("cpuacct").and_then(|dir| std::fs::read_to_string(dir.join("cpuacct.usage")).ok());
        let v1 = v1.and_then(|nanos| nanos.trim().parse::<u64>().ok());
        let mut usage = match (v2.get("usage_usec"), v1) {
            // In a hybrid hierarchy either may be the shard's; what isn't its own has been left out above.
            (_, Some(nanos)) => Usage { cpu_seconds: nanos as f64 / 1e9, ..Usage::default() },
            (Some(micros), None) => Usage { cpu_seconds: *micros as f64 / 1e6, ..Usage::default() },
            (None, None) => self.of_process(&pid.to_string())?,
        };
        let throttled_v1 = quota_v1.get("throttled_time").map(|nanos| *nanos as f64 / 1e9);
        usage.throttled_seconds = throttled_v1.or_else(|| v2.get("throttled_usec").map(|micros| *micros as f64 / 1e6));
        usage.throttled_periods = quota_v1.get("nr_throttled").or_else(|| v2.get("nr_throttled")).copied();
        Some(usage)
    }

    /// proc_pid_stat(5): fields 14 to 17 are utime, stime, cutime and cstime, counted after the command's last `)`.
    fn of_process(&self, pid: &str) -> Option<Usage> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields = stat.rsplit_once(") ")?.1.split(' ').skip(11).take(4);
        let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        Some(Usage { cpu_seconds: ticks as f64 / self.ticks_per_second, ..Usage::default() })
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

/// `ID:CONTROLLERS:PATH` lines of /proc/PID/cgroup, by controller.
fn membership(pid: &str) -> BTreeMap<String, PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let each = lines.flat_map(|(controllers, path)| controllers.split(',').map(move |name| (name, path)));
    each.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).collect()
}

/// A flat keyed file.
fn keys(file: &Path) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let pair = |line: &str| line.split_once(' ').and_then(|(key, value)| Some((key.to_owned(), value.parse().ok()?)));
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_behind_their_roots() {
        let mounts = Mounts::parse(
            "30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             31 25 0:27 /docker/x /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             32 25 0:28 / /proc rw - proc proc rw\n",
        );
        let check = |controller, path, expected: Option<&str>| {
            assert_eq!(
                mounts.directory(controller, Path::new(path)),
                expected.map(PathBuf::from),
                "{controller} {path}"
            );
        };
        check("", "/a", Some("/sys/fs/cgroup/unified/a"));
        check("cpuacct", "/docker/x/y", Some("/sys/fs/cgroup/cpu,cpuacct/y"));
        check("memory", "/a", None);
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let usage = UsageReader::new().of_self();
        assert!(usage.cpu_seconds >= 0.0 && usage.resident_bytes.is_some_and(|bytes| bytes > 0), "{usage:?}");
    }

    #[test]
    fn a_child_is_counted_and_a_missing_process_left_out() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let usage = UsageReader::new().of_shards([child.id(), u32::MAX]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(usage.keys().copied().collect::<Vec<_>>(), [child.id()]);
    }
}
