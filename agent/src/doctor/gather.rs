//! Reads what checks ask about, below a root directory: `/`, or a tree of files in tests. Judges nothing, changes
//! nothing; what can't be read is a fact too.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
};

use super::facts::{EngineFacts, Fact, HostFacts, Unread};
use crate::status::AgentStatus;

mod cpu;
mod kernel;
mod memory;
mod network;
mod processes;

/// Longest file that is read: a table of hundreds of thousands of tracked connections is a hundred MiB, of which the
/// beginning tells enough.
const MAX_BYTES: u64 = 16 << 20;

/// Reads the host. The agent's socket is in `run_dir`; what it and the engine say is the caller's to ask, and whether its
/// settings can be used.
pub fn gather(
    root: &Path,
    run_dir: &Path,
    agent: Fact<AgentStatus>,
    engine: Fact<EngineFacts>,
    settings: Result<(), String>,
) -> HostFacts {
    let tree = Tree { root: root.to_owned() };
    let pid = agent.as_ref().ok().and_then(Option::as_ref).map(|status| status.pid);
    HostFacts {
        cpu: cpu::facts(&tree),
        memory: memory::facts(&tree),
        network: network::facts(&tree),
        kernel: kernel::facts(&tree),
        processes: processes::facts(&tree, pid, run_dir),
        units: processes::units(&tree),
        agent,
        engine,
        settings,
    }
}

/// Files below a root, named as the host names them.
struct Tree {
    root: PathBuf,
}

impl Tree {
    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text, at most its first [`MAX_BYTES`].
    fn text(&self, path: &str) -> Fact<String> {
        let read = || {
            let mut bytes = Vec::new();
            fs::File::open(self.path(path))?.take(MAX_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        found(path, read())
    }

    /// A file of one value.
    fn value<T: FromStr>(&self, path: &str) -> Fact<T> {
        self.parsed(path, |text| text.trim().parse().ok())
    }

    /// A file's text as something else.
    fn parsed<T>(&self, path: &str, parse: impl FnOnce(&str) -> Option<T>) -> Fact<T> {
        let Some(text) = self.text(path)? else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| unread(path, &"it is not as documented"))
    }

    /// The names in a directory, in order.
    fn names(&self, path: &str) -> Fact<Vec<String>> {
        let read = || {
            let entries =
                fs::read_dir(self.path(path))?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let mut names = entries.collect::<io::Result<Vec<_>>>()?;
            names.sort_unstable();
            Ok(names)
        };
        found(path, read())
    }

    /// Where a link points to.
    fn link(&self, path: &str) -> Fact<String> {
        found(path, fs::read_link(self.path(path)).map(|target| target.to_string_lossy().into_owned()))
    }

    fn exists(&self, path: &str) -> bool {
        // A link may point outside of the tree.
        self.path(path).symlink_metadata().is_ok()
    }
}

/// What isn't there is no error: another kernel, another configuration, a process that has ended.
fn found<T>(path: &str, read: io::Result<T>) -> Fact<T> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(unread(path, &error)),
    }
}

fn unread(source: &str, reason: &impl ToString) -> Unread {
    Unread { source: source.to_owned(), reason: reason.to_string() }
}
