//! Many connections at once through one worker to one address, beyond the ephemeral ports: 2,000, and 50,000 with
//! `SHERD_PROVE=1`, or as many as the descriptor limit allows.

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

use rig::{Front, SOON, alone, raise_descriptor_limit};
use sherd_lb::relay::Limits;
use sherd_testkit::eventually;

/// The namespace's ephemeral ports, so few that the worker runs out of them.
const EPHEMERAL: (u16, u16) = (40_000, 40_999);

/// Clients from one address, so that these don't.
const PER_ADDRESS: usize = 500;

/// Descriptors that a connection takes in this process: the client's, the worker's two, the shard's.
const DESCRIPTORS_EACH: usize = 4;

fn connections() -> usize {
    let wanted = if std::env::var_os("SHERD_PROVE").is_some() { 50_000 } else { 2_000 };
    let limit = raise_descriptor_limit((wanted * DESCRIPTORS_EACH + 512) as u64) as usize;
    let possible = (limit - 256) / DESCRIPTORS_EACH;
    if possible < wanted {
        eprintln!("SKIPPED {wanted} connections: RLIMIT_NOFILE is {limit}; {possible} instead");
    }
    wanted.min(possible)
}

/// A client from 127.0.1.x, so that only the worker has to make do with one source address.
fn connect(number: usize, address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let source = Ipv4Addr::new(127, 0, 1, 1 + u8::try_from(number / PER_ADDRESS).unwrap());
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
    alone("relay_scale", || {
        let connections = connections();
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{} {}", EPHEMERAL.0, EPHEMERAL.1)).unwrap();
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
