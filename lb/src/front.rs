//! One published address: an SO_REUSEPORT group of an anchor and a listener for each slot, with steering attached.
//! Owns their descriptors and the steering maps; accepts nothing and drains nothing.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

mod adopt;
mod classic;
mod direct;
mod ebpf;
mod error;
mod listener;
mod maps;
mod places;
mod run_time;
mod steering;
#[cfg(test)]
mod tests;

pub use direct::{Force, Forced};
pub use error::{AdoptError, OpenError, Owners, SlotError};
pub(crate) use listener::bound;
pub use maps::{Misses, Totals};
pub use places::{Path, Place};
pub use run_time::RunTime;
pub use steering::Explanation;
use steering::Steering;

use crate::{
    cells::{Cells, SlotCells},
    sockdiag, sys,
    table::{MAX_SLOTS, MAX_TABLE_LEN, SlotIndex, SlotMask, SteeringTable},
};

/// What becomes of new connections while no slot is in service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// They wait in the anchor's accept queue.
    Wait,
    /// They are refused. Classic steering cannot refuse: there they wait.
    Refuse,
}

/// How connections get to slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SteeringMode {
    /// By the eBPF program.
    Ebpf,
    /// By a classic BPF program, because the other could not be loaded.
    Classic {
        /// Why, for the log and `status`.
        reason: String,
    },
}

/// How an address is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontConfig {
    /// Port 0 lets the kernel choose; see [`Front::address`].
    pub address: SocketAddr,
    /// An IPv6 address gets no IPv4 connections.
    pub v6only: bool,
    /// Inodes of listeners of ours that may overlap with this address: of another front for the other family.
    pub allies: Vec<u32>,
    /// Connections that may wait in each listener. The kernel lowers it to net.core.somaxconn.
    pub backlog: i32,
    /// Slots are below this, for the front's whole life: a sockarray can't grow.
    pub max_slots: u16,
    /// While no slot is in service.
    pub unready: Unready,
    /// Classic steering even where eBPF would work.
    pub force_classic: bool,
    /// Where connections of its slots are counted; without it no load is known to steer by.
    pub cells: Option<Arc<Cells>>,
}

impl FrontConfig {
    /// `address` alone (IPv6 without IPv4) with 64 slots, the longest queues the kernel allows, waiting while unready.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            v6only: true,
            allies: Vec::new(),
            backlog: i32::MAX,
            max_slots: 64,
            unready: Unready::Wait,
            force_classic: false,
            cells: None,
        }
    }
}

/// A published address. Dropping it closes its descriptors; copies in the holder and in relay workers go on listening.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    v6only: bool,
    backlog: i32,
    max_slots: u16,
    unready: Unready,
    anchor: OwnedFd,
    slots: BTreeMap<SlotIndex, SlotListener>,
    /// Inodes of listeners that shards hold: the only trace of them here.
    guests: Vec<u32>,
    steering: Steering,
}

