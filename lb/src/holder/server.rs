//! The holder itself: one thread, poll, no allocation that a client can make large. Descriptors end only by a request
//! to remove them or with the process.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    rc::Rc,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::geteuid,
};

use super::{
    MAX_TIME,
    wire::{self, BadFrame, Kind},
};
use crate::sys::scm;

/// Connections at one time; then one that has been silent makes room for the next.
const MAX_CLIENTS: usize = 64;

/// Descriptors that are not for holding: clients, one in flight for each, the listener, standard streams, some air.
const RESERVED: u64 = 2 * MAX_CLIENTS as u64 + 32;

/// Held at most, however high the limit.
const MAX_HELD: u64 = 65_536;

/// How long a holder that may end waits for somebody to come.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// What a holder does that holds nothing and has no client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// It waits for one.
    Stay,
    /// After a second it ends.
    Exit,
}

/// Serves the socket until it is shut down, or idle if it is to end then. No client can end it: a bad one is cut off,
/// others go on.
///
/// # Errors
/// When the kernel refuses poll or the socket is no listener.
#[allow(clippy::needless_pass_by_value)] // the socket is its own, and closes when it ends
pub fn serve(listener: UnixListener, idle: Idle) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let mut held = Held { fds: BTreeMap::new(), ends: BTreeSet::new(), max: raise_limit()? };
    let mut clients: VecDeque<Client> = VecDeque::new();
    loop {
        held.end_overdue(Instant::now());
        let may_end = idle == Idle::Exit && clients.is_empty() && held.fds.is_empty();
        let next = held.next_end().map(|end| end.saturating_duration_since(Instant::now()));
        let Some((at_listener, ready)) = wait(&listener, &clients, next.or(may_end.then_some(IDLE_TIMEOUT)))? else {
            if may_end {
                return Ok(());
            }
            continue;
        };
        for (client, ready) in clients.iter_mut().zip(ready) {
            client.silent = !ready;
            if ready {
                client.turn(&mut held);
            }
        }
        clients.retain(|client| !client.gone);
        // In the order in which they make room: who never asked for anything, then who did so longest ago.
        clients.make_contiguous().sort_by_key(|client| (client.has_asked, !client.silent));
        // A non-blocking accept says EAGAIN of a socket that was shut down; only poll tells.
        if at_listener.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return Ok(());
        }
        if at_listener.contains(PollFlags::POLLIN) {
            accept(&listener, &mut clients);
        }
    }
}

/// What happened at the listener, and which clients have something to do.
type Events = (PollFlags, Vec<bool>);

/// Waits for something to do. `None`: the time has passed.
fn wait(listener: &UnixListener, clients: &VecDeque<Client>, time: Option<Duration>) -> io::Result<Option<Events>> {
    // Rounded up: to wake before the time would be for nothing.
    let millis = time.map(|time| i32::try_from(time.as_millis() + 1).unwrap_or(i32::MAX));
    let timeout = millis.map_or(PollTimeout::NONE, |millis| PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX));
    let mut polled = vec![PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    // Who does not read its answers can't ask more.
    let flags = |client: &Client| if client.answers.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT };
    polled.extend(clients.iter().map(|client| PollFd::new(client.socket.as_fd(), flags(client))));
    loop {
        match poll(&mut polled, timeout) {
            Ok(0) => return Ok(None),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let mut events = polled.iter().map(|polled| polled.revents().unwrap_or(PollFlags::POLLERR));
    let at_listener = events.next().unwrap_or(PollFlags::POLLERR);
    Ok(Some((at_listener, events.map(|events| !events.is_empty()).collect())))
}

/// Takes one connection, if it is of root or our own user.
fn accept(listener: &UnixListener, clients: &mut VecDeque<Client>) {
    let socket = match listener.accept() {
        Ok((socket, _)) => socket,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
        // EMFILE and the like: the longest silent makes room. With no client left it is for others to end.
        Err(_) => {
            if clients.pop_front().is_none() {
                std::thread::sleep(Duration::from_millis(100));
            }
            return;
        }
    };
    let peer = getsockopt(&socket, PeerCredentials);
    let ours = peer.is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw());
    if ours && socket.set_nonblocking(true).is_ok() {
        if clients.len() >= MAX_CLIENTS {
            clients.pop_front();
        }
        clients.push_back(Client::new(socket));
    }
}

