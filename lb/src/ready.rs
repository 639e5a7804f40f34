//! Whether a shard is ready: one connection, or one HTTP/1.1 request, from inside its network namespace or forced to its
//! direct listener. Blocks; a probe that changes its namespace does so on a thread of its own. Keeps no history: rise
//! and fall counts are the caller's.

mod accepting;
mod status_line;

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    ops::RangeInclusive,
    os::fd::BorrowedFd,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

pub use self::accepting::probe_accept;
use crate::front::Force;

/// The most of an answer that is read: a status line is short, and what follows doesn't matter.
const MAX_STATUS_LINE_BYTES: usize = 4 << 10;

/// How a probe gets to a shard.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    /// The namespace to probe from. `None`: the caller's own.
    pub netns: Option<BorrowedFd<'a>>,
    /// What is probed.
    pub address: SocketAddr,
    /// To the slot's direct listener, from `address` itself: it is one of the host's, and `netns` the host's.
    pub force: Option<&'a Force>,
}

impl From<SocketAddr> for Route<'_> {
    fn from(address: SocketAddr) -> Self {
        Self { netns: None, address, force: None }
    }
}

/// A GET that a ready shard answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// The request target, beginning with `/`.
    pub path: String,
    /// The `Host` header. `None`: the probed address.
    pub host: Option<String>,
    /// What counts as ready.
    pub status: RangeInclusive<u16>,
}

/// Why a shard is not ready.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing listens there.
    #[error("{address} refused the connection: nothing listens there, or only on another address")]
    Refused {
        /// What was probed.
        address: SocketAddr,
    },
    /// The whole probe took longer than it may.
    #[error("{address} did not answer within {timeout:?}")]
    TimedOut {
        /// What was probed.
        address: SocketAddr,
        /// What was allowed.
        timeout: Duration,
    },
    /// Its kernel took the connection, and no program did.
    #[error("{address} has a listener that no program accepted from within {timeout:?}")]
    NotAccepted {
        /// What was probed.
        address: SocketAddr,
        /// What was allowed.
        timeout: Duration,
    },
    /// The connection was accepted, and ended before an answer.
    #[error("{address} closed the connection before it answered")]
    Reset {
        /// What was probed.
        address: SocketAddr,
    },
    /// An answer, but not one of a ready shard.
    #[error("{address} answered status {status}, expected {} to {}", expected.start(), expected.end())]
    UnexpectedStatus {
        /// What was probed.
        address: SocketAddr,
        /// What it answered.
        status: u16,
        /// What the check asks for.
        expected: RangeInclusive<u16>,
    },
    /// What came is not HTTP/1.
    #[error("{address} answered something that is not HTTP/1; is this the service's HTTP port?")]
    Malformed {
        /// What was probed.
        address: SocketAddr,
    },
    /// The check itself can't be sent.
    #[error("path {path:?} or host {host:?} has a space or a control character")]
    InvalidCheck {
        /// The check's path.
        path: String,
        /// The check's host.
        host: String,
    },
    /// The shard's namespace could not be entered: it has ended, or CAP_SYS_ADMIN is missing.
    #[error("cannot enter the network namespace that {address} is in")]
    Namespace {
        /// What was to be probed.
        address: SocketAddr,
        /// What setns(2) or making the thread said.
        source: io::Error,
    },
    /// Anything else the kernel said.
    #[error("cannot reach {address}")]
    Unreachable {
        /// What was probed.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether `route` leads to somebody who accepts a connection, within `timeout`.
pub fn probe_tcp(route: &Route<'_>, timeout: Duration) -> Result<(), ProbeError> {
    let probe = Probe::new(route, timeout);
    probe.inside(|| probe.connect().map(drop))
}

/// Whether `route` leads to somebody who answers `check` as it asks, within `timeout` from connect to status line.
pub fn probe_http(route: &Route<'_>, check: &HttpCheck, timeout: Duration) -> Result<(), ProbeError> {
    let request = request(route.address, check)?;
    let probe = Probe::new(route, timeout);
    let status = probe.inside(|| probe.ask(&request))?;
    if check.status.contains(&status) {
        Ok(())
    } else {
        Err(ProbeError::UnexpectedStatus { address: route.address, status, expected: check.status.clone() })
    }
}

impl Route<'_> {
    fn connect(&self, timeout: Duration) -> io::Result<TcpStream> {
        let address = self.address;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        let _forced = match self.force {
            Some(force) => {
                let mut source = address;
                source.set_port(0);
                socket.bind(&source.into())?;
                Some(force.bind(&socket)?)
            }
            None => None,
        };
        socket.connect_timeout(&address.into(), timeout)?;
        Ok(socket.into())
    }
}

