//! Commands, one after the other as they came.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Sender, TryRecvError},
    },
};

use super::Core;
use crate::{
    cells::Account,
    relay::{
        Backend, BackendError, Cause, PortKey, Role,
        command::{Command, Scope},
        connection::{Client, Stage},
        slab::Token,
        socket,
    },
};

/// Commands done in one turn; what is left rings again.
const MOST_PER_TURN: usize = 256;

impl Core {
    pub(super) fn on_bell(&mut self) {
        // EAGAIN: rung and answered before.
        let _ = self.shared.bell().read();
        for _ in 0..MOST_PER_TURN {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
        self.shared.ring();
    }

    /// Nobody may be waiting for the answer any more: a failed `send` of one is fine throughout.
    fn obey(&mut self, command: Command) {
        match command {
            Command::Serve { port, listener, role, account, done } => {
                let _ = done.send(self.serve(port, listener, role, account));
            }
            Command::StopServing { port, role, done } => self.stop_serving(port, role, done),
            Command::LeaveAnchor { port, done } => {
                if let Some(place) = self.doors.find(port, Role::Anchor) {
                    self.doors.close(&self.epoll, place);
                }
                let _ = done.send(());
            }
            Command::SetBackend { backend, done } => {
                let result = self.set_backend(backend);
                // Before anyone is told: who hears of it may look at once.
                self.publish();
                let _ = done.send(result);
                self.siblings.iter().for_each(|sibling| sibling.ring());
            }
            Command::SetSiblings(siblings) => {
                let own = self.shared.slot();
                self.siblings = siblings.into_iter().filter(|sibling| sibling.slot() != own).collect();
                self.chore_by(self.clock.now);
            }
            Command::Adopt { client, prepared } => self.adopt(client, prepared),
            Command::Drain { scope, deadline, done } => self.begin_drain(scope, deadline, Cause::DrainDeadline, done),
            Command::CloseFormer { done } => {
                self.begin_drain(Scope::Former, self.clock.now, Cause::ShardGone, done);
            }
            Command::StopTaking { done } => {
                self.stop_taking();
                let _ = done.send(());
            }
            Command::Release { done } => {
                let _ = done.send(self.release());
            }
            Command::Resume { connections, done } => {
                let _ = done.send(self.resume(connections));
            }
            Command::Pin { pin, done } => {
                let _ = done.send(pin());
            }
            Command::Shutdown => self.running = false,
        }
    }

    fn serve(&mut self, port: PortKey, listener: OwnedFd, role: Role, account: Option<Arc<Account>>) -> io::Result<()> {
        socket::prepare_listener(&listener, self.limits.keepalive)?;
        self.doors.insert(port, role, listener, account);
        Ok(())
    }

    fn stop_serving(&mut self, port: PortKey, role: Role, done: Sender<()>) {
        match self.doors.find(port, role) {
            Some(place) => {
                self.doors.stop(place, done);
                self.chore_by(self.clock.now);
            }
            None => {
                let _ = done.send(());
            }
        }
    }

    fn set_backend(&mut self, backend: Option<Backend>) -> Result<(), BackendError> {
        self.backend = None;
        self.epochs.advance();
        self.draining = false;
        self.chore_by(self.clock.now);
        let slot = self.shared.slot();
        self.namespace.leave().map_err(|source| BackendError::Leave { slot, source })?;
        let Some(Backend { netns, ports }) = backend else { return Ok(()) };
        if let Some(netns) = netns {
            self.namespace.enter(netns).map_err(|source| BackendError::Enter { slot, source })?;
        }
        self.backend = Some(ports);
        Ok(())
    }

    fn adopt(&mut self, client: Client, prepared: bool) {
        self.stats().adopted.add(1);
        if !prepared && socket::prepare_adopted(&client.socket, self.limits.keepalive).is_err() {
            // Not a TCP socket, or one that has ended already.
            self.stats().count(Cause::Undeliverable);
            return;
        }
        self.take(client);
    }

    /// A client that isn't connected yet can still go to a sibling.
    fn end_one(&mut self, token: Token) {
        if self.connections.get(token).is_some_and(|connection| connection.stage == Stage::Connecting) {
            self.abandon_connect(token);
        } else {
            self.cut(token, Cause::ShardGone);
        }
    }

    /// The worker ends: what it has is reset, and what was handed to it meanwhile goes back to the others.
    pub(super) fn end(&mut self) {
        self.backend = None;
        self.publish();
        for index in 0..self.connections.places() {
            if let Some(token) = self.connections.at(index) {
                self.end_one(token);
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Adopt { client, .. } = command {
                self.forward(client);
            }
        }
        for client in self.take_waiting() {
            let kept = match self.sibling_for(&client) {
                Some(sibling) => sibling.hand_over(client).err(),
                None => Some(client),
            };
            if let Some(client) = kept {
                socket::reset(client.socket);
            }
        }
    }
}
