//! Who listens where: TCP listeners by NETLINK_SOCK_DIAG, in the calling thread's network namespace, and the process
//! that owns a socket by /proc. Reads only.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

/// Sockets that listen though they must not are bound to this interface, which no host has (bpf/account.bpf.c).
const NOWHERE: u32 = 0x7fff_fffe;

/// The kernel's number of the request that ends a socket (linux/sock_diag.h).
const SOCK_DESTROY: u16 = 21;

/// A listening TCP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// What it listens on.
    pub address: SocketAddr,
    /// An IPv6 socket that gets no IPv4 connections. False for IPv4.
    pub v6only: bool,
    /// The user that made it.
    pub uid: u32,
    /// Its inode, as in `/proc/PID/fd` and fstat.
    pub inode: u32,
    /// Its SO_COOKIE.
    pub cookie: u64,
    /// The interface it is bound to, or 0.
    pub interface: u32,
    /// Connections in its accept queue.
    pub queued: u32,
    /// Connections that it may hold.
    pub backlog: u32,
}

impl Listening {
    /// Whether a connection to some address could go to this socket as well as to one bound to `address`, which takes
    /// IPv4 connections too if it is IPv6's and not `v6only`.
    pub fn overlaps(&self, address: SocketAddr, v6only: bool) -> bool {
        let (theirs, ours) = (self.address.ip(), address.ip());
        self.address.port() == address.port()
            && match (theirs, ours) {
                (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) => {
                    theirs == ours || theirs.is_unspecified() || ours.is_unspecified()
                }
                (IpAddr::V6(_), IpAddr::V4(_)) => theirs.is_unspecified() && !self.v6only,
                (IpAddr::V4(_), IpAddr::V6(_)) => ours.is_unspecified() && !v6only,
            }
    }
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its process id.
    pub pid: u32,
    /// Its name, at most 15 bytes.
    pub comm: String,
}

/// All TCP listeners on `port`, of both families, in the calling thread's network namespace.
///
/// # Errors
/// ENOENT where the kernel has no `tcp_diag` (load the module).
pub fn listeners(port: u16) -> io::Result<Vec<Listening>> {
    // The kernel may tell more than it was asked for.
    let mut found = dump_both(port, StateFlags::LISTEN)?;
    found.retain(|listening| listening.address.port() == port);
    Ok(found)
}

/// The inodes of TCP connections of both families whose near end is `port` and that somebody has open, in the calling
/// thread's network namespace. Those that only the kernel still closes have none.
///
/// # Errors
/// As [`listeners`].
pub fn connections(port: u16) -> io::Result<Vec<u32>> {
    let open = StateFlags::ESTABLISHED
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::LAST_ACK
        | StateFlags::CLOSING;
    let mut found = dump_both(port, open)?;
    found.retain(|connection| connection.address.port() == port && connection.inode != 0);
    Ok(found.into_iter().map(|connection| connection.inode).collect())
}

/// How far a connection has come at its near end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Its handshake isn't over: the accept queue is full, or the listener waits for data (TCP_DEFER_ACCEPT).
    Handshake,
    /// It waits in an accept queue.
    Queued,
    /// A program has accepted it, and may have closed it since.
    Accepted,
    /// It is no more.
    Gone,
}

/// How far the TCP connection from `far` to `near` has come, in the calling thread's network namespace, which has both ends.
///
/// # Errors
/// As [`listeners`].
pub fn arrival(near: SocketAddr, far: SocketAddr) -> io::Result<Arrival> {
    let family = if near.is_ipv4() { AF_INET } else { AF_INET6 };
    let socket_id = SocketId {
        source_port: near.port(),
        destination_port: far.port(),
        source_address: near.ip(),
        destination_address: far.ip(),
        interface_id: 0,
        // INET_DIAG_NOCOOKIE
        cookie: [0xff; 8],
    };
    let states = StateFlags::all();
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id };
    let (datagram, _) = ask(request, NLM_F_REQUEST, None)?.recv_from_full()?;
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(&datagram).map_err(io::Error::other)?;
    match message.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => Ok(arrived(&response)),
        NetlinkPayload::Error(error) if error.to_io().kind() == io::ErrorKind::NotFound => Ok(Arrival::Gone),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// States as in the kernel's `include/net/tcp_states.h`. Only who has accepted a connection gives it an inode.
