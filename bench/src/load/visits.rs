//! Visits: connections with one request each, begun when they are due whatever became of those before, and each told for
//! itself; owns its threads and connections, and concludes nothing.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};

pub use super::client::Reached;
use super::{
    LoadError,
    arrivals::Arrivals,
    client::{Buffer, Client, Progress},
    http,
};

/// How long the last may take after the end.
const GRACE: Duration = Duration::from_secs(5);
/// Connections at a time of one thread; what is due beyond that begins later.
const MOST_AT_A_TIME: usize = 4096;
const LONGEST_WAIT_MILLIS: u16 = 10;
const TIMER: u64 = u64::MAX;

/// How to visit.
#[derive(Debug, Clone)]
pub struct VisitPlan {
    /// Whom.
    pub target: SocketAddr,
    /// What is asked for.
    pub asks: Asks,
    /// Over all threads.
    pub visits_per_second: f64,
    /// One thread on each of these CPUs.
    pub cpus: Vec<usize>,
    /// Gives the moments.
    pub seed: u64,
    /// After this nothing is begun any more, whoever forgets to end it.
    pub longest: Duration,
}

/// What a visit asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asks {
    /// An answer of so many bytes, of one of our shards.
    Bytes(usize),
    /// A path of somebody else's server: any answer that isn't an error is one.
    Path(String),
}

/// One connection with one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// When its SYN was sent.
    pub began: Instant,
    /// When the server had closed after the whole answer, or when it failed.
    pub ended: Instant,
    /// How, if it failed.
    pub failure: Option<Failure>,
}

/// How a connection failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What the system said.
    pub error: String,
    /// Where it came from, if it had been given a port.
    pub client: Option<SocketAddr>,
    /// How far it was.
    pub reached: Reached,
}

impl Visit {
    /// From its SYN to its end.
    pub fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// Visits that go on until [`Visits::finish`].
#[derive(Debug)]
pub struct Visits {
    stopped: Arc<AtomicBool>,
    threads: Vec<(usize, JoinHandle<io::Result<Vec<Visit>>>)>,
}

impl Visits {
    /// Begins.
    pub fn start(plan: &VisitPlan) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let thread = |(index, cpu): (usize, &usize)| {
            let (plan, stopped, cpu) = (plan.clone(), Arc::clone(&stopped), *cpu);
            (cpu, thread::spawn(move || Thread::new(&plan, index)?.run(&stopped)))
        };
        let threads = plan.cpus.iter().enumerate().map(thread).collect();
        Self { stopped, threads }
    }

    /// Ends, and tells every visit in the order in which they began.
    pub fn finish(mut self) -> Result<Vec<Visit>, LoadError> {
        self.stopped.store(true, Ordering::Relaxed);
        let mut visits = Vec::new();
        for (cpu, thread) in std::mem::take(&mut self.threads) {
            let fail = |source| LoadError::Thread { cpu, action: "go on visiting", source };
            visits.extend(thread.join().map_err(|_| LoadError::Died)?.map_err(fail)?);
        }
        visits.sort_by_key(|visit| visit.began);
        Ok(visits)
    }
}

impl Drop for Visits {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

struct Thread {
    target: SocketAddr,
    asks: Asks,
    request: Vec<u8>,
    arrivals: Arrivals,
    started: Instant,
    longest: Duration,
    epoll: Epoll,
    timer: TimerFd,
    buffer: Buffer,
    guests: Vec<Option<Guest>>,
    free: Vec<usize>,
    visits: Vec<Visit>,
}

struct Guest {
    client: Client,
    began: Instant,
}

impl Thread {
    fn new(plan: &VisitPlan, index: usize) -> io::Result<Self> {
        crate::measure::pin_this_thread(&[plan.cpus[index]])?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // Edge-triggered: setting it anew is enough, nobody has to read it.
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        Ok(Self {
            target: plan.target,
            asks: plan.asks.clone(),
            request: match &plan.asks {
                Asks::Bytes(bytes) => http::request(*bytes, true),
                Asks::Path(path) => http::get(path, &plan.target.to_string(), true),
            },
            arrivals: Arrivals::new(plan.visits_per_second, plan.cpus.len(), index, plan.seed),
            started: Instant::now(),
            longest: plan.longest,
            epoll,
            timer,
            buffer: Buffer::new(),
            guests: Vec::new(),
            free: Vec::new(),
            visits: Vec::new(),
        })
    }

