//! The thread that answers the listen(2) calls of one shard. Holds the notify fd and the journal; keeps nothing of what it
//! grafted.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use socket2::SockRef;

use super::{
    Answering, Grafted, Journal, Listen, Listener, Report, State, Trapped, Verdict,
    place::{self, Call, Placed},
    trapped::Target,
};
use crate::sys::seccomp::{self, Answer, Notification};

/// listen(2) as AUDIT_ARCH_* and number: the native one and the 32-bit one.
#[cfg(target_arch = "x86_64")]
const LISTEN: [(u32, i32); 2] = [(0xc000_003e, 50), (0x4000_0003, 363)];
#[cfg(target_arch = "aarch64")]
const LISTEN: [(u32, i32); 2] = [(0xc000_00b7, 201), (0x4000_0028, 284)];

/// Says what becomes of a call. The program waits for it.
pub type Decide = Box<dyn FnMut(&Trapped) -> Verdict + Send>;

/// Hears what became of it.
pub type Tell = Box<dyn FnMut(Report) + Send>;

/// Answers the calls of one shard until it is dropped or the shard has ended. The copy of the notify fd that the holder
/// has keeps later calls waiting; without one they would fail with ENOSYS from then on.
#[derive(Debug)]
pub struct Broker {
    stop: EventFd,
    journal: OwnedFd,
    answering: Answering,
}

impl Broker {
    /// `name` is the thread's. A call that the journal has from a former broker is the first to be answered.
    ///
    /// # Errors
    /// When no thread or descriptor can be had.
    pub fn spawn(name: String, notify: OwnedFd, journal: Journal, decide: Decide, tell: Tell) -> io::Result<Self> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        let stopped = stop.as_fd().try_clone_to_owned()?;
        let memory = journal.memory().try_clone_to_owned()?;
        let answering = Answering::new(journal.open_call().is_some());
        let mut serving = Serving { notify, journal, decide, tell, answering: answering.clone() };
        // Not joined at the end: receiving may block if the call it was to receive is gone, until the next one.
        thread::Builder::new().name(name).spawn(move || serving.run(&stopped))?;
        Ok(Self { stop, journal: memory, answering })
    }

    /// What [`Journal::adopt`] takes, to be kept beside the notify fd before the program runs.
    pub fn journal(&self) -> BorrowedFd<'_> {
        self.journal.as_fd()
    }

    /// Whether it is about to answer a call.
    pub fn answering(&self) -> &Answering {
        &self.answering
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
    journal: Journal,
    decide: Decide,
    tell: Tell,
    answering: Answering,
}

impl Serving {
    fn run(&mut self, stop: &OwnedFd) {
        if let Some(call) = self.journal.open_call() {
            self.serve(&call);
        }
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
        if let Ok(call) = seccomp::receive(self.notify.as_fd(), self.journal.record()) {
            self.serve(&call);
        }
    }

    fn serve(&mut self, call: &Notification) {
        let answer = self.handle(call);
        // ENOENT: its caller was killed meanwhile, or had its answer from a former broker.
        let _ = seccomp::answer(self.notify.as_fd(), call.id, answer);
        self.journal.close_call();
        self.answering.end();
    }

    fn handle(&mut self, call: &Notification) -> Answer {
        if !LISTEN.contains(&(call.arch, call.system_call)) {
            return Answer::Continue;
        }
        let target = Target::look(call);
        // What was looked at by pid was the caller's only if it still waits. Nobody hears this answer.
        if !seccomp::is_waiting(self.notify.as_fd(), call.id) {
            return Answer::Continue;
        }
        match target {
            Ok(Target::Tcp(trapped)) => self.decide(call.id, trapped),
            Ok(Target::Unix) => Answer::Continue,
            Ok(Target::Other(socket, backlog)) => listen(socket.as_fd(), backlog),
            Err(error) => failure(&error),
        }
    }

    fn decide(&mut self, id: u64, trapped: Trapped) -> Answer {
        self.answering.begin(trapped.address().port());
        match (self.decide)(&trapped) {
            Verdict::Leave => listen(trapped.socket(), trapped.backlog()),
            Verdict::Ours => self.resume(id, &trapped),
            Verdict::Refuse if trapped.state() == State::Connected => Answer::Failure(libc::EINVAL),
            Verdict::Refuse => Answer::Failure(libc::EPERM),
            Verdict::Graft(Listener { socket, listen: join }) => {
                // What the kernel says to this is what the program is told, whatever becomes of the graft.
                match listen(trapped.socket(), trapped.backlog()) {
                    Answer::Success => self.graft(id, trapped, &socket, join),
                    refused => refused,
                }
            }
            Verdict::Share(socket) => self.graft(id, trapped, &socket, Box::new(|_, _| Ok(()))),
        }
    }

    fn graft(&mut self, id: u64, trapped: Trapped, listener: &OwnedFd, join: Listen) -> Answer {
        let call = Call { notify: self.notify.as_fd(), id };
        match place::place(call, &trapped, listener.as_fd(), join) {
            Ok(placed) => {
                let (address, backlog) = (trapped.address(), trapped.backlog());
                self.tell_grafted(address, trapped.into_socket(), backlog, placed);
                Answer::Success
            }
            Err(error) => {
                (self.tell)(Report::NotGrafted { address: trapped.address(), reason: error.to_string() });
                listen(trapped.socket(), trapped.backlog())
            }
        }
    }

    /// The program has its listener: it calls again, or a former broker could not tell it that the call is done.
    fn resume(&mut self, id: u64, trapped: &Trapped) -> Answer {
        let Some(original) = self.journal.take_original() else { return Answer::Success };
        let Some(address) = SockRef::from(&original).local_addr().ok().and_then(|address| address.as_socket()) else {
            return Answer::Success;
        };
        let call = Call { notify: self.notify.as_fd(), id };
        match place::settle(call, trapped, original.as_fd(), trapped.socket()) {
            Ok(placed) => self.tell_grafted(address, original, trapped.backlog(), placed),
            Err(error) => (self.tell)(Report::NotGrafted { address, reason: error.to_string() }),
        }
        Answer::Success
    }

    fn tell_grafted(&mut self, address: SocketAddr, original: OwnedFd, backlog: i32, placed: Placed) {
        let Placed { unset_options, moved_registrations, holder } = placed;
        let grafted = Grafted { address, original, holder, backlog, unset_options, moved_registrations };
        (self.tell)(Report::Grafted(grafted));
    }
}

/// Carries the call out on the socket that was looked at, whatever is at the program's descriptor by now.
fn listen(socket: BorrowedFd<'_>, backlog: i32) -> Answer {
    match SockRef::from(&socket).listen(backlog) {
        Ok(()) => Answer::Success,
        Err(error) => failure(&error),
    }
}

fn failure(error: &io::Error) -> Answer {
    Answer::Failure(error.raw_os_error().unwrap_or(libc::EPERM))
}