fn arrived(response: &InetResponse) -> Arrival {
    const TCP_ESTABLISHED: u8 = 1;
    const TCP_SYN_RECV: u8 = 3;
    const TCP_LISTEN: u8 = 10;
    const TCP_NEW_SYN_RECV: u8 = 12;
    match (response.header.state, response.header.inode) {
        // The kernel looks for a listener where it finds no connection.
        (TCP_LISTEN, _) => Arrival::Gone,
        (TCP_SYN_RECV | TCP_NEW_SYN_RECV, _) => Arrival::Handshake,
        (TCP_ESTABLISHED, 0) => Arrival::Queued,
        // Closed by its program, or closed by its client while it waited: the caller's end is open.
        _ => Arrival::Accepted,
    }
}

/// All TCP listeners of both families in the calling thread's network namespace.
///
/// # Errors
/// As [`listeners`].
pub fn all_listeners() -> io::Result<Vec<Listening>> {
    dump_both(0, StateFlags::LISTEN)
}

/// Listeners in the calling thread's network namespace that were contained because they are sockets of the guard, and not
/// made to listen by the agent.
///
/// # Errors
/// As [`listeners`].
pub fn contained() -> io::Result<Vec<Listening>> {
    let mut found = all_listeners()?;
    found.retain(|listening| listening.interface == NOWHERE);
    Ok(found)
}

/// Ends a listener, whoever has it open: accept(2) on it fails from then on.
///
/// # Errors
/// NotFound when it has ended; Unsupported where the kernel has no CONFIG_INET_DIAG_DESTROY.
pub fn destroy(listening: &Listening) -> io::Result<()> {
    let (family, mut socket_id) = match listening.address {
        SocketAddr::V4(_) => (AF_INET, SocketId::new_v4()),
        SocketAddr::V6(_) => (AF_INET6, SocketId::new_v6()),
    };
    socket_id.source_address = listening.address.ip();
    socket_id.source_port = listening.address.port();
    socket_id.interface_id = listening.interface;
    socket_id.cookie = listening.cookie.to_ne_bytes();
    let (extensions, states) = (ExtensionFlags::empty(), StateFlags::LISTEN);
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    let socket = ask(request, NLM_F_REQUEST | NLM_F_ACK, Some(SOCK_DESTROY))?;
    let (datagram, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&datagram).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(match error.to_io() {
            refused if refused.raw_os_error() == Some(libc::EOPNOTSUPP) => io::ErrorKind::Unsupported.into(),
            refused => refused,
        }),
        _ => Ok(()),
    }
}

/// A process that has the socket open, the one with the lowest id. None if there is none or it can't be seen.
pub fn owner(inode: u32) -> Option<Owner> {
    let mut pids: Vec<u32> =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let pid = pids.into_iter().find(|pid| has_socket(*pid, inode))?;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(Owner { pid, comm: comm.trim_end().into() })
}

/// The inode of an open socket.
///
/// # Errors
/// As fstat(2).
pub fn inode(socket: std::os::fd::BorrowedFd<'_>) -> io::Result<u32> {
    let file = fs::File::from(socket.try_clone_to_owned()?);
    // The kernel's socket inodes are 32 bits wide: get_next_ino().
    u32::try_from(file.metadata()?.ino()).map_err(io::Error::other)
}

fn has_socket(pid: u32, inode: u32) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()))
}

fn dump_both(port: u16, states: StateFlags) -> io::Result<Vec<Listening>> {
    let mut found = dump(AF_INET, port, states.clone())?;
    found.extend(dump(AF_INET6, port, states)?);
    Ok(found)
}

fn dump(family: u8, port: u16, states: StateFlags) -> io::Result<Vec<Listening>> {
    let mut socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    socket_id.source_port = port;
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id };
    let socket = ask(request, NLM_F_REQUEST | NLM_F_DUMP, None)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if read_datagram(&datagram, &mut found)? {
            return Ok(found);
        }
    }
}

/// Sends a request; `kind` where it is another than the library's. The answer can be received.
fn ask(request: InetRequest, flags: u16, kind: Option<u16>) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    message.header.message_type = kind.unwrap_or(message.header.message_type);
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    Ok(socket)
}

