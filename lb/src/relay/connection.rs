//! One relayed connection: its two sockets, a direction each way, and where it stands. Owns the sockets; the worker
//! owns everything around it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use nix::sys::epoll::EpollFlags;

use super::{
    PortKey, Role,
    direction::{Arrival, Direction},
    pipes::Pipe,
    slab::Token,
    timers::Tick,
};
use crate::cells::OpenConnection;

/// Which of the two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Shard,
}

impl Side {
    pub(super) fn other(self) -> Side {
        match self {
            Side::Client => Side::Shard,
            Side::Shard => Side::Client,
        }
    }
}

/// A client on its way to a shard; no byte of it was read.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: OwnedFd,
    pub(super) port: PortKey,
    /// Of the listener it came from.
    pub(super) role: Role,
    /// When it was accepted, by whichever worker.
    pub(super) since: Instant,
    pub(super) tried: Tried,
    /// Where it is counted as open.
    pub(super) open: Option<OpenConnection>,
}

/// The slots that failed to connect a client, in this round of tries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tried {
    slots: [u16; MAX_TRIED],
    len: u8,
}

/// The most slots a client is tried on before it waits.
pub(super) const MAX_TRIED: usize = 4;

impl Tried {
    pub(super) fn contains(&self, slot: u16) -> bool {
        self.slots[..self.len as usize].contains(&slot)
    }

    pub(super) fn len(&self) -> u8 {
        self.len
    }

    /// Remembers `slot`; one that is in already isn't a try elsewhere.
    pub(super) fn insert(&mut self, slot: u16) {
        if !self.contains(slot) && (self.len as usize) < MAX_TRIED {
            self.slots[self.len as usize] = slot;
            self.len += 1;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Connecting,
    Relaying,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) shard: OwnedFd,
    /// From the client to the shard.
    pub(super) up: Direction<Pipe>,
    /// From the shard to the client.
    pub(super) down: Direction<Pipe>,
    pub(super) stage: Stage,
    /// A byte was taken from either side: the connection can't begin anew elsewhere.
    pub(super) moved: bool,
    /// The shard has sent something.
    pub(super) answered: bool,
    /// Keepalive was set towards the shard: done late, as most connections end before it could matter.
    pub(super) kept_alive: bool,
    /// When connecting began.
    pub(super) began: Instant,
    /// When anything last happened.
    pub(super) active: Tick,
    /// Which backend of the worker it belongs to.
    pub(super) epoch: u32,
}

/// A direction with its two ends.
pub(super) struct Flowing<'a> {
    pub(super) direction: &'a mut Direction<Pipe>,
    pub(super) source: BorrowedFd<'a>,
    pub(super) sink: BorrowedFd<'a>,
}

impl Connection {
    pub(super) fn new(client: Client, shard: OwnedFd, began: Instant, epoch: u32) -> Self {
        Self {
            client,
            shard,
            up: Direction::new(),
            down: Direction::new(),
            stage: Stage::Connecting,
            moved: false,
            answered: false,
            kept_alive: false,
            began,
            active: 0,
            epoch,
        }
    }

    pub(super) fn socket(&self, side: Side) -> BorrowedFd<'_> {
        match side {
            Side::Client => self.client.socket.as_fd(),
            Side::Shard => self.shard.as_fd(),
        }
    }

    /// The direction that reads from `side`.
    pub(super) fn from(&mut self, side: Side) -> Flowing<'_> {
        let (client, shard) = (self.client.socket.as_fd(), self.shard.as_fd());
        match side {
            Side::Client => Flowing { direction: &mut self.up, source: client, sink: shard },
            Side::Shard => Flowing { direction: &mut self.down, source: shard, sink: client },
        }
    }

    /// Bytes wait for a sink.
    pub(super) fn holds_bytes(&self) -> bool {
        self.up.is_blocked() || self.down.is_blocked()
    }
}

/// What epoll is asked for, once per socket: edges, so that no later epoll_ctl is needed.
pub(super) const INTEREST: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLPRI)
    .union(EpollFlags::EPOLLET);

const ARRIVED: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLHUP)
    .union(EpollFlags::EPOLLERR)
    .union(EpollFlags::EPOLLPRI);

/// What `events` say of a socket as a source.
pub(super) fn arrival(events: EpollFlags) -> Option<Arrival> {
    if !events.intersects(ARRIVED) {
        None
    } else if events.intersects(EpollFlags::EPOLLPRI | EpollFlags::EPOLLERR) {
        Some(Arrival::Uncertain)
    } else if events.contains(EpollFlags::EPOLLRDHUP) {
        Some(Arrival::BytesAndEnd)
    } else {
        Some(Arrival::Bytes)
    }
}

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A command waits.
    Bell,
    /// A listener, by its place.
    Listener(u32),
    Socket(Token, Side),
}

/// Generations stay below this; see [`super::slab`].
const NOT_A_SOCKET: u32 = u32::MAX;

impl Source {
    /// As epoll's 64 bits of data.
    pub(super) fn encode(self) -> u64 {
        match self {
            Source::Bell => u64::MAX,
            Source::Listener(place) => u64::from(NOT_A_SOCKET) << 32 | u64::from(place),
            Source::Socket(token, side) => {
                u64::from(token.generation) << 32 | u64::from(token.index) << 1 | u64::from(side == Side::Shard)
            }
        }
    }

    pub(super) fn decode(data: u64) -> Self {
        let generation = (data >> 32) as u32;
        let low = data as u32;
        if data == u64::MAX {
            Source::Bell
        } else if generation == NOT_A_SOCKET {
            Source::Listener(low)
        } else {
            let side = if low & 1 == 0 { Side::Client } else { Side::Shard };
            Source::Socket(Token { index: low >> 1, generation }, side)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_its_encoding() {
        let token = Token { index: u32::MAX >> 1, generation: u32::MAX - 1 };
        for source in [
            Source::Bell,
            Source::Listener(0),
            Source::Listener(7),
            Source::Socket(Token { index: 0, generation: 0 }, Side::Client),
            Source::Socket(token, Side::Client),
            Source::Socket(token, Side::Shard),
        ] {
            assert_eq!(Source::decode(source.encode()), source);
        }
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Connection>() <= 120, "{} bytes", size_of::<Connection>());
    }

    #[test]
    fn trying_a_slot_again_is_not_a_try_elsewhere() {
        let mut tried = Tried::default();
        for slot in [3, 3, 5, 3] {
            tried.insert(slot);
        }
        assert_eq!(tried.len(), 2);
        assert!(tried.contains(3) && tried.contains(5) && !tried.contains(0));
    }
}
