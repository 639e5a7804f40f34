//! One process of a contestant: started through the stage, its words kept in a log, ended when dropped.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{STAGE_COMMAND, StartError};
use crate::measure::cpus;

/// How long a process may take from SIGTERM to its end.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// How much of a log an error shows.
const LOG_TAIL_BYTES: usize = 2000;

/// A running process.
#[derive(Debug)]
pub(super) struct Child {
    name: String,
    process: process::Child,
    log: PathBuf,
}

/// How to start one.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    /// What errors call it; also the name of its log.
    pub(super) name: &'a str,
    pub(super) program: &'a OsStr,
    pub(super) arguments: Vec<OsString>,
    pub(super) environment: Vec<(&'a str, OsString)>,
    /// Empty: any.
    pub(super) cpus: &'a [usize],
    pub(super) scratch: &'a Path,
}

impl Child {
    pub(super) fn spawn(launch: Launch<'_>) -> Result<Self, StartError> {
        let fail = |source| StartError::Failed { name: launch.name.into(), action: "be started".into(), source };
        let log = launch.scratch.join(format!("{}.log", launch.name));
        // A program that is started again goes on with its log.
        let output = File::options().create(true).append(true).open(&log).map_err(fail)?;
        let errors = output.try_clone().map_err(fail)?;
        let process = Command::new(env::current_exe().map_err(fail)?)
            .arg(STAGE_COMMAND)
            .args(["--parent", &process::id().to_string(), "--cpus", &cpus::list(launch.cpus), "--"])
            .arg(launch.program)
            .args(&launch.arguments)
            .envs(launch.environment)
            .current_dir(launch.scratch)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(fail)?;
        Ok(Self { name: launch.name.into(), process, log })
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id() as i32)
    }

    /// Waits until `condition` gives something; fails when the process ends first or the time is over.
    pub(super) fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Result<T, StartError> {
        let start = Instant::now();
        loop {
            if let Some(value) = condition() {
                return Ok(value);
            }
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(self.not_ready(format!("ended with {status} before {what}")));
            }
            if start.elapsed() > deadline {
                return Err(self.not_ready(format!("was not ready within {deadline:?}: {what}")));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it by `signal`; comes back when it has ended, which may take as long as `grace`.
    pub(super) fn end_by(&mut self, signal: Signal, grace: Duration) -> io::Result<()> {
        kill(self.pid(), signal)?;
        let start = Instant::now();
        while self.process.try_wait()?.is_none() {
            if start.elapsed() > grace {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it goes on {grace:?} after {signal}")));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn not_ready(&self, what: String) -> StartError {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
        StartError::NotReady { name: self.name.clone(), what, log: String::from_utf8_lossy(tail).into_owned() }
    }

    fn end(&mut self) -> io::Result<()> {
        kill(self.pid(), Signal::SIGTERM)?;
        let start = Instant::now();
        while start.elapsed() < STOP_GRACE {
            if self.process.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.process.kill()?;
        self.process.wait().map(|_| ())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A process that ended by itself is already what we want.
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            let _ = self.end();
        }
    }
}
