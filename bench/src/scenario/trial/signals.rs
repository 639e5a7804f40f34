//! What trials do to processes of their own: stop, continue, kill.

use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::super::ComparisonError;

/// A process on another CPU takes a signal at its next return to user space.
const DEADLINE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_micros(100);

/// A process that is stopped until this is dropped.
pub(in crate::scenario) struct Stopped(Pid);

impl Stopped {
    /// Stops it; comes back when it has stopped.
    pub(in crate::scenario) fn stop(pid: Pid) -> Result<Self, ComparisonError> {
        send(pid, Signal::SIGSTOP, "be stopped")?;
        let stopped = Self(pid);
        let start = Instant::now();
        while !is_stopped(pid).map_err(|source| ComparisonError::Signal { pid, action: "be looked at", source })? {
            if start.elapsed() > DEADLINE {
                return Err(ComparisonError::InVain { what: "a stop", deadline: DEADLINE });
            }
            thread::sleep(STEP);
        }
        Ok(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // If it has ended meanwhile, nothing has to go on.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Kills it; comes back before it has died.
pub(in crate::scenario) fn kill_at_once(pid: Pid) -> Result<(), ComparisonError> {
    send(pid, Signal::SIGKILL, "be killed")
}

fn send(pid: Pid, signal: Signal, action: &'static str) -> Result<(), ComparisonError> {
    kill(pid, signal).map_err(|errno| ComparisonError::Signal { pid, action, source: errno.into() })
}

/// State `T` (proc_pid_stat(5)).
fn is_stopped(pid: Pid) -> io::Result<bool> {
    // The name before it is in parentheses and may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(stat.rsplit_once(')').is_some_and(|(_, after)| after.starts_with(" T ")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_stopped_process_goes_on_after_all() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep exists");
        let pid = Pid::from_raw(child.id() as i32);
        let stopped = Stopped::stop(pid).expect("it is ours");
        assert!(is_stopped(pid).expect("it is there"));
        drop(stopped);
        sherd_testkit::eventually("it goes on", DEADLINE, || (!is_stopped(pid).expect("it is there")).then_some(()));
        kill_at_once(pid).expect("it is ours");
        child.wait().expect("killed");
        assert!(Stopped::stop(pid).is_err(), "it is gone");
    }
}
