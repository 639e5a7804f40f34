//! Clients on their way to a shard: connecting, trying siblings, waiting for room or for a shard.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{EpollEvent, EpollFlags},
};

use super::{Core, ticks};
use crate::relay::{
    Cause, Role, Standing, WorkerRef,
    connection::{Client, Connection, INTEREST, MAX_TRIED, Side, Source, Stage, Tried},
    slab::Token,
    socket::{self, Dialed},
};

/// A client that can't be connected yet.
#[derive(Debug)]
pub(super) struct Waiting {
    client: Client,
    /// Not to be tried before.
    not_before: Instant,
}

/// Between two rounds of tries for one client, and between two looks at those that wait.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Handed-over clients that come when the pending queue is full already: senders look before, but don't lock.
const HEADROOM: usize = 1_024;

impl Core {
    /// Takes a new client: connects it, or hands it to a sibling if there is no shard here, or lets it wait.
    pub(super) fn take(&mut self, client: Client) {
        // Also while draining: what has been accepted, here or by a sibling a moment ago, is served.
        match self.backend {
            None => self.forward(client),
            Some(_) if self.has_room() => self.connect(client),
            Some(_) => self.wait(client, self.clock.now),
        }
    }

    /// Connects waiting clients while there is room.
    pub(super) fn admit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        while self.backend.is_some()
            && self.has_room()
            && self.exhausted_until.is_none()
            && self.waiting.front().is_some_and(|waiting| waiting.not_before <= self.clock.now)
        {
            if let Some(Waiting { client, .. }) = self.waiting.pop_front() {
                self.connect(client);
            }
        }
    }

    /// Resets the clients that have waited too long, and looks for a sibling for the others if there is no shard here.
    pub(super) fn tend_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let absent = self.backend.is_none();
        for _ in 0..self.waiting.len() {
            let Some(waiting) = self.waiting.pop_front() else { break };
            if self.clock.now.saturating_duration_since(waiting.client.since) >= self.limits.pending_timeout {
                self.give_up(waiting.client, Cause::PendingTimeout);
            } else if absent && let Some(sibling) = self.sibling_for(&waiting.client) {
                self.hand_over(&sibling, waiting.client);
            } else {
                self.waiting.push_back(waiting);
            }
        }
        self.chore_by(self.clock.now + RETRY_AFTER);
    }

    fn connect(&mut self, client: Client) {
        let Some(ports) = &self.backend else { return self.forward(client) };
        let Some((_, target)) = ports.iter().find(|(port, _)| *port == client.port) else {
            self.stats().count(Cause::ConnectFailed);
            return self.try_elsewhere(client);
        };
        match self.namespace.dial(target) {
            Ok(dialed) => self.await_connect(client, dialed),
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => {
                    self.exhausted();
                    self.wait(client, self.clock.now);
                }
                errno => {
                    self.stats().count(connect_cause(errno));
                    self.try_elsewhere(client);
                }
            },
        }
    }

    fn await_connect(&mut self, client: Client, dialed: Dialed) {
        let epoch = self.epochs.open();
        let connection = Connection::new(client, dialed.socket, self.clock.now, epoch);
        let token = self.connections.insert(connection);
        if let Some(forced) = dialed.forced {
            self.forced.insert(token.index, forced);
        }
        self.deadlines
            .set(token.index, self.clock.tick.saturating_add(ticks(self.limits.connect_timeout)).saturating_add(1));
        if !self.watch(token, Side::Shard) {
            self.exhausted();
            if let Some(connection) = self.take_out(token) {
                self.wait(connection.client, self.clock.now);
            }
        }
    }

    pub(super) fn watch(&self, token: Token, side: Side) -> bool {
        let Some(connection) = self.connections.get(token) else { return false };
        let event = EpollEvent::new(INTEREST, Source::Socket(token, side).encode());
        self.epoll.add(connection.socket(side), event).is_ok()
    }

    pub(super) fn on_connecting(&mut self, token: Token, events: EpollFlags) {
        if events.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            let error = self.connections.get(token).and_then(|connection| socket::take_error(connection.shard.as_fd()));
            self.stats().count(connect_cause(error.unwrap_or(Errno::ECONNREFUSED)));
            self.abandon_connect(token);
        } else if events.contains(EpollFlags::EPOLLOUT) {
            self.establish(token, events);
        }
    }

    fn establish(&mut self, token: Token, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        connection.stage = Stage::Relaying;
        self.forced.remove(&token.index);
        let latency = self.clock.now - connection.began;
        connection.active = self.clock.tick;
        let stats = self.shared.stats();
        stats.established.add(1);
        stats.connect_latency.observe(latency);
        self.set_deadline(token);
        if !self.watch(token, Side::Client) {
            self.exhausted();
            return self.cut(token, Cause::Undeliverable);
        }
        if events.contains(EpollFlags::EPOLLIN) {
            // The shard spoke first, within the same edge.
            self.on_socket(token, Side::Shard, events);
        }
    }

    /// The connect failed or took too long: the client, still untouched, goes elsewhere.
    pub(super) fn abandon_connect(&mut self, token: Token) {
        if let Some(Connection { client, shard, .. }) = self.take_out(token) {
            socket::reset(shard);
            self.try_elsewhere(client);
        }
    }

    /// The shard reset a connection of which no byte was read: it never took it from its queue. Another may; this one
    /// isn't asked again, as it may have meant it.
    pub(super) fn shard_gave_up(&mut self, token: Token) {
        let Some(Connection { mut client, shard, .. }) = self.take_out(token) else { return };
        let stats = self.shared.stats();
        stats.count(Cause::ResetByShard);
        stats.unanswered.add(1);
        stats.closed.add(1);
        socket::reset(shard);
        client.tried.insert(self.shared.slot());
        match self.sibling_for(&client) {
            Some(sibling) if client.tried.len() <= self.limits.retries && self.epoll.delete(&client.socket).is_ok() => {
                self.hand_over(&sibling, client);
            }
            _ => socket::reset(client.socket),
        }
    }

    /// Connecting failed here: on to a sibling, unless this round of tries is over.
    fn try_elsewhere(&mut self, mut client: Client) {
        client.tried.insert(self.shared.slot());
        if client.tried.len() > self.limits.retries.min(MAX_TRIED as u8 - 1) {
            return self.wait(client, self.clock.now + RETRY_AFTER);
        }
        self.forward(client);
    }

    /// To the nearest sibling that is open and wasn't tried; when there is none, it waits.
    pub(super) fn forward(&mut self, client: Client) {
        match self.sibling_for(&client) {
            Some(sibling) => self.hand_over(&sibling, client),
            None => self.wait(client, self.clock.now + RETRY_AFTER),
        }
    }

    /// Who may have the client instead of this worker.
    pub(super) fn sibling_for(&self, client: &Client) -> Option<WorkerRef> {
        match client.role {
            Role::Inner => None,
            Role::Slot | Role::Anchor => self.open_sibling(client.tried),
        }
    }

    pub(super) fn open_sibling(&self, tried: Tried) -> Option<WorkerRef> {
        self.siblings
            .iter()
            .find(|sibling| sibling.stats().standing() == Standing::Open && !tried.contains(sibling.slot()))
            .cloned()
    }

    pub(super) fn hand_over(&mut self, sibling: &WorkerRef, client: Client) {
        match sibling.hand_over(client) {
            Ok(()) => self.stats().handed_over.add(1),
            Err(client) => self.wait(client, self.clock.now + RETRY_AFTER),
        }
    }

    pub(super) fn can_wait(&self) -> bool {
        self.waiting.len() < self.limits.max_pending as usize + HEADROOM
    }

    /// Until `not_before`, when a new round of tries begins.
    pub(super) fn wait(&mut self, mut client: Client, not_before: Instant) {
        if !self.can_wait() {
            return self.give_up(client, Cause::Undeliverable);
        }
        client.tried = Tried::default();
        self.waiting.push_back(Waiting { client, not_before });
        self.chore_by(self.clock.now + RETRY_AFTER);
    }

    /// The waiting clients, for the worker's end.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Client> + use<> {
        std::mem::take(&mut self.waiting).into_iter().map(|waiting| waiting.client)
    }

    fn give_up(&mut self, client: Client, cause: Cause) {
        self.stats().count(cause);
        socket::reset(client.socket);
    }

    /// Descriptors or socket memory ran out: accepting rests until some may have been freed.
    pub(super) fn exhausted(&mut self) {
        self.stats().count(Cause::DescriptorsExhausted);
        self.rest();
    }

    pub(super) fn rest(&mut self) {
        let until = self.clock.now + 2 * RETRY_AFTER;
        self.exhausted_until = Some(until);
        self.chore_by(until);
    }
}

fn connect_cause(errno: Errno) -> Cause {
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET => Cause::ConnectRefused,
        Errno::ETIMEDOUT => Cause::ConnectTimeout,
        _ => Cause::ConnectFailed,
    }
}
