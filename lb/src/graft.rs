//! Puts a listener of ours into an unmodified program, at the moment it calls listen(2): serves the seccomp
//! notifications of one shard. Knows what a socket is; who gets a listener, and which, its caller decides.
//!
//! Whatever goes wrong, the program listens where it would have. Its listen(2) is then carried out here, on the socket
//! that was looked at: the kernel would read the descriptor again, and another thread may have put another socket there.
//! Nothing that a program sends is parsed here but the notification, which the kernel makes.

mod answering;
mod broker;
mod epoll;
mod journal;
mod options;
mod place;
mod process;
mod trapped;

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

pub use self::{
    answering::Answering,
    broker::{Broker, Decide, Tell},
    journal::Journal,
    process::Holder,
    trapped::{State, Trapped},
};

/// What becomes of a listen(2).
#[derive(Debug)]
pub enum Verdict {
    /// It is none of ours: the program gets what the kernel says to it.
    Leave,
    /// This listener takes the place of the program's socket. It is bound, and listens once the options of the
    /// program's socket are on it.
    Graft(Listener),
    /// This listener, which the shard has already ([`Holder::listener`]), takes the place of the program's socket too: a
    /// second process, or a second socket with SO_REUSEPORT, for the same port. They accept from one queue.
    Share(OwnedFd),
    /// The socket is a listener of ours already: the program calls listen a second time.
    Ours,
    /// It fails with EPERM, or with EINVAL where it would have.
    Refuse,
}

/// Makes a listener listen with the program's backlog, and shows that it is where it should be. The program's own socket,
/// which listens already, comes with it: whoever keeps it can give it to [`Journal::with_original`].
pub type Listen = Box<dyn FnOnce(i32, BorrowedFd<'_>) -> Result<(), String> + Send>;

/// A listener to graft.
pub struct Listener {
    /// Bound, in the guard, not listening yet.
    pub socket: OwnedFd,
    /// Called once the program's options are set.
    pub listen: Listen,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// What happened at a listen(2).
#[derive(Debug)]
pub enum Report {
    /// A listener was grafted.
    Grafted(Grafted),
    /// The program listens where it would have, and connections can't reach the shard directly.
    NotGrafted {
        /// What the program's socket is bound to.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// No process of the shard is left that could call.
    Ended,
}

/// A listener in the shard's hands.
#[derive(Debug)]
pub struct Grafted {
    /// What the program's own socket is bound to.
    pub address: SocketAddr,
    /// That socket, which listens; nobody else has it any more. One that shares a listener need not listen.
    pub original: OwnedFd,
    /// Who has the listener.
    pub holder: Holder,
    /// The backlog that the program asked for.
    pub backlog: i32,
    /// Options of the program's socket that the listener could not be given.
    pub unset_options: Vec<&'static str>,
    /// Epoll registrations that were made before the call, and moved to the listener.
    pub moved_registrations: usize,
}

/// Whether the descriptor is one that notifications come from: a container can send anything.
///
/// # Errors
/// When /proc is not readable.
pub fn is_notify_fd(fd: impl AsFd) -> io::Result<bool> {
    process::own_link(fd.as_fd()).map(|link| link.as_os_str() == "anon_inode:seccomp notify")
}
