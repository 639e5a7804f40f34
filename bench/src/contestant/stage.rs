//! The last step before a contestant's program: the same process, pinned, with signals unblocked, tied to its parent's
//! life; then it becomes the program. A stage of its own, because between fork and exec only unsafe code could do it.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    process::Command,
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};

use crate::{keeper::unblock_signals, measure::pin_this_thread};

/// The hidden subcommand.
pub const STAGE_COMMAND: &str = "stage";

/// Becomes `program`; comes back only with the reason why it could not.
pub fn run_stage(parent: i32, cpus: &[usize], program: &OsStr, arguments: &[OsString]) -> io::Error {
    let prepared = || -> io::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have died before we asked to hear of it.
        if getppid() != Pid::from_raw(parent) {
            return Err(io::Error::other("the harness is gone"));
        }
        if !cpus.is_empty() {
            pin_this_thread(cpus)?;
        }
        Ok(unblock_signals()?)
    };
    match prepared() {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    }
}
