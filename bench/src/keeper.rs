//! Sees to it that a run leaves nothing behind, however it ends; owns the scratch directory and the end of every process
//! of a run, and does no part of the run's work.
//!
//! Three processes. The *guard* is what the user started: it passes signals on and waits. The *keeper* is its child, in
//! a process group of its own, so that Ctrl-C doesn't reach it: it is the subreaper (PR_SET_CHILD_SUBREAPER) of all
//! that the run starts, also of what detaches itself. The *worker* is the keeper's child and does the run.
//!
//! The keeper holds the reading end of a pipe whose writing end only the guard has. When the guard ends, by whatever
//! signal, the pipe says so; the keeper then asks the worker to end, and after it (or after 20 s) kills every
//! descendant that is left, has removed what the run made in a container engine, puts back what it turned in the kernel, and
//! removes the scratch directory.
//!
//! A killed keeper takes the worker with it (PDEATHSIG), and what it kept becomes the guard's, which is a subreaper too and
//! does the same in its place. So whichever of the three is killed, nothing is left; only SIGKILL to guard and keeper at once
//! leaves the run's containers, which its label finds.

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::DirBuilderExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getppid},
};

pub use self::descendants::descendants;
use crate::{contestant, interrupt::ending_signals, measure};

mod descendants;

/// In a worker's environment: its scratch directory. That it is set makes a process a worker.
pub const SCRATCH_VARIABLE: &str = "SHERD_BENCH_SCRATCH";
/// The hidden subcommand of the keeper.
pub const KEEPER_COMMAND: &str = "keep";
/// How long a worker that was asked to end may take: as long as its contestants may, and some.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// How long killed processes may take to be gone.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// Runs this program again with `arguments`, under a keeper; gives its exit code.
pub fn guard(arguments: &[OsString]) -> io::Result<ExitCode> {
    let signals = ending_signals();
    signals.thread_block()?;
    prctl::set_child_subreaper(true)?;
    let mut keeper = Command::new(env::current_exe()?)
        .arg(KEEPER_COMMAND)
        .arg("--")
        .args(arguments)
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut pipe = keeper.stdin.take();
    thread::spawn(move || {
        while signals.wait().is_ok() {
            // The keeper sees the end of the pipe. A second signal changes nothing: what goes on is bounded.
            drop(pipe.take());
        }
    });
    let status = keeper.wait()?;
    if status.code().is_none() {
        eprintln!("sherd-bench: the keeper of this run was killed; its guard cleans up");
        clean_up(&scratch_of(Pid::from_raw(keeper.id() as i32)))?;
    }
    Ok(exit_code(status.code()))
}

/// The keeper itself. Its standard input is the guard's pipe.
pub fn keep(arguments: &[OsString]) -> io::Result<ExitCode> {
    prctl::set_child_subreaper(true)?;
    let mut watched = ending_signals();
    watched.add(Signal::SIGCHLD);
    watched.thread_block()?;
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let scratch = make_scratch()?;
    let ended = Command::new(env::current_exe()?)
        .args(arguments)
        .env(SCRATCH_VARIABLE, &scratch)
        .stdin(Stdio::null())
        .spawn()
        .and_then(|worker| await_worker(&worker, &signals));
    clean_up(&scratch)?;
    Ok(exit_code(ended?))
}

