//! Whether a shard is ready: one connection, or one HTTP/1.1 request, from inside its network namespace or forced to its
//! direct listener. Blocks; a probe that changes its namespace does so on a thread of its own. Keeps no history: rise
//! and fall counts are the caller's.

mod accepting;
mod answer;
mod status_line;

use std::{
    fmt,
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
use self::{answer::Answer, status_line::NotHttp};
use crate::front::Force;

/// The longest head of an answer; servers have about the same bound for requests.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// How much of an answer is read to find what its body should have; chunks' framing counts.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// Reads of one answer until it is read more slowly: who sends byte by byte shall not have it looked through as often.
const SWIFT_READS: u32 = 64;
/// Between two reads then.
const SLOW_READ: Duration = Duration::from_millis(1);
/// How much of a wrong body is told.
const EXCERPT_CHARS: usize = 64;

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

/// Whether what has come of a body is that of a ready shard.
pub type BodyTest<'a> = dyn Fn(&[u8]) -> bool + Sync + 'a;

/// A request without a body, and what a ready shard answers.
#[derive(Clone, Copy)]
pub struct HttpCheck<'a> {
    /// Its method, for example `GET`.
    pub method: &'a str,
    /// The request target, beginning with `/`.
    pub path: &'a str,
    /// The `Host` header. `None`: the probed address.
    pub host: Option<&'a str>,
    /// Which statuses count as ready.
    pub status: &'a [RangeInclusive<u16>],
    /// Asked again as more of the body comes, until it says yes, of [`MAX_BODY_BYTES`] at most. `None`: the body doesn't
    /// matter, and is not read.
    pub body: Option<&'a BodyTest<'a>>,
}

impl fmt::Debug for HttpCheck<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, host, status, body } = self;
        write!(f, "{method} {path} of {host:?}: {status:?}, body {}", body.is_some())
    }
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
    #[error("{address} answered status {status}, expected {}", ranges(expected))]
    UnexpectedStatus {
        /// What was probed.
        address: SocketAddr,
        /// What it answered.
        status: u16,
        /// What the check asks for.
        expected: Vec<RangeInclusive<u16>>,
    },
    /// The status of a ready shard, but not its body.
    #[error("{address} answered status {status} with another body than expected: {body:?}")]
    UnexpectedBody {
        /// What was probed.
        address: SocketAddr,
        /// What it answered.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// A head without an end.
    #[error("{address} answered with a head of more than {MAX_HEAD_BYTES} bytes")]
    HeadTooLong {
        /// What was probed.
        address: SocketAddr,
    },
    /// What came is not HTTP/1.
    #[error("{address} answered something that is not HTTP/1; is this the service's HTTP port?")]
    Malformed {
        /// What was probed.
        address: SocketAddr,
    },
    /// The check itself can't be sent.
    #[error("method, path {path:?} or host {host:?} has a space or a control character")]
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

/// Whether `route` leads to somebody who answers `check` as it asks, within `timeout` from connect to the last byte that
/// matters, whatever comes and however slowly.
pub fn probe_http(route: &Route<'_>, check: &HttpCheck<'_>, timeout: Duration) -> Result<(), ProbeError> {
    let request = request(route.address, check)?;
    let probe = Probe::new(route, timeout);
    probe.inside(|| probe.ask(&request, check))
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

fn request(address: SocketAddr, check: &HttpCheck<'_>) -> Result<String, ProbeError> {
    let host = check.host.map_or_else(|| address.to_string(), str::to_owned);
    let HttpCheck { method, path, .. } = check;
    let parts = [method, path, host.as_str()];
    if !path.starts_with('/') || parts.iter().any(|part| part.contains(|c: char| c.is_control() || c == ' ')) {
        return Err(ProbeError::InvalidCheck { path: (*path).to_owned(), host });
    }
    Ok(format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sherd\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    ))
}

fn ranges(ranges: &[RangeInclusive<u16>]) -> String {
    let range = |range: &RangeInclusive<u16>| match range.start() == range.end() {
        true => range.start().to_string(),
        false => format!("{} to {}", range.start(), range.end()),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
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

    /// Sends `request` and reads the answer until it is known what `check` says of it.
    fn ask(&self, request: &str, check: &HttpCheck<'_>) -> Result<(), ProbeError> {
        let mut stream = self.connect()?;
        let sent = stream.set_write_timeout(Some(self.left()?)).and_then(|()| stream.write_all(request.as_bytes()));
        sent.map_err(|error| self.explain(error))?;
        let (mut received, mut reads) = (Vec::new(), 0_u32);
        loop {
            let ended = self.read(&mut stream, &mut received)? == 0;
            if let Some(verdict) = self.judge(&received, ended, check) {
                return verdict;
            }
            reads += 1;
            if reads > SWIFT_READS {
                thread::sleep(SLOW_READ.min(self.left()?));
            }
        }
    }

    /// What `check` says of an answer of which this much has come; `None`: more has to come.
    fn judge(&self, received: &[u8], ended: bool, check: &HttpCheck<'_>) -> Option<Result<(), ProbeError>> {
        let address = self.route.address;
        let is_wrong = |status: u16| !check.status.iter().any(|range| range.contains(&status));
        let wrong_status =
            |status| Some(Err(ProbeError::UnexpectedStatus { address, status, expected: check.status.to_vec() }));
        match answer::parse(received, check.method == "HEAD") {
            Err(NotHttp) => Some(Err(ProbeError::Malformed { address })),
            // Interim ones are no answer yet.
            Ok(Answer::Head { status: Some(status) }) if status >= 200 && is_wrong(status) => wrong_status(status),
            Ok(Answer::Head { .. }) if ended => Some(Err(ProbeError::Reset { address })),
            Ok(Answer::Head { .. }) if received.len() >= MAX_HEAD_BYTES => {
                Some(Err(ProbeError::HeadTooLong { address }))
            }
            Ok(Answer::Head { .. }) => None,
            Ok(Answer::Body { status, .. }) if is_wrong(status) => wrong_status(status),
            Ok(Answer::Body { status, body, whole }) => match check.body {
                Some(matches) if !matches(&body) => {
                    let last = whole || ended || received.len() >= MAX_HEAD_BYTES + MAX_BODY_BYTES;
                    let excerpt = || String::from_utf8_lossy(&body).chars().take(EXCERPT_CHARS).collect();
                    last.then(|| Err(ProbeError::UnexpectedBody { address, status, body: excerpt() }))
                }
                _ => Some(Ok(())),
            },
        }
    }

    /// Reads what is there, or waits for it; 0 is the end.
    fn read(&self, stream: &mut TcpStream, received: &mut Vec<u8>) -> Result<usize, ProbeError> {
        let mut buffer = [0; 4096];
        loop {
            let read = stream.set_read_timeout(Some(self.left()?)).and_then(|()| stream.read(&mut buffer));
            match read {
                Ok(len) => {
                    received.extend(&buffer[..len]);
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.explain(error)),
            }
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
