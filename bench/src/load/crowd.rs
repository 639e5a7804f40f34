//! Connections that are held open, each with the slot that answered on it: who has how many is told by those who are connected.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::{Reached, exchange::exchange, http};
use crate::{shard::SLOT_FIELD, stats::Random};

const PATIENCE: Duration = Duration::from_secs(20);

/// Where clients come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origins {
    /// One address, and a port of each connection's own.
    OneAddress,
    /// An address of each connection's own, of loopback's 16 million.
    ManyAddresses,
}

/// Open connections; dropping it closes them.
#[derive(Debug)]
pub struct Crowd {
    target: SocketAddr,
    origins: Origins,
    random: Random,
    open: Vec<(TcpStream, u32)>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(target: SocketAddr, origins: Origins, seed: u64) -> Self {
        Self { target, origins, random: Random::new(seed), open: Vec::new() }
    }

    /// Connects `count` times at once: no connection waits for another one, and none is used before all are begun. Gives how long that
    /// took.
    pub fn burst(&mut self, count: usize) -> io::Result<Duration> {
        let sockets = (0..count).map(|_| self.socket()).collect::<io::Result<Vec<_>>>()?;
        let target = self.target.into();
        let began = Instant::now();
        for socket in &sockets {
            match socket.connect(&target) {
                Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
                _ => {}
            }
        }
        let took = began.elapsed();
        for socket in sockets {
            socket.set_nonblocking(false)?;
            self.admit(socket.into())?;
        }
        Ok(took)
    }

    /// One more.
    pub fn arrive(&mut self) -> io::Result<()> {
        self.burst(1).map(drop)
    }

    /// One less, whichever; comes back when the other side has closed too.
    pub fn depart(&mut self) -> io::Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let (mut stream, _) = self.open.swap_remove(self.random.below(self.open.len()));
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// How many the fullest of `slots` slots has above the mean of all.
    pub fn excess(&self, slots: usize) -> f64 {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        self.open.iter().for_each(|(_, slot)| *counts.entry(*slot).or_default() += 1);
        let most = counts.into_values().max().unwrap_or(0);
        most as f64 - self.open.len() as f64 / slots as f64
    }

    fn socket(&mut self) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.target), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if self.origins == Origins::ManyAddresses {
            // Not 127.0/16, where others listen, nor 127.255/16, whose last is for broadcasts.
            let mut octet = |from: u8, count: usize| from + self.random.below(count) as u8;
            let own = Ipv4Addr::new(127, octet(1, 254), octet(0, 256), octet(1, 254));
            socket.bind(&SocketAddr::from((own, 0)).into())?;
        }
        Ok(socket)
    }

    /// Asks who it is that has it. In blocking mode a connection that isn't established yet is waited for.
    fn admit(&mut self, mut stream: TcpStream) -> io::Result<()> {
        let mut reached = Reached::Connecting;
        let answer = exchange(&mut stream, &http::get("/0?slot", "shard", false), PATIENCE, &mut reached)?;
        let slot = answer.field(SLOT_FIELD).and_then(|slot| slot.parse().ok());
        let nobody = || io::Error::new(io::ErrorKind::InvalidData, "an answer that tells no slot");
        self.open.push((stream, slot.ok_or_else(nobody)?));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener, thread};

    use super::*;

    /// Tells the slots 0, 0, 1, 0, 0, 1, … in turn.
    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a port");
        let address = listener.local_addr().expect("it is bound");
        thread::spawn(move || {
            for (n, mut stream) in listener.incoming().flatten().enumerate() {
                thread::spawn(move || {
                    while stream.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {
                        let slot = usize::from(n % 3 == 2);
                        let answer = format!("HTTP/1.1 200 OK\r\nSherd-Slot: {slot}\r\nContent-Length: 0\r\n\r\n");
                        let _ = stream.write_all(answer.as_bytes());
                    }
                });
            }
        });
        address
    }

    #[test]
    fn what_the_fullest_has_above_the_mean_is_counted_by_answers() {
        for origins in [Origins::OneAddress, Origins::ManyAddresses] {
            let mut crowd = Crowd::new(server(), origins, 1);
            assert!(crowd.is_empty() && crowd.excess(2) == 0.0);
            assert!(crowd.burst(9).expect("it answers") < Duration::from_secs(5));
            assert_eq!((crowd.len(), crowd.excess(2), crowd.excess(3)), (9, 1.5, 3.0));
            crowd.arrive().expect("it answers");
            (0..10).for_each(|_| crowd.depart().expect("it ends"));
            assert!(crowd.is_empty());
        }
    }
}
