//! What is written about one process shard, in its own directory: the order, and what its shim reports. Every file
//! appears whole or not at all; one that is torn all the same (a full disk, a crash of the host) is set aside.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sherd_topology::plan::Slot;

use crate::{
    runtime::{ShardKey, procfs},
    spec::{ContainerPort, SpecHash},
};

/// Held by the shim for its life: at most one per shard, whoever starts it.
pub(super) const LOCK: &str = "lock";
/// What the shim itself has to say.
pub(super) const SHIM_LOG: &str = "shim.log";
/// What the shard writes.
pub(super) const OUTPUT: &str = "output";

/// What to run, decided when the shard is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) instance: String,
    pub(super) key: ShardKey,
    pub(super) spec: SpecHash,
    pub(super) generation: u64,
    pub(super) slot: Slot,
    pub(super) command: Vec<String>,
    pub(super) working_dir: PathBuf,
    pub(super) user: Option<Account>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) process_ports: Vec<(ContainerPort, u16)>,
}

/// Whom to run as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
}

/// A process that can be told from a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
}

/// The shim, before it starts anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shim {
    pub(super) process: Process,
    /// Directory of the shard's cgroup, where there is one.
    pub(super) cgroup: Option<PathBuf>,
    /// Whether its CPUs and memory nodes come from that cgroup and not from affinity.
    pub(super) has_cpuset: bool,
}

/// The shard runs its program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) started_unix_ms: u64,
}

/// Nothing of the shard runs any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exit {
    /// 128 + signal when a signal ended it.
    pub(super) code: Option<i32>,
    pub(super) oom: bool,
    /// Why the program was not run at all.
    pub(super) not_started: Option<String>,
}

/// A kind of record: its type is its file.
pub(super) trait Record: Serialize + DeserializeOwned {
    const FILE: &'static str;
}

impl Record for Order {
    const FILE: &'static str = "order.json";
}
impl Record for Shim {
    const FILE: &'static str = "shim.json";
}
impl Record for Running {
    const FILE: &'static str = "running.json";
}
impl Record for Exit {
    const FILE: &'static str = "exit.json";
}

impl Process {
    pub(super) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: procfs::stat(pid)?.start_ticks })
    }

    pub(super) fn is_alive(self) -> bool {
        procfs::is_alive(self.pid, self.start_ticks)
    }
}

/// Reads a record; none when it isn't there or is torn.
pub(super) fn read<R: Record>(directory: &Path) -> io::Result<Option<R>> {
    let path = directory.join(R::FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match serde_json::from_slice(&text) {
        Ok(record) => Ok(Some(record)),
        Err(error) => {
            tracing::warn!(file = %path.display(), %error, "a torn record is set aside as .torn");
            fs::rename(&path, path.with_extension("json.torn"))?;
            Ok(None)
        }
    }
}

/// Writes a record so that a reader sees all of it or none. The directory is on a tmpfs, as a rule, and the records
/// mean nothing after a reboot: no fsync.
pub(super) fn write<R: Record>(directory: &Path, record: &R) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
    let temporary = directory.join(format!(".{}.{}", R::FILE, std::process::id()));
    let mut options = fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::rename(&temporary, directory.join(R::FILE)));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole_or_absent() {
        let directory = tempfile::tempdir().unwrap();
        let exit = Exit { code: Some(3), oom: false, not_started: None };
        assert_eq!(read::<Exit>(directory.path()).unwrap(), None);
        write(directory.path(), &exit).unwrap();
        assert_eq!(read(directory.path()).unwrap(), Some(exit));
        fs::write(directory.path().join("exit.json"), b"{\"code\": 3, \"oo").unwrap();
        assert_eq!(read::<Exit>(directory.path()).unwrap(), None);
        assert!(directory.path().join("exit.json.torn").exists());
        assert!(!directory.path().join("exit.json").exists());
    }
}
