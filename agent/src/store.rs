//! The state directory: which specifications are to run. Owns its files, written atomically; obeys no file that it
//! cannot read whole.
//!
//! `groups/GROUP.toml` is the specification of a group, `groups/GROUP.stopped` says that it is to stand still,
//! `rollouts/GROUP.json` is what ran before and how far the change is, `relayed-images.json` are images whose shards
//! start on relay, and `lock` keeps a second agent out. `containers`, the ids of those that an engine runs for us, is
//! the runtime's.

mod disk;
mod relayed_images;
mod rollouts;
mod sealed;

use std::{
    io,
    path::{Path, PathBuf},
};

use sherd_topology::plan::GroupName;

use self::rollouts::Rollouts;
pub use self::{
    relayed_images::{Refusal, RelayedImages},
    rollouts::RolloutRecord,
};
use crate::{fault, spec::GroupSpec};

/// The format of `groups/GROUP.toml` that is written, and the only one that is read.
const GROUP_VERSION: u32 = 1;
/// Makes its head a comment.
const GROUP_MARK: &str = "# ";

/// Whether a stored group is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its shards run.
    Running,
    /// `sherd stop` without `--purge`: nothing runs, the specification stays.
    Stopped,
}

/// A specification found in the state directory.
#[derive(Debug)]
pub struct Stored {
    /// What is to run.
    pub spec: GroupSpec,
    /// The file as the operator wrote it.
    pub text: String,
    /// Whether it is to run.
    pub standing: Standing,
}

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading, writing or making something failed.
    #[error("{action} {path}: check that the directory exists, is writable and has free space")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another agent holds the lock.
    #[error("another sherd agent uses the state directory {path}: stop it, or give this one a --state-dir of its own")]
    Locked {
        /// The state directory.
        path: PathBuf,
    },
}

impl StoreError {
    /// The file or directory it is about, and what the kernel said.
    pub fn into_parts(self) -> (PathBuf, io::Error) {
        match self {
            StoreError::Io { path, source, .. } => (path, source),
            StoreError::Locked { path } => (path, io::Error::from(io::ErrorKind::WouldBlock)),
        }
    }
}

/// A file that could not be obeyed and was set aside.
#[derive(Debug)]
pub struct SetAside {
    /// The group that it was of, where its name is one.
    pub group: Option<GroupName>,
    /// Where it lies now.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: Box<dyn std::error::Error + Send + Sync>,
}

/// The state directory, locked for this process.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    groups: PathBuf,
    rollouts: Rollouts,
    _lock: disk::Lock,
}

impl Store {
    /// Makes the directory where it is missing and takes its lock.
    ///
    /// # Errors
    /// When it can't be made or another agent holds it.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let groups = directory.join("groups");
        disk::make_directory(&groups).map_err(|source| io_error("making", &groups, source))?;
        let rollouts = Rollouts::open(directory)?;
        let path = directory.join("lock");
        match disk::lock(&path) {
            Ok(lock) => Ok(Self { directory: directory.to_owned(), groups, rollouts, _lock: lock }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(StoreError::Locked { path: directory.to_owned() })
            }
            Err(error) => Err(io_error("locking", &path, error)),
        }
    }

    /// All specifications, by name; and the files that were set aside as `NAME.toml.broken`.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn load(&self) -> Result<(Vec<Stored>, Vec<SetAside>), StoreError> {
        let mut paths = disk::list(&self.groups).map_err(|source| io_error("reading", &self.groups, source))?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        paths.sort();
        let (mut stored, mut aside) = (Vec::new(), Vec::new());
        for path in paths {
            match read_group(&path) {
                Ok((spec, text)) => {
                    let standing =
                        if disk::exists(&self.stopped(&spec.name)) { Standing::Stopped } else { Standing::Running };
                    stored.push(Stored { spec, text, standing });
                }
                Err(reason) => {
                    let broken = path.with_extension("toml.broken");
                    disk::rename(&path, &broken).map_err(|source| io_error("setting aside", &path, source))?;
                    let group = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
                    aside.push(SetAside { group, path: broken, reason });
                }
            }
        }
        Ok((stored, aside))
    }

    /// Images whose shards start on relay; and what is wrong with their file, which is then set aside.
    pub fn relayed_images(&self) -> (RelayedImages, Option<String>) {
        RelayedImages::load(&self.directory)
    }

    /// Keeps a specification that is to run. Once this returns, a restarted agent will run it.
    ///
    /// # Errors
    /// When it can't be written; what was stored before is then unchanged.
    pub fn put(&self, group: &GroupName, text: &str) -> Result<(), StoreError> {
        fault::point("store.put.before");
        sealed::write_body(&self.file(group), GROUP_VERSION, GROUP_MARK, text.as_bytes())?;
        fault::point("store.put.written");
        remove(&self.stopped(group))?;
        fault::point("store.put.after");
        Ok(())
    }

    /// Remembers that a group is to stand still.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn stop(&self, group: &GroupName) -> Result<(), StoreError> {
        fault::point("store.stop.before");
        write_atomically(&self.stopped(group), b"")?;
        fault::point("store.stop.after");
        Ok(())
    }

    /// Forgets a group.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub fn remove(&self, group: &GroupName) -> Result<(), StoreError> {
        fault::point("store.remove.before");
        remove(&self.file(group))?;
        fault::point("store.remove.half");
        remove(&self.stopped(group))?;
        self.rollouts.remove(group)?;
        fault::point("store.remove.after");
        Ok(())
    }

    /// What is remembered of a group's last change; and what is wrong with the file, which is then set aside.
    pub fn rollout(&self, group: &GroupName) -> (Option<RolloutRecord>, Option<String>) {
        self.rollouts.get(group)
    }

    /// Remembers it.
    ///
    /// # Errors
    /// When it can't be written; what was remembered before is then unchanged.
    pub fn put_rollout(&self, group: &GroupName, record: &RolloutRecord) -> Result<(), StoreError> {
        fault::point("rollout.put.before");
        self.rollouts.put(group, record)?;
        fault::point("rollout.put.after");
        Ok(())
    }

    fn file(&self, group: &GroupName) -> PathBuf {
        self.groups.join(format!("{group}.toml"))
    }

    fn stopped(&self, group: &GroupName) -> PathBuf {
        self.groups.join(format!("{group}.stopped"))
    }
}

fn read_group(path: &Path) -> Result<(GroupSpec, String), Box<dyn std::error::Error + Send + Sync>> {
    let body = sealed::read_body(path, GROUP_VERSION, GROUP_MARK)?.ok_or("it is gone")?;
    let text = String::from_utf8(body)?;
    let spec = GroupSpec::parse(&path.display().to_string(), &text).map_err(|faults| faults.to_string())?;
    Ok((spec, text))
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    disk::write_atomically(path, bytes).map_err(|source| io_error("writing", path, source))
}

fn remove(path: &Path) -> Result<(), StoreError> {
    disk::remove(path).map_err(|source| io_error("removing", path, source))
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { action, path: path.to_owned(), source }
}