#[derive(Debug)]
struct SlotListener {
    fd: OwnedFd,
    state: ListenerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ListenerState {
    /// Bound; no connection can reach it yet.
    Prepared,
    /// Listening, a member of the group.
    Joined,
}

impl Front {
    /// Publishes the address: steering first, then the anchor listens. No slot is in service yet.
    ///
    /// # Errors
    /// [`OpenError::PortTaken`] also when the other listener shares by SO_REUSEPORT and the kernel would let us join it.
    pub fn open(config: &FrontConfig, table: &SteeringTable) -> Result<Self, OpenError> {
        if config.max_slots == 0 || config.max_slots > MAX_SLOTS {
            return Err(OpenError::BadMaxSlots { max_slots: config.max_slots });
        }
        table.check(config.max_slots)?;
        let asked = config.address;
        // Before bind: a foreign SO_REUSEPORT group under our uid would take us in without a word.
        listener::check_alone(asked, config.v6only, &config.allies)?;
        let anchor = listener::bind(asked, config.v6only)?;
        let address = listener::local_address(anchor.as_fd(), asked)?;
        let steering = Steering::new(config, table)?;
        let attach = || steering.attach(anchor.as_fd()).map_err(|source| OpenError::Attach { address, source });
        if config.allies.is_empty() {
            // Before the first listen: from then on connections come.
            attach()?;
            listener::listen(anchor.as_fd(), address, config.backlog)?;
        } else {
            // A socket with a program may not listen where another one overlaps (`inet_bind_conflict`, reuseport_cb_ok).
            // What comes before the program does goes to the anchor, the only member, and waits.
            listener::listen(anchor.as_fd(), address, config.backlog)?;
            attach()?;
        }
        steering.enter_anchor(anchor.as_fd()).map_err(|source| OpenError::Attach { address, source })?;
        // After it: whoever slipped in between is in our group, or we in theirs.
        let inode = sockdiag::inode(anchor.as_fd());
        let inode = inode.map_err(|source| OpenError::LookForListeners { address, source })?;
        let ours: Vec<u32> = config.allies.iter().copied().chain([inode]).collect();
        listener::check_alone(address, config.v6only, &ours)?;
        let FrontConfig { v6only, backlog, max_slots, unready, .. } = *config;
        let (slots, guests) = (BTreeMap::new(), Vec::new());
        Ok(Self { address, v6only, backlog, max_slots, unready, anchor, slots, guests, steering })
    }

    /// The address, with the port that the kernel chose if it was asked to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An IPv6 address that gets no IPv4 connections; true for IPv4.
    pub fn is_v6only(&self) -> bool {
        self.v6only
    }

    /// The inodes of all that listen here by our doing.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn inodes(&self) -> io::Result<Vec<u32>> {
        let joined = self.slots.values().filter(|listener| listener.state == ListenerState::Joined);
        let descriptors = joined.map(|listener| listener.fd.as_fd()).chain([self.anchor.as_fd()]);
        descriptors.map(sockdiag::inode).chain(self.guests.iter().copied().map(Ok)).collect()
    }

    /// How connections are steered.
    pub fn mode(&self) -> SteeringMode {
        self.steering.mode()
    }

    /// Slots are below this.
    pub fn max_slots(&self) -> u16 {
        self.max_slots
    }

    /// A table has at most so many entries, for the front's whole life: its memory can't grow.
    pub fn max_table_len(&self) -> u32 {
        let steered = self.steering.ebpf().map_or(MAX_TABLE_LEN, |ebpf| ebpf.max_table_len() as u32);
        steered.min(MAX_TABLE_LEN)
    }

