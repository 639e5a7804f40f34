//! Bounds: connections, the queue beyond them, time to connect, time to wait.

use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpListener},
    process::Command,
    time::{Duration, Instant},
};

use sherd_lb::relay::{Cause, Limits, Standing, Worker, WorkerConfig};
use sherd_testkit::eventually;

use crate::rig::{Front, SOON, alone, answer_lines, ask, named, nobody, shard_on};

#[test]
fn beyond_the_limit_clients_wait_in_our_queue_and_then_in_the_kernels() {
    alone("limits::connections", || {
        let limits = Limits { max_connections: 2, max_pending: 1, ..Limits::default() };
        let front = Front::new(0, limits, Some(named("a")));
        let served = [front.connect(), front.connect()];
        served.iter().for_each(|stream| assert_eq!(ask(stream).unwrap(), "a"));
        let waiting: Vec<_> = (0..5).map(|_| front.connect()).collect();
        let stats = front.worker.stats();
        eventually("one is pending", SOON, || (stats.pending.get() == 1).then_some(()));
        assert_eq!((stats.accepted.get(), stats.active.get(), stats.standing()), (3, 2, Standing::Full));
        eventually("the limit is counted", SOON, || (stats.errors(Cause::Limit) > 0).then_some(()));
        drop(served);
        for stream in &waiting {
            assert_eq!(ask(stream).unwrap(), "a");
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
        front.becomes_idle();
        assert_eq!(stats.accepted.get(), 7);
    });
}

#[test]
fn without_a_backend_clients_wait_until_there_is_one() {
    alone("limits::no_backend", || {
        let front = Front::new(0, Limits::default(), None);
        let stream = front.connect();
        std::thread::sleep(Duration::from_millis(150));
        assert_eq!(front.worker.stats().accepted.get(), 0, "it waits in the kernel's queue");
        front.set_backend(named("a"));
        assert_eq!(ask(&stream).unwrap(), "a");
    });
}

#[test]
fn a_shard_that_refuses_for_a_moment_costs_no_connection() {
    alone("limits::refused", || {
        let address = nobody();
        let front = Front::new(0, Limits::default(), Some(address));
        let stream = front.connect();
        eventually("it was refused", SOON, || (front.worker.stats().errors(Cause::ConnectRefused) >= 2).then_some(()));
        shard_on(TcpListener::bind(address).unwrap(), |stream| answer_lines(stream, "late"));
        assert_eq!(ask(&stream).unwrap(), "late");
    });
}

#[test]
fn a_client_waits_only_so_long() {
    alone("limits::pending", || {
        let limits = Limits { pending_timeout: Duration::from_millis(300), ..Limits::default() };
        let front = Front::new(0, limits, Some(nobody()));
        let begin = Instant::now();
        let mut stream = front.connect();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!((Duration::from_millis(300)..Duration::from_secs(2)).contains(&begin.elapsed()));
        assert_eq!(front.worker.stats().errors(Cause::PendingTimeout), 1);
    });
}

#[test]
fn a_connect_takes_only_so_long() {
    alone("limits::connect_timeout", || {
        let commands = [
            "link add near type veth peer name far",
            "addr add 192.0.2.1/24 dev near",
            "link set near up",
            "link set far up",
        ];
        for arguments in commands {
            assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
        }
        let limits = Limits {
            connect_timeout: Duration::from_millis(150),
            pending_timeout: Duration::from_millis(400),
            ..Limits::default()
        };
        // Nobody answers at the other end of the cable.
        let front = Front::new(0, limits, Some(SocketAddr::from(([192, 0, 2, 2], 80))));
        let begin = Instant::now();
        let mut stream = front.connect();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(begin.elapsed() < Duration::from_secs(2), "took {:?}", begin.elapsed());
        assert!(front.worker.stats().errors(Cause::ConnectTimeout) >= 1);
    });
}

#[test]
fn a_worker_that_can_not_start_says_why() {
    let config = |pin| WorkerConfig { slot: 0, name: "relay".into(), pin, limits: Limits::default() };
    let refused = Worker::spawn(config(Box::new(|| Err(ErrorKind::PermissionDenied.into()))));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert!(Worker::spawn(config(Box::new(|| panic!("pinning is broken")))).is_err());
}
