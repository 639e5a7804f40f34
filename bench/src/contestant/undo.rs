//! What a run does to processes and containers that outlive it, and how that is undone: noted in the scratch directory before it is
//! done, so that whoever survives the run can. Owns that file, and touches nothing that it doesn't name.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::engine::tell;

/// In the scratch directory.
const RECORD: &str = "undo.json";

/// One thing to undo. Done twice it does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    /// A process that was stopped goes on.
    Continue(Process),
    /// A container that was paused goes on.
    Unpause(Container),
    /// A container gets its CPUs back.
    Cpuset(Container, String),
    /// A process gets its CPUs back.
    Affinity(Process, Vec<usize>),
}

/// A process, told apart from a later one with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: i32,
    /// In ticks since the host's start (proc_pid_stat(5), field 22).
    started: u64,
}

/// A container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The engine's socket.
    pub engine: PathBuf,
    /// Its id.
    pub id: String,
}

/// What a run has to undo.
#[derive(Debug)]
pub struct UndoList {
    record: PathBuf,
    list: Vec<Undo>,
}

impl Process {
    /// The one that has this number now.
    pub fn of(pid: Pid) -> io::Result<Self> {
        let gone = || io::Error::new(io::ErrorKind::InvalidData, "its start is not in /proc/PID/stat");
        Ok(Self { pid: pid.as_raw(), started: started(pid)?.ok_or_else(gone)? })
    }

    /// Its number, as long as it is there.
    pub fn pid(self) -> Option<Pid> {
        let pid = Pid::from_raw(self.pid);
        (started(pid).ok()? == Some(self.started)).then_some(pid)
    }
}

fn started(pid: Pid) -> io::Result<Option<u64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name before it is in parentheses and may hold anything.
    let after = stat.rsplit_once(')').map(|(_, after)| after);
    Ok(after.and_then(|after| after.split_whitespace().nth(19)?.parse().ok()))
}

impl Undo {
    fn is_of_engine_in(&self, scratch: &Path) -> bool {
        match self {
            Self::Unpause(container) | Self::Cpuset(container, _) => container.engine.starts_with(scratch),
            Self::Continue(_) | Self::Affinity(..) => false,
        }
    }

    /// Undoes it; what is gone needs nothing.
    pub fn carry_out(&self) -> io::Result<()> {
        match self {
            Self::Continue(process) => process.pid().map_or(Ok(()), |pid| match kill(pid, Signal::SIGCONT) {
                Ok(()) | Err(Errno::ESRCH) => Ok(()),
                Err(errno) => Err(errno.into()),
            }),
            Self::Unpause(container) => unless_gone(tell(&container.engine, &["unpause", &container.id])),
            Self::Cpuset(container, cpus) => {
                unless_gone(tell(&container.engine, &["update", "--cpuset-cpus", cpus, &container.id]))
            }
            Self::Affinity(process, cpus) => process.pid().map_or(Ok(()), |pid| set_affinity(pid, cpus)),
        }
    }
}

