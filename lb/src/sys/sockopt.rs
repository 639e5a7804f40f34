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

/// SO_NETNS_COOKIE (Linux 5.14), which libc names on few architectures.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// What tells the socket's network namespace from all others, now and later.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    // Refused with any other length.
    let mut len = size_of::<u64>() as libc::socklen_t;
    let (fd, at) = (socket.as_raw_fd(), (&raw mut cookie).cast());
    // SAFETY: the kernel writes at most `len` bytes, the size of `cookie`.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, at, &raw mut len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// The longest option that [`get_bytes`] reads: TCP_CA_NAME_MAX and struct timeval are 16.
pub(crate) const MAX_OPTION_BYTES: usize = 32;

/// An option of any type, as the kernel writes it.
pub(crate) fn get_bytes(socket: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> io::Result<Vec<u8>> {
    let mut value = [0u8; MAX_OPTION_BYTES];
    let mut len = value.len() as libc::socklen_t;
    let (fd, at) = (socket.as_raw_fd(), value.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `len` bytes at `value`.
    let result = unsafe { libc::getsockopt(fd, level, option, at, &raw mut len) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value[..(len as usize).min(MAX_OPTION_BYTES)].to_vec())
}

/// Sets an option of any type from the bytes that its type has.
pub(crate) fn set_bytes(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &[u8],
) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), value.len() as libc::socklen_t);
    // SAFETY: `value` is `len` readable bytes. The caller names options whose value holds no pointer.
    let result = unsafe { libc::setsockopt(fd, level, option, value.as_ptr().cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), size_of::<T>() as libc::socklen_t);
    // SAFETY: `value` is `len` readable bytes, and whatever it points to outlives the call.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), len) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
