//! Network namespaces: found, entered, looked into. Each entering happens on the calling thread or on one made for
//! it; the only thing ever changed is an address on a foreign namespace's loopback that has no other.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    thread,
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};

mod addresses;

pub use addresses::InterfaceAddress;

/// Our own address where a namespace has nothing but loopback ("fd" and "sherd" in the IPv6 one).
const LINK_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 83, 1);
const LINK_V6: Ipv6Addr = Ipv6Addr::new(0xfd53, 0x6865, 0x7264, 0, 0, 0, 0, 1);

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }
}

/// Whether a shard may see its clients come from loopback. Programs trust loopback, so the specification must say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loopback {
    /// Its namespace's own address.
    Never,
    /// 127.0.0.1 or ::1: the program listens nowhere else.
    Allowed,
}

/// A network namespace, kept alive.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
}

/// Why a namespace has no address to reach its shard by.
#[derive(Debug, thiserror::Error)]
pub enum ServiceAddressError {
    /// It could not be looked into.
    #[error("can't look into the shard's network namespace")]
    Look(#[source] io::Error),
    /// It has none, and is not one that we may add one to.
    #[error(
        "the shard's network namespace has no {family:?} address beside loopback; give it a network with one, or \
         publish the port with loopback = true if the program may take its clients for local ones"
    )]
    None {
        /// The family asked for.
        family: Family,
    },
    /// It has none, and none could be added.
    #[error("the shard's network namespace has only loopback, and adding {address} to it failed")]
    Add {
        /// The address.
        address: IpAddr,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Netns {
    /// The namespace of a process.
    ///
    /// # Errors
    /// NotFound when there is no such process, PermissionDenied when it may not be looked at.
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        Self::open(&format!("/proc/{pid}/ns/net"))
    }

    /// The calling thread's.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    fn open(path: &str) -> io::Result<Self> {
        Ok(Self { fd: File::open(path)?.into() })
    }

    /// Another handle on it.
    ///
    /// # Errors
    /// At the descriptor limit.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }

    /// Its identity: two handles are of one namespace when these are equal.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn id(&self) -> io::Result<(u64, u64)> {
        let metadata = File::from(self.fd.try_clone()?).metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Moves the calling thread into it. For threads of one's own only, never for one of a pool.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN in it and in our own user namespace.
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.fd, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs `body` in it, on a thread of its own.
    ///
    /// # Errors
    /// When it can't be entered or no thread can be made.
    ///
    /// # Panics
    /// When `body` does.
    pub fn with<T: Send>(&self, body: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = || self.enter().map(|()| body());
            let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, inside)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The addresses of all interfaces that are up, by interface index.
    ///
    /// # Errors
    /// When it can't be entered.
    pub fn addresses(&self) -> io::Result<Vec<InterfaceAddress>> {
        self.with(addresses::list)?
    }

    /// The address that connections to its shard come from and go to: its own, so that no client looks like loopback.
    /// A foreign namespace that has nothing but loopback gets one added there; the host's never does.
    ///
    /// # Errors
    /// When there is none.
    pub fn service_address(&self, family: Family, loopback: Loopback) -> Result<IpAddr, ServiceAddressError> {
        if loopback == Loopback::Allowed {
            return Ok(match family {
                Family::V4 => Ipv4Addr::LOCALHOST.into(),
                Family::V6 => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let all = self.addresses().map_err(ServiceAddressError::Look)?;
        if let Some(own) = own_address(&all, family) {
            return Ok(own);
        }
        let only_loopback =
            self.with(addresses::only_loopback).and_then(|inside| inside).map_err(ServiceAddressError::Look)?;
        if !only_loopback || self.is_hosts().map_err(ServiceAddressError::Look)? {
            return Err(ServiceAddressError::None { family });
        }
        let address = match family {
            Family::V4 => LINK_V4.into(),
            Family::V6 => LINK_V6.into(),
        };
        let added = self.with(|| addresses::add_to_loopback(address)).and_then(|inside| inside);
        added.map(|()| address).map_err(|source| ServiceAddressError::Add { address, source })
    }

    /// Whether it is our process's own, or init's.
    fn is_hosts(&self) -> io::Result<bool> {
        let id = self.id()?;
        let init = Self::of_pid(1).and_then(|init| init.id());
        Ok(Self::open("/proc/self/ns/net")?.id()? == id || init.is_ok_and(|init| init == id))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Netns {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<Netns> for OwnedFd {
    fn from(netns: Netns) -> Self {
        netns.fd
    }
}

/// A TCP socket made in the namespace (None: the calling thread's), usable from any.
///
/// # Errors
/// When the namespace can't be entered, or at the descriptor limit.
pub fn socket_in(netns: Option<&Netns>, family: Family) -> io::Result<OwnedFd> {
    let make = || Socket::new(family.domain(), Type::STREAM, None).map(OwnedFd::from);
    netns.map_or_else(make, |netns| netns.with(make)?)
}

/// An address of the family that is not loopback and needs no scope: of a real interface before one of lo, then by
/// interface and number, so that the same namespace gives the same address.
fn own_address(all: &[InterfaceAddress], family: Family) -> Option<IpAddr> {
    let usable = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && (v4 == LINK_V4 || !v4.is_link_local()),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let mut own: Vec<_> = all.iter().filter(|a| Family::of(a.ip) == family && usable(a.ip)).collect();
    own.sort_by_key(|address| (address.is_loopback_interface, address.index, address.ip));
    own.first().map(|address| address.ip)
}

#[cfg(test)]
mod tests;