/// Ends and removes all that this process keeps.
fn clean_up(scratch: &Path) -> io::Result<()> {
    let remaining = kill_descendants();
    // Before what the run made goes: what it did to others may be in the way.
    if let Err(error) = contestant::undo_all(scratch) {
        eprintln!("sherd-bench: something that the run did is not undone: {error}");
    }
    // After the processes, which could make more of it; before the directory, which says what there is.
    if let Err(error) = contestant::sweep(scratch) {
        eprintln!("sherd-bench: something of the run is left: {error}");
    }
    if let Err(error) = measure::bpf::restore(scratch) {
        eprintln!(
            "sherd-bench: kernel.bpf_stats_enabled is not as it was, `sysctl kernel.bpf_stats_enabled=0`: {error}"
        );
    }
    if remaining > 0 {
        eprintln!("sherd-bench: {remaining} processes of the run could not be killed; see `ps --ppid 1`");
    }
    match fs::remove_dir_all(scratch) {
        // A keeper that was killed at its very beginning has made none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// To be called first by a worker: gives its scratch directory, and ties its life to the keeper's. None when this
/// process is no worker.
pub fn become_worker() -> io::Result<Option<PathBuf>> {
    let Some(scratch) = env::var_os(SCRATCH_VARIABLE) else { return Ok(None) };
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == Pid::from_raw(1) {
        return Err(io::Error::other("the keeper of this run is gone"));
    }
    Ok(Some(scratch.into()))
}

/// Waits until the worker has ended, or didn't although it was asked to; gives its exit code.
fn await_worker(worker: &Child, signals: &SignalFd) -> io::Result<Option<i32>> {
    let pid = Pid::from_raw(worker.id() as i32);
    let stdin = io::stdin();
    let mut guarded = true;
    let mut deadline: Option<Instant> = None;
    loop {
        if let Some(code) = reap(pid)? {
            return Ok(code);
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(None);
        }
        let (gone, signalled) = await_news(guarded.then(|| stdin.as_fd()), signals, left)?;
        guarded &= !gone;
        if (gone || signalled) && deadline.is_none() {
            deadline = Some(Instant::now() + STOP_GRACE);
            ask_to_end(pid)?;
        }
    }
}

/// Whether the guard is gone, and whether somebody wants the end.
fn await_news(
    guard: Option<BorrowedFd<'_>>,
    signals: &SignalFd,
    timeout: Option<Duration>,
) -> io::Result<(bool, bool)> {
    let mut watched = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    watched.extend(guard.map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)));
    let millis = timeout.map(|timeout| timeout.as_millis().saturating_add(1).min(1_000_000));
    let timeout = millis.map_or(PollTimeout::NONE, |millis| PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX));
    match poll(&mut watched, timeout) {
        Err(Errno::EINTR) => return Ok((false, false)),
        other => other?,
    };
    // Nobody writes into the pipe: whatever it says, it is the end.
    let gone = watched.get(1).is_some_and(|pipe| pipe.any().unwrap_or(false));
    let mut ending = false;
    while let Some(signal) = signals.read_signal()? {
        ending |= signal.ssi_signo != Signal::SIGCHLD as u32;
    }
    Ok((gone, ending))
}

/// Takes in children that have ended; gives the worker's exit code once it is among them.
fn reap(worker: Pid) -> io::Result<Option<Option<i32>>> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == worker => code = Some(Some(status)),
            Ok(WaitStatus::Signaled(pid, ..)) if pid == worker => code = Some(None),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn ask_to_end(worker: Pid) -> io::Result<()> {
    match kill(worker, Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Kills all that descends from this process, again and again, because what is being killed may still fork; gives how
/// many are left when the time is over.
fn kill_descendants() -> usize {
    let deadline = Instant::now() + KILL_GRACE;
    loop {
        let left = descendants(Pid::this());
        if left.is_empty() || Instant::now() >= deadline {
            return left.len();
        }
        for pid in left {
            // It may just have ended; the next round tells.
            let _ = kill(pid, Signal::SIGKILL);
        }
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
        thread::sleep(Duration::from_millis(5));
    }
}

/// A keeper's directory.
fn scratch_of(keeper: Pid) -> PathBuf {
    env::temp_dir().join(format!("sherd-bench-{keeper}"))
}

fn make_scratch() -> io::Result<PathBuf> {
    let path = scratch_of(Pid::this());
    if path.exists() {
        // A keeper with our number that was killed before it could clean up; it is not there any more, we are.
        remove_own(&path)?;
    }
    fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// Removes a directory only if it is this user's own: the name in a shared /tmp can be guessed.
fn remove_own(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is somebody else's", path.display())));
    }
    fs::remove_dir_all(path)
}

/// A program that a signal ended counts as failed.
fn exit_code(code: Option<i32>) -> ExitCode {
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// An empty set of blocked signals for what is started next: children inherit the mask.
pub(crate) fn unblock_signals() -> nix::Result<()> {
    SigSet::empty().thread_set_mask()
}