/// An engine's words for a container that isn't there, or isn't as we left it: somebody else has undone it.
fn unless_gone(told: io::Result<String>) -> io::Result<()> {
    let is_gone = |error: &io::Error| {
        let text = error.to_string().to_ascii_lowercase();
        ["no such container", "is not paused", "not running"].iter().any(|words| text.contains(words))
    };
    match told {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Lets every thread of a process run on `cpus` only.
pub fn set_affinity(pid: Pid, cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let number = thread?.file_name().to_str().and_then(|number| number.parse().ok());
        match number.map_or(Ok(()), |thread| sched_setaffinity(Pid::from_raw(thread), &set)) {
            // It ended while we looked.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

impl UndoList {
    /// An empty one; its file is in `scratch`.
    pub fn new(scratch: &Path) -> Self {
        Self { record: scratch.join(RECORD), list: Vec::new() }
    }

    /// Notes what is about to be done.
    pub fn note(&mut self, undo: Undo) -> io::Result<()> {
        self.list.push(undo);
        self.write()
    }

    /// Undoes it and forgets it.
    pub fn carry_out(&mut self, undo: &Undo) -> io::Result<()> {
        undo.carry_out()?;
        self.forget(undo)
    }

    /// Forgets it: somebody else has undone it.
    pub fn forget(&mut self, undo: &Undo) -> io::Result<()> {
        self.list.retain(|noted| noted != undo);
        self.write()
    }

    /// Whole or not at all.
    fn write(&self) -> io::Result<()> {
        let partial = self.record.with_extension("partial");
        fs::write(&partial, serde_json::to_vec(&self.list)?)?;
        fs::rename(&partial, &self.record)
    }
}

impl Drop for UndoList {
    fn drop(&mut self) {
        for undo in std::mem::take(&mut self.list) {
            // The keeper tries again.
            let _ = undo.carry_out();
        }
    }
}

/// Undoes what the run in `scratch` has left undone. To be called by whoever survives the run.
pub fn undo_all(scratch: &Path) -> io::Result<()> {
    let list = match fs::read(scratch.join(RECORD)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let list: Vec<Undo> = serde_json::from_slice(&list)?;
    // An engine of the run's own has ended with its containers. All others, whatever becomes of one.
    let left = list.iter().filter(|undo| !undo.is_of_engine_in(scratch));
    let failures: Vec<_> = left.filter_map(|undo| Some((undo, undo.carry_out().err()?))).collect();
    match failures.into_iter().next() {
        None => Ok(()),
        Some((undo, error)) => Err(io::Error::other(format!("{undo:?} is not undone: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use sherd_testkit::eventually;

    use super::*;

    fn state(pid: Pid) -> char {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
        stat.rsplit_once(") ").and_then(|(_, after)| after.chars().next()).expect("a state")
    }

    #[test]
    fn who_survives_the_run_undoes_what_it_did() {
        let scratch = tempfile::tempdir().expect("a directory for the test");
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep exists");
        let pid = Pid::from_raw(child.id() as i32);
        let process = Process::of(pid).expect("it is ours");
        let mut list = UndoList::new(scratch.path());
        list.note(Undo::Continue(process)).expect("writable");
        kill(pid, Signal::SIGSTOP).expect("it is ours");
        eventually("it stops", Duration::from_secs(10), || (state(pid) == 'T').then_some(()));
        // A killed run drops nothing.
        std::mem::forget(list);
        undo_all(scratch.path()).expect("it can be undone");
        eventually("it goes on", Duration::from_secs(10), || (state(pid) == 'S').then_some(()));
        child.kill().expect("it is ours");
        child.wait().expect("killed");
        assert_eq!(process.pid(), None);
        undo_all(scratch.path()).expect("what is gone needs nothing");
    }

    #[test]
    fn an_engine_that_ended_with_the_run_is_not_asked() {
        let scratch = tempfile::tempdir().expect("a directory for the test");
        let note = |engine: PathBuf| {
            let mut list = UndoList::new(scratch.path());
            list.note(Undo::Unpause(Container { engine, id: "c".into() })).expect("writable");
            std::mem::forget(list);
        };
        note(scratch.path().join("engine/docker.sock"));
        undo_all(scratch.path()).expect("its containers are gone");
        note("/nowhere.sock".into());
        assert!(undo_all(scratch.path()).is_err(), "it may still be paused");
    }

    #[test]
    fn what_was_undone_is_not_undone_again() {
        let scratch = tempfile::tempdir().expect("a directory for the test");
        undo_all(scratch.path()).expect("nothing was noted");
        let process = Process::of(Pid::this()).expect("we are here");
        let undo = Undo::Affinity(process, crate::measure::allowed_cpus().expect("readable"));
        let mut list = UndoList::new(scratch.path());
        list.note(undo.clone()).expect("writable");
        list.carry_out(&undo).expect("they are ours");
        assert_eq!(fs::read_to_string(scratch.path().join(RECORD)).expect("there"), "[]");
    }
}
