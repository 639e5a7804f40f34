//! Whether a shard is ready: one connection, or one HTTP/1.1 request, from inside its network namespace. Blocks; every
//! probe has a thread of its own, so that no other thread changes its namespace. Keeps no history: rise and fall
//! counts are the caller's.

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

/// The most of an answer that is read: a status line is short, and what follows doesn't matter.
const MAX_STATUS_LINE_BYTES: usize = 4 << 10;

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

/// Whether `address` accepts a connection, within `timeout`. `netns`: `None` is the caller's own.
pub fn probe_tcp(netns: Option<BorrowedFd<'_>>, address: SocketAddr, timeout: Duration) -> Result<(), ProbeError> {
    let probe = Probe { address, timeout, deadline: Instant::now() + timeout };
    probe.inside(netns, || probe.connect().map(drop))
}

/// Whether `address` answers `check` as it asks, within `timeout` from connect to status line.
pub fn probe_http(
    netns: Option<BorrowedFd<'_>>,
    address: SocketAddr,
    check: &HttpCheck,
    timeout: Duration,
) -> Result<(), ProbeError> {
    let request = request(address, check)?;
    let probe = Probe { address, timeout, deadline: Instant::now() + timeout };
    let status = probe.inside(netns, || probe.ask(&request))?;
    if check.status.contains(&status) {
        Ok(())
    } else {
        Err(ProbeError::UnexpectedStatus { address, status, expected: check.status.clone() })
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
struct Probe {
    address: SocketAddr,
    timeout: Duration,
    deadline: Instant,
}

impl Probe {
    /// Runs `body` on a thread of its own, in `netns`.
    fn inside<T: Send>(
        &self,
        netns: Option<BorrowedFd<'_>>,
        body: impl FnOnce() -> Result<T, ProbeError> + Send,
    ) -> Result<T, ProbeError> {
        let failed = |source| ProbeError::Namespace { address: self.address, source };
        let Some(netns) = netns else { return body() };
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
        TcpStream::connect_timeout(&self.address, self.left()?).map_err(|error| self.explain(error))
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
                Ok(None) | Err(status_line::NotHttp) => return Err(ProbeError::Malformed { address: self.address }),
            }
        }
    }

    fn read(&self, stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<(), ProbeError> {
        let mut buffer = [0; 512];
        let read = stream.set_read_timeout(Some(self.left()?)).and_then(|()| stream.read(&mut buffer));
        match read {
            Ok(0) => Err(ProbeError::Reset { address: self.address }),
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
        ProbeError::TimedOut { address: self.address, timeout: self.timeout }
    }

    fn explain(&self, error: io::Error) -> ProbeError {
        let address = self.address;
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
