//! The service that all contestants stand in front of: a small HTTP/1.1 server on one thread (or, where it isn't sharded, on
//! several, to which another hands connections), which answers `GET /N` with N bytes, and `GET /N?slot` with the slot that it
//! is told to be as well; echoes connections that begin with a zero byte; owns its listener and connections, and knows
//! nothing of who connects.
//!
//! It is the least a server can be (one epoll, one buffer, answers made once), so that what is measured is what stands
//! in front of it. `Connection: close` is honoured by closing first, as servers do: TIME_WAIT then stays on this side
//! and a load generator never runs out of ports.

use std::{
    collections::HashMap,
    env,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread,
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
};
use socket2::{Domain, Socket, Type};

pub use self::announcement::{Announcement, AnnouncementError};
use self::echo::{ECHO_BYTE, Echo};

mod announcement;
pub mod burn;
mod echo;
pub mod relisten;

/// The largest answer, in bytes.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Connections that wait to be accepted. The kernel's `somaxconn` may lower it.
const BACKLOG: i32 = 4096;
/// The head's field that tells the slot, where it is asked for.
pub const SLOT_FIELD: &str = "Sherd-Slot";
/// A request's head may not be longer.
const MAX_REQUEST_BYTES: usize = 4096;
/// Different sizes of answers kept ready; more than that are made anew each time.
const MAX_READY_ANSWERS: usize = 16;
/// How much of an echoed connection is read at a time.
const ECHO_PIECE_BYTES: usize = 64 << 10;
const DOOR: u64 = u64::MAX;

/// A listening shard.
#[derive(Debug)]
pub struct Shard {
    door: Door,
    epoll: Epoll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    tools: Tools,
}

/// Where connections come from.
#[derive(Debug)]
enum Door {
    Listener(TcpListener),
    /// From the thread that accepts; it rings after each.
    Handed {
        streams: Receiver<TcpStream>,
        bell: Arc<EventFd>,
    },
}

/// What connections of a shard share.
#[derive(Debug)]
struct Tools {
    answers: Answers,
    piece: Vec<u8>,
    /// Of work for nothing, before each answer.
    burn_rounds: u64,
}

/// Answers that were made once.
#[derive(Debug, Default)]
struct Answers {
    ready: HashMap<Wanted, Arc<[u8]>>,
    /// What the shard's environment says; empty where nobody does.
    slot: String,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Wanted {
    bytes: usize,
    /// With the slot.
    slot: bool,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Option<(Arc<[u8]>, usize)>,
    closes: bool,
    echo: Option<Echo>,
}

enum Fate {
    Goes,
    /// It could go on at once, and others are to have their turn.
    Yields,
    Ends,
}

impl Shard {
    /// Listens at `address`, which no one else has.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        Self::listen(address, false)
    }

    /// Listens at `address` beside others that have it too (SO_REUSEPORT): the kernel spreads connections over them.
    pub fn bind_beside_others(address: SocketAddr) -> io::Result<Self> {
        Self::listen(address, true)
    }

    fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Self::behind(Door::Listener(TcpListener::from(socket)))
    }

    fn behind(door: Door) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        match &door {
            Door::Listener(listener) => epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, DOOR))?,
            // Edge-triggered: each ring is told, and nobody has to read it.
            Door::Handed { bell, .. } => {
                epoll.add(bell, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, DOOR))?;
            }
        }
        let answers = Answers { ready: HashMap::new(), slot: env::var("SHERD_SLOT").unwrap_or_default() };
        let tools = Tools { answers, piece: vec![0; ECHO_PIECE_BYTES], burn_rounds: 0 };
        Ok(Self { door, epoll, connections: Vec::new(), free: Vec::new(), tools })
    }

    /// Has each answer cost more: a slowness that is known.
    #[must_use]
    pub fn burning(mut self, rounds: u64) -> Self {
        self.tools.burn_rounds = rounds;
        self
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match &self.door {
            Door::Listener(listener) => listener.local_addr(),
            Door::Handed { .. } => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Serves until something is wrong with the listener or epoll; one connection's trouble ends that connection only.
    pub fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..count] {
                match event.data() {
                    DOOR => self.accept()?,
                    token => self.advance(token as usize),
                }
            }
        }
    }

    /// The same with `threads` threads that serve and this one, which accepts and hands each the next: one process that isn't
    /// sharded. Threads that all accept for themselves would be no fair rival: the one that is awake takes everything.
    pub fn serve_on_threads(self, threads: usize) -> io::Result<()> {
        let Door::Listener(listener) = self.door else { return Err(io::ErrorKind::NotConnected.into()) };
        listener.set_nonblocking(false)?;
        let mut workers = Vec::new();
        for _ in 0..threads {
            let (sender, streams) = mpsc::sync_channel(BACKLOG as usize);
            let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
            let worker = Self::behind(Door::Handed { streams, bell: Arc::clone(&bell) })?;
            let mut worker = worker.burning(self.tools.burn_rounds);
            thread::spawn(move || worker.serve());
            workers.push((sender, bell));
        }
        for (sender, bell) in workers.iter().cycle() {
            let stream = accept_one(&listener)?;
            // One whose thread has ended is nobody's any more: the process ends as one.
            sender.send(stream).map_err(io::Error::other)?;
            bell.write(1)?;
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        while let Some(stream) = self.door.next()? {
            let token = self.admit(stream)?;
            self.advance(token);
        }
        Ok(())
    }

    fn admit(&mut self, stream: TcpStream) -> io::Result<usize> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let token = self.free.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.epoll.add(&stream, interest(token))?;
        let connection = Connection { stream, request: Vec::new(), answer: None, closes: false, echo: None };
        self.connections[token] = Some(connection);
        Ok(token)
    }

    fn advance(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(token).and_then(Option::as_mut) else { return };
        let mut fate = connection.advance(&mut self.tools).unwrap_or(Fate::Ends);
        // Set anew, an edge that has been is told again.
        if matches!(fate, Fate::Yields) && self.epoll.modify(&connection.stream, &mut interest(token)).is_err() {
            fate = Fate::Ends;
        }
        if matches!(fate, Fate::Ends) {
            self.connections[token] = None;
            self.free.push(token);
        }
    }
}

fn interest(token: usize) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET, token as u64)
}

impl Door {
    /// None when nobody waits.
    fn next(&self) -> io::Result<Option<TcpStream>> {
        match self {
            Self::Listener(listener) => match accept_one(listener) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                other => other.map(Some),
            },
            Self::Handed { streams, .. } => Ok(streams.try_recv().ok()),
        }
    }
}

fn accept_one(listener: &TcpListener) -> io::Result<TcpStream> {
    loop {
        match listener.accept() {
            // The peer went before we came; the next one is not concerned.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            other => return other.map(|(stream, _)| stream),
        }
    }
}
impl Connection {
    /// Goes on as far as it can without waiting.
    fn advance(&mut self, tools: &mut Tools) -> io::Result<Fate> {
        loop {
            if let Some(echo) = &mut self.echo {
                return echo.advance(&mut self.stream, &mut tools.piece);
            }
            if !self.write()? {
                return Ok(Fate::Goes);
            }
            if self.closes {
                return Ok(Fate::Ends);
            }
            match take_request(&mut self.request)? {
                Some(request) => {
                    self.closes = request.closes;
                    burn::burn(tools.burn_rounds);
                    self.answer = Some((tools.answers.get(request.wanted), 0));
                }
                None => match self.read()? {
                    Some(0) => return Ok(Fate::Ends),
                    Some(_) if self.request[0] == ECHO_BYTE => {
                        self.echo = Some(Echo::of(std::mem::take(&mut self.request)));
                    }
                    Some(_) => {}
                    None => return Ok(Fate::Goes),
                },
            }
        }
    }

