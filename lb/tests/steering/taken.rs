//! An address that somebody else listens on is never shared, whatever the kernel would allow.

use std::net::SocketAddr;

use nix::unistd::{Uid, fchown};
use sherd_lb::{
    front::{Front, FrontConfig, OpenError, SlotError},
    table::{Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, in_new_netns, needs};
use socket2::{Domain, Socket, Type};

/// A listener of a stranger. As root and with SO_REUSEPORT, bind says nothing against it.
fn stranger(address: &str, reuse_port: bool) -> Socket {
    let address: SocketAddr = address.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_reuse_port(reuse_port).expect("an option");
    if address.is_ipv6() {
        socket.set_only_v6(false).expect("an option");
    }
    socket.bind(&address.into()).expect("a free port");
    socket.listen(16).expect("it is bound");
    socket
}

fn check_taken(theirs: &'static str, reuse_port: bool, ours: &'static str, expected: bool) {
    in_new_netns(move || {
        let _stranger = stranger(theirs, reuse_port);
        let config = FrontConfig::new(ours.parse().expect("an address"));
        match Front::open(&config, &SteeringTable::empty(Policy::Connection)) {
            Err(error @ OpenError::PortTaken { .. }) => {
                assert!(expected, "{theirs} must not keep us from {ours}: {error}");
                assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
            }
            Ok(_) => assert!(!expected, "{theirs} (reuseport {reuse_port}) must keep us from {ours}"),
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn a_taken_port_is_said_to_be_taken_and_by_whom() {
    if !needs("a_taken_port_is_said_to_be_taken_and_by_whom", &[Need::Root]) {
        return;
    }
    for reuse_port in [false, true] {
        check_taken("127.0.0.1:8080", reuse_port, "127.0.0.1:8080", true);
        check_taken("0.0.0.0:8080", reuse_port, "127.0.0.1:8080", true);
        check_taken("127.0.0.1:8080", reuse_port, "0.0.0.0:8080", true);
        check_taken("[::]:8080", reuse_port, "0.0.0.0:8080", true);
        check_taken("[::]:8080", reuse_port, "[::]:8080", true);
        check_taken("[::1]:8080", reuse_port, "127.0.0.1:8080", false);
        check_taken("127.0.0.1:8080", reuse_port, "[::]:8080", false);
        check_taken("127.0.0.1:8081", reuse_port, "127.0.0.1:8080", false);
    }
}

fn with_open_front(body: impl FnOnce(Front) + Send + 'static) {
    in_new_netns(|| {
        let table = SteeringTable::flat(Policy::Connection, (0..4).map(SlotIndex));
        let front = Front::open(&FrontConfig::new(([127, 0, 0, 1], 8080).into()), &table);
        body(front.expect("a free port"));
    });
}

#[test]
fn two_fronts_on_one_address_are_one_too_many() {
    if !needs("two_fronts_on_one_address_are_one_too_many", &[Need::Root]) {
        return;
    }
    with_open_front(|front| {
        let again = Front::open(&FrontConfig::new(front.address()), &SteeringTable::empty(Policy::Connection));
        assert!(matches!(again, Err(OpenError::PortTaken { .. })), "{again:?}");
    });
}

#[test]
fn a_stranger_in_our_group_is_noticed_at_the_next_slot() {
    if !needs("a_stranger_in_our_group_is_noticed_at_the_next_slot", &[Need::Root]) {
        return;
    }
    with_open_front(|mut front| {
        front.add_slot(SlotIndex(0)).expect("the address is ours");
        let stranger = stranger("127.0.0.1:8080", true);
        let added = front.add_slot(SlotIndex(1));
        assert!(matches!(added, Err(SlotError::PortTaken { .. })), "{added:?}");
        assert!(front.listener(SlotIndex(1)).is_none());
        drop(stranger);
        front.add_slot(SlotIndex(1)).expect("the address is ours again");
    });
}

#[test]
fn a_listener_that_lands_in_another_group_is_an_error() {
    if !needs("a_listener_that_lands_in_another_group_is_an_error", &[Need::Root]) {
        return;
    }
    with_open_front(|mut front| {
        // What a container with the anchor in its hands could do: from now on the kernel makes a second group.
        fchown(front.anchor(), Some(Uid::from_raw(1000)), None).expect("root may");
        let added = front.add_slot(SlotIndex(0));
        assert!(matches!(added, Err(SlotError::NotJoined { .. })), "{added:?}");
        assert_eq!(front.slots().count(), 0);
        fchown(front.anchor(), Some(Uid::from_raw(0)), None).expect("root may");
        front.add_slot(SlotIndex(0)).expect("the kernel has one group again");
    });
}

#[test]
fn slots_are_added_once_and_within_bounds() {
    if !needs("slots_are_added_once_and_within_bounds", &[Need::Root]) {
        return;
    }
    with_open_front(|mut front| {
        assert!(matches!(front.add_slot(SlotIndex(64)), Err(SlotError::TooHigh { .. })));
        assert!(matches!(front.set_in(SlotIndex(0), true), Err(SlotError::Missing { .. })));
        assert!(matches!(front.remove_slot(SlotIndex(0)), Err(SlotError::Missing { .. })));
        let (name, _) = front.prepare_slot(SlotIndex(0)).expect("the address is ours");
        assert_eq!(name, "slot.0");
        assert!(matches!(front.set_in(SlotIndex(0), true), Err(SlotError::Missing { .. })));
        front.add_slot(SlotIndex(0)).expect("it is prepared");
        assert!(matches!(front.add_slot(SlotIndex(0)), Err(SlotError::Exists { .. })));
        assert!(matches!(front.prepare_slot(SlotIndex(0)), Err(SlotError::Exists { .. })));
        front.remove_slot(SlotIndex(0)).expect("it has a listener");
        let too_long = SteeringTable { table_len: 102_407, ..SteeringTable::empty(Policy::Connection) };
        assert!(matches!(front.set_table(&too_long), Err(SlotError::Table(_))));
    });
}
