//! System calls on a socket as someone may make them who means no good: any option, any address. Neither nix nor socket2
//! makes a call that is wrong on purpose.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// setsockopt(2) with any level, option and value.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` is `len` readable bytes. An option whose value points elsewhere makes the kernel read (never write)
    // there, and it checks the address.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// connect(2) to an address of any family and length.
pub(crate) fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(address.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel copies the `len` bytes of `address` and asks no alignment of them.
    let result = unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
