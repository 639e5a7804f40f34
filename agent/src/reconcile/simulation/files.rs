//! Files in memory. They outlive the agent; what it was killed in the middle of is there, or it isn't.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::state::with;

pub(crate) fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(with(|world| world.files.keys().filter(|path| path.parent() == Some(directory)).cloned().collect()))
}

pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    with(|world| world.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into()))
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    with(|world| {
        let bytes = world.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.files.insert(to.to_owned(), bytes);
        Ok(())
    })
}

pub(crate) fn remove(path: &Path) -> io::Result<()> {
    with(|world| drop(world.files.remove(path)));
    Ok(())
}

/// Also when the disk is full: then nothing has changed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    with(|world| {
        if world.faults.strike(&mut world.chance, 20) {
            world.tell(|| format!("the disk is full: {}", path.display()));
            world.seen.note_unwritten(path);
            return Err(io::ErrorKind::StorageFull.into());
        }
        if !world.forgets_files() {
            world.files.insert(path.to_owned(), bytes.to_vec());
        }
        Ok(())
    })
}
