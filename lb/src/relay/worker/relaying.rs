//! Established connections: events, pumping both directions, and every way a connection ends.

use std::mem;

use nix::sys::epoll::EpollFlags;

use super::Core;
use crate::relay::{
    Cause,
    connection::{Connection, Flowing, Side, Stage, arrival},
    direction::{Fault, Flow},
    slab::Token,
    socket::{self, Sockets},
};

impl Core {
    pub(super) fn on_socket(&mut self, token: Token, side: Side, events: EpollFlags) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        if connection.stage == Stage::Connecting {
            return self.on_connecting(token, events);
        }
        if let Some(arrival) = arrival(events) {
            connection.active = self.clock.tick;
            connection.from(side).direction.arrived(arrival);
            self.pump(token, side);
        }
        if events.contains(EpollFlags::EPOLLOUT) {
            self.pump_blocked(token, side.other());
        }
        if events.contains(EpollFlags::EPOLLERR) {
            self.on_error(token, side);
        }
    }

    /// The sink of what `side` sends has room again.
    fn pump_blocked(&mut self, token: Token, side: Side) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        // Room that nobody waits for, as epoll reports it of every new socket, is no sign of life.
        if connection.from(side).direction.is_blocked() {
            connection.active = self.clock.tick;
            self.pump(token, side);
        }
    }

    /// What pumping didn't find: an error while nothing was to be read or written.
    fn on_error(&mut self, token: Token, side: Side) {
        let error = self.connections.get(token).and_then(|connection| socket::take_error(connection.socket(side)));
        if error.is_some() {
            self.fault(token, side);
        }
    }

    /// Moves what `side` sends.
    pub(super) fn pump(&mut self, token: Token, side: Side) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let Flowing { direction, source, sink } = connection.from(side);
        let splice = self.limits.splice_above.is_some();
        let mut ends = Sockets { source, sink, pipes: &mut self.pipes, splice, taken: false, spliced: 0, written: 0 };
        let flow = direction.pump(&mut ends, &mut self.scratch);
        let Sockets { taken, spliced, written, .. } = ends;
        let queue = flow == Ok(Flow::More) && !mem::replace(&mut direction.queued, true);
        connection.moved |= taken;
        let stats = self.shared.stats();
        if taken && side == Side::Shard && !mem::replace(&mut connection.answered, true) {
            stats.answered.add(1);
        }
        match side {
            Side::Client => stats.bytes_in.add(written as u64),
            Side::Shard => stats.bytes_out.add(written as u64),
        }
        if spliced > 0 {
            stats.bytes_spliced.add(spliced as u64);
        }
        match flow {
            Ok(Flow::Drained | Flow::Blocked) => {}
            Ok(Flow::More) if queue => self.runnable.push_back((token, side)),
            Ok(Flow::More) => {}
            Ok(Flow::Ended) => self.pass_end(token, side),
            Err(Fault::Source(_)) => self.fault(token, side),
            Err(Fault::Sink(_)) => self.fault(token, side.other()),
        }
    }

    pub(super) fn run_runnable(&mut self) {
        // Only those that are in now: one that goes on comes after everyone's events.
        for (token, side) in mem::take(&mut self.runnable) {
            if let Some(connection) = self.connections.get_mut(token) {
                connection.from(side).direction.queued = false;
            }
            self.pump(token, side);
        }
    }

    /// `side` has sent all it will: says so to the other, or ends the connection if that had ended before.
    fn pass_end(&mut self, token: Token, side: Side) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let other_closed = connection.from(side.other()).direction.closed;
        let unanswered = side == Side::Shard && !connection.answered && !other_closed;
        let Flowing { direction, sink, .. } = connection.from(side);
        if mem::replace(&mut direction.closed, true) {
            return;
        }
        if unanswered {
            self.shared.stats().unanswered.add(1);
        }
        if other_closed {
            self.finish(token);
        } else {
            socket::half_close(sink);
        }
    }

    /// Closes both sockets; what was written is still delivered.
    pub(super) fn finish(&mut self, token: Token) {
        if let Some(connection) = self.take_out(token) {
            self.shared.stats().closed.add(1);
            drop(connection);
        }
    }

    /// The socket of `side` is broken. A shard that did so before a byte moved never began: the client goes elsewhere.
    fn fault(&mut self, token: Token, side: Side) {
        let Some(connection) = self.connections.get(token) else { return };
        if side == Side::Shard && !connection.moved {
            return self.shard_gave_up(token);
        }
        if side == Side::Shard && !connection.answered && !connection.down.closed {
            self.shared.stats().unanswered.add(1);
        }
        self.cut(token, if side == Side::Client { Cause::ResetByClient } else { Cause::ResetByShard });
    }

    /// Resets both sides.
    pub(super) fn cut(&mut self, token: Token, cause: Cause) {
        let Some(connection) = self.take_out(token) else { return };
        let stats = self.shared.stats();
        stats.count(cause);
        stats.closed.add(1);
        socket::reset(connection.client.socket);
        socket::reset(connection.shard);
    }

    /// Takes a connection out of everything but epoll, which forgets sockets as they are closed.
    pub(super) fn take_out(&mut self, token: Token) -> Option<Connection> {
        let mut connection = self.connections.remove(token)?;
        self.forced.remove(&token.index);
        self.deadlines.clear(token.index);
        self.epochs.close(connection.epoch);
        for pipe in [connection.up.discard(), connection.down.discard()].into_iter().flatten() {
            self.pipes.discard(pipe);
        }
        Some(connection)
    }
}
