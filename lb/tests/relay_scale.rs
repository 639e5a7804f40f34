//! Many connections at once through one worker to one address: 1,000, and 50,000 with `SHERD_PROVE=1`.

#[path = "relay/rig.rs"]
#[allow(dead_code)]
mod rig;

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rig::{Front, SOON, alone};
use sherd_lb::relay::Limits;
use sherd_testkit::eventually;

/// Clients from one address: its ephemeral ports would not do for all.
const PER_ADDRESS: usize = 10_000;

/// A client from 127.0.1.x, so that only the worker has to make do with one source address.
fn connect(number: usize, address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let source = Ipv4Addr::new(127, 0, 1, 1 + (number / PER_ADDRESS) as u8);
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn many_connections_to_one_address_are_all_served_and_small() {
    let connections = if std::env::var_os("SHERD_PROVE").is_some() { 50_000 } else { 1_000 };
    alone("relay_scale", move || {
        fs::write("/proc/sys/net/core/somaxconn", "65535").unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let shard = listener.local_addr().unwrap();
        let front = Front::new(0, Limits::default(), Some(shard));
        // Room for what this process keeps of each connection, so that what grows is the worker's.
        let mut clients: Vec<TcpStream> = Vec::with_capacity(connections);
        let mut accepted: Vec<TcpStream> = Vec::with_capacity(connections);
        let before = resident_bytes();
        for number in 0..connections {
            clients.push(connect(number, front.address));
            accepted.push(listener.accept().unwrap().0);
        }
        let grown = resident_bytes().saturating_sub(before) / connections;
        let stats = front.worker.stats();
        eventually("all are counted", SOON, || (stats.active.get() == connections as u64).then_some(()));
        assert!(grown < 2_048, "{grown} bytes for each idle connection");
        eprintln!("{connections} idle connections, {grown} bytes resident for each, the test's own included");
        every_one_is_served(&clients, &accepted);
        drop((clients, accepted));
        eventually("all have ended", Duration::from_secs(60), || (stats.active.get() == 0).then_some(()));
    });
}

/// A byte up each connection, in the order in which they were made, and its double down.
fn every_one_is_served(clients: &[TcpStream], accepted: &[TcpStream]) {
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for mut stream in accepted {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                stream.write_all(&[byte[0].wrapping_mul(2)]).unwrap();
            }
        });
        for (number, mut client) in clients.iter().enumerate() {
            client.write_all(&[number as u8]).unwrap();
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], (number as u8).wrapping_mul(2));
            served.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!(served.into_inner(), clients.len());
}