    /// Whether nothing is left to write.
    fn write(&mut self) -> io::Result<bool> {
        while let Some((answer, written)) = &mut self.answer {
            match self.stream.write(&answer[*written..]) {
                Ok(count) => *written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
            if *written == answer.len() {
                self.answer = None;
            }
        }
        Ok(true)
    }

    /// How much was read; None when there is nothing yet.
    fn read(&mut self) -> io::Result<Option<usize>> {
        let mut buffer = [0; MAX_REQUEST_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(count) => {
                self.request.extend_from_slice(&buffer[..count]);
                Ok(Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    wanted: Wanted,
    closes: bool,
}

/// Takes the first whole request out of what was received; None when it isn't whole yet.
fn take_request(received: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
        if received.len() > MAX_REQUEST_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the request's head is too long"));
        }
        return Ok(None);
    };
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the request {what}"));
    let head = std::str::from_utf8(&received[..end]).map_err(|_| bad("is not text"))?;
    let mut lines = head.split("\r\n");
    let path = lines.next().and_then(|line| line.strip_prefix("GET /")).ok_or_else(|| bad("is not a GET"))?;
    let path = path.split(' ').next().unwrap_or_default();
    let (digits, query) = path.split_once('?').unwrap_or((path, ""));
    let bytes: usize = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| bad("names no size"))? };
    if bytes > MAX_ANSWER_BYTES {
        return Err(bad("wants more than the largest answer"));
    }
    let closes = lines.any(|line| line.eq_ignore_ascii_case("connection: close"));
    let wanted = Wanted { bytes, slot: query == "slot" };
    received.drain(..end + 4);
    Ok(Some(Request { wanted, closes }))
}

/// The byte at `offset` of every answer's body; 251 is prime, so that a piece lost or doubled by a power of two shows.
pub const fn body_byte(offset: usize) -> u8 {
    (offset % 251) as u8
}

impl Answers {
    fn get(&mut self, wanted: Wanted) -> Arc<[u8]> {
        if let Some(answer) = self.ready.get(&wanted) {
            return Arc::clone(answer);
        }
        let slot = if wanted.slot { format!("{SLOT_FIELD}: {}\r\n", self.slot) } else { String::new() };
        let mut answer = format!("HTTP/1.1 200 OK\r\n{slot}Content-Length: {}\r\n\r\n", wanted.bytes).into_bytes();
        answer.extend((0..wanted.bytes).map(body_byte));
        let answer: Arc<[u8]> = answer.into();
        if self.ready.len() < MAX_READY_ANSWERS {
            self.ready.insert(wanted, Arc::clone(&answer));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn check(bytes: &str, expected: Option<&Request>, left: &str) {
        let mut buffer = bytes.as_bytes().to_vec();
        assert_eq!(take_request(&mut buffer).expect("a good request").as_ref(), expected, "{bytes:?}");
        assert_eq!(buffer, left.as_bytes(), "what is left of {bytes:?}");
    }

    fn wants(bytes: usize, closes: bool) -> Request {
        Request { wanted: Wanted { bytes, slot: false }, closes }
    }

    #[test]
    fn threads_share_what_comes() {
        let shard = Shard::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = shard.address().expect("it listens");
        thread::spawn(move || shard.serve_on_threads(2));
        // Held all at a time, and each thread answers those it was handed.
        let streams: Vec<TcpStream> = (0..6).map(|_| crate::load::fetch(address, 1000).expect("it answers")).collect();
        let of_threads: Vec<usize> = fs::read_dir("/proc/self/fdinfo")
            .expect("readable")
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .map(|text| text.lines().filter(|line| line.starts_with("tfd:")).count())
            .filter(|watched| *watched == 1 + streams.len() / 2)
            .collect();
        assert!(of_threads.len() >= 2, "two epolls with the bell and a half of the connections each: {of_threads:?}");
    }

    #[test]
    fn requests() {
        check("GET /12 HTTP/1.1\r\n\r\n", Some(&wants(12, false)), "");
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\nGET", Some(&wants(0, false)), "GET");
        check("GET /1 HTTP/1.1\r\nconnection: CLOSE\r\n\r\n", Some(&wants(1, true)), "");
        let slot = Request { wanted: Wanted { bytes: 3, slot: true }, closes: false };
        check("GET /3?slot HTTP/1.1\r\n\r\n", Some(&slot), "");
        check("GET /1 HTTP/1.1\r\n", None, "GET /1 HTTP/1.1\r\n");
    }

    #[test]
    fn bad_requests_are_refused() {
        let endless = "GET /".to_owned() + &"1".repeat(MAX_REQUEST_BYTES);
        for bytes in ["POST / HTTP/1.1\r\n\r\n", "GET /x HTTP/1.1\r\n\r\n", "GET /99999999999 H\r\n\r\n", &endless] {
            assert!(take_request(&mut bytes.as_bytes().to_vec()).is_err(), "{bytes:.40}");
        }
    }
}
