//! One thread of the load generator: its connections and what happens on them; owns an epoll and shares nothing with
//! other threads. Which request comes next is the loops' business.

use std::{io, time::Instant};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::{
    Load, MAX_ECHO_BYTES, Request, Shape,
    arrivals::Arrivals,
    client::{Buffer, Client, Progress},
    http,
    streams::Streams,
    window::{Tally, Window},
};
use crate::interrupt::Interrupt;

mod closed;
mod open;

/// How long a loop waits at most: bounds how late it sees the window's end and the wish to end.
const LONGEST_WAIT_MILLIS: u16 = 10;

/// A thread's state.
pub(super) struct Worker<'a> {
    load: &'a Load,
    interrupt: &'a Interrupt,
    index: usize,
    epoll: Epoll,
    asks: &'a Request,
    request: Vec<u8>,
    buffer: Buffer,
    slots: Vec<Slot>,
    /// Slots whose connection failed or is not there yet; the next round tries them.
    broken: Vec<usize>,
    tally: Tally,
}

/// A place for one connection at a time.
struct Slot {
    /// Which of the load's targets it connects to.
    target: usize,
    client: Option<Client>,
    /// Since when its request counts; None while it has none.
    since: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq)]
enum First {
    Request,
    Nothing,
}

impl<'a> Worker<'a> {
    /// Opens this thread's share of the connections; the thread is number `index` of those of `load`.
    pub(super) fn new(load: &'a Load, asks: &'a Request, index: usize, interrupt: &'a Interrupt) -> io::Result<Self> {
        if load.shape == Shape::Echo && !(1..=MAX_ECHO_BYTES).contains(&load.answer_bytes) {
            let says = format!("an echo has 1 to {MAX_ECHO_BYTES} bytes; streams may be longer");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, says));
        }
        // Each thread spreads over all targets: one target for each thread would be an affinity that nobody asked for.
        let share = (index..load.connections).step_by(load.cpus.len()).count();
        let slots: Vec<Slot> = (0..share)
            .map(|position| Slot { target: (position + index) % load.targets.len(), client: None, since: None })
            .collect();
        let mut worker = Self {
            load,
            interrupt,
            index,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            asks,
            request: match load.shape {
                Shape::Echo => http::echoed(load.answer_bytes),
                shape => asks.bytes(shape == Shape::ConnectionPerRequest),
            },
            buffer: Buffer::new(),
            broken: Vec::new(),
            slots,
            tally: Tally::new(),
        };
        if !matches!(load.shape, Shape::ConnectionPerRequest | Shape::Streams) {
            for token in 0..worker.slots.len() {
                worker.connect(token, First::Nothing)?;
            }
        }
        Ok(worker)
    }

    /// Runs until the window has closed.
    pub(super) fn run(mut self, window: Window) -> io::Result<Tally> {
        match self.load.shape {
            Shape::KeepAlive | Shape::ConnectionPerRequest | Shape::Echo => self.closed_loop(&window)?,
            Shape::Streams => return Streams::open(self.load, self.index, self.interrupt)?.run(&window),
            Shape::Open { requests_per_second, seed } => {
                let arrivals = Arrivals::new(requests_per_second, self.load.cpus.len(), self.index, seed);
                self.open_loop(&window, arrivals)?;
            }
        }
        Ok(self.tally)
    }

    /// Sends the next request on a slot's connection, or on a new one where it has none.
    fn begin(&mut self, token: usize, since: Instant, window: &Window) {
        let slot = &mut self.slots[token];
        slot.since = Some(since);
        let begun = match &mut slot.client {
            Some(client) => client.send(&self.request),
            None => self.connect(token, First::Request),
        };
        if let Err(error) = begun {
            self.fail(token, &error, window);
        }
    }

    fn connect(&mut self, token: usize, first: First) -> io::Result<()> {
        let slot = &mut self.slots[token];
        let target = self.load.targets[slot.target];
        let number = token * self.load.cpus.len() + self.index;
        let mut client = match self.load.shape {
            Shape::Echo => Client::connect_for_echo(target, self.load.answer_bytes)?,
            _ => Client::connect_from(self.asks.source(number, target), target)?,
        };
        let mut interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        if first == First::Request {
            client.send(&self.request)?;
            // On loopback the handshake is over when connect returns. Asking for EPOLLOUT would only cost a wake-up.
            if client.has_sent() {
                interest.remove(EpollFlags::EPOLLOUT);
            }
        }
        self.epoll.add(client.fd(), EpollEvent::new(interest, token as u64))?;
        slot.client = Some(client);
        Ok(())
    }

    /// Goes on with a slot's connection. Gives since when its request counted, when that is over.
    fn step(&mut self, token: usize, window: &Window) -> Option<Instant> {
        let slot = &mut self.slots[token];
        loop {
            let client = slot.client.as_mut()?;
            let mut body_bytes = 0;
            let progress = client.advance(&self.request, &mut self.buffer, &mut body_bytes);
            if body_bytes > 0 && window.contains(Instant::now()) {
                self.tally.body_bytes += body_bytes;
            }
            match progress {
                Ok(Progress::Waits) => return None,
                Ok(Progress::Answered) if self.load.shape == Shape::ConnectionPerRequest => client.await_end(),
                Ok(Progress::Answered) => {
                    if client.is_closed_by_server() {
                        slot.client = None;
                    }
                    return slot.since.take();
                }
                Ok(Progress::Ended) => {
                    slot.client = None;
                    return slot.since.take();
                }
                Err(error) => {
                    self.fail(token, &error, window);
                    return None;
                }
            }
        }
    }

    fn fail(&mut self, token: usize, error: &io::Error, window: &Window) {
        let slot = &mut self.slots[token];
        slot.client = None;
        if slot.since.take().is_some_and(|since| window.contains(since)) {
            self.tally.failed(error);
        }
        self.broken.push(token);
    }

    /// Waits for events; gives how many there are.
    fn wait(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        match self.epoll.wait(events, EpollTimeout::from(LONGEST_WAIT_MILLIS)) {
            Err(Errno::EINTR) => Ok(0),
            other => Ok(other?),
        }
    }
}
