//! The marks on listeners of ours: with one a socket of the guard may listen. The map is bpf/account.bpf.c's; connections get
//! none, so they may not.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::maps::{MapData, MapError, SkStorage};

/// That there is one is all that it says.
const MARK: u64 = 1;

/// Where marks are set.
#[derive(Debug)]
pub(super) struct Marks(pub(super) SkStorage<MapData, u64>);

impl Marks {
    pub(super) fn mark(&mut self, listener: BorrowedFd<'_>) -> io::Result<()> {
        self.0.insert(&listener.as_raw_fd(), MARK, 0).map_err(|error| match error {
            MapError::SyscallError(error) => error.io_error,
            error => io::Error::other(error),
        })
    }
}
