//! Where cgroup v2 is mounted, and the directories of former guards. Makes none and attaches nothing.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::GuardError;

/// Where cgroup v2 is mounted, whole: /sys/fs/cgroup, on hybrid hosts /sys/fs/cgroup/unified. None where it is not, or
/// where only a part can be seen.
pub fn cgroup2_mount() -> Option<PathBuf> {
    find(&fs::read("/proc/self/mountinfo").ok()?)
}

pub(super) fn check_is_cgroup2(parent: &Path) -> Result<(), GuardError> {
    match statfs(parent) {
        Ok(found) if found.filesystem_type() == CGROUP2_SUPER_MAGIC => Ok(()),
        _ => Err(GuardError::NoCgroup2 { parent: parent.into() }),
    }
}

/// rmdir only, so nothing that is in use can go.
pub(super) fn remove_former(parent: &Path, prefix: &str, keep: Option<&Path>) -> io::Result<Vec<PathBuf>> {
    let mut in_use = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let is_former = entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes());
        let path = entry.path();
        if !is_former || !entry.file_type()?.is_dir() || keep == Some(&path) {
            continue;
        }
        match remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => in_use.push(path),
            _ => {}
        }
    }
    in_use.sort();
    Ok(in_use)
}

/// A guard's cgroup, and those below it.
pub(super) fn remove(guard: &Path) -> io::Result<()> {
    for entry in fs::read_dir(guard)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir(entry.path())?;
        }
    }
    fs::remove_dir(guard)
}

/// The mount point of a line like `41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw`
/// (proc_pid_mountinfo(5)).
fn find(mountinfo: &[u8]) -> Option<PathBuf> {
    mountinfo.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        (root == b"/" && kind == b"cgroup2").then(|| PathBuf::from(OsString::from_vec(unescape(point))))
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_what_the_kernel_writes() {
        let check = |mountinfo: &str, expected: Option<&str>| {
            assert_eq!(find(mountinfo.as_bytes()), expected.map(PathBuf::from), "{mountinfo}");
        };
        check("", None);
        check("31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755", None);
        check("35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate", Some("/sys/fs/cgroup"));
        check("32 31 0:29 / /c/cpu rw - cgroup cgroup rw,cpu\n41 31 0:38 / /c/u rw - cgroup2 none rw", Some("/c/u"));
        check(r"41 31 0:38 / /with\040space\134 rw shared:1 master:2 - cgroup2 none rw", Some(r"/with space\"));
        check("41 31 0:38 /docker/x /sys/fs/cgroup ro - cgroup2 none rw", None);
        check("41 31 0:38 /", None);
    }

    #[test]
    fn elsewhere_is_no_cgroup() {
        let checked = check_is_cgroup2(Path::new("/proc"));
        assert!(matches!(checked, Err(GuardError::NoCgroup2 { .. })), "{checked:?}");
    }
}
