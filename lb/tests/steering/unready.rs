//! While no slot is in service connections wait or are refused.

use std::io::ErrorKind;

use sherd_lb::{
    front::{Front, FrontConfig, Unready},
    table::{Choice, Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, in_new_netns, needs};

use super::traffic::{Listeners, connect, connect_many};

fn check_waits(force_classic: bool) {
    in_new_netns(move || {
        let table = SteeringTable::flat(Policy::Connection, (0..2).map(SlotIndex));
        let config = FrontConfig { force_classic, ..FrontConfig::new(([127, 0, 0, 1], 0).into()) };
        let mut front = Front::open(&config, &table).expect("a free port");
        front.add_slot(SlotIndex(0)).expect("the address is ours");
        let waiting = connect_many(20, front.address());
        assert_eq!(front.queue_len(None).expect("it listens"), 20);
        front.set_in(SlotIndex(0), true).expect("it has a listener");
        let served = connect_many(20, front.address());
        assert_eq!(front.queue_len(Some(SlotIndex(0))).expect("it listens"), 20);
        let got = Listeners::of(&front).accept(waiting.len() + served.len());
        assert_eq!(got.values().filter(|(choice, _)| *choice == Choice::Anchor).count(), 20);
        if !force_classic {
            assert_eq!((front.anchored(), front.dropped(), front.picks()[0]), (20, 0, 20));
        }
    });
}

#[test]
fn connections_wait_at_the_anchor() {
    if needs("connections_wait_at_the_anchor", &[Need::Root, Need::Bpf]) {
        check_waits(false);
        check_waits(true);
    }
}

#[test]
fn connections_are_refused_where_asked_for() {
    if !needs("connections_are_refused_where_asked_for", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        for address in [([127, 0, 0, 1], 0).into(), "[::1]:0".parse().expect("an address")] {
            let table = SteeringTable::flat(Policy::Local, [SlotIndex(0)]);
            let config = FrontConfig { unready: Unready::Refuse, ..FrontConfig::new(address) };
            let mut front = Front::open(&config, &table).expect("a free port");
            let try_once = |address| match address {
                std::net::SocketAddr::V4(_) => connect(0, address),
                v6 => std::net::TcpStream::connect(v6),
            };
            let refused = try_once(front.address()).map_err(|error| error.kind());
            assert_eq!(refused.map(drop), Err(ErrorKind::ConnectionRefused));
            front.add_slot(SlotIndex(0)).expect("the address is ours");
            front.set_in(SlotIndex(0), true).expect("it has a listener");
            try_once(front.address()).expect("a slot is in service");
            assert_eq!((front.anchored(), front.dropped()), (0, 1));
        }
    });
}
