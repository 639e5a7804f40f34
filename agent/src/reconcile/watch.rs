//! What slots have to do, looked at all the time by a thread of its own: a few loads from memory where nothing moves, their
//! accept queues where something does. It corrects and bounds the loads that steering goes by; what it finds of shards
//! that don't accept, or have closed a listener, the loop hears and acts on.

mod address;
mod bounds;
mod rounds;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use sherd_lb::{cells::SlotCells, front::Misses, stall::Finding, table::SlotIndex};
use sherd_topology::plan::{GroupName, SlotId};
use tokio::sync::mpsc;

use self::{
    address::Looks,
    rounds::{Round, Rounds},
};
use super::message::Message;

/// Between two looks while connections come, or a queue stands.
const BUSY: Duration = Duration::from_millis(20);
/// The same while nothing moves, and between two looks for what else there may be.
const IDLE: Duration = Duration::from_millis(100);
/// The same, while nothing moves, at an address where workers alone accept.
const LAZY: Duration = Duration::from_millis(500);
/// The same at an address with a queue that may have begun to stand.
const SUSPICIOUS: Duration = Duration::from_millis(5);
/// Nothing moves only when nothing has for this long.
const CALM: Duration = Duration::from_secs(1);

/// A published address, as far as another makes the watch begin anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WatchedShape {
    pub(super) group: GroupName,
    pub(super) address: SocketAddr,
    pub(super) slots: Vec<WatchedSlot>,
}

/// A published address.
#[derive(Debug)]
pub(super) struct WatchedAddress {
    pub(super) shape: WatchedShape,
    /// Absent where nothing is counted.
    pub(super) cells: Option<Arc<SlotCells>>,
    /// Present where shards have listeners, which they can close.
    pub(super) misses: Option<Misses>,
}

/// A slot of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WatchedSlot {
    pub(super) id: SlotId,
    pub(super) index: SlotIndex,
    pub(super) weight: u32,
    pub(super) in_service: bool,
    /// Its shard accepts itself, or did until it closed its listener.
    pub(super) is_direct: bool,
    /// The listener that its shard accepts from, by its SO_COOKIE, and the shard's process.
    pub(super) shard: Option<(u64, u32)>,
}

/// What was found of a slot.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) group: GroupName,
    pub(super) slot: SlotId,
    pub(super) address: SocketAddr,
    /// The listener that it is about.
    pub(super) listener: u64,
    pub(super) finding: Finding,
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    orders: Sender<Order>,
}

#[derive(Debug)]
enum Order {
    LookAt(Vec<WatchedAddress>),
    Moved { group: GroupName, address: SocketAddr, listener: u64, moved: bool },
}

impl Watch {
    /// # Errors
    /// When no thread can be had.
    pub(super) fn start(outbox: mpsc::UnboundedSender<Message>) -> io::Result<Self> {
        let (orders, received) = channel();
        super::world::thread("watch", move || run(&received, &outbox))?;
        Ok(Self { orders })
    }

    /// Looks at these from now on.
    pub(super) fn look_at(&self, addresses: Vec<WatchedAddress>) {
        // The thread ends with this.
        let _ = self.orders.send(Order::LookAt(addresses));
    }

    /// What became of [`Finding::Move`].
    pub(super) fn moved(&self, found: Found, moved: bool) {
        let Found { group, address, listener, .. } = found;
        let _ = self.orders.send(Order::Moved { group, address, listener, moved });
    }
}

fn run(orders: &Receiver<Order>, outbox: &mpsc::UnboundedSender<Message>) {
    let mut watched: Vec<Looks> = Vec::new();
    let (mut rounds, mut now) = (Rounds::new(Instant::now()), Instant::now());
    loop {
        let is_suspicious = watched.iter().any(Looks::is_suspicious);
        let wait = rounds.next(is_suspicious).saturating_duration_since(now);
        match orders.recv_timeout(if watched.is_empty() { Duration::MAX } else { wait }) {
            Ok(Order::LookAt(addresses)) => watched = Looks::renew(watched, addresses),
            Ok(Order::Moved { group, address, listener, moved }) => {
                let of = watched.iter_mut().find(|looks| looks.is_of(&group, address));
                of.into_iter().for_each(|looks| looks.note_moved(Instant::now(), listener, moved));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        now = Instant::now();
        if let Some(round) = rounds.due(now, is_suspicious) {
            let mut moves = false;
            for looks in watched.iter_mut().filter(|looks| round == Round::All || looks.is_suspicious()) {
                // The loop has ended, and this thread with it.
                moves |= looks.look(Instant::now(), &mut |message| drop(outbox.send(message)));
            }
            let began = std::mem::replace(&mut now, Instant::now());
            let idle = if watched.iter().any(Looks::is_direct) { IDLE } else { LAZY };
            rounds.note(round, (began, now), moves, idle);
        }
    }
}
