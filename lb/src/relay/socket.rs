//! The system calls of the data path on borrowed sockets, with the options they need. Decides nothing.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    sys::socket::{self, MsgFlags, SockFlag, sockopt},
};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};

use super::{
    direction::Ends,
    pipes::{PIPE_BYTES, Pipe, Pipes},
};
use crate::sys;

/// A direction's two sockets and the worker's pipes.
pub(super) struct Sockets<'a> {
    pub(super) source: BorrowedFd<'a>,
    pub(super) sink: BorrowedFd<'a>,
    pub(super) pipes: &'a mut Pipes,
    /// `false`: everything is copied.
    pub(super) splice: bool,
    /// A byte was taken from the source.
    pub(super) taken: bool,
    /// How much went through pipes.
    pub(super) spliced: usize,
    pub(super) written: usize,
}

impl Ends for Sockets<'_> {
    type Pipe = Pipe;

    fn receive(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        let received = socket::recv(self.source.as_raw_fd(), into, MsgFlags::empty())?;
        self.taken |= received > 0;
        Ok(received)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let sent = socket::send(self.sink.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?;
        self.written += sent;
        Ok(sent)
    }

    fn take_pipe(&mut self) -> Option<Pipe> {
        if self.splice { self.pipes.take() } else { None }
    }

    fn return_pipe(&mut self, pipe: Pipe) {
        self.pipes.put(pipe);
    }

    fn fill(&mut self, pipe: &Pipe) -> Result<usize, Errno> {
        let moved = splice(self.source, None, &pipe.write, None, PIPE_BYTES, SpliceFFlags::SPLICE_F_NONBLOCK)?;
        self.taken |= moved > 0;
        Ok(moved)
    }

    fn empty(&mut self, pipe: &Pipe, len: usize) -> Result<usize, Errno> {
        let moved = splice(&pipe.read, None, self.sink, None, len, SpliceFFlags::SPLICE_F_NONBLOCK)?;
        self.spliced += moved;
        self.written += moved;
        Ok(moved)
    }
}

/// The next connection of a listener's queue, non-blocking. It has the listener's options (see [`prepare_listener`]).
pub(super) fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    sys::relay::accept(listener.as_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)
}

/// Sets on a listener what its connections inherit (`inet_csk_clone_lock` copies the socket), so that no accepted
/// connection costs a system call for it.
pub(super) fn prepare_listener(listener: &OwnedFd, keepalive: Option<Duration>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(listener, FcntlArg::F_GETFL)?);
    fcntl(listener, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    set_options(listener.as_fd(), keepalive)
}

/// Makes a connection that came from elsewhere like one of our own listener's.
pub(super) fn prepare_adopted(client: &OwnedFd, keepalive: Option<Duration>) -> io::Result<()> {
    fcntl(client, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    set_options(client.as_fd(), keepalive)
}

fn set_options(fd: BorrowedFd<'_>, keepalive: Option<Duration>) -> io::Result<()> {
    SockRef::from(&fd).set_tcp_nodelay(true)?;
    set_keepalive(fd, keepalive)
}

/// Three unanswered probes, a third of `idle` apart, after `idle` of silence.
pub(super) fn set_keepalive(fd: BorrowedFd<'_>, keepalive: Option<Duration>) -> io::Result<()> {
    let Some(idle) = keepalive else { return Ok(()) };
    let idle = idle.max(Duration::from_secs(1));
    let interval = (idle / 3).max(Duration::from_secs(1));
    let parameters = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(3);
    SockRef::from(&fd).set_tcp_keepalive(&parameters)
}

/// A socket that is on its way to `address`, from `source` if one is given, else from a port of the kernel's choice.
pub(super) fn connect(address: &SockAddr, source: Option<SocketAddr>) -> io::Result<OwnedFd> {
    let socket = Socket::new_raw(address_domain(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&source.into())?;
        // After the bind, which so fails on a used port; from now on a service may still listen on this one.
        socket.set_reuse_address(true)?;
    }
    match socket.connect(address) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
        Err(error) => return Err(error),
    }
    Ok(socket.into())
}

fn address_domain(address: &SockAddr) -> Domain {
    if address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 }
}

/// The error that waits on a socket, taken off it.
pub(super) fn take_error(fd: BorrowedFd<'_>) -> Option<Errno> {
    match SockRef::from(&fd).take_error() {
        Ok(None) => None,
        Ok(Some(error)) | Err(error) => Some(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
    }
}

/// Sends a FIN. A socket that is gone already says so by its next event.
pub(super) fn half_close(fd: BorrowedFd<'_>) {
    let _ = socket::shutdown(fd.as_raw_fd(), socket::Shutdown::Write);
}

/// Closes with a reset, so that the peer doesn't take what it got for everything there was.
pub(super) fn reset(fd: OwnedFd) {
    let _ = socket::setsockopt(&fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
    drop(fd);
}
