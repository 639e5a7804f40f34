//! A small client: connections to a group's demo service that note who answered, and when something failed.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::world::World;

/// How long an answer may take before the connection counts as failed.
const TIMEOUT: Duration = Duration::from_secs(40);

/// Between two requests on a connection that is kept.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(10);

/// One connection to the service.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// One request; the body of the answer.
    pub(crate) fn get(&mut self) -> io::Result<String> {
        self.get_at("/")
    }

    /// One request of this path; the body of the answer.
    pub(crate) fn get_at(&mut self, path: &str) -> io::Result<String> {
        self.reader.get_mut().write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())?;
        let mut length = None;
        let mut line = String::new();
        loop {
            line.clear();
            if self.reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok();
            }
            if line == "\r\n" {
                break;
            }
        }
        let length: usize = length.ok_or_else(|| io::Error::other("an answer without Content-Length"))?;
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        String::from_utf8(body).map_err(io::Error::other)
    }

    /// Where it comes from.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.reader.get_ref().local_addr().expect("a socket")
    }

    /// One request to the demo service: the slot and the pid that answered.
    pub(crate) fn who(&mut self) -> io::Result<(u64, u32)> {
        let answer: Value = serde_json::from_str(&self.get()?)?;
        let slot = answer["slot"].as_u64().or_else(|| answer["slot"].as_str()?.parse().ok());
        let pid = answer["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        slot.zip(pid).ok_or_else(|| io::Error::other(format!("not the demo service: {answer}")))
    }
}

/// The slot and pid that answer a new connection.
pub(crate) fn ask(address: SocketAddr) -> io::Result<(u64, u32)> {
    Connection::open(address)?.who()
}

/// A connection that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// When it was begun.
    pub(crate) began: Instant,
    /// When it failed.
    pub(crate) ended: Instant,
    /// When it failed as the agent's log has it, since 1970: for whoever reads a failed test.
    #[allow(dead_code, reason = "read through Debug")]
    pub(crate) wall: Duration,
    /// Who served it, if somebody had answered on it.
    pub(crate) served_by: Option<u32>,
    /// What the kernel said.
    pub(crate) error: String,
}

/// Clients that connect, ask twice and close, over and over.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<Failure>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Failure {
    /// Whether it was under way at some moment of that time.
    pub(crate) fn overlaps(&self, (from, to): (Instant, Instant)) -> bool {
        self.began <= to && from <= self.ended
    }
}

impl Load {
    /// Starts `clients` threads, which end after `connections` altogether or when told to. They run in the network
    /// namespace of the calling thread.
    pub(crate) fn start(address: SocketAddr, clients: usize, connections: usize) -> Self {
        Self::run(address, clients, connections, Duration::ZERO)
    }

    /// Clients that keep each connection for so long and ask on it all the time, over and over.
    pub(crate) fn keeping(address: SocketAddr, clients: usize, hold: Duration) -> Self {
        Self::run(address, clients, usize::MAX, hold)
    }

    fn run(address: SocketAddr, clients: usize, connections: usize, hold: Duration) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let begun = Arc::new(AtomicUsize::new(0));
        let threads = (0..clients).map(|_| {
            let (stop, done, failures, begun) = (stop.clone(), done.clone(), failures.clone(), begun.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) && begun.fetch_add(1, Ordering::Relaxed) < connections {
                    if let Err(failure) = one(address, hold) {
                        failures.lock().expect("no client panics").push(failure);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, done, failures, threads }
    }

    /// Connections that have ended, well or not.
    pub(crate) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// All clients have ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Ends the clients; how many connections there were, and those that failed.
    pub(crate) fn finish(self) -> (usize, Vec<Failure>) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no client panics");
        }
        let failures = self.failures.lock().expect("no client panics").clone();
        (self.done.load(Ordering::Relaxed), failures)
    }
}

/// Threads that do the same over and over, whatever comes of it.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<usize>>,
}

impl Clients {
    /// In the network namespace of the calling thread.
    pub(crate) fn start(count: usize, ask: impl Fn() + Send + Clone + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..count).map(|_| {
            let (stop, ask) = (stop.clone(), ask.clone());
            thread::spawn(move || {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    ask();
                    done += 1;
                }
                done
            })
        });
        Self { threads: threads.collect(), stop }
    }

    /// Ends them; how often all of them did it.
    pub(crate) fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("no client panics")).sum()
    }
}

/// Asks `sherd ps` all the time whether every slot serves.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    asking: JoinHandle<Vec<Value>>,
}

impl Watch {
    pub(crate) fn start(world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, mut command) = (stop.clone(), world.command());
        command.args(["ps", "--json"]);
        let asking = thread::spawn(move || {
            let mut answers = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let output = command.output().expect("sherd runs");
                answers.extend(serde_json::from_slice::<Value>(&output.stdout).ok());
            }
            answers
        });
        Self { stop, asking }
    }

    /// Ends it; no answer had a slot that didn't serve.
    pub(crate) fn check_always_ready(self, slots: usize) {
        self.stop.store(true, Ordering::Relaxed);
        let answers = self.asking.join().expect("answers");
        let found: Vec<&Vec<Value>> =
            answers.iter().filter_map(|answer| answer["groups"][0]["slots"].as_array()).collect();
        assert!(found.len() > 5, "nobody answered");
        for answer in found {
            let ready = answer.iter().filter(|slot| slot["ready"] == true).count();
            assert_eq!(ready, slots, "{answer:#?}");
        }
    }
}

fn one(address: SocketAddr, hold: Duration) -> Result<(), Failure> {
    let began = Instant::now();
    let mut served_by = None;
    let mut twice = || -> io::Result<()> {
        let mut connection = Connection::open(address)?;
        let serves = connection.who()?.1;
        served_by = Some(serves);
        loop {
            if connection.who()?.1 != serves {
                return Err(io::Error::other("another shard answers on the same connection"));
            }
            if began.elapsed() >= hold {
                return Ok(());
            }
            thread::sleep(BETWEEN_REQUESTS);
        }
    };
    let result = twice();
    let wall = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    result.map_err(|error| Failure { began, ended: Instant::now(), wall: wall(), served_by, error: error.to_string() })
}
