//! Clients, and the slot that each of them got.

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    process::Command,
    time::Duration,
};

use sherd_lb::{
    front::{Front, FrontConfig, SteeringMode},
    pinning,
    table::{Choice, CpuEntry, Flow, Policy, SlotEntry, SlotIndex, SteeringTable},
};
use sherd_testkit::eventually;
use socket2::{Domain, SockRef, Socket, Type};

/// Which steering a test asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Ebpf,
    Classic,
}

/// Connections of one check: 30 of them make the short form's 10^4.
pub(crate) fn connections_of_a_check() -> usize {
    if std::env::var("SHERD_PROVE").as_deref() == Ok("1") { 3000 } else { 300 }
}

pub(crate) fn loopback(v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}

/// More client addresses than ::1, on the loopback of this test's namespace.
pub(crate) fn add_v6_clients() {
    for host in 1..=16 {
        let address = format!("fd00::{host:x}/128");
        let added = Command::new("ip").args(["-6", "address", "add", &address, "dev", "lo", "nodad"]).status();
        assert!(added.expect("iproute2 is installed").success());
    }
}

/// Slots with neighbours: pairs share an L3, fours a node, eights a package.
pub(crate) fn table(policy: Policy, weights: &[u32]) -> SteeringTable {
    let count = weights.len() as u16;
    let near = |slot: u16, width: u16| {
        let first = slot / width * width;
        (first..(first + width).min(count)).map(SlotIndex).collect::<Vec<_>>()
    };
    let slots = (0..count).zip(weights).map(|(slot, weight)| SlotEntry {
        index: SlotIndex(slot),
        weight: *weight,
        levels: [near(slot, 2), near(slot, 4), near(slot, 8)],
    });
    // CPU 0 is slot 0's, CPU 1 is nobody's but near slot 6.
    let cpus = vec![
        CpuEntry { cpu: 0, levels: [vec![SlotIndex(0)], near(0, 2), near(0, 4), near(0, 8)] },
        CpuEntry { cpu: 1, levels: [vec![], near(6, 2), near(6, 4), near(6, 8)] },
    ];
    SteeringTable { slots: slots.collect(), cpus, ..SteeringTable::flat(policy, (0..count).map(SlotIndex)) }
}

/// Publishes a loopback address with all slots of the table in service.
pub(crate) fn publish(mode: Mode, v6: bool, table: &SteeringTable) -> Front {
    let config = FrontConfig { force_classic: mode == Mode::Classic, ..FrontConfig::new((loopback(v6), 0).into()) };
    let mut front = Front::open(&config, table).expect("a free port");
    assert_eq!(matches!(front.mode(), SteeringMode::Ebpf), mode == Mode::Ebpf, "{:?}", front.mode());
    for slot in &table.slots {
        front.add_slot(slot.index).expect("the address is ours");
        front.set_in(slot.index, true).expect("it has a listener");
    }
    front
}

/// Runs `body` on one CPU: loopback's packets are received on the CPU that sends them.
pub(crate) fn on_cpu<T: Send>(cpu: u32, body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let pinned = move || {
            pinning::set_affinity(&[cpu]).expect("the CPU is allowed");
            body()
        };
        scope.spawn(pinned).join().expect("the body passes")
    })
}

/// The nth client's address.
pub(crate) fn client_address(v6: bool, n: usize) -> SocketAddr {
    let host = n as u16 % 16 + 1;
    if v6 {
        (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host), 0).into()
    } else {
        (Ipv4Addr::new(127, 1, (n / 16 % 64) as u8, host as u8), 0).into()
    }
}

pub(crate) fn connect(n: usize, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    socket.bind(&client_address(server.is_ipv6(), n).into())?;
    socket.connect_timeout(&server.into(), Duration::from_secs(5))?;
    // Ends by a reset, which leaves no TIME_WAIT behind.
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket.into())
}

pub(crate) fn connect_many(count: usize, server: SocketAddr) -> Vec<TcpStream> {
    (0..count).map(|n| connect(n, server).expect("it is published")).collect()
}

pub(crate) fn flow(client: &TcpStream) -> Flow {
    Flow { client: client.local_addr().expect("connected"), server: client.peer_addr().expect("connected") }
}

/// Listeners, and where each of them is: unless a test says otherwise, copies of all that a front has.
pub(crate) struct Listeners<Where = Choice>(pub(crate) Vec<(Where, TcpListener)>);

impl Listeners {
    pub(crate) fn of(front: &Front) -> Self {
        let copy = |fd: std::os::fd::BorrowedFd<'_>| TcpListener::from(fd.try_clone_to_owned().expect("a copy"));
        let slots = front.slots().filter_map(|slot| Some((Choice::Slot(slot), copy(front.listener(slot)?))));
        Self(slots.chain([(Choice::Anchor, copy(front.anchor()))]).collect())
    }

    pub(crate) fn get(&self, slot: u16) -> &TcpListener {
        let wanted = Choice::Slot(SlotIndex(slot));
        &self.0.iter().find(|(choice, _)| *choice == wanted).expect("the slot has a listener").1
    }

    /// Ends a slot's listener as its shard's death would: no word to the front.
    pub(crate) fn kill(&self, slot: u16) {
        SockRef::from(&self.get(slot).as_fd()).shutdown(std::net::Shutdown::Both).expect("it listens");
    }
}

impl<Where: Copy> Listeners<Where> {
    /// Accepts `count` connections from wherever they are.
    pub(crate) fn accept(&self, count: usize) -> HashMap<SocketAddr, (Where, TcpStream)> {
        let mut accepted = HashMap::new();
        eventually("every connection is in a queue", Duration::from_secs(10), || {
            for (at, listener) in &self.0 {
                loop {
                    match listener.accept() {
                        Ok((stream, client)) => drop(accepted.insert(client, (*at, stream))),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        // A killed listener.
                        Err(error) if error.kind() == ErrorKind::InvalidInput => break,
                        Err(error) => panic!("accept: {error}"),
                    }
                }
            }
            (accepted.len() >= count).then_some(())
        });
        assert_eq!(accepted.len(), count);
        accepted
    }
}

/// Connects `count` times from `cpu`; each connection must be where `choose` says. Returns how many each choice got.
pub(crate) fn check(front: &Front, table: &SteeringTable, count: usize, cpu: u32) -> HashMap<Choice, usize> {
    let listeners = Listeners::of(front);
    let explanation = front.explain(table);
    let mut got = HashMap::new();
    let mut left = count;
    while left > 0 {
        let batch = left.min(200);
        left -= batch;
        let clients = on_cpu(cpu, || connect_many(batch, front.address()));
        let accepted = listeners.accept(batch);
        for client in &clients {
            let flow = flow(client);
            let choice = accepted[&flow.client].0;
            assert_eq!(choice, explanation.choose(&flow, cpu), "{flow:?} on CPU {cpu}, in {:?}", front.in_service());
            *got.entry(choice).or_default() += 1;
        }
    }
    got
}
