//! Where a worker's thread lives, and the source ports it connects from. Changes the namespace of the calling thread
//! only; never changes a setting of the namespace the thread was born in.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::stat::fstat,
};
use socket2::SockAddr;

use super::socket;

/// The network namespace of the calling thread, and the one it came from.
#[derive(Debug)]
pub(super) struct Namespace {
    home: File,
    home_inode: u64,
}

impl Namespace {
    /// The calling thread's is home.
    pub(super) fn of_this_thread() -> io::Result<Self> {
        let home = File::open("/proc/thread-self/ns/net")?;
        let home_inode = fstat(&home)?.st_ino;
        Ok(Self { home, home_inode })
    }

    /// Moves the calling thread. The caller closes the descriptor: held, it would keep the namespace alive.
    pub(super) fn enter(&self, netns: &OwnedFd) -> io::Result<()> {
        if fstat(netns)?.st_ino == self.home_inode {
            return self.leave();
        }
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        reuse_time_wait();
        Ok(())
    }

    /// Takes the calling thread home.
    pub(super) fn leave(&self) -> io::Result<()> {
        Ok(setns(&self.home, CloneFlags::CLONE_NEWNET)?)
    }
}

/// A client that closes first leaves the relay's port towards the shard in TIME_WAIT for a minute, and one address
/// has 28,000 ports: some 470 such connections a second would use them up. The default (2) lets connect take such a
/// port after a second on loopback addresses only. Best effort: /proc/sys may be read-only.
fn reuse_time_wait() {
    let _ = fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1");
}

/// Connects, from the kernel's ephemeral ports while they last, and from all others after.
///
/// IP_LOCAL_PORT_RANGE would cost less, but the kernel only ever narrows the namespace's range by it
/// (`inet_sk_get_local_port_range`; ports outside were never given on 6.18).
#[derive(Debug)]
pub(super) struct Dialer {
    ports: SourcePorts,
    /// Connections to make before the kernel is asked for a port again: it searches its whole range to say no.
    skip_kernel: u32,
}

const SKIP_KERNEL: u32 = 512;
const TRIES: usize = 16;

impl Dialer {
    /// For the namespace the calling thread is in.
    pub(super) fn of_this_thread() -> Self {
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok();
        let bounds = range.as_deref().and_then(|range| {
            let mut bounds = range.split_whitespace().map(str::parse::<u16>);
            Some((bounds.next()?.ok()?, bounds.next()?.ok()?))
        });
        let (low, high) = bounds.unwrap_or((32_768, 60_999));
        Self { ports: SourcePorts::outside(low, high), skip_kernel: 0 }
    }

    /// A socket that is on its way to `address`.
    pub(super) fn dial(&mut self, address: &SockAddr) -> io::Result<OwnedFd> {
        if self.skip_kernel == 0 {
            let result = socket::connect(address, None);
            if !is(&result, Errno::EADDRNOTAVAIL) {
                return result;
            }
            self.skip_kernel = SKIP_KERNEL;
        }
        self.skip_kernel -= 1;
        let any = if address.is_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
        for _ in 0..TRIES {
            let Some(port) = self.ports.next() else { break };
            let result = socket::connect(address, Some(SocketAddr::new(any, port)));
            if !is(&result, Errno::EADDRINUSE) && !is(&result, Errno::EADDRNOTAVAIL) && !is(&result, Errno::EACCES) {
                return result;
            }
        }
        socket::connect(address, None)
    }
}

fn is<T>(result: &io::Result<T>, errno: Errno) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error() == Some(errno as i32))
}

/// The ports outside the ephemeral range, again and again, from the top: services listen low.
#[derive(Debug)]
struct SourcePorts {
    low: u16,
    high: u16,
    last: u16,
}

const FIRST_UNPRIVILEGED: u16 = 1024;

impl SourcePorts {
    fn outside(low: u16, high: u16) -> Self {
        Self { low: low.max(FIRST_UNPRIVILEGED), high, last: FIRST_UNPRIVILEGED }
    }

    fn next(&mut self) -> Option<u16> {
        if self.low == FIRST_UNPRIVILEGED && self.high == u16::MAX {
            return None;
        }
        self.last = if self.last == FIRST_UNPRIVILEGED { u16::MAX } else { self.last - 1 };
        if (self.low..=self.high).contains(&self.last) {
            self.last = if self.low == FIRST_UNPRIVILEGED { u16::MAX } else { self.low - 1 };
        }
        Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn source_ports_are_all_outside_the_range_and_come_round() {
        let check = |low: u16, high: u16| {
            let mut ports = SourcePorts::outside(low, high);
            let expected: BTreeSet<u16> =
                (1024..=u16::MAX).filter(|port| !(low.max(1024)..=high).contains(port)).collect();
            for _ in 0..2 {
                let given: Vec<u16> = (0..expected.len()).filter_map(|_| ports.next()).collect();
                assert_eq!(given.iter().copied().collect::<BTreeSet<_>>(), expected, "{low}-{high}");
                assert_eq!(given.len(), expected.len(), "{low}-{high}");
            }
        };
        check(32_768, 60_999);
        check(1_024, 60_999);
        check(32_768, 65_535);
        check(1_024, 65_535);
        check(80, 2_000);
    }
}
