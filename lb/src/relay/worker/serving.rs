//! Accepting: which doors are open, and who gets a connection first.

use std::time::Duration;

use super::Core;
use crate::{
    cells::Account,
    relay::{
        Cause, Role, Standing, WorkerRef,
        connection::{Client, Tried},
        doors::Accepted,
    },
};

/// Between two looks whether the queue of a listener that is being stopped is still empty.
const STOPPING_LOOK: Duration = Duration::from_millis(10);

/// Between two looks whether a sibling has room again, while a door is closed for want of one.
const PAUSED_LOOK: Duration = Duration::from_millis(250);

impl Core {
    pub(super) fn on_listener(&mut self, place: u32) {
        let Some(door) = self.doors.get(place) else { return };
        let (port, role, stopping) = (door.port, door.role, door.is_stopping());
        let account = door.account.clone();
        if self.exhausted_until.is_some() {
            return;
        }
        // Taken out of self while the closure below has the rest.
        let mut doors = std::mem::take(&mut self.doors);
        let accepted = doors.accept(place, self.clock.now, |client| {
            let open = account.as_ref().map(Account::open);
            self.accepted(Client { socket: client, port, role, since: self.clock.now, tried: Tried::default(), open });
            // The last of a burst may have found no room: what is still queued stays there.
            let room = if stopping { self.can_wait() } else { self.standing() != Standing::Full };
            self.exhausted_until.is_none() && room
        });
        self.doors = doors;
        match accepted {
            Accepted::Enough => {}
            Accepted::Ended => drop(self.doors.set_open(&self.epoll, place, false)),
            Accepted::Exhausted => self.exhausted(),
            Accepted::Failed => {
                self.stats().count(Cause::AcceptFailed);
                self.rest();
            }
        }
    }

    fn accepted(&mut self, client: Client) {
        self.stats().accepted.add(1);
        match client.role {
            Role::Slot | Role::Inner => self.take(client),
            Role::Anchor => match self.next_in_turn() {
                Some(sibling) => self.hand_over(&sibling, client),
                None => self.take(client),
            },
        }
    }

    /// The sibling whose turn it is; `None` is this worker itself. Skips those that are not open.
    fn next_in_turn(&mut self) -> Option<WorkerRef> {
        let everyone = self.siblings.len() + 1;
        for _ in 0..everyone {
            self.turn = (self.turn + 1) % everyone;
            match self.siblings.get(self.turn) {
                Some(sibling) if sibling.stats().standing() == Standing::Open => return Some(sibling.clone()),
                None if self.standing() == Standing::Open => return None,
                _ => {}
            }
        }
        None
    }

    /// Opens the doors behind which there is room, here or with a sibling, and closes the others.
    pub(super) fn set_doors(&mut self, standing: Standing) {
        // A worker that drains takes nothing, also not for others: what comes waits in the kernel's queue.
        let elsewhere = standing != Standing::Open && !self.draining && self.open_sibling(Tried::default()).is_some();
        let rests = self.exhausted_until.is_some();
        for place in 0..self.doors.places() {
            let Some(door) = self.doors.get(place) else { continue };
            let room = match (door.role, standing) {
                (_, Standing::Open) => true,
                // Full is for a moment: its own clients rather wait for their nearest shard than go elsewhere.
                (Role::Slot, Standing::Full) | (Role::Inner, _) => false,
                (Role::Slot, Standing::Absent) | (Role::Anchor, _) => elsewhere,
            };
            let changed = self.doors.set_open(&self.epoll, place, room && !rests);
            if changed && !room && standing == Standing::Full {
                self.stats().count(Cause::Limit);
            }
            if !room && !self.siblings.is_empty() && self.chores_at.is_none() {
                // A sibling that gets a shard rings its siblings; that one has room again, only looking tells.
                self.chore_by(self.clock.now + PAUSED_LOOK);
            }
        }
    }

    /// Empties the queues of listeners that are being stopped, whether there is room or not, and closes them.
    pub(super) fn tend_stopping(&mut self) {
        if !self.doors.any_stopping() {
            return;
        }
        for place in self.doors.finish_stopping(&self.epoll, self.clock.now) {
            self.on_listener(place);
        }
        self.chore_by(self.clock.now + STOPPING_LOOK);
    }
}
