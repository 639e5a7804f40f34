//! What the state directory needs of a file system. In the simulation of the loop its files are in memory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

#[cfg(all(test, feature = "simulation"))]
use crate::reconcile::simulation::{self, files};

/// Keeps a second agent out until it is dropped; `None`: nobody else is there to be kept out.
pub(super) type Lock = Option<Flock<File>>;

/// Answers for the real disk where no simulated one is there.
macro_rules! simulated {
    ($answer:expr) => {
        #[cfg(all(test, feature = "simulation"))]
        if simulation::is_on() {
            return $answer;
        }
    };
}

pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    simulated!(Ok(()));
    fs::create_dir_all(path)
}

/// Would-block: another process has it.
pub(super) fn lock(path: &Path) -> io::Result<Lock> {
    simulated!(Ok(None));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map(Some).map_err(|(_, errno)| errno.into())
}

/// What is in a directory, in no particular order.
pub(super) fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    simulated!(files::list(directory));
    fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

pub(super) fn exists(path: &Path) -> bool {
    simulated!(files::read(path).is_ok());
    path.exists()
}

/// The whole file; `None`: it has more than `max` bytes.
pub(super) fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    simulated!(files::read(path).map(|bytes| (bytes.len() as u64 <= max).then_some(bytes)));
    if fs::metadata(path)?.len() > max { Ok(None) } else { fs::read(path).map(Some) }
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    simulated!(files::rename(from, to));
    fs::rename(from, to)
}

/// NotFound is none of its errors.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    simulated!(files::remove(path));
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes beside the target and renames: a reader sees the old file or the new one, whatever ends the writer.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    simulated!(files::write(path, bytes));
    let beside = path.with_extension("tmp");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    // The rename itself is durable only with the directory.
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
