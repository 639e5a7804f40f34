//! What is asked of a server, and by whom; owns no connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::http;

/// The first of the addresses that clients of a load have where there are several: all of 127.0.0.0/8 is this host's.
const FIRST_CLIENT: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 1);

/// What is asked, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The request target, starting with `/`.
    pub path: String,
    /// The Host header.
    pub host: String,
    /// From how many addresses connections come, in turn, to targets on IPv4 loopback; with 1 the kernel chooses one.
    pub clients: usize,
}

impl Request {
    /// What a shard answers with so many bytes.
    pub fn of_bytes(answer_bytes: usize) -> Self {
        Self { path: format!("/{answer_bytes}"), host: "shard".into(), clients: 1 }
    }

    pub(super) fn bytes(&self, closes: bool) -> Vec<u8> {
        http::get(&self.path, &self.host, closes)
    }

    /// Where connection `number` to `target` comes from, if that is not for the kernel to choose.
    pub(super) fn source(&self, number: usize, target: SocketAddr) -> Option<SocketAddr> {
        let several = self.clients > 1 && target.is_ipv4() && target.ip().is_loopback();
        let address = Ipv4Addr::from_bits(FIRST_CLIENT.to_bits() + (number % self.clients.max(1)) as u32);
        several.then(|| SocketAddr::new(IpAddr::V4(address), 0))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        thread,
        time::Duration,
    };

    use sherd_testkit::eventually;

    use super::*;
    use crate::{
        interrupt::Interrupt,
        load::{Load, Shape, run_request},
        measure::allowed_cpus,
    };

    /// As programs of others may: it answers in chunks to the path that was agreed on, and closes after each answer.
    fn stranger() -> SocketAddr {
        const ANSWER: &[u8] =
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a port");
        let address = listener.local_addr().expect("it is bound");
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut request = [0; 1024];
                let count = stream.read(&mut request).unwrap_or(0);
                let source = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                if request[..count].starts_with(b"GET /a?b HTTP/1.1\r\nHost: c\r\n") && source.starts_with("127.64.0.")
                {
                    let _ = stream.write_all(ANSWER);
                }
            }
        });
        address
    }

    #[test]
    fn any_server_can_be_asked() {
        let request = Request { path: "/a?b".into(), host: "c".into(), clients: 3 };
        let cpus = allowed_cpus().expect("readable");
        for shape in
            [Shape::KeepAlive, Shape::ConnectionPerRequest, Shape::Open { requests_per_second: 100.0, seed: 1 }]
        {
            let load = Load {
                targets: vec![stranger()],
                connections: 4,
                answer_bytes: 0,
                shape,
                cpus: cpus[..1].to_vec(),
                warm_up: Duration::from_millis(20),
                duration: Duration::from_millis(200),
            };
            // On a busy host nothing may run for so long.
            let outcome = eventually("an answer", Duration::from_secs(30), || {
                let (outcome, (), ()) = run_request(&load, &request, &Interrupt::default(), || ()).expect("it runs");
                (outcome.requests > outcome.failed()).then_some(outcome)
            });
            assert!(outcome.errors.keys().all(|error| error.contains("unanswered")), "{shape:?}: {:?}", outcome.errors);
            assert!(outcome.body_bytes > 0);
        }
    }

    #[test]
    fn clients_take_turns_where_they_can() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 80));
        let several = Request { clients: 2, ..Request::of_bytes(1) };
        let of = |number| several.source(number, loopback).map(|source| source.to_string());
        let (first, second) = (Some("127.64.0.1:0".to_owned()), Some("127.64.0.2:0".to_owned()));
        assert_eq!([of(0), of(1), of(2)], [first.clone(), second, first]);
        assert_eq!(several.source(0, SocketAddr::from(([192, 0, 2, 1], 80))), None);
        assert_eq!(Request::of_bytes(1).source(0, loopback), None);
    }
}
