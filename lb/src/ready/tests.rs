//! Probes against real listeners, good and bad, on loopback and in a namespace.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd,
};

use sherd_testkit::{Need, in_new_netns, needs};

use super::*;

/// A listener that reads a request and sends `answer` in pieces of `piece` bytes, `pause` apart.
fn answers(answer: &'static [u8], piece: usize, pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        for piece in answer.chunks(piece) {
            if stream.write_all(piece).is_err() {
                return;
            }
            thread::sleep(pause);
        }
    });
    address
}

const CHECK: HttpCheck<'_> =
    HttpCheck { method: "GET", path: "/healthz", host: None, status: &[200..=204, 300..=399], body: None };

fn ask(address: SocketAddr) -> Result<(), ProbeError> {
    ask_for(address, &CHECK)
}

fn ask_for(address: SocketAddr, check: &HttpCheck<'_>) -> Result<(), ProbeError> {
    probe_http(&address.into(), check, Duration::from_millis(500))
}

/// A listener that sends `piece` for ever.
fn sends_for_ever(head: &'static [u8], piece: &'static [u8], pause: Duration) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(head);
        while stream.write_all(piece).is_ok() {
            thread::sleep(pause);
        }
    });
    address
}

#[test]
fn an_answer_within_the_range_is_ready() {
    ask(answers(b"HTTP/1.1 204 No Content\r\n\r\n", 1024, Duration::ZERO)).unwrap();
    ask(answers(b"HTTP/1.1 302 Found\r\n\r\n", 1, Duration::from_millis(1))).unwrap();
}

#[test]
fn other_answers_say_what_they_were() {
    let status = ask(answers(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 1024, Duration::ZERO));
    assert!(matches!(status, Err(ProbeError::UnexpectedStatus { status: 503, .. })), "{status:?}");
    let garbage = ask(answers(b"220 mail.example ESMTP\r\n", 1024, Duration::ZERO));
    assert!(matches!(garbage, Err(ProbeError::Malformed { .. })), "{garbage:?}");
    let nothing = ask(answers(b"", 1, Duration::ZERO));
    assert!(matches!(nothing, Err(ProbeError::Reset { .. })), "{nothing:?}");
}

#[test]
fn the_deadline_is_for_the_whole_and_not_for_each_read() {
    let begin = Instant::now();
    let slow = ask(answers(b"HTTP/1.1 200 OK\r\n", 1, Duration::from_millis(200)));
    assert!(matches!(slow, Err(ProbeError::TimedOut { .. })), "{slow:?}");
    assert!(begin.elapsed() < Duration::from_secs(2), "took {:?}", begin.elapsed());
}

#[test]
fn a_body_counts_where_it_is_asked_for() {
    let has_ok = |body: &[u8]| body.windows(2).any(|part| part == b"OK");
    let check = HttpCheck { body: Some(&has_ok), ..CHECK };
    let good = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall is OK", 3, Duration::from_millis(1));
    ask_for(good, &check).unwrap();
    let chunked = b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nO\r\n1\r\nK\r\n0\r\n\r\n";
    ask_for(answers(chunked, 1024, Duration::ZERO), &check).unwrap();
    // Also where the connection stays open: its length says that this was all.
    let wrong = sends_for_ever(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nno!", b" ", Duration::from_millis(50));
    let wrong = ask_for(wrong, &check);
    assert!(matches!(&wrong, Err(ProbeError::UnexpectedBody { body, .. }) if body == "no!"), "{wrong:?}");
}

/// Whatever a server does, a probe ends by its deadline and keeps a bounded part of what came.
#[test]
fn endless_answers_are_bounded() {
    let has_ok = |body: &[u8]| body.windows(2).any(|part| part == b"OK");
    let check = HttpCheck { body: Some(&has_ok), ..CHECK };
    let begin = Instant::now();
    const PIECE: &[u8] = &[b'x'; 16 << 10];
    let much = ask_for(sends_for_ever(b"HTTP/1.1 200 OK\r\n\r\n", PIECE, Duration::ZERO), &check);
    assert!(matches!(much, Err(ProbeError::UnexpectedBody { .. } | ProbeError::TimedOut { .. })), "{much:?}");
    let head = ask(sends_for_ever(b"HTTP/1.1 200 OK\r\n", b"X-Header: more of it\r\n", Duration::ZERO));
    assert!(matches!(head, Err(ProbeError::HeadTooLong { .. } | ProbeError::TimedOut { .. })), "{head:?}");
    let trickled = ask(sends_for_ever(b"HTTP/1.1 200 OK\r\nX: ", b"x", Duration::from_millis(20)));
    assert!(matches!(trickled, Err(ProbeError::TimedOut { .. })), "{trickled:?}");
    // A status that is wrong is known before the rest.
    let wrong = ask(sends_for_ever(b"HTTP/1.1 500 No\r\nX: ", b"x", Duration::from_millis(20)));
    assert!(matches!(wrong, Err(ProbeError::UnexpectedStatus { status: 500, .. })), "{wrong:?}");
    assert!(begin.elapsed() < Duration::from_secs(4), "took {:?}", begin.elapsed());
}

#[test]
fn nobody_there_is_refused() {
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let tcp = probe_tcp(&closed.into(), Duration::from_secs(1));
    assert!(matches!(tcp, Err(ProbeError::Refused { .. })), "{tcp:?}");
    let http = ask(closed);
    assert!(matches!(http, Err(ProbeError::Refused { .. })), "{http:?}");
}

#[test]
fn a_check_can_not_smuggle_a_header() {
    let bad = HttpCheck { path: "/ HTTP/1.1\r\nX: y", ..CHECK };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let result = probe_http(&address.into(), &bad, Duration::from_secs(1));
    assert!(matches!(result, Err(ProbeError::InvalidCheck { .. })), "{result:?}");
}

#[test]
fn a_probe_happens_in_the_namespace_and_leaves_the_caller_where_it_was() {
    if !needs("ready::namespace", &[Need::Root]) {
        return;
    }
    let (netns, listener) = in_new_netns(|| {
        (File::open("/proc/thread-self/ns/net").unwrap(), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
    });
    let address = listener.local_addr().unwrap();
    probe_tcp(&Route { netns: Some(netns.as_fd()), ..address.into() }, Duration::from_secs(1)).unwrap();
    let here = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert_eq!(here, std::fs::read_link("/proc/self/ns/net").unwrap());
    let outside = probe_tcp(&address.into(), Duration::from_millis(200));
    assert!(outside.is_err(), "the listener is in another namespace");
}

/// The kernel alone establishes a connection: only a program that accepts it is one that works.
#[test]
fn accepting_is_more_than_listening() {
    let bound = Duration::from_millis(200);
    let idle = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let route = Route::from(idle.local_addr().unwrap());
    probe_tcp(&route, bound).unwrap();
    let found = probe_accept(&route, bound);
    assert!(matches!(found, Err(ProbeError::NotAccepted { .. })), "{found:?}");

    let accepting = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let route = Route::from(accepting.local_addr().unwrap());
    thread::spawn(move || accepting.accept().map(drop));
    probe_accept(&route, Duration::from_secs(5)).unwrap();

    let deferring = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let route = Route::from(deferring.local_addr().unwrap());
    let seconds = 30_i32.to_ne_bytes();
    crate::sys::sockopt::set_bytes(deferring.as_fd(), libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &seconds).unwrap();
    probe_accept(&route, bound).unwrap();
}
