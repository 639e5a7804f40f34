//! What a holder of a socket may try with it, as values: the proof and the tests make tables of them. Judges nothing.

use std::{fmt, io, net::SocketAddr, os::fd::BorrowedFd};

use socket2::{Domain, SockAddr, SockRef};

use crate::sys::guard as sys;

/// Length of a `sockaddr_in6`: what the kernel asks of an IPv6 socket's caller, whatever family the address says.
const ADDRESS_BYTES: usize = 28;

/// A system call on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// setsockopt(2).
    SetOption {
        /// The option's name, for people.
        name: &'static str,
        /// SOL_SOCKET and the like.
        level: i32,
        /// The option.
        option: i32,
        /// Its value.
        value: &'static [u8],
    },
    /// bind(2).
    Bind(SocketAddr),
    /// connect(2).
    Connect(SocketAddr),
    /// connect(2) to an address of the other family. Unguarded the kernel answers EAFNOSUPPORT, so it never has an effect;
    /// the hook comes first (`tcp_v4_pre_connect`). SELinux and Landlock know both families.
    ConnectOtherFamily,
    /// connect(2) to AF_UNSPEC, which ends a connection and keeps the socket. No hook sees it.
    Disconnect,
    /// sendto(2) with MSG_FASTOPEN, which connects.
    FastOpen(SocketAddr),
}

impl Operation {
    /// Does it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn attempt(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let other_family = |family: i32| {
            let mut address = [0; ADDRESS_BYTES];
            address[..2].copy_from_slice(&(family as u16).to_ne_bytes());
            address
        };
        match *self {
            Self::SetOption { level, option, value, .. } => sys::set_option(socket, level, option, value),
            Self::Bind(address) => SockRef::from(&socket).bind(&address.into()),
            Self::Connect(address) => SockRef::from(&socket).connect(&address.into()),
            Self::ConnectOtherFamily => match SockRef::from(&socket).domain()? {
                Domain::IPV4 => sys::connect(socket, &other_family(libc::AF_INET6)),
                _ => sys::connect(socket, &other_family(libc::AF_INET)),
            },
            Self::Disconnect => sys::connect(socket, &other_family(libc::AF_UNSPEC)),
            Self::FastOpen(address) => {
                let (to, flags) = (SockAddr::from(address), libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL);
                SockRef::from(&socket).send_to_with_flags(b"x", &to, flags).map(drop)
            }
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetOption { name, value, .. } => write!(f, "setting {name} to {value:?}"),
            Self::Bind(address) => write!(f, "bind to {address}"),
            Self::Connect(address) => write!(f, "connect to {address}"),
            Self::ConnectOtherFamily => f.write_str("connect to an address of the other family"),
            Self::Disconnect => f.write_str("connect to AF_UNSPEC"),
            Self::FastOpen(address) => write!(f, "sendto {address} with MSG_FASTOPEN"),
        }
    }
}
