//! Whether processes have nothing left to do: each thread sleeps, which it does only where it waits for something; reads
//! /proc only.

use std::{
    fs, io,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

use crate::load::Moment;

/// How long traced processes may take for one request.
const DEADLINE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_micros(50);

/// Processes that had no connection when this was made.
pub(super) struct Rest {
    processes: Vec<PathBuf>,
    descriptors: usize,
}

impl Rest {
    pub(super) fn of(processes: &[Pid]) -> io::Result<Self> {
        let processes = processes.iter().map(|process| PathBuf::from(format!("/proc/{process}"))).collect();
        let mut rest = Self { processes, descriptors: 0 };
        rest.descriptors = rest.count_descriptors()?;
        Ok(rest)
    }

    /// Waits until what brought about `moment` has been dealt with. An answer shows that it was awake; that a new
    /// connection has woken it shows in one more descriptor only.
    pub(super) fn wait(&self, moment: Moment) -> io::Result<()> {
        let start = Instant::now();
        while !(self.has_noticed(moment)? && self.all_sleep()?) {
            if start.elapsed() > DEADLINE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "who was traced doesn't come to rest"));
            }
            thread::sleep(STEP);
        }
        Ok(())
    }

    fn has_noticed(&self, moment: Moment) -> io::Result<bool> {
        Ok(moment != Moment::Connected || self.count_descriptors()? > self.descriptors)
    }

    /// State `S`; stopped by its tracer, it is in `t` (proc_pid_stat(5)).
    fn all_sleep(&self) -> io::Result<bool> {
        for process in &self.processes {
            for thread in fs::read_dir(process.join("task"))? {
                let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else {
                    // It ended since it was listed; what ends a thread of a pool isn't a request.
                    continue;
                };
                // The name before it is in parentheses and may hold anything.
                if !stat.rsplit_once(')').is_some_and(|(_, after)| after.starts_with(" S ")) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn count_descriptors(&self) -> io::Result<usize> {
        self.processes.iter().map(|process| Ok(fs::read_dir(process.join("fd"))?.count())).sum()
    }
}
