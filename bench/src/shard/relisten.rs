//! How long listen(2) takes, as a program sees it that is told nothing of sherd: listens and closes, again and again; owns
//! its sockets one at a time.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use super::BACKLOG;

/// What a program writes of it, in one line.
pub const PACED: &str = "paced";
/// The same for the calls that came without a pause.
pub const AT_ONCE: &str = "at-once";
/// Between two calls of the one kind.
const PAUSE: Duration = Duration::from_millis(5);

/// Calls of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Listens {
    /// Microseconds of each call.
    pub micros: Vec<f64>,
    /// After how many of them the socket was one of another port: a listener of somebody else's.
    pub grafted: usize,
    /// From the first socket made to the last closed.
    pub seconds: f64,
}

/// Listens at `address` so often with pauses, and so often without; writes a line of each kind to standard output.
pub fn relisten(address: SocketAddr, times: usize) -> io::Result<()> {
    for (kind, pause) in [(PACED, PAUSE), (AT_ONCE, Duration::ZERO)] {
        println!("{}", measure(address, times, pause)?.line(kind));
    }
    Ok(())
}

fn measure(address: SocketAddr, times: usize, pause: Duration) -> io::Result<Listens> {
    let began = Instant::now();
    let mut listens = Listens { micros: Vec::with_capacity(times), grafted: 0, seconds: 0.0 };
    for _ in 0..times {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // The socket that was replaced goes on listening for a while, in this network namespace.
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        let called = Instant::now();
        socket.listen(BACKLOG)?;
        listens.micros.push(called.elapsed().as_nanos() as f64 / 1e3);
        let now_at = socket.local_addr()?.as_socket();
        listens.grafted += usize::from(now_at.is_some_and(|now| now.port() != address.port()));
        drop(socket);
        thread::sleep(pause);
    }
    listens.seconds = began.elapsed().as_secs_f64();
    Ok(listens)
}

impl Listens {
    fn line(&self, kind: &str) -> String {
        let micros: Vec<String> = self.micros.iter().map(|micros| format!("{micros:.1}")).collect();
        format!("{kind} {} {} {}", self.grafted, self.seconds, micros.join(","))
    }

    /// Reads what a program wrote of one kind, among its other lines.
    pub fn read(text: &str, kind: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
        let mut words = line.split(' ');
        let (grafted, seconds) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let micros = words.next()?.split(',').map(|micros| micros.parse().ok()).collect::<Option<_>>()?;
        Some(Self { micros, grafted, seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let listens = Listens { micros: vec![1.5, 20.0], grafted: 2, seconds: 0.25 };
        let text = format!("x\n{}\n{}\n", listens.line(PACED), Listens { grafted: 0, ..listens.clone() }.line(AT_ONCE));
        assert_eq!(Listens::read(&text, PACED), Some(listens));
        assert_eq!(Listens::read(&text, AT_ONCE).map(|listens| listens.grafted), Some(0));
        assert_eq!(Listens::read("paced 1 x 1", PACED), None);
    }

    #[test]
    fn without_anybody_else_nothing_is_grafted() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
        let listens = measure(address, 20, Duration::ZERO).expect("it may listen");
        assert_eq!((listens.micros.len(), listens.grafted), (20, 0));
        assert!(listens.micros.iter().all(|micros| *micros > 0.0) && listens.seconds > 0.0);
    }
}