fn request(address: SocketAddr, check: &HttpCheck) -> Result<String, ProbeError> {
    let host = check.host.clone().unwrap_or_else(|| address.to_string());
    let path = &check.path;
    if !path.starts_with('/') || path.chars().chain(host.chars()).any(|c| c.is_control() || c == ' ') {
        return Err(ProbeError::InvalidCheck { path: path.clone(), host });
    }
    Ok(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sherd\r\nAccept: */*\r\nConnection: close\r\n\r\n"))
}

/// One attempt with its deadline.
struct Probe<'a> {
    route: &'a Route<'a>,
    timeout: Duration,
    deadline: Instant,
}

impl<'a> Probe<'a> {
    fn new(route: &'a Route<'a>, timeout: Duration) -> Self {
        Self { route, timeout, deadline: Instant::now() + timeout }
    }

    /// Runs `body` in the route's namespace.
    fn inside<T: Send>(&self, body: impl FnOnce() -> Result<T, ProbeError> + Send) -> Result<T, ProbeError> {
        let failed = |source| ProbeError::Namespace { address: self.route.address, source };
        let Some(netns) = self.route.netns else { return body() };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("sherd-probe".into()).spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
                body()
            });
            let thread = thread.map_err(failed)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn connect(&self) -> Result<TcpStream, ProbeError> {
        let left = self.left()?;
        self.route.connect(left).map_err(|error| self.explain(error))
    }

    /// Sends `request` and gives the status of the answer.
    fn ask(&self, request: &str) -> Result<u16, ProbeError> {
        let mut stream = self.connect()?;
        let sent = stream.set_write_timeout(Some(self.left()?)).and_then(|()| stream.write_all(request.as_bytes()));
        sent.map_err(|error| self.explain(error))?;
        let mut answer = Vec::new();
        loop {
            match status_line::parse(&answer) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if answer.len() < MAX_STATUS_LINE_BYTES => self.read(&mut stream, &mut answer)?,
                Ok(None) | Err(status_line::NotHttp) => {
                    return Err(ProbeError::Malformed { address: self.route.address });
                }
            }
        }
    }

    fn read(&self, stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<(), ProbeError> {
        let mut buffer = [0; 512];
        let read = stream.set_read_timeout(Some(self.left()?)).and_then(|()| stream.read(&mut buffer));
        match read {
            Ok(0) => Err(ProbeError::Reset { address: self.route.address }),
            Ok(len) => {
                answer.extend(&buffer[..len]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// What is left until the deadline; never zero, which the kernel takes for "no limit".
    fn left(&self) -> Result<Duration, ProbeError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(self.timed_out()) } else { Ok(left) }
    }

    fn timed_out(&self) -> ProbeError {
        ProbeError::TimedOut { address: self.route.address, timeout: self.timeout }
    }

    fn explain(&self, error: io::Error) -> ProbeError {
        let address = self.route.address;
        match error.kind() {
            io::ErrorKind::ConnectionRefused => ProbeError::Refused { address },
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => self.timed_out(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ProbeError::Reset { address },
            _ => ProbeError::Unreachable { address, source: error },
        }
    }
}

#[cfg(test)]
mod tests;
