//! The thread that answers the listen(2) calls of one shard. Holds the notify fd; keeps nothing of what it grafted.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use socket2::SockRef;

use super::{Grafted, Holder, Listen, Listener, Report, Trapped, Unfit, Verdict, epoll, options};
use crate::sys::seccomp::{self, Answer, Notification};

/// Says what becomes of a call. The program waits for it.
pub type Decide = Box<dyn FnMut(&Trapped) -> Verdict + Send>;

/// Hears what became of it.
pub type Tell = Box<dyn FnMut(Report) + Send>;

/// Answers the calls of one shard until it is dropped or the shard has ended. The copy of the notify fd that the holder
/// has keeps later calls waiting; without one they would fail with ENOSYS from then on.
#[derive(Debug)]
pub struct Broker {
    stop: EventFd,
}

impl Broker {
    /// `name` is the thread's.
    ///
    /// # Errors
    /// When no thread or descriptor can be had.
    pub fn spawn(name: String, notify: OwnedFd, decide: Decide, tell: Tell) -> io::Result<Self> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        let stopped = stop.as_fd().try_clone_to_owned()?;
        let mut serving = Serving { notify, decide, tell };
        // Not joined at the end: receiving may block if the call it was to receive is gone, until the next one.
        thread::Builder::new().name(name).spawn(move || serving.run(&stopped))?;
        Ok(Self { stop })
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Fails only when it has been said before.
        let _ = self.stop.write(1);
    }
}

struct Serving {
    notify: OwnedFd,
    decide: Decide,
    tell: Tell,
}

/// What was done to put a listener in place.
struct Placed {
    unset_options: Vec<&'static str>,
    moved_registrations: usize,
    holder: Holder,
}

/// Why a graft was given up; the call continues.
#[derive(Debug, thiserror::Error)]
enum GraftError {
    #[error("the listener: {0}")]
    Listen(String),
    #[error("the program's descriptor can't be looked at: {0}")]
    Look(io::Error),
    #[error("the program doesn't take the listener: {0}")]
    Place(io::Error),
}

impl Serving {
    fn run(&mut self, stop: &OwnedFd) {
        loop {
            let mut fds = [self.notify.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(_) => return (self.tell)(Report::Ended),
            }
            let [notified, stopped] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            if !stopped.is_empty() {
                return;
            }
            if notified.contains(PollFlags::POLLIN) {
                self.serve_one();
            } else if notified.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                return (self.tell)(Report::Ended);
            }
        }
    }

    fn serve_one(&mut self) {
        // ENOENT: its caller was killed. EINTR: again, by poll.
        let Ok(notification) = seccomp::receive(self.notify.as_fd()) else { return };
        let answer = self.handle(&notification);
        // ENOENT: its caller was killed meanwhile, and needs no answer.
        let _ = seccomp::answer(self.notify.as_fd(), notification.id, answer);
    }

    fn handle(&mut self, notification: &Notification) -> Answer {
        if i64::from(notification.system_call) != libc::SYS_listen {
            return Answer::Continue;
        }
        let trapped = match Trapped::look(notification) {
            Ok(trapped) => trapped,
            // The kernel says what is wrong with it better than we could.
            Err(Unfit::NotTcp | Unfit::Unbound | Unfit::Connected | Unfit::Unreachable(_)) => return Answer::Continue,
        };
        // What was looked at by pid was the caller's only if it still waits.
        if !seccomp::is_waiting(self.notify.as_fd(), notification.id) {
            return Answer::Continue;
        }
        match (self.decide)(&trapped) {
            Verdict::Leave => Answer::Continue,
            Verdict::Ours => Answer::Success,
            Verdict::Refuse => Answer::Failure(libc::EPERM),
            Verdict::Graft(Listener { socket, listen }) => self.graft(notification.id, trapped, &socket, listen),
            Verdict::Share(socket) => self.graft(notification.id, trapped, &socket, Box::new(|_| Ok(()))),
        }
    }

    fn graft(&mut self, id: u64, trapped: Trapped, socket: &OwnedFd, listen: Listen) -> Answer {
        let address = trapped.address();
        match self.place(id, &trapped, socket.as_fd(), listen) {
            Ok(placed) => {
                let Placed { unset_options, moved_registrations, holder } = placed;
                let backlog = trapped.backlog();
                let original = trapped.into_socket();
                let grafted = Grafted { address, original, holder, backlog, unset_options, moved_registrations };
                (self.tell)(Report::Grafted(grafted));
                Answer::Success
            }
            Err(error) => {
                (self.tell)(Report::NotGrafted { address, reason: error.to_string() });
                Answer::Continue
            }
        }
    }

    /// The listener, with the program's options, listens and is at the program's descriptor; or nothing has changed.
    fn place(&self, id: u64, trapped: &Trapped, socket: BorrowedFd<'_>, listen: Listen) -> Result<Placed, GraftError> {
        let cloexec = trapped.process.is_cloexec(trapped.number).map_err(GraftError::Look)?;
        let cookie = SockRef::from(&socket).cookie().map_err(GraftError::Look)?;
        let unset_options = options::replay(trapped.socket(), socket);
        listen(trapped.backlog()).map_err(GraftError::Listen)?;
        // From here on the listener may have connections, and the program has it.
        seccomp::replace(self.notify.as_fd(), id, socket, trapped.number, cloexec).map_err(GraftError::Place)?;
        let moved_registrations = match epoll::move_registrations(trapped, socket) {
            Ok(moved) => moved,
            Err(error) => {
                // The program would never hear of a connection: it gets its own socket back.
                let _ = seccomp::replace(self.notify.as_fd(), id, trapped.socket(), trapped.number, cloexec);
                return Err(GraftError::Look(error));
            }
        };
        Ok(Placed { unset_options, moved_registrations, holder: trapped.process.holds(trapped.number, cookie) })
    }
}