/// Adds the listeners of one datagram; true once the dump is done.
fn read_datagram(mut datagram: &[u8], found: &mut Vec<Listening>) -> io::Result<bool> {
    while !datagram.is_empty() {
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(datagram).map_err(io::Error::other)?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => found.push(listening(&response)),
            _ => {}
        }
        // Messages are aligned to 4 bytes.
        let len = (message.header.length as usize).next_multiple_of(4).max(16);
        datagram = datagram.get(len..).unwrap_or_default();
    }
    Ok(false)
}

fn listening(response: &InetResponse) -> Listening {
    let header = &response.header;
    Listening {
        address: SocketAddr::new(header.socket_id.source_address, header.socket_id.source_port),
        v6only: response.nlas.iter().any(|nla| matches!(nla, Nla::SkV6Only(true))),
        uid: header.uid,
        inode: header.inode,
        cookie: u64::from_ne_bytes(header.socket_id.cookie),
        interface: header.socket_id.interface_id,
        queued: header.recv_queue,
        backlog: header.send_queue,
    }
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsFd};

    use super::*;

    #[test]
    fn a_listener_is_found_with_its_owner() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).expect("loopback has free ports");
            let address = listener.local_addr().expect("it is bound");
            let _waiting = std::net::TcpStream::connect(address).expect("it listens");
            let accepted = listener.accept().expect("a connection waits").0;
            let near = inode(accepted.as_fd()).expect("it is open");
            assert_eq!(connections(address.port()).expect("sock_diag answers"), [near]);
            let _waiting = std::net::TcpStream::connect(address).expect("it listens");
            let found = listeners(address.port()).expect("sock_diag answers");
            let inode = inode(listener.as_fd()).expect("it is open");
            let one = found.iter().find(|found| found.inode == inode).expect("it is among them");
            assert_eq!((one.address, one.interface, one.queued), (address, 0, 1));
            let owner = owner(inode).expect("we own it");
            assert_eq!(owner.pid, std::process::id());
            assert!(!owner.comm.is_empty());
        }
        assert_eq!(owner(u32::MAX), None);
    }

    #[test]
    fn a_connection_is_accepted_when_a_program_has_it() {
        for (listen, connect) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("[::]", "127.0.0.1")] {
            let listener = TcpListener::bind(format!("{listen}:0")).expect("loopback has free ports");
            let port = listener.local_addr().expect("it is bound").port();
            let near = format!("{connect}:{port}").parse().expect("an address");
            let client = std::net::TcpStream::connect(near).expect("it listens");
            let far = client.local_addr().expect("it is bound");
            let check = |expected| assert_eq!(arrival(near, far).expect("sock_diag answers"), expected, "{listen}");
            check(Arrival::Queued);
            let accepted = listener.accept().expect("a connection waits").0;
            check(Arrival::Accepted);
            drop(accepted);
            check(Arrival::Accepted);
            drop((listener, client));
        }
        let nobody = "127.0.0.1:1".parse().expect("an address");
        assert_eq!(arrival(nobody, nobody).expect("sock_diag answers"), Arrival::Gone);
    }

    #[test]
    fn overlap_is_where_a_connection_could_go_to_either() {
        let check = |theirs: &str, v6only: bool, ours: &str, expected: bool| {
            let address = theirs.parse().expect("an address");
            let theirs =
                Listening { address, v6only, uid: 0, inode: 1, cookie: 1, interface: 0, queued: 0, backlog: 0 };
            assert_eq!(theirs.overlaps(ours.parse().expect("an address"), true), expected, "{theirs:?} {ours}");
        };
        check("127.0.0.1:80", false, "127.0.0.1:80", true);
        check("127.0.0.1:80", false, "127.0.0.1:81", false);
        check("127.0.0.1:80", false, "127.0.0.2:80", false);
        check("0.0.0.0:80", false, "127.0.0.2:80", true);
        check("127.0.0.1:80", false, "0.0.0.0:80", true);
        check("[::]:80", false, "0.0.0.0:80", true);
        check("[::]:80", true, "0.0.0.0:80", false);
        check("[::1]:80", false, "0.0.0.0:80", false);
        check("0.0.0.0:80", false, "[::]:80", false);
        check("[::]:80", true, "[::1]:80", true);
        let v4 = Listening {
            address: "127.0.0.1:80".parse().expect("an address"),
            v6only: false,
            uid: 0,
            inode: 1,
            cookie: 1,
            interface: 0,
            queued: 0,
            backlog: 0,
        };
        assert!(v4.overlaps("[::]:80".parse().expect("an address"), false));
    }
}
