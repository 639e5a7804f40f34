//! The process that makes guarded listeners, because a socket belongs to the cgroup of the process that makes it: how the
//! agent starts and asks it, and what it does. It holds no listener, knows no steering, and ends with the agent.

use std::{
    io,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

mod serve;
mod wire;

pub use serve::serve;
use wire::{Answer, HELLO, Request};

use crate::sys::scm;

/// Until it says that it is inside. Long: it is a program that has to start.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// For one listener. It never waits for anything itself; what lasts is its turn on a host that is overloaded. A program that calls
/// listen(2) waits as long, and is relayed from then on where none came.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Why there is no maker.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The command can't be run.
    #[error("can't run {} to make guarded listeners", program.display())]
    Spawn {
        /// The command's program.
        program: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It may not enter the cgroup, or it is gone.
    #[error("the process that makes guarded listeners can't join the cgroup {}; is the agent root, the cgroup there?", cgroup.display())]
    Join {
        /// The guard's cgroup.
        cgroup: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It did not come so far.
    #[error("the process that makes guarded listeners ended at once ({status}); see what it wrote to standard error")]
    Ended {
        /// How.
        status: ExitStatus,
    },
    /// It runs but says nothing, or nothing that can be understood.
    #[error("the process that makes guarded listeners does not say that it is ready")]
    Silent(#[source] io::Error),
}

/// Why no listener was made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The kernel refused it.
    #[error("can't make a guarded listener on {address}: {step} failed")]
    Refused {
        /// The address asked for.
        address: SocketAddr,
        /// The system call or option.
        step: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The maker has ended.
    #[error("the process that makes guarded listeners has ended; start another")]
    Ended(#[source] io::Error),
    /// The maker did not answer in time. Its answer, if one comes, is thrown away.
    #[error("the process that makes guarded listeners does not answer; is the host overloaded, the process stopped?")]
    Silent(#[source] io::Error),
    /// It was made, and could not be received.
    #[error("no room for another descriptor; raise the agent's LimitNOFILE")]
    NoRoom,
}

impl MakeError {
    /// Whether it is only that the host lacks this address family.
    pub(super) fn is_missing_family(&self) -> bool {
        let Self::Refused { source, .. } = self else { return false };
        matches!(source.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
    }
}

/// A process in the guard's cgroup that makes listeners. Dropping it ends the process.
#[derive(Debug)]
pub struct Maker {
    child: Child,
    line: Mutex<Line>,
}

impl Maker {
    /// Runs the command with the guard's cgroup as one more argument and a socket as its standard input, which it is to
    /// give to [`serve`], and waits until it is in the cgroup: at most 5 s. The maker is in the network namespace of the
    /// calling thread, and so are its listeners.
    ///
    /// # Errors
    /// Then the process has ended.
    pub fn start(mut command: Command, cgroup: &Path) -> Result<Self, StartError> {
        let program = PathBuf::from(command.get_program());
        let failed = |source| StartError::Spawn { program: program.clone(), source };
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).map_err(failed)?;
        // A group of its own: a Ctrl-C for the agent is not for it. PR_SET_PDEATHSIG would end it with the *thread* that
        // started it; the end of the socket ends it with the agent.
        let child = command.arg(cgroup).stdin(Stdio::from(OwnedFd::from(theirs))).process_group(0).spawn();
        let child = child.map_err(failed)?;
        // With it goes our copy of the child's end, so that we notice when the child ends.
        drop(command);
        let mut maker = Self { child, line: Mutex::new(Line { socket: ours, sequence: HELLO }) };
        match maker.hello() {
            Ok(Ok(())) => Ok(maker),
            Ok(Err((_, source))) => Err(StartError::Join { cgroup: cgroup.into(), source }),
            Err(MakeError::Ended(source)) => {
                Err(maker.child.wait().map_or(StartError::Silent(source), |status| StartError::Ended { status }))
            }
            Err(MakeError::Silent(source)) => Err(StartError::Silent(source)),
            Err(_) => Err(StartError::Silent(io::ErrorKind::InvalidData.into())),
        }
    }

    /// A TCP socket of the guard, bound to the address and not listening, with SO_REUSEADDR, SO_REUSEPORT, O_NONBLOCK and
    /// FD_CLOEXEC; `v6only` is for IPv6. Waits at most 3 s, and for other threads' turns.
    ///
    /// # Errors
    /// [`MakeError::Refused`] with EADDRINUSE when the address is taken. After [`MakeError::Ended`] none is made any more.
    pub fn listener(&self, address: SocketAddr, v6only: bool) -> Result<OwnedFd, MakeError> {
        self.make(address, v6only, None)
    }

    /// The same, for connections that are counted in the cell of that number: [`Guard::count_in`](super::Guard::count_in) has
    /// made room for it. Where the last listener was of another cell it takes some ms, for the process moves.
    ///
    /// # Errors
    /// As [`listener`](Self::listener).
    pub fn counted_listener(&self, address: SocketAddr, v6only: bool, cell: u32) -> Result<OwnedFd, MakeError> {
        self.make(address, v6only, Some(cell))
    }

    fn make(&self, address: SocketAddr, v6only: bool, cell: Option<u32>) -> Result<OwnedFd, MakeError> {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let (answer, fd) = line.ask(address, v6only, cell)?;
        match answer.outcome {
            Ok(()) => fd.ok_or(MakeError::NoRoom),
            Err((step, source)) => Err(MakeError::Refused { address, step, source }),
        }
    }

    /// Ends the process. It makes none any more.
    pub fn end(&mut self) {
        // It would end by itself when the socket closes; killed, it can't keep us waiting. Fails only when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The maker's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn hello(&mut self) -> Result<Result<(), (String, io::Error)>, MakeError> {
        let line = self.line.get_mut().unwrap_or_else(PoisonError::into_inner);
        Ok(line.answer(HELLO, Instant::now() + START_TIMEOUT)?.0.outcome)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The agent's end of the socket.
#[derive(Debug)]
struct Line {
    socket: Socket,
    /// Of the last request, so that an answer that comes too late is told apart.
    sequence: u32,
}

impl Line {
    fn ask(
        &mut self,
        address: SocketAddr,
        v6only: bool,
        cell: Option<u32>,
    ) -> Result<(Answer, Option<OwnedFd>), MakeError> {
        let deadline = Instant::now() + TIMEOUT;
        self.sequence = self.sequence.wrapping_add(1);
        let request = Request { sequence: self.sequence, address, v6only, cell };
        self.socket.set_write_timeout(Some(TIMEOUT)).map_err(broken)?;
        scm::send(self.socket.as_fd(), &request.bytes(), None).map_err(broken)?;
        self.answer(self.sequence, deadline)
    }

    fn answer(&self, sequence: u32, deadline: Instant) -> Result<(Answer, Option<OwnedFd>), MakeError> {
        let mut bytes = [0; wire::MAX_ANSWER];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(broken(io::ErrorKind::TimedOut.into()));
            }
            self.socket.set_read_timeout(Some(left)).map_err(broken)?;
            let received = match scm::receive(self.socket.as_fd(), &mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received.map_err(broken)?,
            };
            if received.bytes == 0 {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
            let answer = Answer::parse(&bytes[..received.bytes]);
            let answer = answer.ok_or_else(|| broken(io::ErrorKind::InvalidData.into()))?;
            if answer.sequence == sequence {
                return Ok((answer, received.fds.into_iter().next()));
            }
        }
    }
}

fn broken(error: io::Error) -> MakeError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            MakeError::Ended(error)
        }
        _ => MakeError::Silent(error),
    }
}
