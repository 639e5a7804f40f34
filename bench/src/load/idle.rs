//! Connections that have had one answer and then do nothing: what they cost in memory is measured while this is held.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use socket2::SockRef;

use super::{FetchError, fetch};
use crate::interrupt::Interrupt;

/// Open connections; dropping it closes them.
#[derive(Debug)]
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
    /// its memory only then.
    pub fn open(
        targets: &[SocketAddr],
        count: usize,
        answer_bytes: usize,
        interrupt: &Interrupt,
    ) -> Result<Self, IdleError> {
        let mut streams = Vec::with_capacity(count);
        for number in 0..count {
            if interrupt.is_raised() {
                return Err(IdleError::Interrupted);
            }
            let stream = fetch(targets[number % targets.len()], answer_bytes)
                .map_err(|source| IdleError::Connection { number, wanted: count, source })?;
            streams.push(stream);
        }
        Ok(Self(streams))
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
