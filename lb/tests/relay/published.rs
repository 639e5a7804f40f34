//! A published address whose shards accept themselves, for the tests of what reaches them by force.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use sherd_lb::{
    front::{Force, Front, FrontConfig, Place},
    relay::Target,
    table::{Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, eventually, in_new_netns, needs};
use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    namespaces::ip,
    rig::{SOON, answer_lines, ask, shard_on},
};

/// A published address with two slots, of which the second alone is in service, by its relay listener.
pub(crate) struct Published {
    front: Front,
    /// As one of the host's.
    pub(crate) address: SocketAddr,
}

impl Published {
    fn new(v6: bool) -> Self {
        let (host, any): (IpAddr, IpAddr) = if v6 {
            ip("-6 addr add fd00::51/128 dev lo nodad");
            ("fd00::51".parse().unwrap(), Ipv6Addr::UNSPECIFIED.into())
        } else {
            ip("addr add 198.51.100.1/32 dev lo");
            (Ipv4Addr::new(198, 51, 100, 1).into(), Ipv4Addr::UNSPECIFIED.into())
        };
        let table = SteeringTable::flat(Policy::Connection, (0..2).map(SlotIndex));
        let mut front = Front::open(&FrontConfig::new((any, 0).into()), &table).unwrap();
        (0..2).for_each(|slot| front.add_slot(SlotIndex(slot)).unwrap());
        front.set_in(SlotIndex(1), true).unwrap();
        let address = SocketAddr::new(host, front.address().port());
        Self { front, address }
    }

    pub(crate) fn relayed(&self, slot: u16) -> TcpListener {
        let listener = self.front.listener(SlotIndex(slot)).unwrap().try_clone_to_owned().unwrap();
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(false).unwrap();
        listener
    }

    pub(crate) fn direct(&mut self, slot: u16) -> TcpListener {
        let address = self.front.address();
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        self.front.join_direct(SlotIndex(slot), Place::A, socket.as_fd(), 1_024).unwrap();
        socket.into()
    }

    /// Every listener says what it is and whom it sees. The direct ones, by slot, for closing them.
    pub(crate) fn with_shards(&mut self) -> [TcpListener; 2] {
        for (slot, name) in [(0, "relayed 0"), (1, "relayed 1")] {
            shard_on(self.relayed(slot), name_and_peer(name));
        }
        [(0, "direct 0"), (1, "direct 1")].map(|(slot, name)| {
            let listener = self.direct(slot);
            shard_on(listener.try_clone().unwrap(), name_and_peer(name));
            listener
        })
    }

    pub(crate) fn force(&self, slot: u16) -> Force {
        self.front.force(SlotIndex(slot), Place::A).unwrap()
    }

    pub(crate) fn target(&self, slot: u16) -> Target {
        Target { address: self.address, force: Some(self.force(slot)) }
    }

    /// A client bound to `source`; a port in use is waited for.
    pub(crate) fn client_from(&self, source: SocketAddr) -> Socket {
        let socket = Socket::new(Domain::for_address(source), Type::STREAM, None).unwrap();
        eventually("the port is free", SOON, || socket.bind(&source.into()).ok());
        // Ends by a reset, which leaves no TIME_WAIT behind.
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        socket
    }

    pub(crate) fn who_answers(&self, client: Socket) -> String {
        client.connect_timeout(&self.address.into(), SOON).unwrap();
        ask(&client.into()).unwrap()
    }
}

pub(crate) fn name_and_peer(
    name: &'static str,
) -> impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + Clone + 'static {
    move |stream| {
        let peer = stream.peer_addr()?.ip();
        answer_lines(stream, &format!("{name} sees {peer}"))
    }
}

/// As a shard that ends.
pub(crate) fn close(listener: &TcpListener) {
    SockRef::from(listener).shutdown(Shutdown::Both).unwrap();
}

/// Runs `body` in a namespace of its own with a published address, if this machine can.
pub(crate) fn with_published(test: &str, v6: bool, body: impl FnOnce(Published) + Send + 'static) {
    if needs(test, &[Need::Root, Need::Bpf]) {
        in_new_netns(move || body(Published::new(v6)));
    }
}
