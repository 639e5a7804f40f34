//! What the agent remembers of a group's last change: what ran before, and how far the rollout is. Owns
//! `rollouts/GROUP.json`.

use std::{
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sherd_topology::plan::GroupName;

use super::{StoreError, disk, io_error, remove, sealed};
use crate::{clock, status::RolloutPhase};

const VERSION: u32 = 1;
/// Longest reason that is kept, in characters.
const MAX_REASON_CHARS: usize = 1000;

/// One group's last change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RolloutRecord {
    /// Names the specification that it brings, by its text: the record of another is void.
    pub to: String,
    /// The specification that ran before, as the operator wrote it.
    pub from: Option<String>,
    /// What this record's predecessor would have gone back to: a void record is as if it had never been written.
    pub before: Option<String>,
    /// How far it is.
    pub phase: RolloutPhase,
    /// Why it is there, if that isn't plain.
    pub reason: Option<String>,
    /// It brings back what ran before one that failed: its own failures bring nothing back.
    pub is_rollback: bool,
    /// Slots that are being replaced.
    pub under_way: Vec<u32>,
    /// Seconds since 1970.
    pub started_unix_s: u64,
    /// Seconds since 1970.
    pub ended_unix_s: Option<u64>,
}

impl RolloutRecord {
    /// A rollout of `to` that begins now.
    pub fn begin(to: &str, from: Option<String>, before: Option<String>) -> Self {
        Self {
            to: name_of(to),
            from,
            before,
            phase: RolloutPhase::Progressing,
            reason: None,
            is_rollback: false,
            under_way: Vec::new(),
            started_unix_s: unix_s(),
            ended_unix_s: None,
        }
    }

    /// Whether it is about this specification.
    pub fn is_of(&self, text: &str) -> bool {
        self.to == name_of(text)
    }

    /// Goes on to another phase.
    pub fn enter(&mut self, phase: RolloutPhase, reason: Option<&str>) {
        self.phase = phase;
        self.reason = reason.map(|reason| reason.chars().take(MAX_REASON_CHARS).collect());
        self.ended_unix_s = phase.is_over().then(unix_s);
    }
}

fn name_of(text: &str) -> String {
    sealed::hex(&Sha256::digest(text.as_bytes()))
}

fn unix_s() -> u64 {
    clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The records of all groups.
#[derive(Debug)]
pub(super) struct Rollouts {
    directory: PathBuf,
}

impl Rollouts {
    pub(super) fn open(state: &Path) -> Result<Self, StoreError> {
        let directory = state.join("rollouts");
        disk::make_directory(&directory).map_err(|source| io_error("making", &directory, source))?;
        Ok(Self { directory })
    }

    /// A group's record. One that can't be obeyed is set aside, which the second value says: the group then has nothing to
    /// go back to.
    pub(super) fn get(&self, group: &GroupName) -> (Option<RolloutRecord>, Option<String>) {
        let path = self.file(group);
        match sealed::read(&path, VERSION) {
            Ok(record) => (record, None),
            Err(fault) => (None, Some(sealed::set_aside(&path, &fault))),
        }
    }

    pub(super) fn put(&self, group: &GroupName, record: &RolloutRecord) -> Result<(), StoreError> {
        sealed::write(&self.file(group), VERSION, record)
    }

    pub(super) fn remove(&self, group: &GroupName) -> Result<(), StoreError> {
        remove(&self.file(group))
    }

    fn file(&self, group: &GroupName) -> PathBuf {
        self.directory.join(format!("{group}.json"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record() -> RolloutRecord {
        let mut record = RolloutRecord::begin("new", Some("old".into()), None);
        record.enter(RolloutPhase::Paused, Some(&"x".repeat(2000)));
        record
    }

    #[test]
    fn a_record_outlives_the_agent() {
        let (directory, group) = (tempfile::tempdir().unwrap(), "web".parse().unwrap());
        let rollouts = Rollouts::open(directory.path()).unwrap();
        assert_eq!(rollouts.get(&group), (None, None));
        rollouts.put(&group, &record()).unwrap();
        let (Some(found), None) = rollouts.get(&group) else { panic!("it isn't there") };
        assert_eq!(found, record());
        assert!(found.is_of("new") && !found.is_of("old"));
        rollouts.remove(&group).unwrap();
        assert_eq!(rollouts.get(&group), (None, None));
    }

    #[test]
    fn what_is_torn_foreign_or_changed_is_set_aside() {
        let check = |change: &dyn Fn(&str) -> String, expected: &str| {
            let (directory, group) = (tempfile::tempdir().unwrap(), "web".parse().unwrap());
            let rollouts = Rollouts::open(directory.path()).unwrap();
            rollouts.put(&group, &record()).unwrap();
            let path = directory.path().join("rollouts/web.json");
            let text = change(&fs::read_to_string(&path).unwrap());
            fs::write(&path, &text).unwrap();
            let (None, Some(fault)) = rollouts.get(&group) else { panic!("{text} is obeyed") };
            assert!(fault.contains(expected), "{fault} lacks {expected}");
            assert_eq!(fs::read_to_string(path.with_extension("json.broken")).unwrap(), text);
            assert_eq!(rollouts.get(&group), (None, None));
        };
        check(&|_| String::new(), "not what an agent writes");
        check(&|whole| whole[..whole.len() / 2].to_owned(), "checksum");
        check(&|whole| whole.replace("paused", "progressing"), "checksum");
        check(&|whole| whole.replace("\"version\":1", "\"version\":2"), "version 2");
        check(&|whole| whole.lines().skip(1).collect(), "not what an agent writes");
        check(&|whole| format!("{whole}{}", " ".repeat(5 << 20)), "more than");
    }
}
