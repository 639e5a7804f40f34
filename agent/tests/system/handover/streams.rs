//! Clients of the echo service whose every byte tells its place.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::address;

/// How long any answer may take.
const TIMEOUT: Duration = Duration::from_secs(40);

/// The byte at a place of a stream.
fn byte_at(stream: usize, place: u64) -> u8 {
    let mixed = (place ^ (place >> 8)).wrapping_mul(0x9e37_79b9).wrapping_add((stream as u64).wrapping_mul(101));
    (mixed >> 5) as u8
}

fn connect() -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address(), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// Says something now and then.
pub(super) struct Quiet {
    number: usize,
    stream: TcpStream,
}

const WORDS: usize = 64;

/// The round that a connection begins with.
const FIRST: usize = 1_000;

impl Quiet {
    /// Connected to a shard, which has answered once.
    pub(super) fn open(number: usize) -> Self {
        let quiet = Self { number, stream: connect().expect("it connects") };
        quiet.send(FIRST);
        quiet.expect(FIRST);
        quiet
    }

    fn words(&self, round: usize) -> Vec<u8> {
        (0..WORDS as u64).map(|place| byte_at(self.number ^ round << 16, place)).collect()
    }

    pub(super) fn send(&self, round: usize) {
        // One that was lost says so when it is read.
        let _ = (&self.stream).write_all(&self.words(round));
    }

    fn answer(&self, round: usize) -> io::Result<()> {
        let mut answer = [0; WORDS];
        (&self.stream).read_exact(&mut answer)?;
        assert_eq!(answer[..], self.words(round)[..], "connection {}", self.number);
        Ok(())
    }

    pub(super) fn expect(&self, round: usize) {
        self.answer(round).unwrap_or_else(|error| panic!("connection {} ended: {error}", self.number));
    }

    /// Whether something is there to be read.
    pub(super) fn has_answer(&self) -> bool {
        self.stream.set_nonblocking(true).expect("a flag");
        let peeked = self.stream.peek(&mut [0; WORDS]);
        self.stream.set_nonblocking(false).expect("a flag");
        match peeked {
            Ok(len) => len > 0,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "connection {}: {error}", self.number);
                false
            }
        }
    }

    /// Whether it has its answer of round 0; if not, it must have ended.
    pub(super) fn goes_on(&self) -> bool {
        match self.answer(0) {
            Ok(()) => true,
            Err(error) => {
                // A reset that a write has reported already, and what a killed agent closed, reads as the end.
                let is_end = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof);
                assert!(is_end, "connection {}: {error}", self.number);
                false
            }
        }
    }

    /// It is reset after its answer.
    pub(super) fn expect_reset_after(&self, round: usize) {
        self.expect(round);
        self.expect_reset();
    }

    pub(super) fn expect_reset(&self) {
        let mut rest = Vec::new();
        let error = (&self.stream).read_to_end(&mut rest).expect_err("it is reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "connection {}", self.number);
    }

    /// The client has said all it will.
    pub(super) fn end(&self) {
        self.stream.shutdown(Shutdown::Write).expect("it is connected");
    }

    /// Ends it: the shard must do so too, and not a byte is left over.
    pub(super) fn finish(mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap_or_else(|error| panic!("connection {}: {error}", self.number));
        assert!(rest.is_empty(), "connection {}: {} bytes too many", self.number, rest.len());
    }
}

/// Sends all the time, and checks what comes back.
pub(super) struct Stream {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    writer: JoinHandle<u64>,
    reader: JoinHandle<(u64, Duration)>,
}

impl Stream {
    pub(super) fn start(number: usize, slow: bool) -> Self {
        let stream = Arc::new(connect().expect("it connects"));
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (writing, stopped) = (Arc::clone(&stream), Arc::clone(&stop));
        let writer = thread::spawn(move || write(number, &writing, &stopped));
        let counted = Arc::clone(&received);
        let reader = thread::spawn(move || read(number, &stream, slow, &counted));
        Self { stop, received, writer, reader }
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends it: all that was sent must have come back. The longest time without a byte.
    pub(super) fn finish(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.writer.join().expect("it could write");
        let (received, pause) = self.reader.join().expect("what it read was right");
        assert_eq!(received, sent, "bytes came back");
        pause
    }
}

fn write(number: usize, mut stream: &TcpStream, stop: &AtomicBool) -> u64 {
    let mut sent = 0;
    let mut block = [0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        let len = 1 + (sent as usize * 7 + number) % block.len();
        for (place, byte) in (sent..).zip(&mut block[..len]) {
            *byte = byte_at(number, place);
        }
        stream.write_all(&block[..len]).unwrap_or_else(|error| panic!("stream {number} ended after {sent}: {error}"));
        sent += len as u64;
        // Others have work to do on this machine too.
        thread::sleep(Duration::from_millis(10));
    }
    stream.shutdown(Shutdown::Write).expect("it is connected");
    sent
}

fn read(number: usize, mut stream: &TcpStream, slow: bool, received: &AtomicU64) -> (u64, Duration) {
    let mut block = vec![0; 256 << 10];
    let (mut at, mut unslept, mut last, mut pause) = (0, 0, Instant::now(), Duration::ZERO);
    loop {
        let len = stream.read(&mut block).unwrap_or_else(|error| panic!("stream {number} ended after {at}: {error}"));
        pause = pause.max(last.elapsed());
        if len == 0 {
            return (at, pause);
        }
        for (place, byte) in (at..).zip(&block[..len]) {
            assert_eq!(*byte, byte_at(number, place), "stream {number}, byte {place}");
        }
        at += len as u64;
        received.store(at, Ordering::Relaxed);
        unslept += len;
        if slow && unslept > 128 << 10 {
            unslept = 0;
            thread::sleep(Duration::from_millis(50));
        }
        last = Instant::now();
    }
}

/// Clients that connect, ask once and close, over and over.
pub(super) struct Short {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Short {
    pub(super) fn start(clients: usize) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let threads = (0..clients).map(|client| {
            let (stop, done, failures) = (stop.clone(), done.clone(), failures.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let number = client << 20 | done.fetch_add(1, Ordering::Relaxed);
                    if let Err(error) = one(number) {
                        failures.lock().expect("no client panics").push(format!("{number:x}: {error}"));
                    }
                    // A few hundred a second: closed ones keep their port for a minute.
                    thread::sleep(Duration::from_millis(10));
                }
            })
        });
        let threads = threads.collect();
        Self { stop, done, failures, threads }
    }

    /// How many there were, and those that failed.
    pub(super) fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("no client panics"));
        let failures = self.failures.lock().expect("no client panics").clone();
        (self.done.load(Ordering::Relaxed), failures)
    }
}

fn one(number: usize) -> io::Result<()> {
    let quiet = Quiet { number, stream: connect()? };
    (&quiet.stream).write_all(&quiet.words(1))?;
    quiet.answer(1)
}
