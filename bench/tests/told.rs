//! Connections that fail are told for themselves: when, from where and how far they were, against servers whose faults are planted.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use sherd_bench::{
    load::{Asks, KeepPlan, Kept, KeptTold, Reached, Visit, VisitPlan, Visits},
    measure::allowed_cpus,
    shard::Shard,
};
use socket2::SockRef;

/// What a server does with connection number `n`, after its first request was read.
type Conduct = fn(n: usize, stream: TcpStream);

fn server(conduct: Conduct) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for (n, mut stream) in listener.incoming().flatten().enumerate() {
            thread::spawn(move || {
                if stream.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {
                    conduct(n, stream);
                }
            });
        }
    });
    address
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
    drop(stream);
}

fn part(stream: &mut TcpStream, bytes: &str) {
    stream.write_all(bytes.as_bytes()).expect("the client reads");
    // Until the client has it: a reset overtakes what isn't read yet.
    thread::sleep(Duration::from_millis(30));
}

fn visit(target: SocketAddr) -> Vec<Visit> {
    let cpus = vec![allowed_cpus().expect("readable")[0]];
    let plan = VisitPlan {
        target,
        asks: Asks::Bytes(3),
        visits_per_second: 200.0,
        cpus,
        seed: 1,
        longest: Duration::from_millis(200),
    };
    let visits = Visits::start(&plan);
    thread::sleep(Duration::from_millis(250));
    visits.finish().expect("the load goes on")
}

#[test]
fn a_failed_visit_tells_how_far_it_was() {
    let check = |conduct: Conduct, reached: Reached| {
        let target = server(conduct);
        let visits = visit(target);
        let failures: Vec<_> = visits.into_iter().filter_map(|visit| visit.failure).collect();
        assert!(!failures.is_empty(), "nothing failed at {reached:?}");
        for failure in failures {
            assert_eq!(failure.reached, reached, "{failure:?}");
            assert!(failure.client.is_some_and(|client| client.ip() == target.ip()), "{failure:?}");
        }
    };
    check(|_, stream| reset(stream), Reached::Asked);
    check(
        |_, mut stream| {
            part(&mut stream, "HTTP/1.1 200 OK\r\nContent-Le");
            reset(stream);
        },
        Reached::PartlyAnswered,
    );
    check(
        |_, mut stream| {
            part(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
            reset(stream);
        },
        Reached::Answered,
    );
}

#[test]
fn a_refused_visit_has_reached_nothing() {
    // Bound and not listening: nobody else gets the port.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("loopback has a port");
    let target = socket.local_addr().expect("bound").as_socket().expect("of TCP");
    let visits = visit(target);
    assert!(!visits.is_empty());
    assert!(visits.iter().all(|visit| visit.failure.as_ref().is_some_and(|f| f.reached == Reached::Connecting)));
}

fn plan(target: SocketAddr) -> KeepPlan {
    KeepPlan {
        target,
        path: "/3?slot".into(),
        connections: 2,
        gap: Duration::from_millis(20),
        life: Duration::from_millis(150),
        patience: Duration::from_millis(100),
        cpus: allowed_cpus().expect("readable"),
        longest: Duration::from_secs(30),
    }
}

fn keep(target: SocketAddr, duration: Duration) -> KeptTold {
    let kept = Kept::start(&plan(target));
    thread::sleep(duration);
    kept.finish().expect("the load goes on")
}

#[test]
fn kept_connections_are_used_up_without_a_loss() {
    let mut shard = Shard::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("loopback has a port");
    let target = shard.address().expect("it is bound");
    thread::spawn(move || shard.serve());
    let patient = KeepPlan { patience: Duration::from_secs(20), ..plan(target) };
    let kept = Kept::start(&patient);
    thread::sleep(Duration::from_millis(600));
    let told = kept.finish().expect("the load goes on");
    assert!(told.lost.is_empty(), "{:?}", told.lost);
    assert!(told.answered.len() > 10, "{}", told.answered.len());
}

#[test]
fn a_lost_kept_connection_tells_who_served_it_and_how_far_it_was() {
    let check = |conduct: Conduct, reached: Reached, slot: Option<u32>| {
        let told = keep(server(conduct), Duration::from_millis(300));
        assert!(!told.lost.is_empty(), "nothing was lost at {reached:?}");
        let as_planted = told.lost.iter().filter(|lost| lost.failure.reached == reached && lost.slot == slot).count();
        assert_eq!(as_planted, told.lost.len(), "{:?}", told.lost);
        assert!(told.lost.iter().all(|lost| lost.answered == u64::from(slot.is_some()) && lost.opened < lost.ended));
    };
    check(|_, stream| reset(stream), Reached::Asked, None);
    check(
        |_, mut stream| {
            part(&mut stream, "HTTP/1.1 200 OK\r\nSherd-Slot: 5\r\nContent-Length: 3\r\n\r\nabc");
            let _ = stream.read(&mut [0; 1024]);
            reset(stream);
        },
        Reached::Asked,
        Some(5),
    );
    check(
        |_, mut stream| {
            part(&mut stream, "HTTP/1.1 200 OK\r\nSherd-Slot: 5\r\nContent-Length: 3\r\n\r\nab");
            reset(stream);
        },
        Reached::PartlyAnswered,
        None,
    );
}

#[test]
fn what_ends_between_two_requests_is_heard_then() {
    let target = server(|_, mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").expect("the client reads");
        thread::sleep(Duration::from_millis(50));
    });
    let slow = KeepPlan { gap: Duration::from_secs(20), connections: 1, life: Duration::from_secs(60), ..plan(target) };
    let began = Instant::now();
    let kept = Kept::start(&slow);
    // It is dropped by the server 50 ms after its answer, 20 s before its next request is due.
    thread::sleep(Duration::from_millis(500));
    let told = kept.finish().expect("the load goes on");
    let lost = told.lost.first().expect("it was lost");
    assert_eq!(lost.failure.reached, Reached::Answered, "{lost:?}");
    assert!(lost.ended - began < Duration::from_secs(5), "{lost:?}");
}
