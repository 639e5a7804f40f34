//! Addresses of the calling thread's network namespace: listed by getifaddrs, added by rtnetlink.

use std::{
    io,
    net::{IpAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nameindex, if_nametoindex},
};

/// linux/if_addr.h: flags of 32 bits, as an attribute.
const IFA_FLAGS: u16 = 8;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

/// A new address is usable by then, even on a busy host.
const ROUTED_WITHIN: Duration = Duration::from_secs(5);

/// An address of an interface that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// Whether the interface itself is loopback, whatever the address.
    pub is_loopback_interface: bool,
    /// The address.
    pub ip: IpAddr,
}

pub(super) fn list() -> io::Result<Vec<InterfaceAddress>> {
    let mut found = Vec::new();
    for entry in getifaddrs()?.filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP)) {
        let v4 = entry.address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::from(a.ip()));
        let v6 = entry.address.as_ref().and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::from(a.ip()));
        let Some(ip) = v4.or(v6) else { continue };
        let is_loopback_interface = entry.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let index = if_nametoindex(entry.interface_name.as_str())?;
        found.push(InterfaceAddress { interface: entry.interface_name, index, is_loopback_interface, ip });
    }
    found.sort_by_key(|address| (address.index, address.ip));
    Ok(found)
}

/// Whether no interface but loopback is up.
pub(super) fn only_loopback() -> io::Result<bool> {
    let others_up = getifaddrs()?.any(|entry| {
        entry.flags.contains(InterfaceFlags::IFF_UP) && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    Ok(!others_up && if_nameindex()?.iter().count() > 0)
}

/// Adds the address, as the only one of its network, to `lo`. It being there already is fine.
pub(super) fn add_to_loopback(address: IpAddr) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send(&new_address(address, if_nametoindex("lo")?), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // struct nlmsghdr, then the error of struct nlmsgerr.
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => wait_until_routed(address),
        Some(code) if code == -libc::EEXIST => wait_until_routed(address),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("rtnetlink answered with too few bytes")),
    }
}

/// The kernel makes the route to a new IPv6 address a moment later, in a work queue, also without duplicate detection.
fn wait_until_routed(address: IpAddr) -> io::Result<()> {
    let started = Instant::now();
    loop {
        // Sends nothing: it looks the route up.
        let routed = UdpSocket::bind((address, 0)).and_then(|socket| socket.connect((address, 9)));
        match routed {
            Err(_) if started.elapsed() < ROUTED_WITHIN => thread::sleep(Duration::from_millis(1)),
            routed => return routed,
        }
    }
}

/// An RTM_NEWADDR request: struct nlmsghdr, struct ifaddrmsg, and the address as both attributes it needs.
fn new_address(address: IpAddr, interface: u32) -> Vec<u8> {
    let (family, octets) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let mut body = vec![family as u8, (octets.len() * 8) as u8, 0, libc::RT_SCOPE_HOST];
    body.extend(interface.to_ne_bytes());
    for attribute in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        body.extend((4 + octets.len() as u16).to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(&octets);
    }
    if address.is_ipv6() {
        // No duplicate address detection, or it would not be usable for a second. No prefix route: that one is there
        // before the local one, and sends what is for the address nowhere.
        body.extend(8u16.to_ne_bytes());
        body.extend(IFA_FLAGS.to_ne_bytes());
        body.extend((libc::IFA_F_NODAD | IFA_F_NOPREFIXROUTE).to_ne_bytes());
    }
    let kind = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(libc::RTM_NEWADDR.to_ne_bytes());
    message.extend((kind as u16).to_ne_bytes());
    message.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    message.extend(body);
    message
}
