//! The marks on listeners of ours: with one a socket of the guard may listen, and what it accepts is counted. The map is
//! bpf/account.bpf.c's; connections get copies, which let nothing listen.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::maps::{MapData, MapError, SkStorage};
use socket2::SockRef;

use crate::cells::NO_CELL;

/// `struct account`.
type Account = [u64; 3];

/// Where marks are set.
#[derive(Debug)]
pub(super) struct Marks(pub(super) SkStorage<MapData, Account>);

impl Marks {
    pub(super) fn mark(&mut self, listener: BorrowedFd<'_>, cell: Option<u32>) -> io::Result<()> {
        let cookie = SockRef::from(&listener).cookie()?;
        let account = [cookie, 0, u64::from(cell.unwrap_or(NO_CELL))];
        self.0.insert(&listener.as_raw_fd(), account, 0).map_err(|error| match error {
            MapError::SyscallError(error) => error.io_error,
            error => io::Error::other(error),
        })
    }
}
