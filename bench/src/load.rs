//! The load generator: HTTP/1.1 requests from pinned threads, in a closed loop for maxima and in an open loop for
//! percentiles; owns its threads and connections and knows nothing of who answers.
//!
//! *Closed loop*: each connection sends its next request when the answer to the last is whole, or, connection per
//! request, when the server has closed. It finds the maximum; its latencies hide stalls and are not reported.
//!
//! *Open loop*: requests become due by a Poisson process with a fixed seed, so that every contestant gets the same
//! arrivals. A latency runs from the moment the request was due to its last byte, also when no connection was free to
//! send it: nothing is omitted while the other side stalls ("coordinated omission"). What is unanswered at the end is
//! recorded with the age it has then.
//!
//! *Echo* is a closed loop of raw bytes; *streams* are connections on which bytes never pause, each of which is checked.
//!
//! Bodies are taken out of the kernel with `MSG_TRUNC`, without a copy, and the CPU seconds of the generator's threads
//! are part of every outcome: it must be cheap, or it is what is measured.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::mpsc::{self, Receiver, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

pub use self::{
    crowd::{Crowd, Origins},
    fetch::{FetchError, fetch},
    idle::{IdleConnections, IdleError},
    kept::{KeepPlan, Kept, KeptTold, LostKept, MOST_KEPT},
    request::Request,
    series::{Moment, repeat_connections, repeat_requests},
    visits::{Asks, Failure, Reached, Visit, VisitPlan, Visits},
};
use crate::interrupt::Interrupt;

mod arrivals;
mod client;
mod crowd;
mod exchange;
mod fetch;
mod http;
mod idle;
mod kept;
pub mod planted;
mod request;
mod series;
mod streams;
mod visits;
mod window;
mod worker;

/// More would fill the buffers on its way, while its sender doesn't read yet.
pub const MAX_ECHO_BYTES: usize = 64 << 10;
/// How long the last requests of an open loop, and the last bytes of streams, may take after the window.
const GRACE: Duration = Duration::from_secs(3);

/// A load to be put on one or several servers.
#[derive(Debug, Clone)]
pub struct Load {
    /// Where connections go, each to the next of them.
    pub targets: Vec<SocketAddr>,
    /// Connections at a time, over all threads.
    pub connections: usize,
    /// How long each answer's body is.
    pub answer_bytes: usize,
    /// When requests are sent, and on which connections.
    pub shape: Shape,
    /// One thread on each of these CPUs.
    pub cpus: Vec<usize>,
    /// Before the window; nothing counts.
    pub warm_up: Duration,
    /// The window in which everything counts.
    pub duration: Duration,
}

/// When requests are sent, and on which connections.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// The next when the last is answered, on the same connection.
    KeepAlive,
    /// The next when the last is answered, each on a connection of its own.
    ConnectionPerRequest,
    /// No HTTP: so many bytes as an answer has (at most [`MAX_ECHO_BYTES`]) there, and back, on kept connections; the next
    /// when the last are back.
    Echo,
    /// No HTTP: connections that are open all the time, with bytes both ways without a pause. Blocks as long as an answer
    /// count as requests, broken and falsified streams as failures, whenever it happened.
    Streams,
    /// When they are due, on kept connections.
    Open {
        /// Over all threads.
        requests_per_second: f64,
        /// Gives the moments.
        seed: u64,
    },
}

/// What came of a load.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Requests answered in the window; of an open loop, those due in it.
    pub requests: u64,
    /// Bytes of bodies received in the window.
    pub body_bytes: u64,
    /// Requests that failed, by what the system called it.
    pub errors: BTreeMap<String, u64>,
    /// How long the window was.
    pub elapsed: Duration,
    /// Nanoseconds; see the module for what they are measured from.
    pub latency: Histogram<u64>,
    /// CPU time of the generator's threads in the window.
    pub own_cpu: Duration,
}

/// A load could not be put on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A thread could not be made ready.
    #[error("a thread of the load generator on CPU {cpu} cannot {action}")]
    Thread {
        /// Where it was to run.
        cpu: usize,
        /// What it tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread ended before its time.
    #[error("a thread of the load generator ended before its time; its panic is above")]
    Died,
    /// Somebody wants the run to end.
    #[error("interrupted")]
    Interrupted,
}

