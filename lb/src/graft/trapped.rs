//! The socket that a program called listen(2) on: found by a pidfd, and looked at. Changes nothing.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::process::Process;
use crate::sys::{seccomp::Notification, sockopt};

/// What a listen(2) is for.
pub(super) enum Target {
    /// A TCP socket, or an MPTCP one, of IPv4 or IPv6.
    Tcp(Trapped),
    /// A unix socket, which remembers who called (SO_PEERCRED): nobody can call listen(2) on its behalf.
    Unix,
    /// A socket of another kind, and the backlog.
    Other(OwnedFd, i32),
}

/// A listening socket to be, in the program's hands.
#[derive(Debug)]
pub struct Trapped {
    pub(super) process: Process,
    pub(super) number: RawFd,
    socket: OwnedFd,
    address: SocketAddr,
    state: State,
    v6only: bool,
    cookie: u64,
    backlog: i32,
    is_here: bool,
}

/// What listen(2) finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It will choose a port.
    Unbound,
    /// It will listen at its address.
    Bound,
    /// It will fail.
    Connected,
    /// It listens already.
    Listening,
}

impl Target {
    /// # Errors
    /// What the kernel would say to the caller: EBADF, ENOTSOCK; or why the descriptor can't be looked at.
    pub(super) fn look(notification: &Notification) -> io::Result<Self> {
        // The kernel takes both as int.
        let (number, backlog) = (notification.args[0] as RawFd, notification.args[1] as i32);
        let process = Process::of_thread(notification.pid)?;
        let socket = process.descriptor(number)?;
        let at = SockRef::from(&socket);
        let (domain, is_stream) = (at.domain()?, at.r#type()? == Type::STREAM);
        let is_ip = matches!(domain, Domain::IPV4 | Domain::IPV6);
        if domain == Domain::UNIX {
            Ok(Self::Unix)
        } else if is_ip && is_stream && matches!(at.protocol()?, Some(Protocol::TCP | Protocol::MPTCP)) {
            Trapped::look(process, number, socket, backlog).map(Self::Tcp)
        } else {
            Ok(Self::Other(socket, backlog))
        }
    }
}

impl Trapped {
    fn look(process: Process, number: RawFd, socket: OwnedFd, backlog: i32) -> io::Result<Self> {
        let at = SockRef::from(&socket);
        let address = at.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        let state = match (at.is_listener()?, at.peer_addr().is_ok(), address.port()) {
            (true, ..) => State::Listening,
            (_, true, _) => State::Connected,
            (_, _, 0) => State::Unbound,
            _ => State::Bound,
        };
        let v6only = address.is_ipv6() && at.only_v6()?;
        let is_here = sockopt::netns_cookie(socket.as_fd())? == own_netns_cookie()?;
        Ok(Self { process, number, address, state, v6only, cookie: at.cookie()?, backlog, is_here, socket })
    }

    /// What it is bound to, in the program's network namespace.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// It takes no IPv4 connections although it is of IPv6.
    pub fn is_v6only(&self) -> bool {
        self.v6only
    }

    /// SO_COOKIE: tells a listener of ours that comes back.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// It is in the calling thread's network namespace. A program in a namespace of its own got it from us: it is a
    /// listener that was grafted, or was accepted from one.
    pub fn is_here(&self) -> bool {
        self.is_here
    }

    /// What listen(2) finds.
    pub fn state(&self) -> State {
        self.state
    }

    /// What the program asked for.
    pub fn backlog(&self) -> i32 {
        self.backlog
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

fn own_netns_cookie() -> io::Result<u64> {
    sockopt::netns_cookie(Socket::new(Domain::UNIX, Type::STREAM, None)?.as_fd())
}
