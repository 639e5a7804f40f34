//! Listeners that shards accept from themselves. The front lets them into its group and its array, and never keeps a
//! descriptor: the kernel moves the queue of a listener when the last one closes, so the shard must be the only one.
//!
//! A slot has two places for them, so that its next shard listens before the former one ends. Which of the two gets the
//! slot's connections is one word that the next SYN sees; the other's queue stays with its shard, or, when that closes its
//! listener, goes to where steering says. A place that is pointed at and empty is failed over to other slots, as with any
//! slot whose listener is gone, never to the slot's other place: whether that is to serve is for the caller to say.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use socket2::SockRef;

use super::{
    Front, Misses, SlotError,
    ebpf::Ebpf,
    listener,
    maps::Forcing,
    places::{Path, Place},
};
use crate::{sockdiag, table::SlotIndex};

impl Front {
    /// The places that each slot has for direct listeners: both, or what an older version's array has room for, or none
    /// with classic steering.
    pub fn places(&self) -> &'static [Place] {
        self.steering.ebpf().map_or(&[], |ebpf| ebpf.places().direct_places())
    }

    /// `socket`, which is bound to the address and made in the guard, listens, is proven to be in the anchor's group, and
    /// enters the array at the slot's place; a former one there goes. Nothing is steered to it before
    /// [`set_path`](Self::set_path). On an error it doesn't listen.
    ///
    /// # Errors
    /// [`SlotError::NotJoined`] when the kernel put it into another group; [`SlotError::NoPlace`] when it is none of
    /// [`places`](Self::places); [`SlotError::Steer`] with classic steering.
    pub fn join_direct(
        &mut self,
        slot: SlotIndex,
        place: Place,
        socket: BorrowedFd<'_>,
        backlog: i32,
    ) -> Result<(), SlotError> {
        let steer = |source| SlotError::Steer { slot, source };
        let index = self.direct_index(slot, place)?;
        self.forget_gone_guests()?;
        let ours = self.members(socket)?;
        listener::check_alone_in_family(self.address, &ours)?;
        let joined = listener::listen(socket, self.address, backlog)
            .map_err(SlotError::from)
            .and_then(|()| listener::check_joined(self.address, self.anchor.as_fd(), socket, &ours))
            .and_then(|()| self.steering.ebpf().and_then(|ebpf| ebpf.enter_direct(index, socket)).map_err(steer));
        match joined {
            Ok(()) => self.guests.extend(sockdiag::inode(socket).ok()),
            Err(_) => listener::stop(socket),
        }
        joined
    }

    /// What waits in the queue of the listener at the slot's place goes to where steering says: the slot is out of service,
    /// or not on that path. Then it listens and is in the array again, as if nothing had been. `socket` is a copy of it: its
    /// shard never sees a listener that is dead, unless it looks in the microseconds in between (accept(2) says EINVAL then).
    ///
    /// # Errors
    /// As [`join_direct`](Self::join_direct); then it doesn't listen, unless it was not touched for want of a place.
    pub fn move_queue(
        &mut self,
        slot: SlotIndex,
        place: Place,
        socket: BorrowedFd<'_>,
        backlog: i32,
    ) -> Result<(), SlotError> {
        let steer = |source| SlotError::Steer { slot, source };
        let index = self.direct_index(slot, place)?;
        let ours = self.members(socket)?;
        listener::stop(socket);
        let listens = listener::listen(socket, self.address, backlog).map_err(SlotError::from);
        let joined = listens
            .and_then(|()| listener::check_joined(self.address, self.anchor.as_fd(), socket, &ours))
            .and_then(|()| self.steering.ebpf().and_then(|ebpf| ebpf.enter_direct(index, socket)).map_err(steer));
        if joined.is_err() {
            listener::stop(socket);
        }
        joined
    }

    /// Takes the listener at the slot's place out of the array, if one is there. What is queued stays with its shard. Where
    /// it got the slot's connections, the relay worker does from then on.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn leave_direct(&mut self, slot: SlotIndex, place: Place) -> Result<(), SlotError> {
        if self.path(slot) == Path::Direct(place) {
            self.set_path(slot, Path::Relay)?;
        }
        let left = self.steering.ebpf().and_then(|ebpf| ebpf.leave_direct(slot, place));
        left.map_err(|source| SlotError::Steer { slot, source })
    }

    /// Who gets the slot's connections from the next SYN on.
    ///
    /// # Errors
    /// [`SlotError::NoPlace`] when it is none of [`places`](Self::places); [`SlotError::Steer`] with classic steering.
    pub fn set_path(&mut self, slot: SlotIndex, path: Path) -> Result<(), SlotError> {
        let ebpf = self.steering.ebpf().map_err(|source| SlotError::Steer { slot, source })?;
        ebpf.set_index_of(slot, self.index(ebpf, slot, path)?);
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

    /// A way to ask how often steering met a listener that its shard has closed.
    ///
    /// # Errors
    /// Unsupported with classic steering; no descriptor is left.
    pub fn misses(&self) -> io::Result<Misses> {
        self.steering.ebpf()?.misses()
    }

    /// Who gets the slot's connections.
    pub fn path(&self, slot: SlotIndex) -> Path {
        self.steering.ebpf().map_or(Path::Relay, |ebpf| ebpf.path(slot))
    }

    /// The SO_COOKIE of the listener at the slot's place. `None`: there is none, or its shard has closed it.
    pub fn direct_cookie(&self, slot: SlotIndex, place: Place) -> Option<u64> {
        self.steering.ebpf().ok()?.direct_cookie(slot, place).ok()?
    }

    /// The SO_COOKIE of the listener that the slot's connections go to. `None`: its worker gets them, or its shard has
    /// closed it.
    pub fn serving_cookie(&self, slot: SlotIndex) -> Option<u64> {
        match self.path(slot) {
            Path::Direct(place) => self.direct_cookie(slot, place),
            Path::Relay => None,
        }
    }

    /// A way to connect to the listener at the slot's place, whatever the table and its path say.
    ///
    /// # Errors
    /// Unsupported with classic steering, and where the array has no such place; no descriptor is left.
    pub fn force(&self, slot: SlotIndex, place: Place) -> io::Result<Force> {
        let ebpf = self.steering.ebpf()?;
        let index = ebpf.direct_index(slot, place).ok_or(io::ErrorKind::Unsupported)?;
        Ok(Force { forcing: Arc::new(ebpf.forcing()?), index })
    }

    fn direct_index(&self, slot: SlotIndex, place: Place) -> Result<u32, SlotError> {
        let ebpf = self.steering.ebpf().map_err(|source| SlotError::Steer { slot, source })?;
        self.index(ebpf, slot, Path::Direct(place))
    }

    fn index(&self, ebpf: &Ebpf, slot: SlotIndex, path: Path) -> Result<u32, SlotError> {
        ebpf.places().index(slot, path).ok_or(match path {
            Path::Direct(place) if slot.0 < self.max_slots => SlotError::NoPlace { address: self.address, slot, place },
            _ => SlotError::TooHigh { slot, max_slots: self.max_slots },
        })
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

/// Connects to one direct listener of a slot. Outlives the front, whose array it then finds empty.
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
