//! Published ports: Docker's `[IP:]HOST:CONTAINER` words as checked values; binds nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sherd_lb::table::{self, Policy};
use thiserror::Error;

/// One published port of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Where clients connect.
    pub host: HostAddress,
    /// Where the shard listens, inside its own network namespace; for processes the key of the port it is told.
    pub container: ContainerPort,
    /// How a connection finds its slot.
    pub policy: Policy,
    /// Relative share of each slot, in the order of slots; equal shares when absent. Only with a fixed number of shards.
    pub weights: Option<Vec<u32>>,
    /// A shard that listens on loopback only may be published.
    pub loopback: bool,
    /// Length of the steering table: a prime of at least 100 times the number of slots. Absent: [`PortSpec::table_len`].
    pub table_len: Option<u32>,
}

impl PortSpec {
    /// A published port with every option at its default.
    pub fn new(host: HostAddress, container: ContainerPort) -> Self {
        Self { host, container, policy: Policy::Connection, weights: None, loopback: false, table_len: None }
    }

    /// Length of the steering table for that many slots. Where nobody asks for one it is short, for the CPU's caches; with
    /// weights, of which the least may be a thousandth of the greatest, long.
    pub fn table_len(&self, slots: usize) -> u32 {
        let least = if self.weights.is_some() { table::ROOMY_TABLE_LEN } else { 0 };
        self.table_len.unwrap_or_else(|| table::default_len(slots).max(least))
    }

    /// Docker's words for it: `[IP:]HOST:CONTAINER`, an IPv6 address in brackets.
    pub fn publish(&self) -> String {
        format!("{}:{}", self.host, self.container)
    }
}

/// A TCP port of the host; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPort(pub u16);

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A TCP port inside a shard; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContainerPort(pub u16);

impl fmt::Display for ContainerPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A published address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostAddress {
    /// Absent: every address of the host, IPv4 and IPv6.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: HostPort,
}

impl HostAddress {
    /// The addresses to bind: one, or `0.0.0.0` and `[::]`.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let ips = match self.ip {
            Some(ip) => vec![ip],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        };
        ips.into_iter().map(|ip| SocketAddr::new(ip, self.port.0)).collect()
    }

    /// Whether a connection could be meant for both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.port == other.port
            && self.addresses().iter().any(|a| {
                other.addresses().iter().any(|b| {
                    let wildcard = a.ip().is_unspecified() || b.ip().is_unspecified();
                    a.ip() == b.ip() || (wildcard && a.is_ipv4() == b.is_ipv4())
                })
            })
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port.0).fmt(f),
            None => self.port.fmt(f),
        }
    }
}

/// Why a `publish` text is not a published port.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    /// No host port.
    #[error("`{text}` names no port of the host: write `HOST:CONTAINER`, for example `8080:80`")]
    NoHostPort {
        /// What was given.
        text: String,
    },
    /// Not a port number.
    #[error("`{part}` is not a port: write a number from 1 to 65535, as in `8080:80`")]
    BadPort {
        /// The part that is not a port.
        part: String,
    },
    /// A range of ports.
    #[error("`{part}` is a range of ports: publish each port by itself, as in `8080:80`")]
    Range {
        /// The range.
        part: String,
    },
    /// Not an IP address.
    #[error("`{part}` is not an IP address: write `127.0.0.1:8080:80` or `[::1]:8080:80`")]
    BadAddress {
        /// The part that is not an address.
        part: String,
    },
    /// An IPv6 address without brackets.
    #[error("`{text}`: put an IPv6 address in brackets, as in `[::1]:8080:80`")]
    NoBrackets {
        /// What was given.
        text: String,
    },
    /// An IPv4 address written as IPv6.
    #[error("`{part}` is an IPv4 address written as IPv6: write the IPv4 address itself")]
    MappedAddress {
        /// The address.
        part: String,
    },
    /// UDP or SCTP.
    #[error(
        "`/{protocol}` is not supported yet: only TCP ports can be published; write the port without it or as `/tcp`"
    )]
    Protocol {
        /// The protocol asked for.
        protocol: String,
    },
}

impl FromStr for PortSpec {
    type Err = PublishError;

    fn from_str(text: &str) -> Result<Self, PublishError> {
        let ports = match text.rsplit_once('/') {
            Some((ports, "tcp")) => ports,
            Some((_, protocol)) => return Err(PublishError::Protocol { protocol: protocol.to_owned() }),
            None => text,
        };
        let no_host = || PublishError::NoHostPort { text: text.to_owned() };
        let (host, container) = ports.rsplit_once(':').ok_or_else(no_host)?;
        let (ip, host) = match host.rsplit_once(':') {
            Some((ip, host)) => (Some(address(ip, text)?), host),
            None => (None, host),
        };
        if host.is_empty() {
            return Err(no_host());
        }
        let host = HostAddress { ip, port: HostPort(port(host)?) };
        Ok(Self::new(host, ContainerPort(port(container)?)))
    }
}

