//! The shim's program, embedded by `build.rs`, and its place on the host. Runs nothing and knows no container.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The program's name in its directory.
pub const NAME: &str = "sherd-shim";

/// Executed by whatever user a container has.
const MODE: u32 = 0o755;

/// Statically linked, so that it runs in an image that has no C library, or another one.
static PROGRAM: &[u8] = include_bytes!(env!("SHERD_SHIM"));

/// Sees to it that `directory` is there and has this version's shim; gives its path. Every user can get at both,
/// whatever the umask: containers have the directory as a mount. It must be executable from there, and on many hosts
/// `/run` is mounted `noexec`.
///
/// A former version is replaced in one step, and what is the same already is left alone.
pub fn install(directory: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(MODE).create(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(MODE))?;
    let path = directory.join(NAME);
    if !is_installed(&path) {
        // An agent alone owns its directories (its state directory is locked), so this name is nobody else's.
        let temporary = directory.join(format!(".{NAME}"));
        write(&temporary)?;
        fs::rename(&temporary, &path)?;
    }
    Ok(path)
}

fn is_installed(path: &Path) -> bool {
    let mode = fs::symlink_metadata(path).map(|found| found.is_file().then(|| found.permissions().mode() & 0o7777));
    matches!(mode, Ok(Some(MODE))) && fs::read(path).is_ok_and(|found| found == PROGRAM)
}

/// Synced before it gets its name: after a crash of the host the shim is the former one or this one, whole.
fn write(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(PROGRAM)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt, process::Command};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn every_user_can_run_what_is_installed() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("deep/bin");
        let path = install(&directory).unwrap();
        assert_eq!((path.as_path(), mode(&path), mode(&directory)), (&*directory.join(NAME), 0o755, 0o755));
        assert_eq!(fs::read(&path).unwrap(), PROGRAM);
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }

    #[test]
    fn what_differs_is_replaced_and_what_does_not_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = install(directory.path()).unwrap();
        let inode = || fs::symlink_metadata(&path).unwrap().ino();
        let installed = inode();
        install(directory.path()).unwrap();
        assert_eq!(inode(), installed);

        let check = |spoil: &dyn Fn()| {
            spoil();
            install(directory.path()).unwrap();
            assert!(is_installed(&path));
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        };
        check(&|| fs::write(&path, "a former version").unwrap());
        check(&|| fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap());
        check(&|| fs::remove_file(&path).unwrap());
        // Somebody's link to the same bytes may lead elsewhere in a container.
        let elsewhere = tempfile::tempdir().unwrap();
        let copy = install(elsewhere.path()).unwrap();
        check(&|| {
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(&copy, &path).unwrap();
        });
        // What a killed agent left half-written.
        check(&|| {
            fs::remove_file(&path).unwrap();
            fs::write(directory.path().join(".sherd-shim"), "half").unwrap();
        });
    }

    /// Not the installed one: while another test's child is between fork and exec, it may be open for writing (ETXTBSY).
    #[test]
    fn it_runs_here() {
        let output = Command::new(env!("SHERD_SHIM")).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage: sherd-shim"), "{output:?}");
    }

    /// A dynamic program names its loader (PT_INTERP, elf(5)), which an image need not have.
    #[test]
    fn it_is_static() {
        const PT_INTERP: u32 = 3;
        let bytes = |at: usize, len: usize| &PROGRAM[at..at + len];
        let half = |at| usize::from(u16::from_le_bytes(bytes(at, 2).try_into().unwrap()));
        assert_eq!(bytes(0, 6), b"\x7fELF\x02\x01", "64 bits, little endian");
        let first = usize::try_from(u64::from_le_bytes(bytes(32, 8).try_into().unwrap())).unwrap();
        let (size, count) = (half(54), half(56));
        assert!(count > 0);
        for at in (0..count).map(|index| first + index * size) {
            assert_ne!(u32::from_le_bytes(bytes(at, 4).try_into().unwrap()), PT_INTERP);
        }
    }
}
