//! What slots have to do, looked at all the time by a thread of its own: a few loads from memory where nothing moves, their
//! accept queues where something does. It corrects and bounds the loads that steering goes by; what it finds of shards
//! that don't accept, the loop hears and acts on.

mod address;
mod bounds;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use sherd_lb::{cells::SlotCells, stall::Finding, table::SlotIndex};
use sherd_topology::plan::{GroupName, SlotId};
use tokio::sync::mpsc;

use self::address::Looks;
use super::message::Message;

/// Between two looks while connections come, or a queue stands.
const BUSY: Duration = Duration::from_millis(20);
/// While nothing moves.
const IDLE: Duration = Duration::from_millis(100);
/// Nothing moves only when nothing has for this long.
const CALM: Duration = Duration::from_secs(1);

/// A published address.
#[derive(Debug, Clone)]
pub(super) struct WatchedAddress {
    pub(super) group: GroupName,
    pub(super) address: SocketAddr,
    pub(super) cells: Arc<SlotCells>,
    pub(super) slots: Vec<WatchedSlot>,
}

/// A slot of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WatchedSlot {
    pub(super) id: SlotId,
    pub(super) index: SlotIndex,
    pub(super) weight: u32,
    pub(super) in_service: bool,
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
        thread::Builder::new().name("watch".into()).spawn(move || run(&received, &outbox))?;
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
    let mut moved = Instant::now();
    loop {
        let period = if moved.elapsed() < CALM { BUSY } else { IDLE };
        match orders.recv_timeout(if watched.is_empty() { Duration::MAX } else { period }) {
            Ok(Order::LookAt(addresses)) => watched = Looks::renew(watched, addresses),
            Ok(Order::Moved { group, address, listener, moved }) => {
                let of = watched.iter_mut().find(|looks| looks.is_of(&group, address));
                of.into_iter().for_each(|looks| looks.note_moved(Instant::now(), listener, moved));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        for looks in &mut watched {
            let mut told = |found| drop(outbox.send(Message::Found(found)));
            if looks.look(Instant::now(), 2 * period, &mut told) {
                moved = Instant::now();
            }
        }
    }
}
