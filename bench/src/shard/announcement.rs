//! How a shard tells the harness where it is, whoever started it: a file in a directory they agree on; owns that file's
//! format. A name of its own per process, so that shards of several slots and restarts never write the same file.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// A shard that listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Its process.
    pub pid: i32,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A shard could not announce itself, or an announcement could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: the shard's announcement cannot be {action}", path.display())]
pub struct AnnouncementError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

impl Announcement {
    /// Writes it into `directory`, whole or not at all.
    pub fn write(&self, directory: &Path) -> Result<(), AnnouncementError> {
        let path = directory.join(format!("{}.json", self.pid));
        let partial = directory.join(format!("{}.partial", self.pid));
        let text = serde_json::to_vec(self).expect("numbers and addresses are JSON");
        fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path)).map_err(|source| AnnouncementError {
            path,
            action: "written",
            source,
        })
    }

    /// All that are in `directory`, by address.
    pub fn read_all(directory: &Path) -> Result<Vec<Self>, AnnouncementError> {
        let fail = |source| AnnouncementError { path: directory.to_owned(), action: "read", source };
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = fs::read(&path).map_err(fail)?;
                found.push(serde_json::from_slice(&text).map_err(|error| fail(error.into()))?);
            }
        }
        found.sort_by_key(|announcement: &Self| announcement.address);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let shards = [(7, 4001), (3, 4002)]
            .map(|(pid, port)| Announcement { pid, address: SocketAddr::from(([127, 0, 0, 1], port)) });
        for shard in &shards {
            shard.write(directory.path()).expect("writable");
        }
        fs::write(directory.path().join("9.partial"), "half of o").expect("writable");
        assert_eq!(Announcement::read_all(directory.path()).expect("readable"), shards);
    }
}
