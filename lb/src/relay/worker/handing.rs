//! Giving up all connections, each in a state that can be written down, and going on with those that another gave up.

use std::time::{Duration, Instant};

use super::{Core, ticks};
use crate::relay::{
    Cause,
    connection::{Client, Connection, Side, Stage, Tried},
    direction::Direction,
    handed::{Handed, Relayed, RelayedState},
    slab::Token,
    socket,
    timers::TICK_MILLIS,
};

impl Core {
    /// Accepts nothing more, and hands nothing to siblings: what it has then stays its own.
    pub(super) fn stop_taking(&mut self) {
        self.draining = true;
        self.siblings = Vec::new();
        self.publish();
    }

    /// Every connection there is, and every client that waits for one; afterwards there is none.
    pub(super) fn release(&mut self) -> Vec<Handed> {
        let tokens: Vec<Token> =
            (0..self.connections.places()).filter_map(|index| self.connections.at(index)).collect();
        let mut handed: Vec<Handed> = tokens.into_iter().filter_map(|token| self.release_one(token)).collect();
        let waiting: Vec<Client> = self.take_waiting().collect();
        handed.extend(waiting.into_iter().map(|client| self.released(client, None)));
        self.runnable.clear();
        self.publish();
        handed
    }

    fn release_one(&mut self, token: Token) -> Option<Handed> {
        let connection = self.connections.get_mut(token)?;
        if connection.stage == Stage::Connecting {
            let Connection { client, shard, .. } = self.take_out(token)?;
            socket::reset(shard);
            return Some(self.released(client, None));
        }
        let pipes = &mut self.pipes;
        let up = connection.up.stop(|pipe, len| pipes.empty(pipe, len));
        let down = connection.down.stop(|pipe, len| pipes.empty(pipe, len));
        let (Ok(up), Ok(down)) = (up, down) else {
            // What was in a pipe is gone.
            self.cut(token, Cause::Undeliverable);
            return None;
        };
        let Connection { client, shard, moved, kept_alive, answered, began, active, .. } = self.take_out(token)?;
        // They stay open elsewhere, so epoll would go on reporting them.
        for socket in [&client.socket, &shard] {
            let _ = self.epoll.delete(socket);
        }
        socket::set_reset_on_close(&shard, true);
        let silent = Duration::from_millis(u64::from(self.clock.tick.saturating_sub(active)) * TICK_MILLIS);
        let state = RelayedState { up, down, moved, kept_alive, answered, age: self.clock.now - began, silent };
        Some(self.released(client, Some(Relayed { shard, state })))
    }

    fn released(&self, client: Client, relayed: Option<Relayed>) -> Handed {
        let Client { socket: client, port, role, since, open, .. } = client;
        socket::set_reset_on_close(&client, true);
        Handed { client, port, role, open, age: self.clock.now - since, relayed }
    }

    /// Goes on with connections that another worker had; returns with how many.
    pub(super) fn resume(&mut self, handed: Vec<Handed>) -> u32 {
        let mut count = 0;
        for Handed { client, port, role, open, age, relayed } in handed {
            count += 1;
            self.stats().resumed.add(1);
            socket::set_reset_on_close(&client, false);
            let since = self.before(age);
            let client = Client { socket: client, port, role, since, tried: Tried::default(), open };
            match relayed {
                Some(relayed) => self.resume_relayed(client, relayed),
                None => self.take(client),
            }
        }
        self.publish();
        count
    }

    fn resume_relayed(&mut self, client: Client, Relayed { shard, state }: Relayed) {
        socket::set_reset_on_close(&shard, false);
        let RelayedState { up, down, moved, kept_alive, answered, age, silent } = state;
        let epoch = self.epochs.open();
        let connection = Connection {
            up: Direction::resume(up),
            down: Direction::resume(down),
            stage: Stage::Relaying,
            moved,
            kept_alive,
            answered,
            active: self.clock.tick.saturating_sub(ticks(silent)),
            ..Connection::new(client, shard, self.before(age), epoch)
        };
        let token = self.connections.insert(connection);
        self.set_deadline(token);
        // Edge-triggered, epoll reports once what is there already.
        if !self.watch(token, Side::Client) || !self.watch(token, Side::Shard) {
            self.exhausted();
            return self.cut(token, Cause::Undeliverable);
        }
        self.pump(token, Side::Client);
        self.pump(token, Side::Shard);
    }

    fn before(&self, age: Duration) -> Instant {
        self.clock.now.checked_sub(age).unwrap_or(self.clock.now)
    }
}
