//! What the relay needs of the kernel beyond nix and socket2.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{SockFlag, accept4},
};

/// accept4(2) without the peer's address: nix gives a raw descriptor, and socket2 always asks for the address.
pub(crate) fn accept(listener: BorrowedFd<'_>, flags: SockFlag) -> Result<OwnedFd, Errno> {
    let fd = accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: accept4 succeeded, so `fd` is open, and it was made just now: nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
