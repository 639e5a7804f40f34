//! Long-lived streams: bytes both ways all the time, every one of them checked against its place in its stream; owns its
//! sockets and an epoll, and shares nothing with other threads.
//!
//! A stream is echoed, and what comes back is compared with a table of random bytes, in which each stream begins elsewhere
//! and goes round. Its length is prime: a piece that is lost, doubled, moved or another stream's shows, and comparing
//! costs less than reading. A stream that broke stays broken and counts once. At the window's end nothing more is sent,
//! and what is on its way must come back.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::TcpStream,
    sync::LazyLock,
    time::Instant,
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::{
    Load,
    client::begin_to_connect,
    window::{Tally, Window},
};
use crate::{interrupt::Interrupt, shard::body_byte, stats::Random};

/// The largest prime below 2^20.
const TABLE_BYTES: usize = 1_048_573;
/// How far apart streams begin; no multiple of it below the table's length is the table's length.
const STRIDE: usize = 10_007;
/// How much of a stream is on its way at most,
const MOST_UNDERWAY_BYTES: usize = 256 << 10;
/// and of all of them: tens of thousands would fill the host's memory with it.
const ALL_UNDERWAY_BYTES: usize = 16 << 20;
const PIECE_BYTES: usize = 64 << 10;
const LONGEST_WAIT_MILLIS: u16 = 10;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(TABLE_BYTES as u64);
    (0..TABLE_BYTES).map(|_| random.bits() as u8).collect()
});
/// Asks a shard to echo.
static FIRST: [u8; 1] = [body_byte(0)];

/// One thread's streams.
pub(super) struct Streams<'a> {
    load: &'a Load,
    interrupt: &'a Interrupt,
    epoll: Epoll,
    streams: Vec<Option<Stream>>,
    /// How much of each is on its way at most.
    underway: u64,
    /// Those that could go on at once.
    ready: VecDeque<usize>,
    piece: Vec<u8>,
    tally: Tally,
}

struct Stream {
    number: usize,
    socket: TcpStream,
    sent: u64,
    received: u64,
    /// When each block that isn't back was begun.
    begun: VecDeque<Instant>,
    is_ready: bool,
}

/// How far one turn brought a stream.
struct Turn {
    received: usize,
    sent: usize,
}

impl<'a> Streams<'a> {
    /// Connects this thread's share of the streams; one that can't be counts as broken.
    pub(super) fn open(load: &'a Load, index: usize, interrupt: &'a Interrupt) -> io::Result<Self> {
        if load.answer_bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a stream's blocks have one byte at least"));
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let piece = vec![0; PIECE_BYTES];
        let (streams, ready) = (Vec::new(), VecDeque::new());
        let underway = (ALL_UNDERWAY_BYTES / load.connections.max(1)).clamp(1, MOST_UNDERWAY_BYTES) as u64;
        let mut all = Self { load, interrupt, epoll, streams, underway, ready, piece, tally: Tally::new() };
        for number in (index..load.connections).step_by(load.cpus.len()) {
            match all.connect(number) {
                Ok(stream) => all.streams.push(Some(stream)),
                Err(error) => all.tally.failed(&error),
            }
        }
        all.ready = (0..all.streams.len()).collect();
        Ok(all)
    }

    fn connect(&self, number: usize) -> io::Result<Stream> {
        let socket = begin_to_connect(None, self.load.targets[number % self.load.targets.len()])?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&socket, EpollEvent::new(interest, self.streams.len() as u64))?;
        Ok(Stream { number, socket, sent: 0, received: 0, begun: VecDeque::new(), is_ready: true })
    }

    /// Runs until the window has closed and all is back, or the time for that is over.
    pub(super) fn run(mut self, window: &Window) -> io::Result<Tally> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let now = Instant::now();
            self.tally.mark_cpu(window, now);
            let is_open = now < window.closes;
            let is_over = !is_open && (now >= window.grace_ends || self.streams.iter().all(Option::is_none));
            if is_over || self.interrupt.is_raised() {
                return Ok(self.give_up());
            }
            if !is_open {
                self.release_whole();
            }
            for _ in 0..self.ready.len() {
                let Some(token) = self.ready.pop_front() else { break };
                self.advance(token, is_open, window);
            }
            let millis = if self.ready.is_empty() { LONGEST_WAIT_MILLIS } else { 0 };
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(millis)) {
                Err(Errno::EINTR) => 0,
                other => other?,
            };
            for event in &events[..count] {
                self.wake(event.data() as usize);
            }
        }
    }

    fn wake(&mut self, token: usize) {
        if let Some(stream) = self.streams[token].as_mut().filter(|stream| !stream.is_ready) {
            stream.is_ready = true;
            self.ready.push_back(token);
        }
    }

    fn advance(&mut self, token: usize, sends: bool, window: &Window) {
        let Some(stream) = &mut self.streams[token] else { return };
        stream.is_ready = false;
        let block = self.load.answer_bytes as u64;
        let underway = if sends { self.underway } else { 0 };
        let turn = match stream.advance(underway, &mut self.piece, block) {
            Ok(turn) => turn,
            Err(error) => {
                self.streams[token] = None;
                return self.tally.failed(&error);
            }
        };
        let now = Instant::now();
        let whole = stream.received / block - (stream.received - turn.received as u64) / block;
        for _ in 0..whole {
            if let Some(since) = stream.begun.pop_front().filter(|_| window.contains(now)) {
                self.tally.answered(since, now);
            }
        }
        if window.contains(now) {
            self.tally.body_bytes += turn.received as u64;
        }
        if turn.received + turn.sent > 0 {
            self.wake(token);
        }
    }

    /// Lets go of streams all of which came back.
    fn release_whole(&mut self) {
        for stream in &mut self.streams {
            let _ = stream.take_if(|stream| stream.received == stream.sent);
        }
    }

    fn give_up(mut self) -> Tally {
        for _ in self.streams.iter().flatten() {
            self.tally.failed(&io::Error::new(io::ErrorKind::TimedOut, "bytes of a stream did not come back"));
        }
        self.tally
    }
}

