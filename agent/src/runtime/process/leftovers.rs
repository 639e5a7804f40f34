//! What runs on of a shard whose shim was killed: found by its cgroup, or by the variable that marks all its processes.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use super::{
    enclosure,
    record::{self, Exit, Shim},
};
use crate::runtime::procfs;

/// Says whose a process is, `INSTANCE/SHARD`; programs that clean their environment escape it, but not a cgroup.
pub(super) const MARK: &str = "SHERD_SHARD";

const PATIENCE: Duration = Duration::from_secs(10);
const DYING_POLL: Duration = Duration::from_millis(10);

/// Kills what is left and removes the cgroup; the processes that don't die are the error. Blocks.
pub(super) fn clear(directory: &Path, mark: &str) -> Result<(), Vec<u32>> {
    // Without its record no shim has started anything.
    let Ok(Some(shim)) = record::read::<Shim>(directory) else { return Ok(()) };
    if let Some(cgroup) = shim.cgroup.filter(|cgroup| cgroup.exists()) {
        enclosure::kill_all(&cgroup, PATIENCE)?;
        if let Err(error) = enclosure::remove(&cgroup) {
            tracing::warn!(cgroup = %cgroup.display(), %error, "an empty cgroup can't be removed");
        }
    }
    // A shim that ended by itself has left nothing.
    if matches!(record::read::<Exit>(directory), Ok(Some(_))) { Ok(()) } else { kill_marked(mark) }
}

fn kill_marked(mark: &str) -> Result<(), Vec<u32>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<_> = procfs::with_variable(MARK, mark)
            .into_iter()
            .filter(|pid| procfs::stat(*pid).is_ok_and(|stat| stat.state != 'Z'))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(left);
        }
        for pid in left {
            let _ = kill(enclosure::pid_of(pid), Signal::SIGKILL);
        }
        thread::sleep(DYING_POLL);
    }
}
