//! Namespaces made for the test: their addresses, and sockets made inside from outside.

use std::{
    net::{SocketAddr, TcpListener},
    process::Command,
};

use sherd_testkit::{Need, in_new_netns, needs};

use super::*;

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}");
}

#[test]
fn a_namespace_with_only_loopback_gets_an_address_of_its_own() {
    if !needs("a_namespace_with_only_loopback_gets_an_address_of_its_own", &[Need::Root]) {
        return;
    }
    let inside = in_new_netns(|| Netns::current().expect("/proc is mounted"));
    for (family, expected) in [(Family::V4, IpAddr::from(LINK_V4)), (Family::V6, LINK_V6.into())] {
        for _ in 0..2 {
            let address = inside.service_address(family, Loopback::Never).expect("it has only loopback");
            assert_eq!(address, expected);
        }
        // From that address and to it, over sockets made from outside.
        let server = inside.with(|| TcpListener::bind((expected, 0)).expect("it can be bound")).expect("entered");
        let port = server.local_addr().expect("it is bound").port();
        let client = Socket::from(socket_in(Some(&inside), family).expect("a socket"));
        client.bind(&SocketAddr::new(expected, 0).into()).expect("it can be bound");
        client.connect(&SocketAddr::new(expected, port).into()).expect("it listens");
        assert_eq!(server.accept().expect("a client").1.ip(), expected);
        let loopback = inside.service_address(family, Loopback::Allowed).expect("loopback is always there");
        assert!(loopback.is_loopback());
    }
}

#[test]
fn a_real_interface_comes_first() {
    if !needs("a_real_interface_comes_first", &[Need::Root]) {
        return;
    }
    let inside = in_new_netns(|| {
        ip("link add test0 type veth peer name test1");
        ip("link set test1 up");
        ip("address add 192.0.2.7/24 dev test0");
        ip("address add 198.51.100.1/32 dev lo");
        ip("link set test0 up");
        Netns::current().expect("/proc is mounted")
    });
    let address = inside.service_address(Family::V4, Loopback::Never).expect("it has one");
    assert_eq!(address, IpAddr::from([192, 0, 2, 7]));
    let listed = inside.addresses().expect("it can be entered");
    assert!(listed.iter().any(|a| a.interface == "lo" && a.is_loopback_interface && a.ip.is_loopback()));
    // It has an interface, so nothing is added, and its IPv6 link-local address is of no use.
    let v6 = inside.service_address(Family::V6, Loopback::Never);
    assert!(matches!(v6, Err(ServiceAddressError::None { family: Family::V6 })), "{v6:?}");
}

#[test]
fn the_hosts_namespace_is_never_changed() {
    let host = Netns::of_pid(std::process::id()).expect("/proc is mounted");
    assert!(host.is_hosts().expect("it is open"));
    assert_eq!(host.id().expect("open"), Netns::current().expect("/proc is mounted").id().expect("open"));
    if let Ok(address) = host.service_address(Family::V4, Loopback::Never) {
        assert_ne!(address, IpAddr::from(LINK_V4));
    }
}

#[test]
fn a_missing_process_has_none() {
    let missing = Netns::of_pid(u32::MAX).map_err(|error| error.kind());
    assert_eq!(missing.map(drop), Err(io::ErrorKind::NotFound));
}
