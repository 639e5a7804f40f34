//! The source ports that a worker connects from. Knows the namespace it was made for only by its port range.

use std::{fs, io};

use nix::errno::Errno;

use super::{
    Target,
    socket::{self, Dialed},
};

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

    /// A socket that is on its way to `target`.
    pub(super) fn dial(&mut self, target: &Target) -> io::Result<Dialed> {
        // A forced socket is bound before it connects; bind says EADDRNOTAVAIL where the host has lost the address.
        let none_left = if target.force.is_some() { Errno::EADDRINUSE } else { Errno::EADDRNOTAVAIL };
        if self.skip_kernel == 0 {
            let result = socket::connect(target, 0);
            if !is(&result, none_left) {
                return result;
            }
            self.skip_kernel = SKIP_KERNEL;
        }
        self.skip_kernel -= 1;
        for _ in 0..TRIES {
            let Some(port) = self.ports.next() else { break };
            let result = socket::connect(target, port);
            if !is(&result, Errno::EADDRINUSE) && !is(&result, none_left) && !is(&result, Errno::EACCES) {
                return result;
            }
        }
        socket::connect(target, 0)
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
