//! Proves by trying that sockets are guarded. Uses loopback and sockets made for it, within bounded time; the one it is
//! asked about is left as it was.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::{Maker, Operation, Stage, Unproven, marks::Marks};

/// For each step on loopback that waits.
const TIMEOUT: Duration = Duration::from_secs(1);

/// No option has this number: unguarded the kernel answers ENOPROTOOPT, so trying never has an effect. Guarded it is on no list.
const UNKNOWN: Operation = option("an unknown option", libc::SOL_SOCKET, i32::MAX, &[0; 4]);

/// For throw-away sockets: what would matter most, of each level.
const OPTIONS: [Operation; 8] = [
    UNKNOWN,
    option("SO_REUSEPORT", libc::SOL_SOCKET, libc::SO_REUSEPORT, &[0; 4]),
    option("SO_DETACH_REUSEPORT_BPF", libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, &[0; 4]),
    option("SO_BINDTODEVICE", libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo"),
    option("SO_MARK", libc::SOL_SOCKET, libc::SO_MARK, &[0; 4]),
    option("IP_TRANSPARENT", libc::IPPROTO_IP, libc::IP_TRANSPARENT, &[0; 4]),
    option("IPV6_FREEBIND", libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, &[0; 4]),
    option("TCP_REPAIR", libc::IPPROTO_TCP, libc::TCP_REPAIR, &[0; 4]),
];

const fn option(name: &'static str, level: i32, option: i32, value: &'static [u8]) -> Operation {
    Operation::SetOption { name, level, option, value }
}

pub(super) fn prove(marks: &mut Marks, maker: &Maker) -> Result<(), Unproven> {
    family(marks, maker, Ipv4Addr::LOCALHOST.into())?;
    match family(marks, maker, Ipv6Addr::LOCALHOST.into()) {
        // Without IPv6 on loopback a listener still has the proof of its own.
        Err(Unproven::Make(error)) if error.is_missing_family() => Ok(()),
        proven => proven,
    }
}

pub(super) fn prove_listener(socket: BorrowedFd<'_>) -> Result<(), Unproven> {
    let looked = |source| Unproven::Loopback { step: "getsockname", source };
    let address = local_address(socket)?;
    let listens = SockRef::from(&socket).is_listener().map_err(looked)?;
    let stage = if listens { Stage::Listening } else { Stage::Bound };
    // A bound socket can't be bound again: unguarded the kernel answers EINVAL, after the hook (`inet_bind_sk`).
    refused(socket, stage, UNKNOWN)?;
    refused(socket, stage, Operation::Bind(address))?;
    // A listener gets EISCONN before any hook.
    if listens { Ok(()) } else { refused(socket, stage, Operation::ConnectOtherFamily) }
}

fn family(marks: &mut Marks, maker: &Maker, loopback: IpAddr) -> Result<(), Unproven> {
    let listener = maker.listener(SocketAddr::new(loopback, 0), true)?;
    let listener = listener.as_fd();
    prove_listener(listener)?;
    let address = local_address(listener)?;
    let (bind, connect, fast_open) =
        (Operation::Bind(address), Operation::Connect(address), Operation::FastOpen(address));
    all_refused(listener, Stage::Bound, &OPTIONS)?;
    all_refused(listener, Stage::Bound, &[bind, connect, fast_open])?;

    marks.mark(listener).map_err(|source| Unproven::Loopback { step: "marking a listener", source })?;
    SockRef::from(&listener).listen(1).map_err(|source| Unproven::Loopback { step: "listen", source })?;
    all_refused(listener, Stage::Listening, &OPTIONS)?;
    refused(listener, Stage::Listening, bind)?;

    let (client, accepted) = connection(listener, address)?;
    talk(client, &accepted).map_err(|(what, source)| Unproven::NotAllowed { what, stage: Stage::Accepted, source })?;
    let accepted = accepted.as_fd();
    all_refused(accepted, Stage::Accepted, &OPTIONS)?;
    refused(accepted, Stage::Accepted, bind)?;
    Operation::Disconnect.attempt(accepted).map_err(|source| Unproven::Loopback { step: "disconnect", source })?;
    all_refused(accepted, Stage::Disconnected, &[bind, connect, fast_open])?;
    contained(accepted)?;

    let shut = SockRef::from(&listener).shutdown(Shutdown::Both);
    shut.map_err(|source| Unproven::Loopback { step: "shutdown", source })?;
    all_refused(listener, Stage::Shut, &[bind, connect, fast_open])
}

/// What was disconnected can be made to listen, at an address and port of the kernel's choice; nobody reaches it.
fn contained(disconnected: BorrowedFd<'_>) -> Result<(), Unproven> {
    SockRef::from(&disconnected).listen(1).map_err(|source| Unproven::Loopback { step: "listen", source })?;
    let mut address = local_address(disconnected)?;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    match TcpStream::connect_timeout(&address, TIMEOUT) {
        Ok(_) => Err(Unproven::Reached { address }),
        Err(_) => Ok(()),
    }
}

fn all_refused(socket: BorrowedFd<'_>, stage: Stage, operations: &[Operation]) -> Result<(), Unproven> {
    operations.iter().try_for_each(|operation| refused(socket, stage, *operation))
}

/// EPERM is the guard's: the kernel itself never answers it to an unknown option, to bind and to connect.
fn refused(socket: BorrowedFd<'_>, stage: Stage, operation: Operation) -> Result<(), Unproven> {
    let answer = operation.attempt(socket).err();
    match (answer.as_ref().and_then(io::Error::raw_os_error), operation) {
        (Some(libc::EPERM), _) => Ok(()),
        // Clients may not use it in this namespace (net.ipv4.tcp_fastopen).
        (Some(libc::EOPNOTSUPP), Operation::FastOpen(_)) => Ok(()),
        _ => Err(Unproven::NotRefused { operation, stage, source: answer }),
    }
}

fn connection(listener: BorrowedFd<'_>, address: SocketAddr) -> Result<(TcpStream, TcpStream), Unproven> {
    let failed = |step| move |source| Unproven::Loopback { step, source };
    let client = TcpStream::connect_timeout(&address, TIMEOUT).map_err(failed("connect"))?;
    let timeout = PollTimeout::try_from(TIMEOUT).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(listener, PollFlags::POLLIN)], timeout).map_err(|e| failed("poll")(e.into()))?;
    let (accepted, _) = SockRef::from(&listener).accept().map_err(failed("accept"))?;
    Ok((client, accepted.into()))
}

