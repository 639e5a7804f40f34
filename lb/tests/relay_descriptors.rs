//! Descriptors: none is left behind, and running out of them loses nobody. In a process of its own, as the limit and
//! the count are the process's.

#[path = "relay/rig.rs"]
#[allow(dead_code)]
mod rig;

use std::{
    fs,
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rig::{Front, SOON, alone, ask, named};
use sherd_lb::relay::{Cause, Limits};
use sherd_testkit::eventually;

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// One test: both look at what the whole process has.
#[test]
fn descriptors_run_out_without_loss_and_none_is_left() {
    alone("relay_descriptors", || {
        let shard = named("a");
        let before = open_descriptors();
        let front = Front::new(0, Limits::default(), Some(shard));
        running_out(&front);
        many_that_end_in_every_way(&front);
        drop(front);
        eventually("every descriptor is closed", SOON, || (open_descriptors() <= before).then_some(()));
    });
}

/// With few descriptors left, clients wait in the kernel's queue; the worker rests rather than spins, and goes on.
fn running_out(front: &Front) {
    let clients: Vec<TcpStream> = (0..30).map(|_| front.connect()).collect();
    clients.iter().for_each(|client| assert_eq!(ask(client).unwrap(), "a"));
    let late: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(front.address).unwrap()).collect();
    late.iter().for_each(|client| assert_eq!(ask(client).unwrap(), "a"));

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let stats = front.worker.stats();
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, open_descriptors() as u64 - 1, hard).unwrap();
    client.connect(&front.address.into()).unwrap();
    let exhausted = eventually("it is counted", SOON, || {
        let count = stats.errors(Cause::DescriptorsExhausted);
        (count > 0).then_some(count)
    });
    let (wakeups, begin) = (stats.wakeups.get(), Instant::now());
    while begin.elapsed() < Duration::from_millis(500) {
        assert_eq!(ask(&clients[0]).unwrap(), "a", "those that are served stay served");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(stats.errors(Cause::DescriptorsExhausted) - exhausted < 50, "it spins");
    assert!(stats.wakeups.get() - wakeups < 500, "it spins");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(ask(&client.into()).unwrap(), "a");
}

fn many_that_end_in_every_way(front: &Front) {
    for round in 0..200 {
        let client = front.connect();
        if round % 3 > 0 {
            ask(&client).unwrap();
        }
        if round % 2 == 0 {
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        }
        // A child that is started meanwhile shares the sockets until it execs.
        if round % 50 == 0 {
            assert!(Command::new("true").status().unwrap().success());
        }
    }
    front.becomes_idle();
}
