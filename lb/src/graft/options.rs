//! What a program has set on its socket, set again on the listener that takes its place. Touches no option that the
//! guard refuses.

use std::os::fd::BorrowedFd;

use libc::{
    IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SO_BUSY_POLL, SO_INCOMING_CPU, SO_KEEPALIVE, SO_LINGER, SO_OOBINLINE,
    SO_PRIORITY, SO_RCVBUF, SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDBUF, SO_SNDTIMEO, SO_TIMESTAMP, SO_ZEROCOPY, SOL_SOCKET,
    TCP_CONGESTION, TCP_CORK, TCP_DEFER_ACCEPT, TCP_FASTOPEN, TCP_KEEPCNT, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_LINGER2,
    TCP_NODELAY, TCP_NOTSENT_LOWAT, TCP_SYNCNT, TCP_USER_TIMEOUT, TCP_WINDOW_CLAMP, c_int,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::sys::sockopt::{get_bytes, set_bytes};

/// How the value that is read becomes the one to set.
#[derive(Clone, Copy)]
enum Form {
    Same,
    /// The kernel doubles what is set, socket(7).
    Doubled,
}

const OPTIONS: [(&str, c_int, c_int, Form); 32] = [
    ("SO_RCVBUF", SOL_SOCKET, SO_RCVBUF, Form::Doubled),
    ("SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, Form::Doubled),
    ("SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, Form::Same),
    ("SO_LINGER", SOL_SOCKET, SO_LINGER, Form::Same),
    ("SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, Form::Same),
    ("SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, Form::Same),
    ("SO_RCVTIMEO", SOL_SOCKET, SO_RCVTIMEO, Form::Same),
    ("SO_SNDTIMEO", SOL_SOCKET, SO_SNDTIMEO, Form::Same),
    ("SO_TIMESTAMP", SOL_SOCKET, SO_TIMESTAMP, Form::Same),
    ("SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, Form::Same),
    ("SO_BUSY_POLL", SOL_SOCKET, SO_BUSY_POLL, Form::Same),
    ("SO_ZEROCOPY", SOL_SOCKET, SO_ZEROCOPY, Form::Same),
    ("SO_INCOMING_CPU", SOL_SOCKET, SO_INCOMING_CPU, Form::Same),
    ("TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, Form::Same),
    ("TCP_CORK", IPPROTO_TCP, TCP_CORK, Form::Same),
    ("TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, Form::Same),
    ("TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, Form::Same),
    ("TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, Form::Same),
    ("TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, Form::Same),
    ("TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2, Form::Same),
    ("TCP_DEFER_ACCEPT", IPPROTO_TCP, TCP_DEFER_ACCEPT, Form::Same),
    ("TCP_WINDOW_CLAMP", IPPROTO_TCP, TCP_WINDOW_CLAMP, Form::Same),
    ("TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, Form::Same),
    ("TCP_NOTSENT_LOWAT", IPPROTO_TCP, TCP_NOTSENT_LOWAT, Form::Same),
    ("TCP_FASTOPEN", IPPROTO_TCP, TCP_FASTOPEN, Form::Same),
    ("TCP_CONGESTION", IPPROTO_TCP, TCP_CONGESTION, Form::Same),
    ("IP_TOS", IPPROTO_IP, libc::IP_TOS, Form::Same),
    ("IP_TTL", IPPROTO_IP, libc::IP_TTL, Form::Same),
    ("IP_MINTTL", IPPROTO_IP, libc::IP_MINTTL, Form::Same),
    ("IP_RECVERR", IPPROTO_IP, libc::IP_RECVERR, Form::Same),
    ("IPV6_TCLASS", IPPROTO_IPV6, libc::IPV6_TCLASS, Form::Same),
    ("IPV6_UNICAST_HOPS", IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, Form::Same),
];

/// Gives `to`, a fresh socket, what differs on `from`; returns what could not be set. An option that one of the two
/// has not (IPv6 ones of IPv4, some of MPTCP) is not asked for.
pub(super) fn replay(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Vec<&'static str> {
    let mut unset = Vec::new();
    for (name, level, option, form) in OPTIONS {
        let (Ok(value), Ok(fresh)) = (get_bytes(from, level, option), get_bytes(to, level, option)) else { continue };
        if value != fresh && set_bytes(to, level, option, &set_value(&value, form)).is_err() {
            unset.push(name);
        }
    }
    if !copy_nonblocking(from, to) {
        unset.push("O_NONBLOCK");
    }
    unset
}

fn set_value(value: &[u8], form: Form) -> Vec<u8> {
    match (form, <[u8; 4]>::try_from(value)) {
        (Form::Doubled, Ok(bytes)) => (i32::from_ne_bytes(bytes) / 2).to_ne_bytes().to_vec(),
        _ => value.to_vec(),
    }
}

fn copy_nonblocking(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let flags = |fd| fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    let (Ok(wanted), Ok(mut present)) = (flags(from), flags(to)) else { return false };
    present.set(OFlag::O_NONBLOCK, wanted.contains(OFlag::O_NONBLOCK));
    fcntl(to, FcntlArg::F_SETFL(present)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsFd};

    use socket2::{Domain, Socket, TcpKeepalive, Type};

    use super::*;

    #[test]
    fn a_listener_gets_what_the_program_has_set() {
        let from = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let to = TcpListener::bind("127.0.0.1:0").expect("a socket");
        from.set_tcp_nodelay(true).expect("an option");
        from.set_linger(Some(std::time::Duration::from_secs(7))).expect("an option");
        from.set_recv_buffer_size(40_000).expect("an option");
        from.set_read_timeout(Some(std::time::Duration::from_millis(1500))).expect("an option");
        from.set_tcp_keepalive(&TcpKeepalive::new().with_time(std::time::Duration::from_secs(33))).expect("an option");
        from.set_nonblocking(true).expect("a flag");
        assert_eq!(replay(from.as_fd(), to.as_fd()), Vec::<&str>::new());
        for (name, level, option, _) in OPTIONS {
            let values = [from.as_fd(), to.as_fd()].map(|fd| get_bytes(fd, level, option).ok());
            assert_eq!(values[0], values[1], "{name}");
        }
        let flags = fcntl(&to, FcntlArg::F_GETFL).expect("flags");
        assert!(OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
    }
}
