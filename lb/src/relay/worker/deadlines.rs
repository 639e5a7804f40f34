//! What time brings: connect, idle and drain deadlines, and the chores that recur while something is unusual. Every
//! turn does a bounded part.

use std::{sync::mpsc::Sender, time::Instant};

use super::{Core, connecting::RETRY_AFTER, ticks};
use crate::relay::{
    Cause, Drained,
    command::Scope,
    connection::{Connection, Side, Stage},
    slab::Token,
    socket,
    timers::{TICK_MILLIS, Tick},
};

/// Deadlines looked at, and connections swept, in one turn.
const MOST_PER_TURN: usize = 512;

/// When a connection is old enough for keepalive towards the shard to be worth four system calls.
const KEEPALIVE_AFTER: Tick = (5_000 / TICK_MILLIS) as Tick;

/// Connections that have to be gone by a deadline.
pub(super) struct Drain {
    /// Those of epochs before this one.
    before: u32,
    deadline: Instant,
    cause: Cause,
    connections: u32,
    reset: u32,
    /// How far the sweep that resets them has come.
    swept: u32,
    done: Sender<Drained>,
}

impl Core {
    /// The deadline of a connection that has just been established, or was looked at and isn't due.
    pub(super) fn set_deadline(&mut self, token: Token) {
        let Some(connection) = self.connections.get(token) else { return };
        let idle = self.limits.idle_timeout.map(|idle| connection.active.saturating_add(ticks(idle)).saturating_add(1));
        let keepalive =
            self.limits.keepalive.filter(|_| !connection.kept_alive).map(|_| self.keepalive_due(connection));
        match idle.into_iter().chain(keepalive).min() {
            Some(deadline) => self.deadlines.set(token.index, deadline),
            None => self.deadlines.clear(token.index),
        }
    }

    fn keepalive_due(&self, connection: &Connection) -> Tick {
        ticks(connection.began - self.clock.start).saturating_add(KEEPALIVE_AFTER)
    }

    /// Handles deadlines that have come. What is beyond a turn's part is due at once in the next.
    pub(super) fn expire(&mut self) {
        for _ in 0..MOST_PER_TURN {
            let Some(index) = self.deadlines.expired(self.clock.tick) else { return };
            if let Some(token) = self.connections.at(index) {
                self.look_at(token);
            }
        }
    }

    fn look_at(&mut self, token: Token) {
        let Some(connection) = self.connections.get(token) else { return };
        if connection.stage == Stage::Connecting {
            return self.look_at_connecting(token);
        }
        let due = self.keepalive_due(connection);
        let Some(connection) = self.connections.get_mut(token) else { return };
        let silent = self.clock.tick.saturating_sub(connection.active);
        if self.limits.idle_timeout.is_some_and(|idle| silent > ticks(idle)) {
            return self.end_idle(token);
        }
        if !connection.kept_alive && due <= self.clock.tick {
            connection.kept_alive = true;
            // A socket that refuses is on its way out.
            let _ = socket::set_keepalive(connection.socket(Side::Shard), self.limits.keepalive);
        }
        self.set_deadline(token);
    }

    fn look_at_connecting(&mut self, token: Token) {
        let Some(connection) = self.connections.get(token) else { return };
        let left = self.limits.connect_timeout.saturating_sub(self.clock.now - connection.began);
        if left.is_zero() {
            self.stats().count(Cause::ConnectTimeout);
            self.abandon_connect(token);
        } else {
            self.deadlines.set(token.index, self.clock.tick.saturating_add(ticks(left)).saturating_add(1));
        }
    }

    /// Ends a silent connection: gently, unless that would pass off a part as the whole.
    fn end_idle(&mut self, token: Token) {
        if self.connections.get(token).is_some_and(|connection| connection.holds_bytes()) {
            return self.cut(token, Cause::IdleTimeout);
        }
        self.stats().count(Cause::IdleTimeout);
        self.finish(token);
    }

    pub(super) fn begin_drain(&mut self, scope: Scope, deadline: Instant, cause: Cause, done: Sender<Drained>) {
        let before = match scope {
            Scope::All => {
                self.draining = true;
                self.epochs.current() + 1
            }
            // Without a backend there is no present one.
            Scope::Former => self.epochs.current() + u32::from(self.backend.is_none()),
        };
        let connections = self.epochs.before(before);
        self.drains.push(Drain { before, deadline, cause, connections, reset: 0, swept: 0, done });
        self.chore_by(self.clock.now);
    }

    /// What has to be done now and then while something is unusual; asks for itself again as long as it is.
    pub(super) fn do_chores(&mut self) {
        self.chores_at = None;
        if self.exhausted_until.is_some_and(|until| until <= self.clock.now) {
            self.exhausted_until = None;
        }
        if let Some(until) = self.exhausted_until {
            self.chore_by(until);
        }
        self.tend_waiting();
        self.tend_drains();
        self.tend_stopping();
    }

    fn tend_drains(&mut self) {
        let mut drains = std::mem::take(&mut self.drains);
        drains.retain_mut(|drain| {
            if drain.deadline <= self.clock.now {
                self.sweep(drain);
            }
            // Clients that were accepted and have no connection yet are in no epoch.
            let waits = self.draining && !self.waiting.is_empty() && self.clock.now < drain.deadline;
            if self.epochs.before(drain.before) > 0 || waits {
                self.chore_by(if drain.swept > 0 { self.clock.now } else { self.clock.now + RETRY_AFTER });
                return true;
            }
            // Whoever asked may have gone.
            let _ = drain.done.send(Drained { connections: drain.connections, reset: drain.reset });
            false
        });
        self.drains = drains;
    }

    /// Ends a part of a drain's connections; its deadline has come.
    fn sweep(&mut self, drain: &mut Drain) {
        for _ in 0..MOST_PER_TURN {
            if drain.swept >= self.connections.places() {
                drain.swept = 0;
                return;
            }
            let token = self.connections.at(drain.swept);
            drain.swept += 1;
            let Some((token, connection)) = token.and_then(|token| Some((token, self.connections.get(token)?))) else {
                continue;
            };
            if connection.epoch >= drain.before {
                continue;
            }
            if connection.stage == Stage::Connecting {
                self.abandon_connect(token);
            } else {
                drain.reset += 1;
                self.cut(token, drain.cause);
            }
        }
    }
}
