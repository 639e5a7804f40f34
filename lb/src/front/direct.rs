//! Listeners that shards accept from themselves. The front lets them into its group and its array, and never keeps a
//! descriptor: the kernel moves the queue of a listener when the last one closes, so the shard must be the only one.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use socket2::SockRef;

use super::{Front, SlotError, listener, maps::Forcing};
use crate::{sockdiag, table::SlotIndex};

/// Who accepts a slot's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Its relay worker.
    Relay,
    /// Its shard.
    Direct,
}

impl Front {
    /// `socket`, which is bound to the address and made in the guard, listens, is proven to be in the anchor's group, and
    /// enters the array as the slot's direct listener; a former one goes. Nothing is steered to it before
    /// [`set_path`](Self::set_path). On an error it doesn't listen.
    ///
    /// # Errors
    /// [`SlotError::NotJoined`] when the kernel put it into another group; [`SlotError::Steer`] with classic steering.
    pub fn join_direct(&mut self, slot: SlotIndex, socket: BorrowedFd<'_>, backlog: i32) -> Result<(), SlotError> {
        if slot.0 >= self.max_slots {
            return Err(SlotError::TooHigh { slot, max_slots: self.max_slots });
        }
        let steer = |source| SlotError::Steer { slot, source };
        self.steering.ebpf().map_err(steer)?;
        self.forget_gone_guests()?;
        let ours = self.members(socket)?;
        listener::check_alone_in_family(self.address, &ours)?;
        let joined = listener::listen(socket, self.address, backlog)
            .map_err(SlotError::from)
            .and_then(|()| listener::check_joined(self.address, self.anchor.as_fd(), socket, &ours))
            .and_then(|()| self.steering.ebpf().and_then(|ebpf| ebpf.enter_direct(slot, socket)).map_err(steer));
        match joined {
            Ok(()) => self.guests.extend(sockdiag::inode(socket).ok()),
            Err(_) => listener::stop(socket),
        }
        joined
    }

    /// What waits in the queue of the slot's direct listener, which is out of service, goes to other slots; then it listens
    /// and is in the array again, as if nothing had been. `socket` is a copy of it: its shard never sees a listener that is
    /// dead, unless it looks in the microseconds in between (accept(2) says EINVAL then).
    ///
    /// # Errors
    /// As [`join_direct`](Self::join_direct); then it doesn't listen.
    pub fn move_queue(&mut self, slot: SlotIndex, socket: BorrowedFd<'_>, backlog: i32) -> Result<(), SlotError> {
        let steer = |source| SlotError::Steer { slot, source };
        let ours = self.members(socket)?;
        listener::stop(socket);
        let listens = listener::listen(socket, self.address, backlog).map_err(SlotError::from);
        let joined = listens
            .and_then(|()| listener::check_joined(self.address, self.anchor.as_fd(), socket, &ours))
            .and_then(|()| self.steering.ebpf().and_then(|ebpf| ebpf.enter_direct(slot, socket)).map_err(steer));
        if joined.is_err() {
            listener::stop(socket);
        }
        joined
    }

    /// Takes the slot's direct listener out of the array. What is queued stays with its shard.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn leave_direct(&mut self, slot: SlotIndex) -> Result<(), SlotError> {
        let steer = |source| SlotError::Steer { slot, source };
        let ebpf = self.steering.ebpf().map_err(steer)?;
        ebpf.set_path(slot, Path::Relay);
        ebpf.leave_direct(slot).map_err(steer)
    }

    /// Who gets the slot's connections from the next SYN on.
    ///
    /// # Errors
    /// [`SlotError::Steer`] with classic steering.
    pub fn set_path(&mut self, slot: SlotIndex, path: Path) -> Result<(), SlotError> {
        let ebpf = self.steering.ebpf().map_err(|source| SlotError::Steer { slot, source })?;
        ebpf.set_path(slot, path);
        Ok(())
    }

    /// Attaches the steering program again, in case somebody who has a listener has detached it: no cgroup program sees a
    /// 32-bit setsockopt. Where nobody has, nothing changes.
    ///
    /// # Errors
    /// As setsockopt(2); unsupported with classic steering.
    pub fn attach_again(&self) -> io::Result<()> {
        self.steering.ebpf()?.attach(self.anchor.as_fd())
    }

    /// Who gets the slot's connections.
    pub fn path(&self, slot: SlotIndex) -> Path {
        self.steering.ebpf().map_or(Path::Relay, |ebpf| ebpf.path(slot))
    }

    /// The SO_COOKIE of the slot's direct listener. `None`: there is none, or its shard has closed it.
    pub fn direct_cookie(&self, slot: SlotIndex) -> Option<u64> {
        self.steering.ebpf().ok()?.direct_cookie(slot).ok()?
    }

    /// A way to connect to the slot's direct listener, whatever the table says.
    ///
    /// # Errors
    /// Unsupported with classic steering; no descriptor is left.
    pub fn force(&self, slot: SlotIndex) -> io::Result<Force> {
        let ebpf = self.steering.ebpf()?;
        Ok(Force { forcing: Arc::new(ebpf.forcing()?), index: ebpf.direct_index(slot) })
    }

    /// Their inodes may be given to other sockets.
    fn forget_gone_guests(&mut self) -> Result<(), SlotError> {
        if self.guests.is_empty() {
            return Ok(());
        }
        let address = self.address;
        let listening =
            sockdiag::listeners(address.port()).map_err(|source| SlotError::LookForListeners { address, source })?;
        self.guests.retain(|guest| listening.iter().any(|found| found.inode == *guest));
        Ok(())
    }
}

/// Connects to one slot's direct listener. Outlives the front, whose array it then finds empty.
#[derive(Debug, Clone)]
pub struct Force {
    forcing: Arc<Forcing>,
    index: u32,
}

impl Force {
    /// `socket`, which is bound to an address of this host, will reach the slot or nobody. Until the
    /// [`Forced`] is dropped: keep it until the connection is established or given up.
    ///
    /// # Errors
    /// When the socket isn't bound to an address and a port, or too many connections are on their way.
    pub fn bind(&self, socket: impl AsFd) -> io::Result<Forced> {
        let source = SockRef::from(&socket).local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        if source.ip().is_unspecified() || source.port() == 0 {
            // No packet comes from such a source: the table would choose.
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.forcing.force(source, self.index)?;
        Ok(Forced { forcing: Arc::clone(&self.forcing), source })
    }
}

/// A source whose connections are forced.
#[derive(Debug)]
pub struct Forced {
    forcing: Arc<Forcing>,
    source: SocketAddr,
}

impl Drop for Forced {
    fn drop(&mut self) {
        self.forcing.release(self.source);
    }
}
