//! What servers do with sockets works under the guard as without it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::fd::AsFd,
    time::Duration,
};

use sherd_lb::guard::Operation;
use socket2::SockRef;

use super::rig::{World, alone, connection, loopbacks};

type Set = fn(&SockRef<'_>) -> io::Result<()>;
type Get = fn(&SockRef<'_>) -> io::Result<bool>;

const SOON: Duration = Duration::from_secs(3);

/// Set, then read back.
const ANY_FAMILY: [(&str, Set, Get); 18] = [
    ("SO_KEEPALIVE", |s| s.set_keepalive(true), |s| s.keepalive()),
    ("SO_LINGER", |s| s.set_linger(Some(SOON)), |s| Ok(s.linger()? == Some(SOON))),
    ("SO_RCVBUF", |s| s.set_recv_buffer_size(20_000), |s| Ok(s.recv_buffer_size()? == 40_000)),
    ("SO_SNDBUF", |s| s.set_send_buffer_size(30_000), |s| Ok(s.send_buffer_size()? == 60_000)),
    ("SO_RCVTIMEO", |s| s.set_read_timeout(Some(SOON)), |s| Ok(s.read_timeout()? == Some(SOON))),
    ("SO_SNDTIMEO", |s| s.set_write_timeout(Some(SOON)), |s| Ok(s.write_timeout()? == Some(SOON))),
    ("SO_OOBINLINE", |s| s.set_out_of_band_inline(true), |s| s.out_of_band_inline()),
    ("SO_REUSEADDR", |s| s.set_reuse_address(true), |s| s.reuse_address()),
    ("SO_REUSEPORT", |s| s.set_reuse_port(true), |s| s.reuse_port()),
    ("TCP_NODELAY", |s| s.set_tcp_nodelay(true), |s| s.tcp_nodelay()),
    ("TCP_CORK", |s| s.set_tcp_cork(true), |s| s.tcp_cork()),
    ("TCP_MAXSEG", |s| s.set_tcp_mss(1000), |s| Ok(s.tcp_mss()? > 0)),
    ("TCP_QUICKACK", |s| s.set_tcp_quickack(true), |s| s.tcp_quickack()),
    ("TCP_THIN_LINEAR_TIMEOUTS", |s| s.set_tcp_thin_linear_timeouts(true), |s| s.tcp_thin_linear_timeouts()),
    ("TCP_USER_TIMEOUT", |s| s.set_tcp_user_timeout(Some(SOON)), |s| Ok(s.tcp_user_timeout()? == Some(SOON))),
    ("TCP_CONGESTION", |s| s.set_tcp_congestion(b"reno"), |s| Ok(s.tcp_congestion()?.starts_with(b"reno"))),
    ("IP_TOS", |s| s.set_tos_v4(0x10), |s| Ok(s.tos_v4()? == 0x10)),
    ("IP_TTL", |s| s.set_ttl_v4(33), |s| Ok(s.ttl_v4()? == 33)),
];

const IPV6: [(&str, Set, Get); 4] = [
    ("IPV6_TCLASS", |s| s.set_tclass_v6(0x10), |s| Ok(s.tclass_v6()? == 0x10)),
    ("IPV6_UNICAST_HOPS", |s| s.set_unicast_hops_v6(33), |s| Ok(s.unicast_hops_v6()? == 33)),
    ("IPV6_RECVTCLASS", |s| s.set_recv_tclass_v6(true), |s| s.recv_tclass_v6()),
    ("IPV6_RECVHOPLIMIT", |s| s.set_recv_hoplimit_v6(true), |s| s.recv_hoplimit_v6()),
];

const ON: &[u8] = &1i32.to_ne_bytes();
const TIME: &[u8] = &[0; 16];
const SOCKET: i32 = libc::SOL_SOCKET;
const TCP: i32 = libc::IPPROTO_TCP;

/// Those that socket2 can't read back.
const OTHERS: [(&str, i32, i32, &[u8]); 29] = [
    ("SO_PRIORITY", SOCKET, libc::SO_PRIORITY, &6i32.to_ne_bytes()),
    ("SO_RCVLOWAT", SOCKET, libc::SO_RCVLOWAT, ON),
    ("SO_TIMESTAMP", SOCKET, 29, ON),
    ("SO_TIMESTAMPNS", SOCKET, 35, ON),
    ("SO_TIMESTAMPING", SOCKET, 37, ON),
    ("SO_TIMESTAMP_NEW", SOCKET, 63, ON),
    ("SO_TIMESTAMPNS_NEW", SOCKET, 64, ON),
    ("SO_TIMESTAMPING_NEW", SOCKET, 65, ON),
    ("SO_RCVTIMEO_NEW", SOCKET, 66, TIME),
    ("SO_SNDTIMEO_NEW", SOCKET, 67, TIME),
    ("SO_BUSY_POLL", SOCKET, libc::SO_BUSY_POLL, &[0; 4]),
    ("SO_MAX_PACING_RATE", SOCKET, libc::SO_MAX_PACING_RATE, &[0xff; 4]),
    ("SO_ZEROCOPY", SOCKET, libc::SO_ZEROCOPY, ON),
    ("TCP_KEEPIDLE", TCP, libc::TCP_KEEPIDLE, ON),
    ("TCP_KEEPINTVL", TCP, libc::TCP_KEEPINTVL, ON),
    ("TCP_KEEPCNT", TCP, libc::TCP_KEEPCNT, ON),
    ("TCP_SYNCNT", TCP, libc::TCP_SYNCNT, ON),
    ("TCP_LINGER2", TCP, libc::TCP_LINGER2, ON),
    ("TCP_DEFER_ACCEPT", TCP, libc::TCP_DEFER_ACCEPT, &[0; 4]),
    ("TCP_WINDOW_CLAMP", TCP, libc::TCP_WINDOW_CLAMP, &65_536i32.to_ne_bytes()),
    ("TCP_THIN_DUPACK", TCP, libc::TCP_THIN_DUPACK, ON),
    ("TCP_NOTSENT_LOWAT", TCP, libc::TCP_NOTSENT_LOWAT, &65_536i32.to_ne_bytes()),
    ("TCP_SAVE_SYN", TCP, libc::TCP_SAVE_SYN, &[0; 4]),
    ("TCP_INQ", TCP, libc::TCP_INQ, ON),
    ("IP_RECVERR", libc::IPPROTO_IP, libc::IP_RECVERR, ON),
    ("IP_RECVTTL", libc::IPPROTO_IP, libc::IP_RECVTTL, ON),
    ("IP_RECVTOS", libc::IPPROTO_IP, libc::IP_RECVTOS, ON),
    ("SO_KEEPALIVE of 8 bytes", SOCKET, libc::SO_KEEPALIVE, &1i64.to_ne_bytes()),
    ("SO_KEEPALIVE of two pages", SOCKET, libc::SO_KEEPALIVE, &[1; 8192]),
];

fn check_works(on: &str, socket: &SockRef<'_>, options: &[(&str, Set, Get)]) {
    for (name, set, get) in options {
        set(socket).unwrap_or_else(|error| panic!("setting {name} on {on}: {error}"));
        assert!(get(socket).expect("it is readable"), "{name} on {on} is as it was set");
    }
}

fn check_allowed(on: &str, socket: &SockRef<'_>, is_v6: bool) {
    check_works(on, socket, &ANY_FAMILY);
    if is_v6 {
        check_works(on, socket, &IPV6);
    }
    for (name, level, option, value) in OTHERS {
        let operation = Operation::SetOption { name, level, option, value };
        operation.attempt(socket.as_fd()).unwrap_or_else(|error| panic!("{operation} on {on}: {error}"));
    }
}

#[test]
fn options_of_servers_work() {
    alone("options_of_servers_work", || {
        let world = World::new();
        for address in loopbacks() {
            let (listener, _) = world.listener(address);
            let (_client, accepted) = connection(listener.as_fd());
            check_allowed("a listener", &SockRef::from(&listener), address.is_ipv6());
            check_allowed("a connection", &SockRef::from(&accepted), address.is_ipv6());
        }
        // Or the table would show nothing.
        let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        check_allowed("a listener outside", &SockRef::from(&outside), false);
    });
}

/// The guard lets them through; what the kernel says then depends on its modules, and on the socket's state.
#[test]
fn the_kernel_decides_on_kernel_tls_and_fast_open() {
    alone("the_kernel_decides_on_kernel_tls_and_fast_open", || {
        let world = World::new();
        let (listener, _) = world.listener(loopbacks()[0]);
        let (_client, accepted) = connection(listener.as_fd());
        let options: [(&str, i32, i32, &[u8]); 5] = [
            ("TCP_ULP tls", TCP, libc::TCP_ULP, b"tls"),
            ("TCP_ULP tls with its end", TCP, libc::TCP_ULP, b"tls\0"),
            ("TLS_TX", 282, 1, &[0; 40]),
            ("TCP_FASTOPEN", TCP, libc::TCP_FASTOPEN, ON),
            ("IPV6_V6ONLY", libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, ON),
        ];
        for (name, level, option, value) in options {
            let operation = Operation::SetOption { name, level, option, value };
            for socket in [listener.as_fd(), accepted.as_fd()] {
                let answer = operation.attempt(socket).err().and_then(|error| error.raw_os_error());
                assert_ne!(answer, Some(libc::EPERM), "{operation}");
            }
        }
        let fast_open =
            Operation::SetOption { name: "TCP_FASTOPEN", level: TCP, option: libc::TCP_FASTOPEN, value: ON };
        fast_open.attempt(listener.as_fd()).expect("as nginx does on its listener");
    });
}

#[test]
fn data_flows_as_ever() {
    alone("data_flows_as_ever", || {
        let world = World::new();
        for address in loopbacks() {
            let (listener, _) = world.listener(address);
            let (mut client, mut accepted) = connection(listener.as_fd());
            let sent = vec![7; 1 << 20];
            let received = std::thread::scope(|scope| {
                scope.spawn(|| accepted.write_all(&sent).and_then(|()| accepted.shutdown(std::net::Shutdown::Write)));
                let mut received = Vec::new();
                client.read_to_end(&mut received).map(|_| received)
            });
            assert!(received.expect("it reads") == sent);
            client.write_all(b"x").expect("only one direction is shut");
            accepted.read_exact(&mut [0]).expect("it reads");
        }
    });
}
