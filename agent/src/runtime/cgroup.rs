//! Control groups as the kernel presents them: where they are mounted, which one a process is in, who is in one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the two hierarchies that matter here are mounted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Mounts {
    pub(crate) v2: Option<Mount>,
    pub(super) cpuset_v1: Option<Mount>,
}

/// A mounted hierarchy; `root` is the part of it that is visible there, not "/" in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(super) point: PathBuf,
    root: PathBuf,
}

/// The cgroups of one process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Membership {
    pub(crate) v2: Option<PathBuf>,
    pub(super) cpuset_v1: Option<PathBuf>,
}

impl Mounts {
    pub(crate) fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// proc_pid_mountinfo(5): `36 35 98:0 ROOT POINT options … - TYPE source superoptions`.
    fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let mut before = before.split(' ').skip(3).map(unescape);
            let (Some(root), Some(point)) = (before.next(), before.next()) else { continue };
            let mount = Mount { point, root };
            let after: Vec<&str> = after.split(' ').collect();
            match after.as_slice() {
                ["cgroup2", ..] => mounts.v2 = mounts.v2.or(Some(mount)),
                ["cgroup", _, options] if options.split(',').any(|option| option == "cpuset") => {
                    mounts.cpuset_v1 = mounts.cpuset_v1.or(Some(mount));
                }
                _ => {}
            }
        }
        mounts
    }
}

impl Mount {
    /// The directory of a cgroup.
    pub(crate) fn directory(&self, cgroup: &Path) -> PathBuf {
        let inside = cgroup.strip_prefix(&self.root).or_else(|_| cgroup.strip_prefix("/")).unwrap_or(cgroup);
        self.point.join(inside)
    }
}

impl Membership {
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(format!("/proc/{pid}/cgroup"))?))
    }

    /// cgroups(7): `0::/path` is v2, `N:controllers:/path` is v1.
    fn parse(text: &str) -> Self {
        let mut membership = Self::default();
        for line in text.lines() {
            let mut parts = line.splitn(3, ':');
            let (Some(hierarchy), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            if hierarchy == "0" {
                membership.v2 = Some(path.into());
            } else if controllers.split(',').any(|controller| controller == "cpuset") {
                membership.cpuset_v1 = Some(path.into());
            }
        }
        membership
    }
}

/// Every process in a cgroup and below it.
pub(super) fn processes(directory: &Path) -> io::Result<Vec<u32>> {
    let text = fs::read_to_string(directory.join("cgroup.procs"))?;
    let mut pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for child in children(directory) {
        pids.extend(processes(&child).unwrap_or_default());
    }
    Ok(pids)
}

/// The cgroups directly below.
pub(super) fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Removes a cgroup and those below it; they must be empty of processes.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Spaces and the like are octal in mountinfo.
fn unescape(field: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    plain.iter().fold(field.to_owned(), |text, (octal, plain)| text.replace(octal, plain)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_every_layout() {
        let check = |mountinfo: &str, v2: Option<&str>, cpuset_v1: Option<&str>| {
            let mounts = Mounts::parse(mountinfo);
            assert_eq!(mounts.v2.map(|mount| mount.point), v2.map(PathBuf::from), "{mountinfo}");
            assert_eq!(mounts.cpuset_v1.map(|mount| mount.point), cpuset_v1.map(PathBuf::from), "{mountinfo}");
        };
        check(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate",
            Some("/sys/fs/cgroup"),
            None,
        );
        let hybrid = "33 32 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      35 32 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      36 32 0:32 / /sys/fs/cgroup/cpu\\040set rw - cgroup cgroup rw,cpuset";
        check(hybrid, Some("/sys/fs/cgroup/unified"), Some("/sys/fs/cgroup/cpu set"));
        check("", None, None);
        check("nonsense", None, None);
    }

    #[test]
    fn a_cgroup_namespace_hides_a_prefix() {
        let mount = Mount { point: "/cg".into(), root: "/docker/abc".into() };
        assert_eq!(mount.directory(Path::new("/docker/abc/x")), Path::new("/cg/x"));
        let whole = Mount { point: "/cg".into(), root: "/".into() };
        assert_eq!(whole.directory(Path::new("/a/b")), Path::new("/cg/a/b"));
        assert_eq!(whole.directory(Path::new("/")), Path::new("/cg"));
    }

    #[test]
    fn memberships_of_every_layout() {
        let check = |text: &str, v2: Option<&str>, cpuset_v1: Option<&str>| {
            let expected = Membership { v2: v2.map(PathBuf::from), cpuset_v1: cpuset_v1.map(PathBuf::from) };
            assert_eq!(Membership::parse(text), expected, "{text}");
        };
        check("0::/system.slice/docker-1.scope\n", Some("/system.slice/docker-1.scope"), None);
        check("9:cpuset:/docker/1\n2:cpu,cpuacct:/x\n0::/\n", Some("/"), Some("/docker/1"));
        check("3:cpuset,memory:/a:b\n", None, Some("/a:b"));
    }
}
