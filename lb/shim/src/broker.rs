//! Asks the agent's broker whether the program may run, and gives it the notify descriptor. Decides nothing of the trap
//! or the program.

use std::{
    ffi::CStr,
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, connect, recv, sendmsg, socket_with,
    },
};
use sherd_shim::hello::{Answer, Hello};

use crate::stdio;

/// Between two attempts. A local connect costs microseconds, and a container's start is waiting.
const PAUSE: Duration = Duration::from_millis(30);

/// Why there is no permission.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokerError {
    #[error(
        "the agent does not answer at {socket} within {} s; is sherd's agent running, and is that directory the one \
         it serves? (last: {last})",
        wait.as_secs()
    )]
    Silent { socket: String, wait: Duration, last: Errno },
    #[error("the agent can't be reached at {socket}: {errno}; does the container have that directory?")]
    Unreachable { socket: String, errno: Errno },
    #[error("the agent refuses to run this shard; its journal says why")]
    Refused,
    #[error("the agent's answer {0:#04x} is none of this shim's; was sherd downgraded?")]
    Unknown(u8),
}

/// Waits until the broker at `path` says go, at most `wait` long. Whenever it is away or goes away, asks again.
pub(crate) fn ask(path: &CStr, wait: Duration, trap: &Result<OwnedFd, Errno>) -> Result<(), BrokerError> {
    let deadline = Instant::now() + wait;
    let socket = || path.to_string_lossy().into_owned();
    let address = SocketAddrUnix::new(path).map_err(|errno| BrokerError::Unreachable { socket: socket(), errno })?;
    loop {
        let last = match attempt(&address, deadline, trap) {
            Ok(byte) => {
                return match Answer::from_byte(byte) {
                    Some(Answer::Go) => Ok(()),
                    Some(Answer::Refuse) => Err(BrokerError::Refused),
                    None => Err(BrokerError::Unknown(byte)),
                };
            }
            Err(errno) if passes(errno) => errno,
            Err(errno) => return Err(BrokerError::Unreachable { socket: socket(), errno }),
        };
        if Instant::now() + PAUSE >= deadline {
            return Err(BrokerError::Silent { socket: socket(), wait, last });
        }
        thread::sleep(PAUSE);
    }
}

/// Whether an agent that starts or restarts can look like this.
fn passes(errno: Errno) -> bool {
    matches!(
        errno,
        // Not there yet; there, but left by an agent that is gone; bound, but not yet open to all users.
        Errno::NOENT | Errno::CONNREFUSED | Errno::ACCESS
        // Its backlog is full, or too many of this user's descriptors wait to be received (unix(7), ETOOMANYREFS).
        | Errno::AGAIN | Errno::TOOMANYREFS
        // Gone without an answer, before or after our hello.
        | Errno::CONNRESET | Errno::PIPE | Errno::TIMEDOUT
    )
}

/// One connection: the hello, and the byte that answers it.
fn attempt(address: &SocketAddrUnix, deadline: Instant, trap: &Result<OwnedFd, Errno>) -> Result<u8, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // Not blocking: connect(2) would wait for room in the backlog without a bound.
    let socket = stdio::keep_off(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?);
    connect(&socket, address)?;
    send_hello(socket.as_fd(), trap)?;
    wait_readable(socket.as_fd(), deadline)?;
    let mut byte = [0];
    match recv(&socket, &mut byte, RecvFlags::empty())? {
        (0, _) => Err(Errno::CONNRESET),
        _ => Ok(byte[0]),
    }
}

fn send_hello(socket: BorrowedFd<'_>, trap: &Result<OwnedFd, Errno>) -> Result<(), Errno> {
    let (hello, listener) = match trap {
        Ok(listener) => (Hello::Trapped, Some([listener.as_fd()])),
        Err(errno) => (Hello::Untrapped { errno: errno.raw_os_error().unsigned_abs() }, None),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(listener) = &listener {
        // The space is for exactly this.
        control.push(SendAncillaryMessage::ScmRights(listener));
    }
    let bytes = hello.encode();
    // All or nothing: the connection is new, so its buffer is empty.
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn wait_readable(socket: BorrowedFd<'_>, deadline: Instant) -> Result<(), Errno> {
    let mut ready = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut ready, Some(&left)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
