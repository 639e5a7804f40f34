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

fn check() -> HttpCheck {
    HttpCheck { path: "/healthz".into(), host: None, status: 200..=399 }
}

fn ask(address: SocketAddr) -> Result<(), ProbeError> {
    probe_http(&address.into(), &check(), Duration::from_millis(500))
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
fn nobody_there_is_refused() {
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let tcp = probe_tcp(&closed.into(), Duration::from_secs(1));
    assert!(matches!(tcp, Err(ProbeError::Refused { .. })), "{tcp:?}");
    let http = ask(closed);
    assert!(matches!(http, Err(ProbeError::Refused { .. })), "{http:?}");
}

#[test]
fn a_check_can_not_smuggle_a_header() {
    let bad = HttpCheck { path: "/ HTTP/1.1\r\nX: y".into(), ..check() };
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
