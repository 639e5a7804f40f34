//! The cgroups below the guard's: one for each cell that listeners are counted in. What is made there is of its cell for
//! good, and so is all that it accepts, whoever holds it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use super::programs;
use crate::sys::bpf::{Below, Map};

/// Where the cells' cgroups are made, with what they need.
#[derive(Debug)]
pub(super) struct Places {
    /// The program that accounts.
    pub(super) account: OwnedFd,
    /// Its map: a cgroup's id -> the number of its cell.
    pub(super) cells: Map,
    /// The map of the program that allows bind(2): ids of the guard's cgroups.
    pub(super) inside: Map,
    pub(super) made: BTreeSet<u32>,
}

/// The cgroup of the cell.
pub(super) fn path(guard: &Path, cell: u32) -> PathBuf {
    guard.join(cell.to_string())
}

impl Places {
    /// Makes the cell's cgroup, unless it is there: the program first, then its cell, and only then may anything be bound
    /// in it. Killed in between, nobody has used it, and it goes with the guard.
    pub(super) fn make(&mut self, guard: &Path, cell: u32) -> io::Result<()> {
        if self.made.contains(&cell) {
            return Ok(());
        }
        let place = path(guard, cell);
        fs::create_dir(&place)?;
        let equipped = self.equip(&place, cell);
        if equipped.is_err() {
            // Nobody can be in it. Should it stay nevertheless, this cell's listeners are refused by this guard.
            let _ = fs::remove_dir(&place);
        } else {
            self.made.insert(cell);
        }
        equipped
    }

    fn equip(&self, place: &Path, cell: u32) -> io::Result<()> {
        let directory = File::open(place)?;
        let id = cgroup_id(&directory)?.to_ne_bytes();
        let (_, attach_type) = programs::ACCOUNT_HOOK;
        crate::sys::bpf::attach_to_cgroup(directory.as_fd(), self.account.as_fd(), attach_type, Below::Beside)?;
        self.cells.update(&id, u64::from(cell))?;
        self.inside.update(&id, 1)
    }
}

/// The inode number of a cgroup is its id wherever ino_t has 64 bits (`kernfs_id_ino`).
pub(super) fn cgroup_id(directory: &File) -> io::Result<u64> {
    Ok(directory.metadata()?.ino())
}
