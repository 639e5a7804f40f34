//! Connections that have had one answer and then do nothing: what they cost in memory is measured while this is held.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use socket2::SockRef;

use super::fetch::{FetchError, fetch_from};
use crate::interrupt::Interrupt;

/// Connections from one address: the kernel has 28,232 ports for them, unless somebody set ip_local_port_range otherwise.
const FROM_ONE_ADDRESS: usize = 20_000;

/// Open connections; dropping it closes them.
#[derive(Debug, Default)]
pub struct IdleConnections(Vec<TcpStream>);

/// Not all connections could be opened.
#[derive(Debug, thiserror::Error)]
pub enum IdleError {
    /// One failed.
    #[error("idle connection {number} of {wanted} failed")]
    Connection {
        /// Which.
        number: usize,
        /// Of how many.
        wanted: usize,
        /// Why.
        source: FetchError,
    },
    /// Somebody wants the run to end.
    #[error("interrupted")]
    Interrupted,
}

impl IdleConnections {
    /// Opens `count` of them, each to the next of `targets`, and has each answered once: a balancer allocates some of
    /// its memory only then. More than 20,000 are possible on loopback only, where there are enough addresses to come from.
    pub fn open(
        targets: &[SocketAddr],
        count: usize,
        answer_bytes: usize,
        interrupt: &Interrupt,
    ) -> Result<Self, IdleError> {
        let mut connections = Self::default();
        connections.grow_to(targets, count, answer_bytes, interrupt)?;
        Ok(connections)
    }

    /// Opens further ones until there are `count`; those that are there stay, also where it fails.
    pub fn grow_to(
        &mut self,
        targets: &[SocketAddr],
        count: usize,
        answer_bytes: usize,
        interrupt: &Interrupt,
    ) -> Result<(), IdleError> {
        for number in self.0.len()..count {
            if interrupt.is_raised() {
                return Err(IdleError::Interrupted);
            }
            let target = targets[number % targets.len()];
            let stream = fetch_from(source(target, number / targets.len()), target, answer_bytes)
                .map_err(|source| IdleError::Connection { number, wanted: count, source })?;
            self.0.push(stream);
        }
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for IdleConnections {
    fn drop(&mut self) {
        for stream in &self.0 {
            // Closing by reset leaves no TIME_WAIT here, which would cost the next measurement its ports.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// Where the connection to a target that has `others` already comes from; none is the kernel's choice.
fn source(target: SocketAddr, others: usize) -> Option<IpAddr> {
    let further = others / FROM_ONE_ADDRESS;
    (further > 0 && target.ip().is_loopback() && target.is_ipv4())
        .then(|| Ipv4Addr::new(127, 1, (further >> 8) as u8, further as u8).into())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;
    use crate::shard::Shard;

    #[test]
    fn many_come_from_many_addresses() {
        let check = |target: &str, others, expected: Option<[u8; 4]>| {
            let target = SocketAddr::new(target.parse().expect("an address"), 80);
            assert_eq!(source(target, others), expected.map(IpAddr::from), "{target} {others}");
        };
        check("127.0.0.1", 19_999, None);
        check("127.0.0.1", 20_000, Some([127, 1, 0, 1]));
        check("127.0.0.1", 99_999, Some([127, 1, 0, 4]));
        check("::1", 99_999, None);
        check("192.0.2.1", 99_999, None);
    }

    #[test]
    fn connections_grow_and_come_from_where_they_should() {
        let mut shard = Shard::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = shard.address().expect("it listens");
        thread::spawn(move || shard.serve());
        let mut connections = IdleConnections::open(&[address], 2, 10, &Interrupt::default()).expect("it answers");
        connections.grow_to(&[address], 5, 10, &Interrupt::default()).expect("it answers");
        assert_eq!(connections.len(), 5);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let to = listener.local_addr().expect("it listens");
        let accepted = thread::spawn(move || listener.accept().expect("somebody comes").1.ip());
        // It is told nothing.
        fetch_from(source(to, 20_000), to, 1).expect_err("nobody answers");
        assert_eq!(accepted.join().expect("no panic"), IpAddr::from([127, 1, 0, 1]));
    }
}