/// The soft limit of descriptors becomes the hard one; returns how many may be held.
fn raise_limit() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard.min(MAX_HELD + RESERVED).saturating_sub(RESERVED))
}

struct Held {
    fds: BTreeMap<String, Entry>,
    /// Of the entries that have an end, that and their names.
    ends: BTreeSet<(Instant, String)>,
    max: u64,
}

struct Entry {
    fd: Rc<OwnedFd>,
    end: Option<Instant>,
}

impl Held {
    fn put(&mut self, name: &str, fd: OwnedFd, end: Option<Instant>) -> Answer {
        if self.fds.len() as u64 >= self.max && !self.fds.contains_key(name) {
            return Answer::text(Kind::Full, &format!("it holds {}, its limit", self.max));
        }
        self.take_out(name);
        self.fds.insert(name.into(), Entry { fd: Rc::new(fd), end });
        self.ends.extend(end.map(|end| (end, name.to_owned())));
        Answer::done()
    }

    fn take_out(&mut self, name: &str) -> bool {
        let Some(entry) = self.fds.remove(name) else { return false };
        if let Some(end) = entry.end {
            self.ends.remove(&(end, name.to_owned()));
        }
        true
    }

    fn remove(&mut self, name: &str) -> Answer {
        if self.take_out(name) { Answer::done() } else { Answer::not_found() }
    }

    fn remove_prefix(&mut self, prefix: &str) -> Answer {
        let found: Vec<String> = self.fds.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        for name in found {
            self.take_out(&name);
        }
        Answer::done()
    }

    fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Nobody has come for them.
    fn end_overdue(&mut self, now: Instant) {
        while let Some((_, name)) = self.ends.first().filter(|(end, _)| *end <= now).cloned() {
            self.take_out(&name);
        }
    }

    fn items(&self, matches: impl Fn(&str) -> bool, with_fd: bool) -> VecDeque<Answer> {
        let found = self.fds.iter().filter(|(name, _)| matches(name));
        found.map(|(name, entry)| Answer::item(name, with_fd.then(|| Rc::clone(&entry.fd)))).collect()
    }
}

/// A frame on its way out.
struct Answer {
    bytes: Vec<u8>,
    sent: usize,
    fd: Option<Rc<OwnedFd>>,
}

impl Answer {
    fn text(kind: Kind, text: &str) -> Self {
        Self { bytes: wire::frame(kind, text.as_bytes()), sent: 0, fd: None }
    }

    fn done() -> Self {
        Self::text(Kind::Done, "")
    }

    fn not_found() -> Self {
        Self::text(Kind::NotFound, "")
    }

    fn item(name: &str, fd: Option<Rc<OwnedFd>>) -> Self {
        Self { fd, ..Self::text(Kind::Item, name) }
    }
}

struct Client {
    socket: UnixStream,
    /// At most a frame that is not complete yet, and what came with it.
    buffer: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// A descriptor was sent and the kernel could not give it to us.
    lost_fd: bool,
    answers: VecDeque<Answer>,
    /// It had nothing to do at the last wait.
    silent: bool,
    /// It has sent a whole request once.
    has_asked: bool,
    gone: bool,
}

impl Client {
    fn new(socket: UnixStream) -> Self {
        let (buffer, fds, answers) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { socket, buffer, fds, lost_fd: false, answers, silent: false, has_asked: false, gone: false }
    }

