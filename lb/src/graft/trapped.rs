//! The socket that a program called listen(2) on: found by a pidfd, and looked at. Changes nothing.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::sys::socket::{getsockopt, sockopt::SockType};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::process::Process;
use crate::sys::{seccomp::Notification, sockopt};

/// A listening socket to be, in the program's hands.
#[derive(Debug)]
pub struct Trapped {
    pub(super) process: Process,
    pub(super) number: RawFd,
    socket: OwnedFd,
    address: SocketAddr,
    v6only: bool,
    cookie: u64,
    backlog: i32,
    is_here: bool,
    is_listening: bool,
}

/// Why a call is none of ours.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// The process, or its descriptor, could not be got.
    #[error("the program's socket can't be looked at")]
    Unreachable(#[from] io::Error),
    /// Not a TCP socket, nor an MPTCP one, of IPv4 or IPv6.
    #[error("the socket is not a TCP one")]
    NotTcp,
    /// listen(2) will choose a port, or fail.
    #[error("the socket is not bound to a port")]
    Unbound,
    /// listen(2) will fail.
    #[error("the socket is connected")]
    Connected,
}

impl Trapped {
    pub(super) fn look(notification: &Notification) -> Result<Self, Unfit> {
        // The kernel takes both as int.
        let (number, backlog) = (notification.args[0] as RawFd, notification.args[1] as i32);
        let process = Process::of_thread(notification.pid)?;
        let socket = process.descriptor(number)?;
        let at = SockRef::from(&socket);
        let protocol = at.protocol().map_err(|_| Unfit::NotTcp)?;
        let is_stream = getsockopt(&socket, SockType).is_ok_and(|kind| kind == nix::sys::socket::SockType::Stream);
        if !is_stream || !matches!(protocol, Some(Protocol::TCP | Protocol::MPTCP)) {
            return Err(Unfit::NotTcp);
        }
        let address = at.local_addr()?.as_socket().ok_or(Unfit::NotTcp)?;
        if address.port() == 0 {
            return Err(Unfit::Unbound);
        }
        if at.peer_addr().is_ok() {
            return Err(Unfit::Connected);
        }
        let v6only = address.is_ipv6() && at.only_v6()?;
        let (cookie, is_listening) = (at.cookie()?, at.is_listener()?);
        let is_here = sockopt::netns_cookie(socket.as_fd())? == own_netns_cookie()?;
        Ok(Self { process, number, socket, address, v6only, cookie, backlog, is_here, is_listening })
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

    /// It listens already.
    pub fn is_listening(&self) -> bool {
        self.is_listening
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
