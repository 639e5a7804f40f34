//! The system calls of the data path on borrowed sockets, with the options they need. Decides nothing.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    sys::socket::{self, MsgFlags, SockFlag, sockopt},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{
    Target,
    direction::Ends,
    pipes::{PIPE_BYTES, Pipe, Pipes},
};
use crate::{front::Forced, sys};

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

/// A socket that is on its way, and what forces it there.
pub(super) struct Dialed {
    pub(super) socket: OwnedFd,
    /// Kept until the connection is established. It goes before the socket does: the port's next owner may have its
    /// own.
    pub(super) forced: Option<Forced>,
}

/// A socket that is on its way to `target` from `port`; 0: a port of the kernel's choice.
pub(super) fn connect(target: &Target, port: u16) -> io::Result<Dialed> {
    let domain = Domain::for_address(target.address);
    let socket = Socket::new_raw(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source(target, port) {
        socket.bind(&source.into())?;
    }
    if port != 0 {
        // After the bind, which so fails on a used port; from now on a service may still listen on this one.
        socket.set_reuse_address(true)?;
    }
    // Declared after the socket: on an error it goes first.
    let forced = target.force.as_ref().map(|force| force.bind(&socket)).transpose()?;
    match socket.connect(&target.address.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
        Err(error) => return Err(error),
    }
    Ok(Dialed { socket: socket.into(), forced })
}

/// What to bind to before connecting: a forced connection is known by its source, which is the target's own address.
fn source(target: &Target, port: u16) -> Option<SocketAddr> {
    let any = match target.address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let mut source = target.address;
    source.set_port(port);
    match target.force {
        Some(_) => Some(source),
        None => (port != 0).then_some(SocketAddr::new(any, port)),
    }
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

/// Whether the socket's last close resets the connection instead of ending it. One that is gone already needs neither.
pub(super) fn set_reset_on_close(fd: &OwnedFd, reset: bool) {
    let _ = socket::setsockopt(fd, sockopt::Linger, &libc::linger { l_onoff: i32::from(reset), l_linger: 0 });
}

/// Closes with a reset, so that the peer doesn't take what it got for everything there was.
pub(super) fn reset(fd: OwnedFd) {
    set_reset_on_close(&fd, true);
    drop(fd);
}