    /// As much as can be done without waiting, one read at most: others have their turn.
    fn turn(&mut self, held: &mut Held) {
        match self.work(held) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
            Ok(()) => {}
        }
    }

    fn work(&mut self, held: &mut Held) -> io::Result<()> {
        if self.answers.is_empty() {
            self.read()?;
            self.answer_frame(held)?;
        }
        self.flush()
    }

    /// Reads no further than the end of a frame: a descriptor in the buffer belongs to the frame in the buffer.
    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; wire::HEADER + wire::MAX_BODY];
        let missing = wire::missing(&self.buffer).min(bytes.len());
        let received = scm::receive(self.socket.as_fd(), &mut bytes[..missing])?;
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.buffer.extend(&bytes[..received.bytes]);
        self.fds.extend(received.fds);
        self.lost_fd |= received.truncated;
        // A request has one descriptor at most.
        if self.fds.len() > 1 { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
    }

    fn answer_frame(&mut self, held: &mut Held) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        match wire::parse(&buffer) {
            Ok(None) => {
                self.buffer = buffer;
                Ok(())
            }
            Ok(Some((kind, body))) => {
                self.has_asked = true;
                self.answer(kind, body, held);
                Ok(())
            }
            Err(BadFrame::Tag) => Err(io::ErrorKind::InvalidData.into()),
            // One of ours, of another time: it is told, in the only way that both know.
            Err(BadFrame::Protocol(_) | BadFrame::Header) => {
                let told = Answer::text(Kind::Malformed, "this holder does not know that request");
                scm::send(self.socket.as_fd(), &told.bytes, None)?;
                Err(io::ErrorKind::InvalidData.into())
            }
        }
    }

    fn answer(&mut self, kind: Kind, body: &[u8], held: &mut Held) {
        let (fd, lost_fd) = (self.fds.pop(), std::mem::take(&mut self.lost_fd));
        let last = match (kind, wire::name(body), wire::prefix(body)) {
            (Kind::Ping, ..) => Answer::text(Kind::Done, env!("CARGO_PKG_VERSION")),
            (Kind::Put, Some(name), _) => put(held, name, None, fd, lost_fd),
            (Kind::PutFor, ..) => match wire::seconds_and_name(body) {
                Some((seconds, name)) => {
                    let time = Duration::from_secs(seconds.into()).min(MAX_TIME);
                    put(held, name, Some(Instant::now() + time), fd, lost_fd)
                }
                None => Answer::text(Kind::Malformed, "no such name"),
            },
            (Kind::Get, Some(name), _) => {
                let items = held.items(|held| held == name, true);
                let last = if items.is_empty() { Answer::not_found() } else { Answer::done() };
                self.answers.extend(items);
                last
            }
            (Kind::List, _, Some(prefix)) => self.answer_items(held, prefix, false),
            (Kind::GetPrefix, _, Some(prefix)) => self.answer_items(held, prefix, true),
            (Kind::Remove, Some(name), _) => held.remove(name),
            (Kind::RemovePrefix, _, Some(prefix)) => held.remove_prefix(prefix),
            _ => Answer::text(Kind::Malformed, "no such request, or no such name"),
        };
        self.answers.push_back(last);
    }

    fn answer_items(&mut self, held: &Held, prefix: &str, with_fd: bool) -> Answer {
        self.answers.extend(held.items(|name| name.starts_with(prefix), with_fd));
        Answer::done()
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(answer) = self.answers.front_mut() {
            // The descriptor goes with the first byte, once.
            let fd = if answer.sent == 0 { answer.fd.as_ref().map(|fd| fd.as_fd()) } else { None };
            answer.sent += scm::send(self.socket.as_fd(), &answer.bytes[answer.sent..], fd)?;
            if answer.sent == answer.bytes.len() {
                self.answers.pop_front();
            }
        }
        Ok(())
    }
}

fn put(held: &mut Held, name: &str, end: Option<Instant>, fd: Option<OwnedFd>, lost_fd: bool) -> Answer {
    match fd {
        Some(fd) => held.put(name, fd, end),
        None if lost_fd => Answer::text(Kind::Full, "its descriptor table is full"),
        None => Answer::text(Kind::Malformed, "no descriptor came with it"),
    }
}
