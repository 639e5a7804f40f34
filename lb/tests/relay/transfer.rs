//! Bytes arrive, all of them, in order, and no more of them are held than the sockets and one buffer can.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, send};
use sherd_lb::relay::Limits;
use sherd_testkit::eventually;

use crate::rig::{Bytes, Front, SOON, alone, ask, named, shard};

/// Both ends send what the first 24 bytes of the client say, at the same time, and check what they get.
pub(crate) fn exchange(stream: &TcpStream, send: (u64, usize), expect: (u64, usize)) {
    thread::scope(|scope| {
        scope.spawn(move || {
            Bytes::of(send.0).send(stream, send.1).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        Bytes::of(expect.0).expect(stream, expect.1).unwrap();
    });
}

fn check_transfers(limits: Limits, largest: usize) {
    let backend = shard(|mut stream| {
        let mut header = [0; 24];
        stream.read_exact(&mut header)?;
        let [seed, up, down] = [0, 8, 16].map(|at| u64::from_be_bytes(header[at..at + 8].try_into().unwrap()));
        exchange(&stream, (seed + 1, down as usize), (seed, up as usize));
        Ok(())
    });
    let front = Front::new(0, limits, Some(backend));
    thread::scope(|scope| {
        for client in 0..12 {
            let front = &front;
            scope.spawn(move || {
                let mut sizes = Bytes::of(1_000 + client);
                for round in 0..4 {
                    let seed = client * 100 + round * 2;
                    // Small, middling and large ones.
                    let mut size = || sizes.number() as usize % largest.min(1 << (8 + 6 * (round as usize % 3)));
                    let (up, down) = (size(), size());
                    let mut stream = front.connect();
                    for number in [seed, up as u64, down as u64] {
                        stream.write_all(&number.to_be_bytes()).unwrap();
                    }
                    exchange(&stream, (seed, up), (seed + 1, down));
                }
            });
        }
    });
    front.becomes_idle();
    assert_eq!(front.worker.stats().closed.get(), 48);
}

#[test]
fn bytes_arrive_copied_and_spliced() {
    alone("transfer::spliced", || {
        check_transfers(Limits { splice_above: Some(4 << 10), ..Limits::default() }, 2 << 20);
    });
}

#[test]
fn bytes_arrive_when_everything_is_copied() {
    alone("transfer::copied", || check_transfers(Limits { splice_above: None, ..Limits::default() }, 2 << 20));
}

/// A client that doesn't read stops the shard, and what it then reads is whole.
fn check_back_pressure(limits: Limits) {
    const TOTAL: usize = 48 << 20;
    let written = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&written);
    let backend = shard(move |mut stream| {
        let block = [7; 32 << 10];
        let mut left = TOTAL;
        while left > 0 {
            let len = stream.write(&block[..left.min(block.len())])?;
            left -= len;
            counter.fetch_add(len as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    let front = Front::new(0, limits, Some(backend));
    let mut stream = front.connect();
    let mut last = (0, Instant::now());
    let stuck = eventually("the shard is stopped", SOON, || {
        let now = written.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_millis(500)).then_some(now)
    });
    // Two send and two receive buffers of the kernel's, 4 and 6 MiB at the most by default, and what we hold.
    assert!(stuck < 24 << 20, "{stuck} bytes are on their way to a client that doesn't read");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), TOTAL);
    assert!(rest.iter().all(|byte| *byte == 7));
}

#[test]
fn a_client_that_does_not_read_stops_the_shard_when_splicing() {
    alone("transfer::back_pressure", || check_back_pressure(Limits::default()));
}

#[test]
fn a_client_that_does_not_read_stops_the_shard_when_copying() {
    alone("transfer::back_pressure_copied", || {
        check_back_pressure(Limits { splice_above: None, ..Limits::default() });
    });
}

#[test]
fn urgent_data_stalls_nothing() {
    alone("transfer::urgent", || {
        use std::os::fd::AsRawFd;
        let front = Front::new(0, Limits::default(), Some(named("a")));
        let stream = front.connect();
        for _ in 0..20 {
            send(stream.as_raw_fd(), b"before", MsgFlags::empty()).unwrap();
            send(stream.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
            assert_eq!(ask(&stream).unwrap(), "a");
        }
    });
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    alone("transfer::server_first", || {
        let backend = shard(|mut stream| stream.write_all(b"220 ready\r\n"));
        let front = Front::new(0, Limits::default(), Some(backend));
        let mut greeting = String::new();
        front.connect().read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "220 ready\r\n");
    });
}