/// What any server does with a connection.
fn talk(mut client: TcpStream, mut accepted: &TcpStream) -> Result<(), (&'static str, io::Error)> {
    let failed = |what| move |source| (what, source);
    let mut byte = [0];
    SockRef::from(accepted).set_keepalive(true).map_err(failed("setting SO_KEEPALIVE"))?;
    accepted.set_nodelay(true).map_err(failed("setting TCP_NODELAY"))?;
    accepted.set_read_timeout(Some(TIMEOUT)).map_err(failed("setting SO_RCVTIMEO"))?;
    client.set_read_timeout(Some(TIMEOUT)).map_err(failed("setting SO_RCVTIMEO"))?;
    client.write_all(b"x").map_err(failed("write by a client"))?;
    accepted.read_exact(&mut byte).map_err(failed("read"))?;
    accepted.write_all(&byte).map_err(failed("write"))?;
    client.read_exact(&mut byte).map_err(failed("read by a client"))
}

fn local_address(socket: BorrowedFd<'_>) -> Result<SocketAddr, Unproven> {
    let failed = |source| Unproven::Loopback { step: "getsockname", source };
    let address = SockRef::from(&socket).local_addr().map_err(failed)?;
    address.as_socket().ok_or_else(|| failed(io::ErrorKind::Unsupported.into()))
}