    /// Everything that [`Front::adopt`] needs, by names that are stable: put it into the holder after `open` and
    /// after each `prepare_slot`, in this order. The anchor comes last: kept without what steers it, it would go on
    /// listening for nobody, and the address could be beside another that would get the connections.
    pub fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let slots = self.slots.iter().map(|(slot, listener)| (slot_name(*slot), listener.fd.as_fd()));
        let steering = self.steering.descriptors().into_iter().map(|(name, fd)| (name.to_owned(), fd));
        steering.chain(slots).chain([(adopt::ANCHOR.to_owned(), self.anchor.as_fd())]).collect()
    }

    /// Makes the slot's listener, bound but not listening, so that the holder can have it before any connection does.
    /// The name is what `descriptors` calls it.
    ///
    /// # Errors
    /// When the slot has one already, or the address is no longer ours alone.
    pub fn prepare_slot(&mut self, slot: SlotIndex) -> Result<(String, BorrowedFd<'_>), SlotError> {
        if slot.0 >= self.max_slots {
            return Err(SlotError::TooHigh { slot, max_slots: self.max_slots });
        }
        if self.slots.contains_key(&slot) {
            return Err(SlotError::Exists { slot });
        }
        let fd = listener::bind(self.address, self.v6only)?;
        let listener = self.slots.entry(slot).or_insert(SlotListener { fd, state: ListenerState::Prepared });
        Ok((slot_name(slot), listener.fd.as_fd()))
    }

    /// The slot's listener (made now, unless prepared) listens, is proven to be in the anchor's group, and enters
    /// the steering array, out of service. On an error the slot is as if it had never been added.
    ///
    /// # Errors
    /// [`SlotError::NotJoined`] when the kernel put it into another group.
    pub fn add_slot(&mut self, slot: SlotIndex) -> Result<(), SlotError> {
        match self.slots.get(&slot).map(|listener| listener.state) {
            Some(ListenerState::Joined) => return Err(SlotError::Exists { slot }),
            Some(ListenerState::Prepared) => {}
            None => drop(self.prepare_slot(slot)?),
        }
        let joined = self.join(slot);
        match (joined, self.slots.get_mut(&slot)) {
            (Ok(()), Some(listener)) => {
                listener.state = ListenerState::Joined;
                Ok(())
            }
            (joined, _) => {
                self.slots.remove(&slot).iter().for_each(|listener| listener::stop(listener.fd.as_fd()));
                joined
            }
        }
    }

    fn join(&mut self, slot: SlotIndex) -> Result<(), SlotError> {
        let Some(listener) = self.slots.get(&slot) else { return Err(SlotError::Missing { slot }) };
        let fd = listener.fd.as_fd();
        let ours = self.members(fd)?;
        listener::check_alone_in_family(self.address, &ours)?;
        self.steering.before_join(slot).map_err(|source| SlotError::Steer { slot, source })?;
        let joined = listener::listen(fd, self.address, self.backlog)
            .map_err(SlotError::from)
            .and_then(|()| listener::check_joined(self.address, self.anchor.as_fd(), fd, &ours));
        if let Err(error) = joined {
            listener::stop(fd);
            self.steering.after_leave(slot, self.anchor.as_fd()).map_err(|source| SlotError::Steer { slot, source })?;
            return Err(error);
        }
        self.steering.enter(slot, fd).map_err(|source| SlotError::Steer { slot, source })
    }

    /// The inodes of all that listen here by our doing, and of one that is about to.
    fn members(&self, joining: BorrowedFd<'_>) -> Result<Vec<u32>, SlotError> {
        let look = |source| SlotError::LookForListeners { address: self.address, source };
        let joining = sockdiag::inode(joining).map_err(look)?;
        Ok(self.inodes().map_err(look)?.into_iter().chain([joining]).collect())
    }

    /// The slots that have a listener, also a prepared one, ascending.
    pub fn slots(&self) -> impl Iterator<Item = SlotIndex> + '_ {
        self.slots.keys().copied()
    }

    /// The slot's listener, for a relay worker to dup.
    pub fn listener(&self, slot: SlotIndex) -> Option<BorrowedFd<'_>> {
        self.slots.get(&slot).filter(|l| l.state == ListenerState::Joined).map(|listener| listener.fd.as_fd())
    }

    /// What [`Front::descriptors`] and [`Front::prepare_slot`] call a slot's listener.
    pub fn listener_name(slot: SlotIndex) -> String {
        slot_name(slot)
    }

    /// The anchor, where connections wait while no slot is in service.
    pub fn anchor(&self) -> BorrowedFd<'_> {
        self.anchor.as_fd()
    }

    /// Takes the slot into service or out of it: one bit, seen by the next SYN. Connections that are queued stay.
    ///
    /// # Errors
    /// [`SlotError::Missing`] when it is to come in and has no listener.
    pub fn set_in(&mut self, slot: SlotIndex, in_service: bool) -> Result<(), SlotError> {
        if in_service && self.listener(slot).is_none() {
            return Err(SlotError::Missing { slot });
        }
        let anchor = self.anchor.as_fd();
        self.steering.set_in(slot, in_service, anchor).map_err(|source| SlotError::Steer { slot, source })
    }

    /// Whether the slot is in service, as the steering program sees it.
    pub fn is_in(&self, slot: SlotIndex) -> bool {
        self.in_service().contains(slot)
    }

    /// All slots in service, as the steering program sees it.
    pub fn in_service(&self) -> SlotMask {
        self.steering.in_service()
    }

    /// Replaces the table, at once for the next SYN. What is in service stays so.
    ///
    /// # Errors
    /// When the table is faulty or longer than there is memory for; the old one stays.
    pub fn set_table(&mut self, table: &SteeringTable) -> Result<(), SlotError> {
        table.check(self.max_slots)?;
        self.steering.set_table(table, self.anchor.as_fd())
    }

    /// Takes the slot out of service and of the array, and ends its listener, whoever else holds a copy. The caller
    /// has waited until its queue is empty; with eBPF what is still there moves to other slots, with classic it is reset.
    ///
    /// # Errors
    /// [`SlotError::Missing`] when it has no listener.
    pub fn remove_slot(&mut self, slot: SlotIndex) -> Result<(), SlotError> {
        let Some(listener) = self.slots.get(&slot) else { return Err(SlotError::Missing { slot }) };
        let (fd, anchor) = (listener.fd.as_fd(), self.anchor.as_fd());
        let left = match listener.state {
            ListenerState::Prepared => Ok(()),
            ListenerState::Joined => self.steering.before_leave(slot, anchor).and_then(|()| {
                listener::stop(fd);
                self.steering.after_leave(slot, anchor)
            }),
        };
        self.slots.remove(&slot).iter().for_each(|listener| listener::stop(listener.fd.as_fd()));
        left.map_err(|source| SlotError::Steer { slot, source })
    }

    /// Connections in the accept queue of a slot, or of the anchor.
    ///
    /// # Errors
    /// NotFound when the slot has no listener.
    pub fn queue_len(&self, slot: Option<SlotIndex>) -> io::Result<u32> {
        let fd = match slot {
            None => self.anchor.as_fd(),
            Some(slot) => self.listener(slot).ok_or(io::ErrorKind::NotFound)?,
        };
        sys::sockopt::accept_queue_len(fd)
    }

    /// Connections that each slot got since the address was opened, those that moved to it included (a SYN that is sent
    /// again counts again); zeros with classic steering, which can't count.
    pub fn picks(&self) -> Vec<u64> {
        self.steering.picks(self.max_slots)
    }

    /// What the steering program counted since the address was opened; zeros with classic steering.
    pub fn totals(&self) -> Totals {
        self.steering.totals()
    }

    /// What is counted of its slots. `None` with classic steering, and where there was no room or nothing to count in.
    pub fn cells(&self) -> Option<&Arc<SlotCells>> {
        self.steering.ebpf().ok()?.cells()
    }

    /// The former process relayed, and its connections ended with it: they are no load any more, but for those that it
    /// handed over, of which `kept` says how many each slot has.
    pub fn forget_relayed(&self, kept: impl Fn(SlotIndex) -> u64) {
        let Some(cells) = self.cells() else { return };
        cells.forget_relayed(kept);
    }

    /// Connections that went to another slot than their first choice, because that one was out.
    pub fn failovers(&self) -> u64 {
        self.totals().failovers
    }

    /// Connections that went to the anchor.
    pub fn anchored(&self) -> u64 {
        self.totals().anchored
    }

    /// Connections that were refused because no slot was in service.
    pub fn dropped(&self) -> u64 {
        self.totals().dropped
    }

    /// Where connections would go, were `table` the one in force and what is in service as it is now.
    pub fn explain(&self, table: &SteeringTable) -> Explanation {
        self.steering.explain(table, self.unready)
    }
}

fn slot_name(slot: SlotIndex) -> String {
    format!("{}{slot}", adopt::SLOT_PREFIX)
}
