//! A server whose answers are late by known amounts, and what a load generator has to say of it by arithmetic: the
//! instrument's own test, on any machine; owns the server's threads.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Load, Shape, arrivals::Arrivals};
use crate::stats::quantile;

/// Tiers are shares of so many requests.
pub const CYCLE: u64 = 2000;
/// No factor of [`CYCLE`]: requests of one tier don't come in a row.
const STEP: u64 = 787;
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// How late answers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lateness {
    /// Each answer by its tier's delay. Shares add up to [`CYCLE`].
    Tiers(Vec<Tier>),
    /// Answers come at once, but none in this time after the first request.
    Stall {
        /// When it begins.
        from: Duration,
        /// When it ends.
        to: Duration,
    },
}

/// Requests that wait equally long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// Of [`CYCLE`] requests.
    pub share: u64,
    /// From a request's arrival to its answer.
    pub delay: Duration,
}

/// A running server; dropping it ends it with its last connection.
#[derive(Debug)]
pub struct Planted {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

struct Plan {
    lateness: Lateness,
    count: AtomicU64,
    first: OnceLock<Instant>,
}

impl Lateness {
    /// When the answer to request `number`, which came at `now`, may go, if the first came at `first`.
    fn answers_at(&self, number: u64, first: Instant, now: Instant) -> Instant {
        match self {
            Self::Tiers(tiers) => now + delay_of(tiers, number),
            Self::Stall { from, to } if (first + *from..first + *to).contains(&now) => first + *to,
            Self::Stall { .. } => now,
        }
    }

    /// The latency in milliseconds that `share` of the load's requests don't exceed, if server, network and generator
    /// took no time; None for a load that is no open loop. Of tiers it is exact where `share` isn't near a tier's edge.
    pub fn expected_millis(&self, load: &Load, share: f64) -> Option<f64> {
        let due = due(load)?;
        let first = *due.first()?;
        let (opens, closes) = (load.warm_up, load.warm_up + load.duration);
        let in_window = due.iter().enumerate().filter(|(_, due)| (opens..closes).contains(*due));
        let late = in_window.map(|(number, due)| match self {
            Self::Tiers(tiers) => delay_of(tiers, number as u64),
            Self::Stall { from, to } if (first + *from..first + *to).contains(due) => first + *to - *due,
            Self::Stall { .. } => Duration::ZERO,
        });
        let millis: Vec<f64> = late.map(|late| late.as_secs_f64() * 1e3).collect();
        quantile(&millis, share)
    }
}

/// When requests of an open loop are due, over all threads, since its start.
fn due(load: &Load) -> Option<Vec<Duration>> {
    let Shape::Open { requests_per_second, seed } = load.shape else { return None };
    let ends = load.warm_up + load.duration;
    let mut due = Vec::new();
    for thread in 0..load.cpus.len() {
        let mut arrivals = Arrivals::new(requests_per_second, load.cpus.len(), thread, seed);
        while arrivals.next() < ends {
            due.push(arrivals.next());
            arrivals.advance();
        }
    }
    due.sort_unstable();
    Some(due)
}

fn delay_of(tiers: &[Tier], number: u64) -> Duration {
    let mut place = number % CYCLE * STEP % CYCLE;
    for tier in tiers {
        match place.checked_sub(tier.share) {
            Some(beyond) => place = beyond,
            None => return tier.delay,
        }
    }
    Duration::ZERO
}

impl Planted {
    /// Starts one on loopback, with a thread for each connection.
    pub fn start(lateness: Lateness) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let ended = Arc::new(AtomicBool::new(false));
        let plan = Arc::new(Plan { lateness, count: AtomicU64::new(0), first: OnceLock::new() });
        let ends = Arc::clone(&ended);
        thread::spawn(move || {
            for stream in listener.incoming().flatten().take_while(|_| !ends.load(Ordering::Relaxed)) {
                let plan = Arc::clone(&plan);
                thread::spawn(move || plan.serve(stream));
            }
        });
        Ok(Self { address, ended })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // So that it looks. If this fails, nobody comes any more either.
        let _ = TcpStream::connect(self.address);
    }
}

impl Plan {
    /// One request at a time; every read is taken for one.
    fn serve(&self, mut stream: TcpStream) {
        let mut buffer = [0; 1024];
        let _ = stream.set_nodelay(true);
        while stream.read(&mut buffer).is_ok_and(|count| count > 0) {
            let now = Instant::now();
            let first = *self.first.get_or_init(|| now);
            let until = self.lateness.answers_at(self.count.fetch_add(1, Ordering::Relaxed), first, now);
            thread::sleep(until.saturating_duration_since(Instant::now()));
            if stream.write_all(ANSWER).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(requests_per_second: f64) -> Load {
        Load {
            targets: Vec::new(),
            connections: 1,
            answer_bytes: 0,
            shape: Shape::Open { requests_per_second, seed: 5 },
            cpus: vec![0, 1],
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(10),
        }
    }

    fn check(lateness: &Lateness, share: f64, expected: f64, tolerance: f64) {
        let found = lateness.expected_millis(&load(1000.0), share).expect("an open loop");
        assert!((found - expected).abs() <= tolerance, "{lateness:?} at {share}: {found}, not {expected}");
    }

    #[test]
    fn tiers_have_their_shares() {
        let tier = |share, millis| Tier { share, delay: Duration::from_millis(millis) };
        let tiers = vec![tier(1200, 2), tier(700, 10), tier(99, 50), tier(1, 200)];
        for tier in &tiers {
            let count = (0..3 * CYCLE).filter(|number| delay_of(&tiers, *number) == tier.delay).count();
            assert_eq!(count as u64, 3 * tier.share);
        }
        let lateness = Lateness::Tiers(tiers);
        for (share, expected) in [(0.5, 2.0), (0.9, 10.0), (0.99, 50.0), (0.999, 50.0), (1.0, 200.0)] {
            check(&lateness, share, expected, 0.0);
        }
    }

    #[test]
    fn who_comes_in_a_stall_waits_for_its_end() {
        // A tenth of the window: half of those wait longer than half of it.
        let lateness = Lateness::Stall { from: Duration::from_secs(4), to: Duration::from_secs(5) };
        check(&lateness, 0.5, 0.0, 0.0);
        check(&lateness, 0.95, 500.0, 50.0);
        check(&lateness, 0.99, 900.0, 30.0);
        check(&lateness, 1.0, 1000.0, 10.0);
        let closed = Load { shape: Shape::KeepAlive, ..load(1000.0) };
        assert_eq!(lateness.expected_millis(&closed, 0.5), None);
    }
}
