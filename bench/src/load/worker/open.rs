//! The open loop: a request when it is due, whatever became of those before; owns the queue of what is due.

use std::{
    collections::VecDeque,
    io,
    time::{Duration, Instant},
};

use nix::sys::{
    epoll::{EpollEvent, EpollFlags},
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use super::{First, Worker};
use crate::load::{arrivals::Arrivals, window::Window};

const TIMER: u64 = u64::MAX;

/// What is due and what is free. Bounded: a load's rate times its duration, and its connections.
struct Queues {
    base: Instant,
    arrivals: Arrivals,
    due: VecDeque<Instant>,
    /// The one that waited longest goes first, so that all connections, and so all shards, are used.
    idle: VecDeque<usize>,
    timer: TimerFd,
    armed_for: Option<Instant>,
}

impl Worker<'_> {
    pub(super) fn open_loop(&mut self, window: &Window, arrivals: Arrivals) -> io::Result<()> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // Edge-triggered: setting it anew is enough, nobody has to read it.
        self.epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        let base = window.opens - self.load.warm_up;
        let idle = (0..self.slots.len()).collect();
        let mut queues = Queues { base, arrivals, due: VecDeque::new(), idle, timer, armed_for: None };
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let now = Instant::now();
            self.tally.mark_cpu(window, now);
            queues.take_due(now, window);
            self.mend(&mut queues);
            while let (Some(since), Some(token)) = (queues.due.front(), queues.idle.front()) {
                let (since, token) = (*since, *token);
                queues.due.pop_front();
                queues.idle.pop_front();
                self.begin(token, since, window);
            }
            if self.interrupt.is_raised() || self.is_over(&queues, window, now) {
                self.give_up(&queues, window, now);
                return Ok(());
            }
            queues.arm(now)?;
            let count = self.wait(&mut events)?;
            for event in events[..count].iter().filter(|event| event.data() != TIMER) {
                let token = event.data() as usize;
                if let Some(since) = self.step(token, window) {
                    if window.contains(since) {
                        self.tally.answered(since, Instant::now());
                    }
                    queues.idle.push_back(token);
                }
            }
        }
    }

    /// Gives slots whose connection failed a new one; those that still fail stay broken until the next round.
    fn mend(&mut self, queues: &mut Queues) {
        for token in std::mem::take(&mut self.broken) {
            match self.connect(token, First::Nothing) {
                Ok(()) => queues.idle.push_back(token),
                Err(_) => self.broken.push(token),
            }
        }
    }

    fn is_over(&self, queues: &Queues, window: &Window, now: Instant) -> bool {
        let nothing_left = || queues.due.is_empty() && self.slots.iter().all(|slot| slot.since.is_none());
        now >= window.grace_ends || (now >= window.closes && nothing_left())
    }

    /// What is unanswered counts as failed, and with the age it has: leaving it out would hide the worst.
    fn give_up(&mut self, queues: &Queues, window: &Window, now: Instant) {
        let unanswered = self.slots.iter().filter_map(|slot| slot.since).chain(queues.due.iter().copied());
        for since in unanswered.filter(|since| window.contains(*since)) {
            self.tally.answered(since, now);
            self.tally.failed(&io::Error::new(io::ErrorKind::TimedOut, "unanswered at the end"));
        }
    }
}

impl Queues {
    fn next_due(&self) -> Instant {
        self.base + self.arrivals.next()
    }

    fn take_due(&mut self, now: Instant, window: &Window) {
        while self.next_due() <= now && self.next_due() < window.closes {
            self.due.push_back(self.next_due());
            self.arrivals.advance();
        }
    }

    /// Sets the timer for the next. epoll_wait's own milliseconds would be the larger part of a latency.
    fn arm(&mut self, now: Instant) -> io::Result<()> {
        let next = self.next_due();
        if self.armed_for != Some(next) {
            let wait = next.saturating_duration_since(now).max(Duration::from_nanos(1));
            let once = Expiration::OneShot(TimeSpec::from_duration(wait));
            self.timer.set(once, TimerSetTimeFlags::empty())?;
            self.armed_for = Some(next);
        }
        Ok(())
    }
}
