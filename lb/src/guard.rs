//! The guard: a cgroup whose sockets can only accept, and what they accept can only talk, whoever holds them. Owns the
//! cgroup, the programs on it, the process in it that makes listeners, and the proof; knows neither steering nor containers.
//!
//! A program that is attached to a cgroup (not by a link, not pinned) is kept by it, and a removed cgroup is kept by its
//! sockets. So nothing of ours needs to live for a socket to stay harmless, and no state is left behind when it ends.
//!
//! A socket that was accepted, disconnected (connect(2) to AF_UNSPEC, which no hook sees) and made to listen is contained:
//! bound to a device that does not exist, so that nothing reaches it. Only listeners with the agent's mark are not.
//!
//! No hook sees these, so who gives a listener away has to refuse them in other ways (seccomp), or to live with them:
//! shutdown(2), fchown(2), and setsockopt(2) by a 32-bit system call
//! (`do_sock_setsockopt` runs the hook `if (!compat)`; tried on 6.18 by `int $0x80`: SO_REUSEPORT = 0 went through).

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

mod error;
mod hierarchy;
pub mod maker;
mod marks;
mod operation;
mod places;
mod programs;
mod proof;

pub use error::{GuardError, Stage, Unproven};
pub use hierarchy::cgroup2_mount;
pub use maker::Maker;
pub use operation::Operation;

use self::{marks::Marks, places::Places};
use crate::cells::Cells;

/// A cgroup with the guard's programs on it. Dropping it changes nothing; see [`Guard::remove_former`].
#[derive(Debug)]
pub struct Guard {
    cgroup: PathBuf,
    marks: Marks,
    places: Places,
}

impl Guard {
    /// Makes the cgroup `<parent>/<name>` and attaches the programs. `parent` is a directory of a cgroup v2 mount; a name
    /// is used once, so each start of the agent has one of its own. What its listeners accept is counted in `cells`, where
    /// [`count_in`](Self::count_in) made room.
    ///
    /// # Errors
    /// When any program is missing there is no guard and no cgroup.
    pub fn establish(parent: &Path, name: &str, cells: Option<&Cells>) -> Result<Self, GuardError> {
        hierarchy::check_is_cgroup2(parent)?;
        let cgroup = parent.join(name);
        fs::create_dir(&cgroup).map_err(|source| GuardError::Directory { path: cgroup.clone(), source })?;
        let attached = attach(&cgroup, cells);
        if attached.is_err() {
            // Nobody can be in it yet. If it stays nevertheless, the next start removes it.
            let _ = fs::remove_dir(&cgroup);
        }
        attached.map(|(marks, places)| Self { cgroup, marks, places })
    }

    /// Makes a cgroup below, in which [`Maker::counted_listener`] makes listeners of the cell of that number; where there is
    /// one nothing changes.
    ///
    /// # Errors
    /// As mkdir(2) and bpf(2); then listeners of this cell can't be made.
    pub fn count_in(&mut self, cell: u32) -> io::Result<()> {
        self.places.make(&self.cgroup, cell)
    }

    /// Marks what the maker has made as a listener of ours: without that nothing reaches it once it listens.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn mark(&mut self, listener: BorrowedFd<'_>) -> io::Result<()> {
        self.marks.mark(listener)
    }

    /// The cgroup's directory.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Removes the guard's cgroups, whose maker has ended. Their sockets stay guarded.
    ///
    /// # Errors
    /// As rmdir(2).
    pub fn remove(&self) -> io::Result<()> {
        hierarchy::remove(&self.cgroup)
    }

    /// Removes the guards below `parent` whose names begin with `prefix`, but `keep`. Their sockets stay guarded. Returns
    /// those that are still in use: their maker has not ended yet.
    ///
    /// # Errors
    /// When `parent` can't be read.
    pub fn remove_former(parent: &Path, prefix: &str, keep: Option<&Path>) -> io::Result<Vec<PathBuf>> {
        hierarchy::remove_former(parent, prefix, keep)
    }

    /// Proves on throw-away sockets of both families, on loopback of the calling thread's network namespace, that what
    /// `maker` makes is guarded: bound, listening, accepted and disconnected. And that what servers do works. Within seconds.
    ///
    /// # Errors
    /// The first operation that was not refused, or not allowed.
    pub fn prove(&mut self, maker: &Maker) -> Result<(), Unproven> {
        proof::prove(&mut self.marks, maker)
    }

    /// Proves that this very socket, which is bound, is guarded, by trying what has no effect if it is not: the kernel
    /// tells a socket's cgroup to nobody. Some 2 us.
    ///
    /// # Errors
    /// The first operation that was not refused.
    pub fn prove_listener(socket: BorrowedFd<'_>) -> Result<(), Unproven> {
        proof::prove_listener(socket)
    }
}

fn attach(cgroup: &Path, cells: Option<&Cells>) -> Result<(Marks, Places), GuardError> {
    let failed = |source| GuardError::Directory { path: cgroup.into(), source };
    let directory = File::open(cgroup).map_err(failed)?;
    let id = places::cgroup_id(&directory).map_err(failed)?;
    programs::attach(directory.as_fd(), id, cells)
}
