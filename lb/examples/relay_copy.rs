//! What a worker's thread spends on a gigabyte of answers, by their size and by `splice_above`: the figures that
//! `Limits::splice_above` was chosen by.
//!
//! `cargo run --release -p sherd-lb --example relay_copy`

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use nix::unistd::{Pid, gettid};
use sherd_lb::relay::{Backend, Limits, PortKey, Role, Worker, WorkerConfig};

const PORT: PortKey = PortKey(0);
const CLIENTS: usize = 4;
const ROUNDS: usize = 5;
const KIB: usize = 1 << 10;
const PAYLOADS: [usize; 7] = [KIB, 8 * KIB, 32 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB, 8192 * KIB];
const SPLICE_ABOVE: [Option<u32>; 5] = [None, Some(8 << 10), Some(32 << 10), Some(64 << 10), Some(256 << 10)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shard = shard()?;
    let relays: Vec<Relay> = SPLICE_ABOVE.iter().map(|above| Relay::new(*above, shard)).collect::<Result<_, _>>()?;
    println!("worker's CPU seconds per GB, median of {ROUNDS} interleaved rounds, {CLIENTS} clients");
    print!("{:>12}", "answer KiB");
    SPLICE_ABOVE.iter().for_each(|above| match above {
        None => print!("{:>12}", "copy"),
        Some(bytes) => print!("{:>12}", format!("above {}K", bytes >> 10)),
    });
    println!();
    for payload in PAYLOADS {
        print!("{:>12}", payload / KIB);
        let mut figures = vec![Vec::new(); relays.len()];
        for _ in 0..ROUNDS {
            for (relay, figures) in relays.iter().zip(&mut figures) {
                figures.push(relay.seconds_per_gigabyte(payload)?);
            }
        }
        for mut figures in figures {
            figures.sort_by(f64::total_cmp);
            print!("{:>12.3}", figures[ROUNDS / 2]);
        }
        println!();
    }
    Ok(())
}

/// A worker in front of the shard, with the thread whose time is counted.
struct Relay {
    _worker: Worker,
    thread: Pid,
    address: SocketAddr,
}

impl Relay {
    fn new(splice_above: Option<u32>, shard: SocketAddr) -> Result<Self, Box<dyn std::error::Error>> {
        let (tells, told) = mpsc::channel();
        let pin = Box::new(move || tells.send(gettid()).map_err(io::Error::other));
        let limits = Limits { splice_above, ..Limits::default() };
        let worker = Worker::spawn(WorkerConfig { slot: 0, name: "relay".into(), pin, limits })?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        worker.set_backend(Some(Backend { netns: None, ports: vec![(PORT, shard.into())] })).recv()??;
        worker.serve(PORT, listener.into(), Role::Slot).recv()??;
        Ok(Self { _worker: worker, thread: told.recv()?, address })
    }

    fn seconds_per_gigabyte(&self, payload: usize) -> io::Result<f64> {
        // Enough for a figure, and bounded: 64 MiB, or 4,000 answers of the small ones.
        let answers = (64 * KIB * KIB / payload).clamp(CLIENTS, 4_000) / CLIENTS;
        let before = self.cpu_nanos()?;
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| self.fetch(payload, answers))).collect();
            clients.into_iter().try_for_each(|client| client.join().map_err(|_| io::ErrorKind::Other)?)
        })?;
        let bytes = payload * answers * CLIENTS;
        Ok((self.cpu_nanos()? - before) as f64 / bytes as f64)
    }

    fn fetch(&self, payload: usize, answers: usize) -> io::Result<()> {
        let mut stream = TcpStream::connect(self.address)?;
        let mut buffer = vec![0; payload];
        for _ in 0..answers {
            stream.write_all(&(payload as u64).to_be_bytes())?;
            stream.read_exact(&mut buffer)?;
        }
        Ok(())
    }

    /// Time on a CPU, from the scheduler's own account.
    fn cpu_nanos(&self) -> io::Result<u64> {
        let account = fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.thread))?;
        account.split(' ').next().and_then(|nanos| nanos.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Answers each 8-byte number with as many bytes.
fn shard() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let bytes = vec![b'x'; *PAYLOADS.iter().max().unwrap_or(&0)];
    let mut wanted = [0; 8];
    loop {
        stream.read_exact(&mut wanted)?;
        stream.write_all(&bytes[..u64::from_be_bytes(wanted) as usize])?;
    }
}
