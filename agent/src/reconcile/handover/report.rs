//! What the agent that ended says of its hand-over to the next one, in a memory file: how many connections, when, how long it
//! took. Without it the connections are taken back all the same.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

/// The holder's name of it.
pub(super) const NAME: &str = "relayed-report";

/// The longest that is read: it is a hundred bytes.
const MAX_BYTES: usize = 4096;

/// See the module. Later versions may say more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Connections that the holder got.
    pub(super) connections: u64,
    /// When the first was given up, milliseconds since 1970.
    pub(super) began_unix_ms: u64,
    /// From then until the holder had the last.
    pub(super) took_micros: u64,
}

impl Report {
    pub(super) fn write(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create(c"sherd-report", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file)
    }

    pub(super) fn read(file: OwnedFd) -> io::Result<Self> {
        let mut bytes = vec![0; MAX_BYTES];
        let len = File::from(file).read_at(&mut bytes, 0)?;
        Ok(serde_json::from_slice(&bytes[..len])?)
    }

    /// How long the connections stood still, by the wall clock.
    pub(super) fn stood_still(&self) -> Duration {
        Duration::from_millis(unix_ms().saturating_sub(self.began_unix_ms))
    }
}

pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_written() {
        let report = Report { connections: 4_500, began_unix_ms: 1_763_851_234_567, took_micros: 12_345 };
        assert_eq!(Report::read(report.write().expect("memory").into()).expect("JSON"), report);
    }
}