fn address(part: &str, text: &str) -> Result<IpAddr, PublishError> {
    let bad = || PublishError::BadAddress { part: part.to_owned() };
    let Some(inner) = part.strip_prefix('[') else {
        if part.contains(':') {
            return Err(PublishError::NoBrackets { text: text.to_owned() });
        }
        return part.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| bad());
    };
    let v6: Ipv6Addr = inner.strip_suffix(']').and_then(|v6| v6.parse().ok()).ok_or_else(bad)?;
    // A v6only socket refuses such an address, and a dual-stack one would fall into another reuseport group.
    if v6.to_ipv4_mapped().is_some() {
        return Err(PublishError::MappedAddress { part: part.to_owned() });
    }
    Ok(v6.into())
}

fn port(part: &str) -> Result<u16, PublishError> {
    if let Some((first, last)) = part.split_once('-')
        && first.parse::<u16>().is_ok()
        && last.parse::<u16>().is_ok()
    {
        return Err(PublishError::Range { part: part.to_owned() });
    }
    let digits = part.bytes().all(|byte| byte.is_ascii_digit());
    match part.parse::<u16>() {
        Ok(port) if port > 0 && digits => Ok(port),
        _ => Err(PublishError::BadPort { part: part.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(Option<&str>, u16, u16), PublishError>) {
        let found = text.parse::<PortSpec>().map(|port| (port.host.ip, port.host.port.0, port.container.0));
        let expected = expected.map(|(ip, host, container)| (ip.map(|ip| ip.parse().unwrap()), host, container));
        assert_eq!(found, expected, "{text}");
        if let Ok(port) = text.parse::<PortSpec>() {
            assert_eq!(port.publish().parse(), Ok(port), "{text}");
        }
    }

    #[test]
    fn publish_reads_as_docker_does() {
        check("8080:80", Ok((None, 8080, 80)));
        check("8080:80/tcp", Ok((None, 8080, 80)));
        check("127.0.0.1:8080:80", Ok((Some("127.0.0.1"), 8080, 80)));
        check("[::1]:8080:80", Ok((Some("::1"), 8080, 80)));
        check("0.0.0.0:1:65535", Ok((Some("0.0.0.0"), 1, 65535)));
    }

    #[test]
    fn publish_faults_say_what_to_write() {
        let part = |part: &str| part.to_owned();
        check("80", Err(PublishError::NoHostPort { text: part("80") }));
        check(":80", Err(PublishError::NoHostPort { text: part(":80") }));
        check("127.0.0.1::80", Err(PublishError::NoHostPort { text: part("127.0.0.1::80") }));
        check("0:80", Err(PublishError::BadPort { part: part("0") }));
        check("+1:80", Err(PublishError::BadPort { part: part("+1") }));
        check("8080:65536", Err(PublishError::BadPort { part: part("65536") }));
        check("8080:", Err(PublishError::BadPort { part: part("") }));
        check("8080-8090:80", Err(PublishError::Range { part: part("8080-8090") }));
        check("localhost:8080:80", Err(PublishError::BadAddress { part: part("localhost") }));
        check("[::1:8080:80", Err(PublishError::BadAddress { part: part("[::1") }));
        check("::1:8080:80", Err(PublishError::NoBrackets { text: part("::1:8080:80") }));
        check("[::ffff:1.2.3.4]:80:80", Err(PublishError::MappedAddress { part: part("[::ffff:1.2.3.4]") }));
        check("53:53/udp", Err(PublishError::Protocol { protocol: part("udp") }));
    }

    #[test]
    fn overlap_is_per_family() {
        let check = |a: &str, b: &str, expected: bool| {
            let host = |text: &str| format!("{text}:80").parse::<PortSpec>().unwrap().host;
            assert_eq!(host(a).overlaps(&host(b)), expected, "{a} {b}");
            assert_eq!(host(b).overlaps(&host(a)), expected, "{b} {a}");
        };
        check("80", "80", true);
        check("80", "81", false);
        check("80", "127.0.0.1:80", true);
        check("80", "[::1]:80", true);
        check("0.0.0.0:80", "[::]:80", false);
        check("127.0.0.1:80", "127.0.0.2:80", false);
        check("0.0.0.0:80", "127.0.0.2:80", true);
    }
}
