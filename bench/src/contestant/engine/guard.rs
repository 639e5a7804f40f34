//! Removes the cgroups of agents that were killed: each keeps its listeners' guard, and its shards that are processes, in some
//! below `sherd/INSTANCE`, which no process's end takes away; rmdir only, so nothing that is in use can go.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Those of all instances whose names begin with `run`.
pub(super) fn remove_all(run: &str) -> io::Result<()> {
    let Some(top) = top()? else { return Ok(()) };
    remove_below(&top, run)
}

/// That of the agent called `instance`, where it has one.
pub(in crate::contestant) fn of_instance(instance: &str) -> Option<PathBuf> {
    top().ok().flatten().map(|top| top.join(instance)).filter(|cgroup| cgroup.is_dir())
}

/// None where cgroup v2 isn't mounted.
fn top() -> io::Result<Option<PathBuf>> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(cgroup2_mount(&mountinfo).map(|mount| mount.join("sherd")))
}

fn remove_below(top: &Path, run: &str) -> io::Result<()> {
    let Ok(instances) = fs::read_dir(top) else { return Ok(()) };
    for instance in instances {
        let instance = instance?;
        if !instance.file_name().to_string_lossy().starts_with(&format!("{run}-")) {
            continue;
        }
        remove_tree(&instance.path())?;
    }
    // The agent removes it too, where nobody else uses it.
    let _ = fs::remove_dir(top);
    Ok(())
}

/// A guard has a cgroup for each slot of each address below it.
pub(super) fn remove_tree(cgroup: &Path) -> io::Result<()> {
    for below in fs::read_dir(cgroup)?.flatten().filter(is_directory) {
        remove_tree(&below.path())?;
    }
    fs::remove_dir(cgroup)
}

fn is_directory(entry: &fs::DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

/// The mount point of a line like `41 31 0:38 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw`
/// (proc_pid_mountinfo(5)); one with blanks in its name is written with escapes and is not found.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (root == "/" && kind.starts_with("cgroup2 ")).then(|| point.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found() {
        let text = "30 1 0:26 / /proc rw - proc proc rw\n41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(text), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount("30 1 0:26 / /proc rw - proc proc rw\n"), None);
        assert_eq!(cgroup2_mount("41 31 0:38 /a /x rw - cgroup2 cgroup2 rw\n"), None, "only a part of it");
    }

    #[test]
    fn only_what_the_run_made_goes() {
        let top = tempfile::tempdir().expect("a directory for the test");
        for path in [
            "sherd-bench-7-direct/guard.1/8",
            "sherd-bench-7-relay",
            "sherd-bench-77-direct/guard.2",
            "default/guard.3",
        ] {
            fs::create_dir_all(top.path().join(path)).expect("writable");
        }
        remove_below(top.path(), "sherd-bench-7").expect("they are empty");
        let mut left: Vec<_> =
            fs::read_dir(top.path()).expect("readable").flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["default", "sherd-bench-77-direct"]);
    }
}