    fn run(mut self, stopped: &AtomicBool) -> io::Result<Vec<Visit>> {
        let mut events = [EpollEvent::empty(); 256];
        let mut gives_up = None;
        loop {
            let now = Instant::now();
            if gives_up.is_none() && (stopped.load(Ordering::Relaxed) || self.started.elapsed() > self.longest) {
                gives_up = Some(now + GRACE);
            }
            match gives_up {
                None => self.begin_due(now)?,
                Some(limit) if now >= limit || self.open() == 0 => {
                    self.give_up(now);
                    return Ok(self.visits);
                }
                Some(_) => {}
            }
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(LONGEST_WAIT_MILLIS)) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in events[..count].iter().filter(|event| event.data() != TIMER) {
                self.advance(event.data() as usize);
            }
        }
    }

    fn open(&self) -> usize {
        self.guests.len() - self.free.len()
    }

    fn begin_due(&mut self, now: Instant) -> io::Result<()> {
        while self.started + self.arrivals.next() <= now && self.open() < MOST_AT_A_TIME {
            self.arrivals.advance();
            self.begin();
        }
        let wait = (self.started + self.arrivals.next()).saturating_duration_since(Instant::now());
        let once = Expiration::OneShot(TimeSpec::from_duration(wait.max(Duration::from_nanos(1))));
        Ok(self.timer.set(once, TimerSetTimeFlags::empty())?)
    }

    fn begin(&mut self) {
        let began = Instant::now();
        match self.connect() {
            Ok((token, client)) => self.guests[token] = Some(Guest { client, began }),
            Err(error) => {
                let failure = Failure { error: error.to_string(), client: None, reached: Reached::Connecting };
                self.note(began, Some(failure));
            }
        }
    }

    fn connect(&mut self) -> io::Result<(usize, Client)> {
        let mut client = match self.asks {
            Asks::Bytes(_) => Client::connect(self.target)?,
            Asks::Path(_) => Client::connect(self.target)?.until_close(),
        };
        client.send(&self.request)?;
        let token = self.free.pop().unwrap_or_else(|| {
            self.guests.push(None);
            self.guests.len() - 1
        });
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        match self.epoll.add(client.fd(), EpollEvent::new(interest, token as u64)) {
            Ok(()) => Ok((token, client)),
            Err(errno) => {
                self.free.push(token);
                Err(errno.into())
            }
        }
    }

    fn advance(&mut self, token: usize) {
        let Some(guest) = self.guests.get_mut(token).and_then(Option::as_mut) else { return };
        let failure = loop {
            match guest.client.advance(&self.request, &mut self.buffer, &mut 0) {
                Ok(Progress::Waits) => return,
                Ok(Progress::Answered) => guest.client.await_end(),
                Ok(Progress::Ended) => break None,
                Err(error) => break Some(error),
            }
        };
        let (began, failure) = (guest.began, failure.map(|error| guest.failed(error.to_string())));
        self.guests[token] = None;
        self.free.push(token);
        self.note(began, failure);
    }

    fn give_up(&mut self, now: Instant) {
        let left = self.guests.iter().flatten();
        let unanswered = |guest: &Guest| Some(guest.failed("unanswered at the end".to_owned()));
        let left = left.map(|guest| Visit { began: guest.began, ended: now, failure: unanswered(guest) });
        self.visits.extend(left);
    }

    fn note(&mut self, began: Instant, failure: Option<Failure>) {
        self.visits.push(Visit { began, ended: Instant::now(), failure });
    }
}

impl Guest {
    fn failed(&self, error: String) -> Failure {
        Failure { error, client: self.client.local_address(), reached: self.client.reached() }
    }
}
