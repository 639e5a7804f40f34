//! Socket options that neither nix nor socket2 has.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd},
};

/// An instruction of a classic BPF program, `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClassicInstruction {
    pub(crate) code: u16,
    pub(crate) if_true: u8,
    pub(crate) if_false: u8,
    pub(crate) k: u32,
}

/// Makes an eBPF program choose in the socket's SO_REUSEPORT group; before the first listen it makes the group.
pub(crate) fn attach_reuseport_ebpf(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SO_ATTACH_REUSEPORT_EBPF, &program.as_raw_fd())
}

/// Makes a classic program choose, by index of the group's sockets.
pub(crate) fn attach_reuseport_cbpf(socket: BorrowedFd<'_>, program: &[ClassicInstruction]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    // The kernel only reads; the type has no const form.
    let filter = program.as_ptr().cast_mut().cast::<libc::sock_filter>();
    set(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &libc::sock_fprog { len, filter })
}

/// Connections in a listener's accept queue (`tcpi_unacked` of a listening socket).
pub(crate) fn accept_queue_len(listener: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let (fd, value) = (listener.as_raw_fd(), info.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`.
    let result = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed before, and integers of any value are valid.
    Ok(unsafe { info.assume_init() }.tcpi_unacked)
}

fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), size_of::<T>() as libc::socklen_t);
    // SAFETY: `value` is `len` readable bytes, and whatever it points to outlives the call.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
