//! What an agent tells Prometheus, as far as a trial asks; reads text and knows no group.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

const DEADLINE: Duration = Duration::from_secs(5);

/// A metric could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The agent serves none.
    #[error("the agent serves no metrics")]
    Off,
    /// It doesn't answer.
    #[error("{address} gives no metrics")]
    Unread {
        /// Who was asked.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// It has no such metric.
    #[error("the agent tells no {name} of slot {slot}")]
    Unknown {
        /// Which.
        name: String,
        /// Of whom.
        slot: usize,
    },
}

/// Where an agent serves metrics.
#[derive(Debug)]
pub(super) struct Metrics {
    address: SocketAddr,
}

impl Metrics {
    pub(super) fn at(address: SocketAddr) -> Self {
        Self { address }
    }

    /// A metric of one slot, now; of the only group that there is.
    pub(super) fn of_slot(&self, name: &str, slot: usize) -> Result<f64, MetricsError> {
        let text = self.text().map_err(|source| MetricsError::Unread { address: self.address, source })?;
        value(&text, name, slot).ok_or_else(|| MetricsError::Unknown { name: name.into(), slot })
    }

    fn text(&self) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: agent\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Lines like `sherd_slot_hung{group="bench",slot="0"} 0`.
fn value(text: &str, name: &str, slot: usize) -> Option<f64> {
    let label = format!("slot=\"{slot}\"");
    let of_it =
        |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')) && line.contains(&label);
    text.lines().find(of_it)?.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_own_sample_is_found() {
        let text = "# HELP a x\na_total{group=\"g\",slot=\"1\"} 9\na{group=\"g\",slot=\"0\"} 1\na{group=\"g\",slot=\"1\"} 2.5\n";
        assert_eq!(value(text, "a", 1), Some(2.5));
        assert_eq!(value(text, "a_total", 1), Some(9.0));
        assert_eq!(value(text, "a", 2), None);
    }
}
