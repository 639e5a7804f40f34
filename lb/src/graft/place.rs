//! Puts a listener at the program's descriptor, with all that belongs to it, or leaves the program with its own socket.
//! Doesn't decide, and answers nothing.

use std::{io, os::fd::BorrowedFd};

use socket2::SockRef;

use super::{Holder, Listen, Trapped, epoll, options};
use crate::sys::seccomp;

/// Why a graft was given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum GraftError {
    #[error("the listener: {0}")]
    Listen(String),
    #[error("the program's descriptor can't be looked at: {0}")]
    Look(io::Error),
    #[error("the program doesn't take the listener: {0}")]
    Place(io::Error),
}

/// A call that waits.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) notify: BorrowedFd<'a>,
    pub(super) id: u64,
}

/// What was done to put a listener in place.
pub(super) struct Placed {
    pub(super) unset_options: Vec<&'static str>,
    pub(super) moved_registrations: usize,
    pub(super) holder: Holder,
}

/// The listener, with the program's options, listens and is at the program's descriptor; or nothing has changed.
pub(super) fn place(
    call: Call<'_>,
    trapped: &Trapped,
    listener: BorrowedFd<'_>,
    listen: Listen,
) -> Result<Placed, GraftError> {
    let cloexec = trapped.process.is_cloexec(trapped.number).map_err(GraftError::Look)?;
    let unset_options = options::replay(trapped.socket(), listener);
    listen(trapped.backlog(), trapped.socket()).map_err(GraftError::Listen)?;
    // From here on the listener may have connections, and the program has it.
    seccomp::replace(call.notify, call.id, listener, trapped.number, cloexec).map_err(GraftError::Place)?;
    let placed = settle(call, trapped, trapped.socket(), listener)?;
    Ok(Placed { unset_options, ..placed })
}

/// `listener` is in the place of `original` at the descriptor of the call: the program's event loops are to hear of its
/// connections. They may have been moved before.
pub(super) fn settle(
    call: Call<'_>,
    trapped: &Trapped,
    original: BorrowedFd<'_>,
    listener: BorrowedFd<'_>,
) -> Result<Placed, GraftError> {
    let (process, number) = (&trapped.process, trapped.number);
    let cookie = SockRef::from(&listener).cookie().map_err(GraftError::Look)?;
    match epoll::move_registrations(process, number, original, listener) {
        Ok(moved_registrations) => {
            Ok(Placed { unset_options: Vec::new(), moved_registrations, holder: process.holds(number, cookie) })
        }
        Err(error) => {
            // The program would never hear of a connection: it gets its own socket back.
            let cloexec = process.is_cloexec(number).unwrap_or(false);
            let _ = seccomp::replace(call.notify, call.id, original, number, cloexec);
            Err(GraftError::Look(error))
        }
    }
}
