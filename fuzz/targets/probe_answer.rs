//! What a shard answers to an HTTP probe: read from a socket, as the agent does it.

#![no_main]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener},
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use sherd_lb::ready::{HttpCheck, ProbeError, probe_http};

/// A shard that answers the next probe with these bytes.
struct Shard {
    port: u16,
    answers: SyncSender<Vec<u8>>,
}

static SHARD: LazyLock<Shard> = LazyLock::new(|| {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    let port = listener.local_addr().expect("a socket").port();
    let (answers, next) = sync_channel::<Vec<u8>>(0);
    thread::spawn(move || {
        for answer in next {
            let (mut client, _) = listener.accept().expect("a probe");
            let _ = client.read(&mut [0; 1024]);
            // The probe may have seen enough.
            let _ = client.write_all(&answer);
            let _ = client.shutdown(Shutdown::Write);
        }
    });
    Shard { port, answers }
});

/// Each probe goes to another loopback address: the ports of one would not last.
fn next_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    (Ipv4Addr::new(127, high.max(1), low, 1), SHARD.port).into()
}

/// `HTTP/1.x NNN`, then the end of that word; what RFC 9112 says of a status line.
fn status(answer: &[u8]) -> Option<u16> {
    let rest = answer.strip_prefix(b"HTTP/1.")?;
    let [minor, b' ', status @ ..] = rest else { return None };
    let (status, after) = status.split_at_checked(3)?;
    let ends = matches!(after.first()?, b' ' | b'\r' | b'\n');
    let digits = minor.is_ascii_digit() && status.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(status).ok().filter(|_| ends && digits)?.parse().ok()
}

fuzz_target!(|answer: &[u8]| {
    let address = next_address();
    // Any body is asked for, and none is wrong.
    let body = |_: &[u8]| true;
    let check = HttpCheck { method: "GET", path: "/healthz", host: None, status: &[200..=399], body: Some(&body) };
    let is_good = |status: &u16| check.status.iter().any(|range| range.contains(status));
    SHARD.answers.send(answer.to_vec()).expect("it accepts");
    let found = match probe_http(&address.into(), &check, Duration::from_secs(5)) {
        // Behind interim answers it is another status than the first.
        Ok(()) => status(answer).filter(|status| is_good(status) || (100..=199).contains(status)),
        Err(ProbeError::UnexpectedStatus { status: found, .. }) => {
            let first = status(answer).filter(|status| *status == found || (100..=199).contains(status));
            first.filter(|_| !is_good(&found))
        }
        // Behind its status line the head may be broken off or none.
        Err(ProbeError::Malformed { .. } | ProbeError::Reset { .. } | ProbeError::HeadTooLong { .. }) => return,
        Err(error) => panic!("{error:?}"),
    };
    assert!(found.is_some(), "another status than that of {answer:?}");
});
