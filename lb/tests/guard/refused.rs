//! What no holder of a guarded socket can do, as tables.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::Stdio,
};

use sherd_lb::guard::Operation;
use socket2::{Domain, SockRef, Socket, Type};

use super::rig::{World, alone, connection, given, given_cgroup, is_role, local_address, loopbacks, this_program};

const OFF: &[u8] = &[0; 4];
/// Big enough for every structure; zeros where the kernel wants a pointer.
const STRUCTURE: &[u8] = &[0; 256];

const SOCKET: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::IPPROTO_TCP;
const IP: i32 = libc::IPPROTO_IP;
const IPV6: i32 = libc::IPPROTO_IPV6;

/// By number where libc has no name.
const OPTIONS: [(&str, i32, i32, &[u8]); 62] = [
    ("SO_DEBUG", SOCKET, libc::SO_DEBUG, OFF),
    ("SO_REUSEADDR", SOCKET, libc::SO_REUSEADDR, OFF),
    ("SO_REUSEPORT", SOCKET, libc::SO_REUSEPORT, OFF),
    ("SO_DONTROUTE", SOCKET, libc::SO_DONTROUTE, OFF),
    ("SO_PRIORITY", SOCKET, libc::SO_PRIORITY, &7i32.to_ne_bytes()),
    ("SO_BINDTODEVICE", SOCKET, libc::SO_BINDTODEVICE, b"lo"),
    ("SO_ATTACH_FILTER", SOCKET, libc::SO_ATTACH_FILTER, STRUCTURE),
    ("SO_DETACH_FILTER", SOCKET, libc::SO_DETACH_FILTER, OFF),
    ("SO_SNDBUFFORCE", SOCKET, libc::SO_SNDBUFFORCE, OFF),
    ("SO_RCVBUFFORCE", SOCKET, libc::SO_RCVBUFFORCE, OFF),
    ("SO_MARK", SOCKET, libc::SO_MARK, OFF),
    ("SO_LOCK_FILTER", SOCKET, libc::SO_LOCK_FILTER, OFF),
    ("SO_INCOMING_CPU", SOCKET, libc::SO_INCOMING_CPU, OFF),
    ("SO_ATTACH_BPF", SOCKET, libc::SO_ATTACH_BPF, OFF),
    ("SO_ATTACH_REUSEPORT_CBPF", SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, STRUCTURE),
    ("SO_ATTACH_REUSEPORT_EBPF", SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF, OFF),
    ("SO_TXTIME", SOCKET, libc::SO_TXTIME, STRUCTURE),
    ("SO_BINDTOIFINDEX", SOCKET, libc::SO_BINDTOIFINDEX, OFF),
    ("SO_DETACH_REUSEPORT_BPF", SOCKET, libc::SO_DETACH_REUSEPORT_BPF, OFF),
    ("SO_PREFER_BUSY_POLL", SOCKET, 69, OFF),
    ("SO_RESERVE_MEM", SOCKET, 73, OFF),
    ("SO_TXREHASH", SOCKET, 74, OFF),
    ("SO_RCVMARK", SOCKET, 75, OFF),
    ("SO_RCVPRIORITY", SOCKET, 82, OFF),
    ("an option of the future", SOCKET, 127, OFF),
    ("an option that wraps", SOCKET, 64 + libc::SO_KEEPALIVE, OFF),
    ("a negative option", SOCKET, -1, OFF),
    ("TCP_MD5SIG", TCP, libc::TCP_MD5SIG, STRUCTURE),
    ("TCP_REPAIR", TCP, libc::TCP_REPAIR, OFF),
    ("TCP_REPAIR_QUEUE", TCP, libc::TCP_REPAIR_QUEUE, OFF),
    ("TCP_QUEUE_SEQ", TCP, libc::TCP_QUEUE_SEQ, OFF),
    ("TCP_REPAIR_OPTIONS", TCP, libc::TCP_REPAIR_OPTIONS, OFF),
    ("TCP_REPAIR_WINDOW", TCP, libc::TCP_REPAIR_WINDOW, STRUCTURE),
    ("TCP_TIMESTAMP", TCP, libc::TCP_TIMESTAMP, OFF),
    ("TCP_FASTOPEN_CONNECT", TCP, libc::TCP_FASTOPEN_CONNECT, OFF),
    ("TCP_ULP smc", TCP, libc::TCP_ULP, b"smc\0"),
    ("TCP_ULP tlsx", TCP, libc::TCP_ULP, b"tlsx"),
    ("TCP_ULP of 17 bytes", TCP, libc::TCP_ULP, b"tls\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ("TCP_MD5SIG_EXT", TCP, libc::TCP_MD5SIG_EXT, STRUCTURE),
    ("TCP_FASTOPEN_KEY", TCP, libc::TCP_FASTOPEN_KEY, &[1; 16]),
    ("TCP_FASTOPEN_NO_COOKIE", TCP, libc::TCP_FASTOPEN_NO_COOKIE, OFF),
    ("TCP_TX_DELAY", TCP, 37, OFF),
    ("TCP_AO_ADD_KEY", TCP, 38, STRUCTURE),
    ("IP_OPTIONS", IP, libc::IP_OPTIONS, OFF),
    ("IP_FREEBIND", IP, libc::IP_FREEBIND, OFF),
    ("IP_XFRM_POLICY", IP, libc::IP_XFRM_POLICY, STRUCTURE),
    ("IP_TRANSPARENT", IP, libc::IP_TRANSPARENT, OFF),
    ("IP_BIND_ADDRESS_NO_PORT", IP, libc::IP_BIND_ADDRESS_NO_PORT, OFF),
    ("IP_UNICAST_IF", IP, 50, OFF),
    ("IP_LOCAL_PORT_RANGE", IP, 51, OFF),
    ("IPT_SO_SET_REPLACE", IP, 64, STRUCTURE),
    ("IPV6_ADDRFORM", IPV6, libc::IPV6_ADDRFORM, &libc::AF_INET.to_ne_bytes()),
    ("IPV6_PKTINFO", IPV6, libc::IPV6_PKTINFO, STRUCTURE),
    ("IPV6_RTHDR", IPV6, libc::IPV6_RTHDR, STRUCTURE),
    ("IPV6_XFRM_POLICY", IPV6, 35, STRUCTURE),
    ("IPV6_TRANSPARENT", IPV6, libc::IPV6_TRANSPARENT, OFF),
    ("IPV6_UNICAST_IF", IPV6, 76, OFF),
    ("IPV6_FREEBIND", IPV6, libc::IPV6_FREEBIND, OFF),
    ("an option of UDP", libc::IPPROTO_UDP, 1, OFF),
    ("an option of MPTCP", 284, 1, OFF),
    ("an option of TLS of the future", 282, 9, OFF),
    ("an option of a negative level", -1, 1, OFF),
];

/// To these the kernel answers EPERM itself while TCP_REPAIR is off, so they show nothing about the guard.
const REFUSED_ANYWAY: [&str; 3] = ["TCP_REPAIR_QUEUE", "TCP_REPAIR_WINDOW", "TCP_TIMESTAMP"];

fn options() -> impl Iterator<Item = Operation> {
    OPTIONS.into_iter().map(|(name, level, option, value)| Operation::SetOption { name, level, option, value })
}

fn answer(operation: Operation, socket: BorrowedFd<'_>) -> Option<i32> {
    operation.attempt(socket).err().and_then(|error| error.raw_os_error())
}

fn check_refused(on: &str, socket: BorrowedFd<'_>, operations: impl IntoIterator<Item = Operation>) {
    for operation in operations {
        assert_eq!(answer(operation, socket), Some(libc::EPERM), "{operation} on {on}");
    }
}

/// Everything that must be refused on a listener. Ends it.
pub(crate) fn check_listener(listener: BorrowedFd<'_>) {
    let address = local_address(listener);
    let elsewhere = SocketAddr::new(address.ip(), 1);
    check_refused("a listener", listener, options());
    check_refused("a listener", listener, [Operation::Bind(address), Operation::Bind(elsewhere)]);
    assert_eq!(answer(Operation::Connect(address), listener), Some(libc::EISCONN));
    SockRef::from(&listener).shutdown(std::net::Shutdown::Both).expect("it listens");
    check_unconnected("a listener after shutdown", listener, address);
}

/// Everything that must be refused on a connection. Ends it.
pub(crate) fn check_connection(accepted: BorrowedFd<'_>) {
    let address = local_address(accepted);
    check_refused("a connection", accepted, options());
    check_refused("a connection", accepted, [Operation::Bind(address)]);
    assert_eq!(answer(Operation::Connect(address), accepted), Some(libc::EISCONN));
    Operation::Disconnect.attempt(accepted).expect("no hook sees it");
    check_refused("what was a connection", accepted, options());
    check_unconnected("what was a connection", accepted, address);
}

fn check_unconnected(on: &str, socket: BorrowedFd<'_>, address: SocketAddr) {
    let any = SocketAddr::new(address.ip(), 0);
    let operations = [
        Operation::Bind(address),
        Operation::Bind(any),
        Operation::Connect(address),
        Operation::ConnectOtherFamily,
        Operation::FastOpen(address),
    ];
    check_refused(on, socket, operations);
}

#[test]
fn a_listener_can_only_accept() {
    alone("a_listener_can_only_accept", || {
        let world = World::new();
        for address in loopbacks() {
            let bound = world.maker.listener(address, true).expect("the address is free");
            check_refused("a bound socket", bound.as_fd(), options());
            check_unconnected("a bound socket", bound.as_fd(), local_address(bound.as_fd()));
            let (listener, _) = world.listener(address);
            check_listener(listener.as_fd());
        }
    });
}

#[test]
fn a_connection_can_only_talk() {
    alone("a_connection_can_only_talk", || {
        let world = World::new();
        for address in loopbacks() {
            let (listener, _) = world.listener(address);
            let (_client, accepted) = connection(listener.as_fd());
            check_connection(accepted.as_fd());
        }
    });
}

#[test]
fn a_dual_stack_listener_is_guarded_for_both_families() {
    alone("a_dual_stack_listener_is_guarded_for_both_families", || {
        let world = World::new();
        let dual = world.maker.listener("[::]:0".parse().expect("an address"), false).expect("the address is free");
        world.mark(&dual);
        SockRef::from(&dual).listen(16).expect("it is bound");
        assert!(!SockRef::from(&dual).only_v6().expect("an option"));
        for to in loopbacks() {
            let to = SocketAddr::new(to.ip(), local_address(dual.as_fd()).port());
            let _client = std::net::TcpStream::connect(to).expect("it listens");
            let (accepted, _) = SockRef::from(&dual).accept().expect("a connection waits");
            check_refused("a connection", accepted.as_fd(), options());
            Operation::Disconnect.attempt(accepted.as_fd()).expect("no hook sees it");
            let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", to.port()).parse().expect("an address");
            check_unconnected("what was a connection", accepted.as_fd(), mapped);
        }
        check_listener(dual.as_fd());
    });
}

/// Or the tables would prove nothing.
#[test]
fn outside_of_the_guard_root_may_all_of_it() {
    alone("outside_of_the_guard_root_may_all_of_it", || {
        for operation in options() {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
            let anyway = matches!(operation, Operation::SetOption { name, .. } if REFUSED_ANYWAY.contains(&name));
            assert_eq!(answer(operation, socket.as_fd()) == Some(libc::EPERM), anyway, "{operation}");
        }
    });
}

#[test]
fn another_process_with_the_descriptor_is_refused_too() {
    alone("another_process_with_the_descriptor_is_refused_too", || {
        let world = World::new();
        for address in loopbacks() {
            let (listener, _) = world.listener(address);
            let (_client, accepted) = connection(listener.as_fd());
            for (role, socket) in [("holds a connection", OwnedFd::from(accepted)), ("holds a listener", listener)] {
                let holder = this_program("refused::holder_process", role).stdin(Stdio::from(socket)).status();
                assert!(holder.expect("it starts").success(), "{role}");
            }
        }
    });
}

#[test]
fn holder_process() {
    if is_role("holds a listener") {
        check_listener(given().as_fd());
    }
    if is_role("holds a connection") {
        check_connection(given().as_fd());
    }
}

#[test]
fn inside_the_cgroup_one_can_bind_and_nothing_else() {
    alone("inside_the_cgroup_one_can_bind_and_nothing_else", || {
        let world = World::new();
        let inside = this_program("refused::inside_process", "inside").arg(world.guard.borrow().cgroup()).status();
        assert!(inside.expect("it starts").success());
    });
}

#[test]
fn inside_process() {
    if !is_role("inside") {
        return;
    }
    fs::write(given_cgroup().join("cgroup.procs"), "0").expect("root may");
    for address in loopbacks() {
        let listener = std::net::TcpListener::bind(address).expect("it is inside");
        let to = listener.local_addr().expect("it is bound");
        let connected = std::net::TcpStream::connect(to).map_err(|error| error.raw_os_error());
        assert_eq!(connected.map(drop), Err(Some(libc::EPERM)));
        let udp = UdpSocket::bind(address).expect("it is inside");
        assert_eq!(udp.send_to(b"x", to).map_err(|error| error.raw_os_error()), Err(Some(libc::EPERM)));
    }
}
