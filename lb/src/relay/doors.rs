//! A worker's listeners: which are open, and taking connections from their queues. Knows nothing of what becomes of a
//! connection.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, mpsc::Sender},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollEvent, EpollFlags},
};

use socket2::SockRef;

use super::{PortKey, Role, connection::Source, socket};
use crate::cells::Account;

/// Connections taken from one listener before others' turn comes.
const MAX_BURST: u32 = 64;

/// A stopped listener's queue has to be empty this long: a handshake that its last packet completes comes in after.
const EMPTY_FOR: Duration = Duration::from_millis(20);

/// One listener.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) port: PortKey,
    pub(super) role: Role,
    pub(super) account: Option<Arc<Account>>,
    listener: OwnedFd,
    /// It was shut down: nothing comes from it any more.
    ended: bool,
    /// In epoll. Taken out rather than masked while it is closed: epoll reports EPOLLHUP whatever the mask.
    open: bool,
    /// How many to take at a time: as many as came last, so that the accept that finds nothing is rare.
    burst: u32,
    stopping: Option<Stopping>,
}

#[derive(Debug)]
struct Stopping {
    empty_since: Option<Instant>,
    done: Sender<()>,
}

/// What accepting gave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Accepted {
    /// No more for now, or others' turn.
    Enough,
    /// No more at all.
    Ended,
    /// No descriptor or no socket memory is left.
    Exhausted,
    /// Another error; it may persist.
    Failed,
}

/// See the module. Places stay: they are in epoll's data.
#[derive(Debug, Default)]
pub(super) struct Doors {
    places: Vec<Option<Door>>,
}

impl Door {
    /// Its queue is being emptied, for it to be closed.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }
}

impl Doors {
    /// A second descriptor of a listener that has its door changes nothing: one stop ends it.
    pub(super) fn insert(&mut self, port: PortKey, role: Role, listener: OwnedFd, account: Option<Arc<Account>>) {
        let cookie = |listener: &OwnedFd| SockRef::from(listener).cookie().ok();
        let known = self.find(port, role).and_then(|place| self.get(place));
        if known.is_some_and(|door| !door.ended && cookie(&door.listener) == cookie(&listener)) {
            return;
        }
        let door = Door { port, role, account, listener, ended: false, open: false, burst: 1, stopping: None };
        match self.places.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(door),
            None => self.places.push(Some(door)),
        }
    }

    pub(super) fn get(&self, place: u32) -> Option<&Door> {
        self.places.get(place as usize)?.as_ref()
    }

    pub(super) fn places(&self) -> u32 {
        self.places.len() as u32
    }

    pub(super) fn find(&self, port: PortKey, role: Role) -> Option<u32> {
        (0..self.places()).find(|place| {
            self.get(*place).is_some_and(|door| door.port == port && door.role == role && !door.is_stopping())
        })
    }

    /// Begins to empty the listener's queue; [`finish_stopping`](Self::finish_stopping) closes it.
    pub(super) fn stop(&mut self, place: u32, done: Sender<()>) {
        if let Some(door) = self.places[place as usize].as_mut() {
            door.stopping = Some(Stopping { empty_since: None, done });
        }
    }

    /// Lets go of a listener at once; what is in its queue is somebody else's.
    pub(super) fn close(&mut self, epoll: &Epoll, place: u32) {
        self.set_open(epoll, place, false);
        self.places[place as usize] = None;
    }

    pub(super) fn any_stopping(&self) -> bool {
        self.places.iter().flatten().any(Door::is_stopping)
    }

    /// Opens or closes a door in `epoll`. `true` if that changed anything.
    pub(super) fn set_open(&mut self, epoll: &Epoll, place: u32, open: bool) -> bool {
        let Some(door) = self.places[place as usize].as_mut() else { return false };
        // An ended one is always readable, and would keep the worker from its other doors.
        let open = open && !door.ended;
        if door.open == open {
            return false;
        }
        let result = if open {
            epoll.add(&door.listener, EpollEvent::new(EpollFlags::EPOLLIN, Source::Listener(place).encode()))
        } else {
            epoll.delete(&door.listener)
        };
        // Refused for want of memory: tried again in the next turn.
        door.open = if result.is_ok() { open } else { door.open };
        result.is_ok()
    }

    /// Takes connections from the queue and gives them to `take`, until that says to stop or a burst is full.
    pub(super) fn accept(&mut self, place: u32, now: Instant, mut take: impl FnMut(OwnedFd) -> bool) -> Accepted {
        let Some(door) = self.places.get_mut(place as usize).and_then(Option::as_mut) else { return Accepted::Enough };
        for taken in 0..door.burst {
            match socket::accept(&door.listener) {
                Ok(client) => {
                    if let Some(stopping) = &mut door.stopping {
                        stopping.empty_since = None;
                    }
                    if !take(client) {
                        return Accepted::Enough;
                    }
                }
                Err(Errno::EAGAIN) => {
                    door.burst = taken.max(1);
                    if let Some(stopping) = &mut door.stopping {
                        stopping.empty_since.get_or_insert(now);
                    }
                    return Accepted::Enough;
                }
                // shutdown(2): somebody else has it too.
                Err(Errno::EINVAL) => {
                    door.ended = true;
                    if let Some(stopping) = &mut door.stopping {
                        stopping.empty_since.get_or_insert(now);
                    }
                    return Accepted::Ended;
                }
                // The connection ended before it was taken, or a signal came: the next one may be fine.
                Err(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => return Accepted::Exhausted,
                Err(_) => return Accepted::Failed,
            }
        }
        door.burst = (door.burst * 2).min(MAX_BURST);
        Accepted::Enough
    }

    /// Closes the doors whose queue is certain to be empty. Gives back those that are still to be emptied.
    pub(super) fn finish_stopping(&mut self, epoll: &Epoll, now: Instant) -> Vec<u32> {
        let mut left = Vec::new();
        for place in 0..self.places() {
            let Some(stopping) = self.get(place).and_then(|door| door.stopping.as_ref()) else { continue };
            if stopping.empty_since.is_some_and(|since| now.duration_since(since) >= EMPTY_FOR) {
                self.set_open(epoll, place, false);
                if let Some(stopping) = self.places[place as usize].take().and_then(|door| door.stopping) {
                    // Whoever asked may have gone.
                    let _ = stopping.done.send(());
                }
            } else {
                left.push(place);
            }
        }
        left
    }
}