impl Outcome {
    /// Requests per second of the window.
    pub fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// Failed requests of every kind.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// Puts `load` on and tells what came of it, with what `snapshot` gave at both edges of the window.
pub fn run<S>(load: &Load, interrupt: &Interrupt, snapshot: impl FnMut() -> S) -> Result<(Outcome, S, S), LoadError> {
    run_request(load, &Request::of_bytes(load.answer_bytes), interrupt, snapshot)
}

/// The same with another request; what length its answer has is not asked.
pub fn run_request<S>(
    load: &Load,
    request: &Request,
    interrupt: &Interrupt,
    mut snapshot: impl FnMut() -> S,
) -> Result<(Outcome, S, S), LoadError> {
    let threads = spawn(load, request, interrupt)?;
    let opens = Instant::now() + load.warm_up;
    let window = window::Window { opens, closes: opens + load.duration, grace_ends: opens + load.duration + GRACE };
    for thread in &threads {
        thread.start.send(window).map_err(|_| LoadError::Died)?;
    }
    thread::sleep(window.opens.saturating_duration_since(Instant::now()));
    let before = (Instant::now(), snapshot());
    sleep_until(window.closes, interrupt);
    let after = (Instant::now(), snapshot());
    let mut outcome = Outcome {
        requests: 0,
        body_bytes: 0,
        errors: BTreeMap::new(),
        elapsed: after.0 - before.0,
        latency: window::histogram(),
        own_cpu: Duration::ZERO,
    };
    for thread in threads {
        let tally = thread.handle.join().map_err(|_| LoadError::Died)??;
        tally.add_to(&mut outcome);
    }
    if interrupt.is_raised() {
        return Err(LoadError::Interrupted);
    }
    Ok((outcome, before.1, after.1))
}

struct Running {
    start: Sender<window::Window>,
    handle: JoinHandle<Result<window::Tally, LoadError>>,
}

/// Makes the threads and waits until each has its connections.
fn spawn(load: &Load, request: &Request, interrupt: &Interrupt) -> Result<Vec<Running>, LoadError> {
    let (ready, all_ready) = mpsc::channel();
    let threads: Vec<Running> = (0..load.cpus.len())
        .map(|index| {
            let (start, started) = mpsc::channel();
            let (load, request) = (load.clone(), request.clone());
            let (interrupt, ready) = (interrupt.clone(), ready.clone());
            let handle = thread::spawn(move || run_thread(&load, &request, index, &interrupt, ready, &started));
            Running { start, handle }
        })
        .collect();
    drop(ready);
    if all_ready.iter().take(threads.len()).count() == threads.len() {
        return Ok(threads);
    }
    // One gave up before it was ready; without a start the others end too. Its error is the one to tell.
    let joined = threads.into_iter().map(|Running { start, handle }| {
        drop(start);
        handle.join()
    });
    Err(joined
        .map(|end| end.map_or(LoadError::Died, |result| result.err().unwrap_or(LoadError::Interrupted)))
        .find(|error| !matches!(error, LoadError::Interrupted))
        .unwrap_or(LoadError::Interrupted))
}

fn run_thread(
    load: &Load,
    request: &Request,
    index: usize,
    interrupt: &Interrupt,
    ready: Sender<()>,
    started: &Receiver<window::Window>,
) -> Result<window::Tally, LoadError> {
    let cpu = load.cpus[index];
    let fail = |action| move |source: io::Error| LoadError::Thread { cpu, action, source };
    crate::measure::pin_this_thread(&[cpu]).map_err(fail("pin itself"))?;
    let worker = worker::Worker::new(load, request, index, interrupt).map_err(fail("open its connections"))?;
    let told = ready.send(());
    // So that the channel ends when a sibling gives up before it is ready.
    drop(ready);
    match (told, started.recv()) {
        (Ok(()), Ok(window)) => worker.run(window).map_err(fail("wait for its connections")),
        _ => Err(LoadError::Interrupted),
    }
}

fn sleep_until(moment: Instant, interrupt: &Interrupt) {
    const STEP: Duration = Duration::from_millis(100);
    loop {
        let left = moment.saturating_duration_since(Instant::now());
        if left.is_zero() || interrupt.is_raised() {
            return;
        }
        thread::sleep(left.min(STEP));
    }
}
