//! What Linux says beside hwloc: which CPUs are online, isolated or without a tick, and what this process may use.
//! Reads files below a given root; writes nothing.

use std::{fs, io, path::Path};

use super::DiscoverError;
use crate::model::{CpuSet, HostParts, Id, IdSet};

/// Narrows `online`, `allowed` and `allowed_nodes` to what the kernel says, and fills `isolated` and `nohz_full`.
pub(super) fn restrict(parts: &mut HostParts, root: &Path) -> Result<(), DiscoverError> {
    let sys = root.join("sys/devices/system/cpu");
    if let Some(online) = list(&sys.join("online"))? {
        parts.online = parts.online.intersection(&online);
    }
    parts.isolated = list(&sys.join("isolated"))?.unwrap_or_default();
    // CPUs of isolated cpuset partitions, made after boot: Documentation/admin-guide/cgroup-v2.rst,
    // `cpuset.cpus.isolated`, in the root cgroup only.
    for cgroup in ["sys/fs/cgroup", "sys/fs/cgroup/unified"] {
        let partitions: Option<CpuSet> = list(&root.join(cgroup).join("cpuset.cpus.isolated"))?;
        parts.isolated.extend(partitions.iter().flat_map(IdSet::iter));
    }
    parts.nohz_full = list(&sys.join("nohz_full"))?.unwrap_or_default();

    // The affinity and cpuset of the main thread, which `self` names whichever thread asks.
    let path = root.join("proc/self/status");
    let status = fs::read_to_string(&path).map_err(|source| DiscoverError::Read { path: path.clone(), source })?;
    if let Some(cpus) = status_list(&path, &status, "Cpus_allowed_list:")? {
        parts.allowed = parts.allowed.intersection(&cpus);
    }
    if let Some(nodes) = status_list(&path, &status, "Mems_allowed_list:")? {
        parts.allowed_nodes = parts.allowed_nodes.intersection(&nodes);
    }
    Ok(())
}

/// A kernel list file; `None` where the kernel has no such file.
fn list<I: Id>(path: &Path) -> Result<Option<IdSet<I>>, DiscoverError> {
    match fs::read_to_string(path) {
        Ok(text) => parse(path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DiscoverError::Read { path: path.to_owned(), source }),
    }
}

fn status_list<I: Id>(path: &Path, status: &str, key: &str) -> Result<Option<IdSet<I>>, DiscoverError> {
    status.lines().find_map(|line| line.strip_prefix(key)).map(|text| parse(path, text)).transpose()
}

fn parse<I: Id>(path: &Path, text: &str) -> Result<IdSet<I>, DiscoverError> {
    // Kernels without nohz_full= print a null mask (drivers/base/cpu.c, `cpumask_pr_args(tick_nohz_full_mask)`).
    if text.trim() == "(null)" {
        return Ok(IdSet::new());
    }
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    text.parse().map_err(|error| DiscoverError::Read { path: path.to_owned(), source: invalid(error) })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::model::NodeSet;

    /// A root with the given files; removed by the caller's drop.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("sherd-topology-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn machine() -> HostParts {
        let cpus: CpuSet = "0-7".parse().unwrap();
        let nodes: NodeSet = "0-1".parse().unwrap();
        HostParts { online: cpus.clone(), allowed: cpus, allowed_nodes: nodes, ..HostParts::default() }
    }

    const STATUS: &str = "Name:\tsherd\nCpus_allowed:\tfe\nCpus_allowed_list:\t1-7\nMems_allowed_list:\t1\n";

    #[test]
    fn the_kernels_lists_narrow_what_hwloc_says() {
        let files = [
            ("sys/devices/system/cpu/online", "0-5\n"),
            ("sys/devices/system/cpu/isolated", "2-3\n"),
            ("sys/devices/system/cpu/nohz_full", "3\n"),
            ("sys/fs/cgroup/cpuset.cpus.isolated", "5\n"),
            ("proc/self/status", STATUS),
        ];
        let root = Root::new("lists", &files);
        let mut parts = machine();
        restrict(&mut parts, &root.0).unwrap();
        let found = [&parts.online, &parts.allowed, &parts.isolated, &parts.nohz_full].map(ToString::to_string);
        assert_eq!(found, ["0-5", "1-7", "2-3,5", "3"]);
        assert_eq!(parts.allowed_nodes.to_string(), "1");
    }

    #[test]
    fn missing_and_empty_lists_mean_none() {
        let files = [
            ("sys/devices/system/cpu/isolated", "\n"),
            ("sys/devices/system/cpu/nohz_full", "  (null)\n"),
            ("proc/self/status", STATUS),
        ];
        let root = Root::new("missing", &files);
        let mut parts = machine();
        restrict(&mut parts, &root.0).unwrap();
        assert_eq!(parts.online.to_string(), "0-7");
        assert!(parts.isolated.is_empty() && parts.nohz_full.is_empty());
    }

    #[test]
    fn nonsense_names_the_file() {
        let files = [("sys/devices/system/cpu/isolated", "what?"), ("proc/self/status", STATUS)];
        let root = Root::new("nonsense", &files);
        let error = restrict(&mut machine(), &root.0).unwrap_err();
        assert!(matches!(error, DiscoverError::Read { path, .. } if path.ends_with("cpu/isolated")));
    }
}