impl Stream {
    /// Sends and receives one piece each at most, and sends only while less is on its way than `underway` bytes.
    fn advance(&mut self, underway: u64, piece: &mut [u8], block: u64) -> io::Result<Turn> {
        let sent = self.send(underway, block)?;
        let received = match self.socket.read(piece) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a stream ended before its time")),
            Ok(count) => count,
            Err(error) if is_not_yet(&error) => 0,
            Err(error) => return Err(error),
        };
        if !is_at(self.number, self.received, &piece[..received]) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a stream has a wrong byte"));
        }
        self.received += received as u64;
        Ok(Turn { received, sent })
    }

    fn send(&mut self, underway: u64, block: u64) -> io::Result<usize> {
        let room = underway.saturating_sub(self.sent - self.received);
        let bytes = bytes_at(self.number, self.sent);
        let most = bytes.len().min(PIECE_BYTES).min(room as usize);
        if most == 0 {
            return Ok(0);
        }
        let count = match self.socket.write(&bytes[..most]) {
            Ok(count) => count,
            Err(error) if is_not_yet(&error) => return Ok(0),
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        let begun = (self.sent + count as u64).div_ceil(block) - self.sent.div_ceil(block);
        self.begun.extend((0..begun).map(|_| now));
        self.sent += count as u64;
        Ok(count)
    }
}

/// While it connects, Linux says EAGAIN (or ENOTCONN before the SYN is out).
fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
}

/// A stream's bytes from `position` on, as far as they lie side by side.
fn bytes_at(number: usize, position: u64) -> &'static [u8] {
    if position == 0 {
        return &FIRST;
    }
    let start = (number * STRIDE) as u64 + position;
    &TABLE[(start % TABLE_BYTES as u64) as usize..]
}

/// Whether `bytes` are a stream's from `position` on.
fn is_at(number: usize, mut position: u64, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let expected = bytes_at(number, position);
        let count = expected.len().min(bytes.len());
        if bytes[..count] != expected[..count] {
            return false;
        }
        position += count as u64;
        bytes = &bytes[count..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` bytes of a stream from `position` on.
    fn copy(number: usize, position: u64, count: usize) -> Vec<u8> {
        (0..count as u64).map(|offset| bytes_at(number, position + offset)[0]).collect()
    }

    #[test]
    fn bytes_are_known_by_their_place() {
        let across = TABLE_BYTES as u64 - 500;
        for (number, position) in [(0, 0), (0, 1), (3, 77), (3, across), (9_999, 5_000_000_000)] {
            let bytes = copy(number, position, 1000);
            assert!(is_at(number, position, &bytes), "{number} {position}");
            let mut wrong = bytes.clone();
            wrong[999] ^= 1;
            assert!(!is_at(number, position, &wrong), "a flipped bit in {number} at {position}");
            for lost in [1, 64, 1460, 4096, 65_536, 1 << 20, 1 << 30] {
                assert!(!is_at(number, position + lost, &bytes), "{lost} bytes lost of {number} at {position}");
            }
            assert!(!is_at(number + 1, position.max(1), &copy(number, position.max(1), 64)), "another stream's");
        }
    }

    #[test]
    fn no_two_streams_begin_at_one_place() {
        let mut begins: Vec<usize> = (0..100_000).map(|number| number * STRIDE % TABLE_BYTES).collect();
        begins.sort_unstable();
        begins.dedup();
        assert_eq!(begins.len(), 100_000);
    }
}
