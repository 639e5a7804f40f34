//! What the agent that ended says to the next one beside the connections, in a memory file: how many, when, how long it took, and
//! what its workers had counted. Without it the connections are taken back all the same.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    time::{Duration, UNIX_EPOCH},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use sherd_topology::plan::{GroupName, SlotId};

use crate::clock;

/// The holder's name of it.
pub(super) const NAME: &str = "relayed-report";

/// The longest that is read: a slot takes less than a thousandth of it.
const MAX_BYTES: u64 = 4 << 20;

/// See the module. Later versions may say more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Connections that the holder got.
    pub(super) connections: u64,
    /// When the first was given up, milliseconds since 1970.
    pub(super) began_unix_ms: u64,
    /// From then until the holder had the last.
    pub(super) took_micros: u64,
    /// What each slot's worker had counted, by group and slot.
    #[serde(default)]
    pub(super) totals: BTreeMap<GroupName, BTreeMap<SlotId, Totals>>,
}

/// [`sherd_lb::relay::WorkerStats::totals`].
pub(super) type Totals = BTreeMap<String, u64>;

impl Report {
    pub(super) fn write(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create(c"sherd-report", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file)
    }

    pub(super) fn read(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let len = file.metadata()?.len();
        if len > MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {MAX_BYTES} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// How long the connections stood still, by the wall clock.
    pub(super) fn stood_still(&self) -> Duration {
        Duration::from_millis(unix_ms().saturating_sub(self.began_unix_ms))
    }
}

pub(super) fn unix_ms() -> u64 {
    let since = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_written() {
        let totals = BTreeMap::from([("accepted".to_owned(), 7)]);
        let report = Report {
            connections: 4_500,
            began_unix_ms: 1_763_851_234_567,
            took_micros: 12_345,
            totals: [("web".parse().expect("a name"), [(SlotId(3), totals)].into())].into(),
        };
        assert_eq!(Report::read(report.write().expect("memory").into()).expect("JSON"), report);
        let mut file = File::from(memfd_create(c"old", MFdFlags::empty()).expect("memory"));
        file.write_all(br#"{"connections":1,"began_unix_ms":2,"took_micros":3}"#).expect("memory");
        assert_eq!(Report::read(file.into()).expect("that of an earlier version").totals, BTreeMap::new());
    }
}
