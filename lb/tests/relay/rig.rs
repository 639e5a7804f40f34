//! What the tests stand on: shards that are threads, workers in front of them, bytes that can be checked.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Once,
    thread,
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sherd_lb::relay::{Backend, Limits, PortKey, Role, Worker, WorkerConfig};
use sherd_testkit::{Need, eventually, in_new_netns, needs};

pub(crate) const PORT: PortKey = PortKey(7);
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Runs `body` in a namespace of its own, if this machine can.
pub(crate) fn alone(test: &str, body: impl FnOnce() + Send + 'static) {
    static LIMIT: Once = Once::new();
    LIMIT.call_once(|| {
        raise_descriptor_limit(1 << 20);
    });
    if needs(test, &[Need::Root]) {
        in_new_netns(body);
    }
}

/// As many descriptors as `wanted`, or as many as may be had: how many that is.
pub(crate) fn raise_descriptor_limit(wanted: u64) -> u64 {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
    getrlimit(Resource::RLIMIT_NOFILE).unwrap().0
}

/// A worker in front of `backend`, and the address that clients connect to.
pub(crate) struct Front {
    pub(crate) worker: Worker,
    pub(crate) address: SocketAddr,
    pub(crate) listener: TcpListener,
}

impl Front {
    pub(crate) fn new(slot: u16, limits: Limits, backend: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let front = Self { worker: worker(slot, limits), address: listener.local_addr().unwrap(), listener };
        front.serve(Role::Slot);
        if let Some(backend) = backend {
            front.set_backend(backend);
        }
        front
    }

    pub(crate) fn serve(&self, role: Role) {
        let listener = self.listener.try_clone().unwrap();
        self.worker.serve(PORT, listener.into(), role).recv().unwrap().unwrap();
    }

    pub(crate) fn set_backend(&self, address: SocketAddr) {
        let backend = Backend { netns: None, ports: vec![(PORT, address.into())] };
        self.worker.set_backend(Some(backend)).recv().unwrap().unwrap();
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address)
    }

    /// Waits until the worker has no connection left.
    pub(crate) fn becomes_idle(&self) {
        eventually("the worker is idle", SOON, || (self.worker.stats().active.get() == 0).then_some(()));
    }
}

pub(crate) fn worker(slot: u16, limits: Limits) -> Worker {
    let name = format!("relay-{slot}");
    Worker::spawn(WorkerConfig { slot, name, pin: Box::new(|| Ok(())), limits }).unwrap()
}

/// A client that fails a test rather than hang it.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, SOON).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream
}

/// A shard: `serve` gets each connection on a thread of its own.
pub(crate) fn shard(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    shard_on(listener, serve);
    address
}

pub(crate) fn shard_on(
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + Clone + 'static,
) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (serve, Ok(stream)) = (serve.clone(), stream) else { return };
            thread::spawn(move || serve(stream));
        }
    });
}

/// A shard that says `name` to each line it gets.
pub(crate) fn named(name: &'static str) -> SocketAddr {
    shard(move |stream| answer_lines(stream, name))
}

pub(crate) fn answer_lines(mut stream: TcpStream, name: &str) -> io::Result<()> {
    let mut line = [0; 1];
    loop {
        if stream.read(&mut line)? == 0 {
            return Ok(());
        }
        if line == *b"\n" {
            stream.write_all(format!("{name}\n").as_bytes())?;
        }
    }
}

/// Sends a line and reads the one that answers it.
pub(crate) fn ask(mut stream: &TcpStream) -> io::Result<String> {
    stream.write_all(b"?\n")?;
    let mut answer = Vec::new();
    loop {
        let mut byte = [0; 1];
        if stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if byte == *b"\n" {
            return Ok(String::from_utf8(answer).unwrap());
        }
        answer.extend(byte);
    }
}

/// An address that refuses.
pub(crate) fn nobody() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// Bytes that tell their place: every position of every stream has its own.
#[derive(Clone)]
pub(crate) struct Bytes {
    state: u64,
}

impl Bytes {
    pub(crate) fn of(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    pub(crate) fn send(mut self, mut to: &TcpStream, len: usize) -> io::Result<()> {
        let mut left = len;
        let mut block = [0; 8 << 10];
        while left > 0 {
            for byte in &mut block {
                *byte = self.number() as u8;
            }
            // Sizes that fall on no boundary.
            let piece = left.min(1 + self.number() as usize % block.len());
            to.write_all(&block[..piece])?;
            // What was drawn and not sent would be missed: the receiver draws as many.
            left -= piece;
        }
        Ok(())
    }

    /// Reads to the end, and compares with what `send` sent.
    pub(crate) fn expect(mut self, mut from: &TcpStream, len: usize) -> io::Result<()> {
        let mut got = Vec::new();
        from.read_to_end(&mut got)?;
        assert_eq!(got.len(), len, "bytes arrived");
        let mut rest = got.as_slice();
        let mut block = [0; 8 << 10];
        while !rest.is_empty() {
            for byte in &mut block {
                *byte = self.number() as u8;
            }
            let piece = rest.len().min(1 + self.number() as usize % block.len());
            assert!(rest[..piece] == block[..piece], "bytes differ {} before the end", rest.len());
            rest = &rest[piece..];
        }
        Ok(())
    }
}
