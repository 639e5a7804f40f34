//! An agent's API on its unix socket: what its groups are, where connections go, and what happens. Asks and reads; changes nothing,
//! and owns no agent.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use serde::{Deserialize, de::DeserializeOwned};

/// An agent answers in milliseconds; one whose host is overloaded, in seconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts to hear an agent that is away.
const AGAIN: Duration = Duration::from_millis(20);
/// Events kept; what comes beyond that is counted only.
const MOST_EVENTS: usize = 100_000;

/// Where an agent answers.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

/// An agent doesn't tell what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("the agent at {} does not answer {path}", socket.display())]
pub struct ApiError {
    socket: PathBuf,
    path: String,
    source: io::Error,
}

/// What an agent runs.
#[derive(Debug, Clone, Deserialize)]
pub struct AgentState {
    /// Its process.
    pid: i32,
    /// By name.
    groups: Vec<GroupState>,
}

/// One group.
#[derive(Debug, Clone, Deserialize)]
pub struct GroupState {
    /// Its name.
    pub name: String,
    /// `docker` or `process`.
    pub runtime: String,
    /// Its last change, if there was one.
    pub rollout: Option<RolloutState>,
    /// Published addresses.
    pub ports: Vec<PortState>,
    /// By number.
    pub slots: Vec<SlotState>,
}

/// How far a change is.
#[derive(Debug, Clone, Deserialize)]
pub struct RolloutState {
    /// `progressing`, `completed`, …
    pub phase: String,
    /// Why it is there.
    pub reason: Option<String>,
}

/// A published address.
#[derive(Debug, Clone, Deserialize)]
pub struct PortState {
    /// What is bound.
    pub address: SocketAddr,
    /// How it is steered.
    pub policy: String,
}

/// One slot.
#[derive(Debug, Clone, Deserialize)]
pub struct SlotState {
    /// Its number.
    pub slot: u32,
    /// Its CPUs, as a list.
    pub cpus: String,
    /// `direct` or `relay`.
    pub path: Option<String>,
    /// The shard's name in its runtime: a container's id.
    pub shard: Option<String>,
    /// The shard's first process.
    pid: Option<i32>,
    /// Whether it gets connections.
    pub ready: bool,
    /// The shard that it took over from, while that finishes.
    former: Option<serde_json::Value>,
    /// The shard that comes up beside.
    next: Option<serde_json::Value>,
}

/// Something that happened.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// Whose.
    pub group: Option<String>,
    /// Which slot's.
    pub slot: Option<u32>,
    /// What sort of event.
    pub kind: String,
    /// The slot's state, where that is what it is about.
    pub state: Option<String>,
    /// One sentence, or nothing.
    pub message: String,
}

#[derive(Deserialize)]
struct Explained {
    first_choice: Option<u32>,
}

impl AgentState {
    /// Its process.
    pub fn process(&self) -> Pid {
        Pid::from_raw(self.pid)
    }

    /// A group by name.
    pub fn into_group(self, name: &str) -> Option<GroupState> {
        self.groups.into_iter().find(|group| group.name == name)
    }
}

impl SlotState {
    /// The shard's first process.
    pub fn process(&self) -> Option<Pid> {
        self.pid.filter(|pid| *pid > 0).map(Pid::from_raw)
    }

    /// Whether it has one shard and no other beside it.
    pub fn is_settled(&self) -> bool {
        self.former.is_none() && self.next.is_none()
    }
}

impl Api {
    /// The agent that listens at `socket`.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Everything it runs.
    pub fn status(&self) -> Result<AgentState, ApiError> {
        self.document("/v1/status")
    }

    /// The slot that the steering table names for a connection from `client`, in service or not; None where something else than the
    /// connection's addresses decides.
    pub fn first_choice(&self, group: &str, client: SocketAddr, server: SocketAddr) -> Result<Option<u32>, ApiError> {
        // Brackets have to be escaped in a query (RFC 3986).
        let client = client.to_string().replace('[', "%5B").replace(']', "%5D");
        let (port, to) = (server.port(), server.ip());
        let path = format!("/v1/groups/{group}/explain?client={client}&port={port}&to={to}");
        Ok(self.document::<Explained>(&path)?.first_choice)
    }

    /// What happens from now on. Goes on when the agent was away; what happened meanwhile is not told.
    pub fn follow(&self) -> Events {
        let shared = Arc::new(Shared::default());
        let (api, told) = (self.clone(), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            while !told.stopped.load(Ordering::Relaxed) {
                // An agent that is away is what trials bring about.
                let _ = api.read_events(&told);
                thread::sleep(AGAIN);
            }
        });
        Events { shared, thread: Some(thread) }
    }

    fn document<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let fail = |source| ApiError { socket: self.socket.clone(), path: path.into(), source };
        let read = || -> io::Result<T> {
            let mut reader = self.ask(path)?;
            reader.get_ref().set_read_timeout(Some(DEADLINE))?;
            let mut body = Vec::new();
            reader.read_to_end(&mut body)?;
            Ok(serde_json::from_slice(&body)?)
        };
        read().map_err(fail)
    }

    /// The answer's body, which ends with the connection: HTTP/1.0 has no chunks.
    fn ask(&self, path: &str) -> io::Result<BufReader<UnixStream>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: sherd\r\n\r\n")?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.split(' ').nth(1) != Some("200") {
            return Err(io::Error::other(format!("it answers {}", line.trim())));
        }
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(reader)
    }

    fn read_events(&self, told: &Shared) -> io::Result<()> {
        let mut reader = self.ask("/v1/events")?;
        reader.get_ref().set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut line = Vec::new();
        while !told.stopped.load(Ordering::Relaxed) {
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => return Ok(()),
                Ok(_) => told.add(serde_json::from_slice(&std::mem::take(&mut line))?),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What an agent tells, and when it was heard. Ends when dropped.
#[derive(Debug)]
pub struct Events {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    seen: Mutex<Vec<(Instant, Event)>>,
}

impl Shared {
    fn add(&self, event: Event) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MOST_EVENTS {
            seen.push((Instant::now(), event));
        }
    }
}

impl Events {
    /// All so far.
    pub fn seen(&self) -> Vec<(Instant, Event)> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // It looks at least every 10 s, mostly every 100 ms.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
