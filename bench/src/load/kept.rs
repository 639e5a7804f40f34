//! Kept connections: each asks again and again and is made anew when it has failed or was used for long enough; every failure
//! is told for itself. Owns its threads (one for each connection, which waits most of the time) and concludes nothing.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Failure, LoadError, Reached, exchange::exchange, http};
use crate::shard::SLOT_FIELD;

/// Connections at a time.
pub const MOST_KEPT: usize = 256;
/// How often a thread that waits looks whether it is to end.
const STEP: Duration = Duration::from_millis(50);

/// How to keep connections.
#[derive(Debug, Clone)]
pub struct KeepPlan {
    /// Whom to ask.
    pub target: SocketAddr,
    /// For what.
    pub path: String,
    /// How many of them, at most [`MOST_KEPT`].
    pub connections: usize,
    /// Between two requests of one.
    pub gap: Duration,
    /// How long one is used before its client closes it.
    pub life: Duration,
    /// After so long without an answer it has failed.
    pub patience: Duration,
    /// CPUs of the threads, which share them.
    pub cpus: Vec<usize>,
    /// After this nothing is asked any more, whoever forgets to end it.
    pub longest: Duration,
}

/// Kept connections, until [`Kept::finish`].
#[derive(Debug)]
pub struct Kept {
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<KeptTold>>>,
    cpu: usize,
}

/// What kept connections have to tell.
#[derive(Debug, Clone, Default)]
pub struct KeptTold {
    /// Answered requests: when they were sent, and how long they took.
    pub answered: Vec<(Instant, Duration)>,
    /// Connections that failed, in the order of their ends.
    pub lost: Vec<LostKept>,
}

/// A kept connection that failed.
#[derive(Debug, Clone)]
pub struct LostKept {
    /// When it was begun.
    pub opened: Instant,
    /// When its last request was sent, if there was one.
    pub asked: Option<Instant>,
    /// When it failed.
    pub ended: Instant,
    /// Requests that had been answered.
    pub answered: u64,
    /// The slot that had answered, if answers say so.
    pub slot: Option<u32>,
    /// How it failed. [`Reached::Answered`]: between two requests.
    pub failure: Failure,
}

impl Kept {
    /// Begins.
    pub fn start(plan: &KeepPlan) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let count = plan.connections.min(MOST_KEPT);
        let threads = (0..count).map(|index| {
            let (plan, stopped) = (plan.clone(), Arc::clone(&stopped));
            thread::spawn(move || {
                Keeper { plan: &plan, stopped: &stopped, told: KeptTold::default() }.run(index, count)
            })
        });
        Self { threads: threads.collect(), stopped, cpu: plan.cpus.first().copied().unwrap_or(0) }
    }

    /// Ends, and tells.
    pub fn finish(mut self) -> Result<KeptTold, LoadError> {
        self.stopped.store(true, Ordering::Relaxed);
        let mut told = KeptTold::default();
        for thread in std::mem::take(&mut self.threads) {
            let fail = |source| LoadError::Thread { cpu: self.cpu, action: "keep its connection", source };
            let one = thread.join().map_err(|_| LoadError::Died)?.map_err(fail)?;
            told.answered.extend(one.answered);
            told.lost.extend(one.lost);
        }
        told.answered.sort_by_key(|(asked, _)| *asked);
        told.lost.sort_by_key(|lost| lost.ended);
        Ok(told)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

struct Keeper<'a> {
    plan: &'a KeepPlan,
    stopped: &'a AtomicBool,
    told: KeptTold,
}

/// One connection.
struct One {
    stream: TcpStream,
    opened: Instant,
    asked: Option<Instant>,
    answered: u64,
    slot: Option<u32>,
    reached: Reached,
}

impl Keeper<'_> {
    fn run(mut self, index: usize, count: usize) -> io::Result<KeptTold> {
        crate::measure::pin_this_thread(&self.plan.cpus)?;
        let ends = Instant::now() + self.plan.longest;
        // Not all at once, now or later.
        self.wait(Instant::now() + self.plan.gap.mul_f64(index as f64 / count as f64));
        while !self.is_over(ends) {
            let opened = Instant::now();
            let lost = match self.connect() {
                Ok(mut one) => self.use_up(&mut one, ends).map_err(|error| one.lost(&error)).err(),
                Err(error) => {
                    let error = error.to_string();
                    let failure = Failure { error, client: None, reached: Reached::Connecting };
                    Some(LostKept { opened, asked: None, ended: Instant::now(), answered: 0, slot: None, failure })
                }
            };
            if let Some(lost) = lost {
                self.told.lost.push(lost);
                // The next is no sooner than without the failure.
                self.wait(Instant::now() + self.plan.gap);
            }
        }
        Ok(self.told)
    }

    fn is_over(&self, ends: Instant) -> bool {
        self.stopped.load(Ordering::Relaxed) || Instant::now() >= ends
    }

    fn wait(&self, until: Instant) {
        while !self.is_over(until) {
            thread::sleep(until.saturating_duration_since(Instant::now()).min(STEP));
        }
    }

    fn connect(&self) -> io::Result<One> {
        let opened = Instant::now();
        let stream = TcpStream::connect_timeout(&self.plan.target, self.plan.patience)?;
        stream.set_nodelay(true)?;
        Ok(One { stream, opened, asked: None, answered: 0, slot: None, reached: Reached::Answered })
    }

    /// Asks on one connection until it is old, or the whole is over.
    fn use_up(&mut self, one: &mut One, ends: Instant) -> io::Result<()> {
        let request = http::get(&self.plan.path, "shard", false);
        let old = one.opened + self.plan.life;
        while !self.is_over(ends.min(old)) {
            let asked = Instant::now();
            one.ask(&request, self.plan.patience)?;
            self.told.answered.push((asked, asked.elapsed()));
            let due = asked + self.plan.gap;
            while Instant::now() < due && !self.is_over(ends) {
                one.rest(due)?;
            }
        }
        Ok(())
    }
}

impl One {
    fn ask(&mut self, request: &[u8], patience: Duration) -> io::Result<()> {
        self.asked = Some(Instant::now());
        let answer = exchange(&mut self.stream, request, patience, &mut self.reached)?;
        self.slot = answer.field(SLOT_FIELD).and_then(|slot| slot.parse().ok()).or(self.slot);
        self.answered += 1;
        Ok(())
    }

    /// Does nothing for a while, but hears when the other side ends the connection.
    fn rest(&self, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now()).min(STEP);
        self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match self.stream.peek(&mut [0]) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed between two requests")),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "bytes that nobody asked for")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn lost(&self, error: &io::Error) -> LostKept {
        let client = self.stream.local_addr().ok().filter(|client| client.port() != 0);
        let failure = Failure { error: error.to_string(), client, reached: self.reached };
        let Self { opened, asked, answered, slot, .. } = *self;
        LostKept { opened, asked, ended: Instant::now(), answered, slot, failure }
    }
}
