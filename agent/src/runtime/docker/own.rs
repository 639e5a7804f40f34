//! The ids of our containers: by them one is known that somebody renamed, by the next agent too. Owns one file, which only
//! helps: without it a renamed container is a stranger's, and what bears its own name is known all the same.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::runtime::ShardId;

/// The longest file that is read: some ten thousand containers.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Own {
    ids: Mutex<BTreeSet<ShardId>>,
    file: Option<PathBuf>,
}

impl Own {
    /// What a former agent knew. A file that can't be read is none.
    pub(super) fn open(file: Option<PathBuf>) -> Self {
        let ids = file.as_deref().map(read).unwrap_or_default();
        Self { ids: Mutex::new(ids), file }
    }

    pub(super) fn contains(&self, id: &ShardId) -> bool {
        self.ids().contains(id)
    }

    /// One was made.
    pub(super) fn add(&self, id: &ShardId) {
        let mut ids = self.ids();
        if ids.insert(id.clone()) {
            self.keep(&ids);
        }
    }

    /// There are these, and no others.
    pub(super) fn replace(&self, listed: BTreeSet<ShardId>) {
        let mut ids = self.ids();
        if *ids != listed {
            *ids = listed;
            self.keep(&ids);
        }
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<ShardId>> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, ids: &BTreeSet<ShardId>) {
        let Some(file) = &self.file else { return };
        if let Err(error) = write(file, ids) {
            tracing::warn!(file = %file.display(), "the next agent won't know containers that are renamed: {error}");
        }
    }
}

fn read(file: &Path) -> BTreeSet<ShardId> {
    let is_short = fs::metadata(file).is_ok_and(|metadata| metadata.len() <= MAX_BYTES);
    let text = if is_short { fs::read_to_string(file).unwrap_or_default() } else { String::new() };
    let is_id = |line: &&str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.lines().filter(is_id).map(|line| ShardId(line.to_owned())).collect()
}

/// A reader sees the former ids or these. No fsync: it is written again with the next container.
fn write(file: &Path, ids: &BTreeSet<ShardId>) -> io::Result<()> {
    let beside = file.with_extension("tmp");
    let text: String = ids.iter().flat_map(|id| [id.0.as_str(), "\n"]).collect();
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, file)).inspect_err(|_| drop(fs::remove_file(&beside)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ShardId {
        ShardId(text.to_owned())
    }

    #[test]
    fn the_next_agent_knows_what_this_one_knew() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("containers");
        let open = || Own::open(Some(file.clone()));
        assert!(!open().contains(&id("a1")));
        open().add(&id("a1"));
        let own = open();
        own.add(&id("b2"));
        assert!(open().contains(&id("a1")) && open().contains(&id("b2")));
        own.replace([id("b2")].into());
        assert!(!open().contains(&id("a1")) && open().contains(&id("b2")));
        // What is none of ours is read past.
        fs::write(&file, "\nb2\n../x\n\u{fffd}\n").unwrap();
        assert_eq!(*open().ids(), [id("b2")].into());
        fs::write(&file, b"\xff\xfe").unwrap();
        assert!(!open().contains(&id("b2")));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_done_without() {
        let own = Own::open(Some("/no/such/directory/containers".into()));
        own.add(&id("a1"));
        assert!(own.contains(&id("a1")));
    }
}
