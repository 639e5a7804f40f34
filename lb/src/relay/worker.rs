//! The worker's loop: waits for events, hands each to what it is about, then does what time and room allow. Owns the
//! thread's state; each kind of work is in a file of its own below.

mod connecting;
mod deadlines;
mod handing;
mod orders;
mod relaying;
mod serving;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use self::{connecting::Waiting, deadlines::Drain};
use super::{
    Limits, PortKey, Standing, Target, WorkerRef, WorkerStats,
    command::Command,
    connection::{Connection, Side, Source},
    doors::Doors,
    epochs::Epochs,
    namespace::Namespace,
    pipes::Pipes,
    slab::{Slab, Token},
    timers::{TICK_MILLIS, Tick, Wheel},
};
use crate::front::Forced;

/// Events taken at once.
const EVENTS: usize = 256;

/// What is copied passes through this much, unless [`Limits::splice_above`] says less.
const SCRATCH_BYTES: usize = 64 << 10;

/// One worker's state. Only its thread ever sees it.
pub(super) struct Core {
    shared: WorkerRef,
    limits: Limits,
    commands: Receiver<Command>,
    epoll: Epoll,
    clock: Clock,
    connections: Slab<Connection>,
    /// By index, of those that are connecting to a direct listener.
    forced: BTreeMap<u32, Forced>,
    deadlines: Wheel,
    scratch: Box<[u8]>,
    pipes: Pipes,
    /// Directions that have more to do without waiting.
    runnable: VecDeque<(Token, Side)>,
    doors: Doors,
    /// Accepting waits until then: descriptors or memory ran out.
    exhausted_until: Option<Instant>,
    waiting: VecDeque<Waiting>,
    backend: Option<Vec<(PortKey, Target)>>,
    epochs: Epochs,
    siblings: Vec<WorkerRef>,
    /// Whose turn it is to get a connection of an anchor.
    turn: usize,
    namespace: Namespace,
    drains: Vec<Drain>,
    /// Nothing new is taken until the next backend.
    draining: bool,
    /// When time alone makes something to do, connections' deadlines apart.
    chores_at: Option<Instant>,
    running: bool,
}

/// The time of the present turn: asked of the kernel once per turn.
#[derive(Debug)]
struct Clock {
    start: Instant,
    now: Instant,
    tick: Tick,
}

impl Clock {
    /// Ticks begin so long ago that a connection of a former worker can have been silent before.
    fn new(idle_timeout: Option<Duration>) -> Self {
        let now = Instant::now();
        let start = now.checked_sub(idle_timeout.unwrap_or_default()).unwrap_or(now);
        Self { start, now, tick: ticks(now - start) }
    }

    fn update(&mut self) {
        self.now = Instant::now();
        self.tick = ticks(self.now - self.start);
    }
}

/// Whole ticks in `duration`, at most what a [`Tick`] holds.
fn ticks(duration: Duration) -> Tick {
    Tick::try_from(duration.as_millis() / u128::from(TICK_MILLIS)).unwrap_or(Tick::MAX)
}

impl Core {
    pub(super) fn new(shared: WorkerRef, limits: Limits, commands: Receiver<Command>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(shared.bell(), EpollEvent::new(EpollFlags::EPOLLIN, Source::Bell.encode()))?;
        let scratch = limits.splice_above.map_or(SCRATCH_BYTES, |bytes| (bytes as usize).clamp(1 << 10, 1 << 20));
        Ok(Self {
            shared,
            limits,
            commands,
            epoll,
            clock: Clock::new(limits.idle_timeout),
            connections: Slab::new(),
            forced: BTreeMap::new(),
            deadlines: Wheel::new(),
            scratch: vec![0; scratch].into_boxed_slice(),
            pipes: Pipes::default(),
            runnable: VecDeque::new(),
            doors: Doors::default(),
            exhausted_until: None,
            waiting: VecDeque::new(),
            backend: None,
            epochs: Epochs::default(),
            siblings: Vec::new(),
            turn: 0,
            namespace: Namespace::of_this_thread()?,
            drains: Vec::new(),
            draining: false,
            chores_at: None,
            running: true,
        })
    }

    /// Until it is told to shut down.
    pub(super) fn run(mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        while self.running {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            self.clock.update();
            self.stats().wakeups.add(1);
            for event in &events[..count] {
                self.handle(event);
            }
            self.run_runnable();
            self.expire();
            if self.chores_at.is_some_and(|at| at <= self.clock.now) {
                self.do_chores();
            }
            self.admit();
            self.publish();
        }
        self.end();
        Ok(())
    }

    fn handle(&mut self, event: &EpollEvent) {
        match Source::decode(event.data()) {
            Source::Socket(token, side) => self.on_socket(token, side, event.events()),
            Source::Listener(place) => self.on_listener(place),
            Source::Bell => self.on_bell(),
        }
    }

    /// How long to wait for events: not at all with work left, else until the next deadline.
    fn timeout(&self) -> EpollTimeout {
        if !self.runnable.is_empty() {
            return EpollTimeout::ZERO;
        }
        let tick = self.deadlines.next().map(|tick| {
            let at = self.clock.start + Duration::from_millis(u64::from(tick) * TICK_MILLIS);
            at.saturating_duration_since(self.clock.now)
        });
        let chores = self.chores_at.map(|at| at.saturating_duration_since(self.clock.now));
        let Some(wait) = tick.into_iter().chain(chores).min() else { return EpollTimeout::NONE };
        // Rounded up: epoll counts milliseconds, and waking before the deadline would be for nothing.
        let millis = wait.as_nanos().div_ceil(1_000_000);
        EpollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::NONE)
    }

    /// Lets the world see how many there are and whether there is room, and opens or closes the doors by it.
    fn publish(&mut self) {
        let standing = self.standing();
        let stats = self.stats();
        stats.active.set(self.connections.len() as u64);
        stats.pending.set(self.waiting.len() as u64);
        stats.set_standing(standing);
        self.set_doors(standing);
    }

    fn standing(&self) -> Standing {
        if self.backend.is_none() || self.draining {
            Standing::Absent
        } else if self.has_room() || self.waiting.len() < self.limits.max_pending as usize {
            Standing::Open
        } else {
            Standing::Full
        }
    }

    fn has_room(&self) -> bool {
        self.connections.len() < self.limits.max_connections as usize
    }

    /// Asks for [`do_chores`](Self::do_chores) at `at` or before.
    fn chore_by(&mut self, at: Instant) {
        self.chores_at = Some(self.chores_at.map_or(at, |before| before.min(at)));
    }

    fn stats(&self) -> &WorkerStats {
        self.shared.stats()
    }
}
