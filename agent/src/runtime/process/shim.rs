//! `sherd shim`: the parent of one process shard. Starts it, keeps its output, records how it ended, and lets nothing
//! of it live on. Survives the agent, needs nobody, has one thread and no async runtime; knows no other shard.

use std::{
    fs, io,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd,
};

use super::{
    enclosure::{self, Enclosure, Place},
    output::Writer,
    record::{self, Exit, Order, Process, Running, Shim},
};
use crate::runtime::{LogOutput, procfs};

/// Asks the shim to kill the shard at once.
pub(super) const KILL_NOW: Signal = Signal::SIGUSR1;
/// How long SIGKILL may take; a process that hangs in the kernel must not keep the shim for ever.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at dying children.
const DYING_POLL: Duration = Duration::from_millis(5);
const READ_LEN: usize = 16 * 1024;
/// Reads from one pipe before signals are looked at again: a shard that writes without end can still be stopped.
/// More than a pipe holds (64 KiB), so nothing that was written before the end is lost.
const READS_MAX: usize = 8;

/// Arguments of `sherd shim`; not for operators.
#[derive(Debug, clap::Args)]
pub struct ShimArgs {
    /// The shard's directory.
    #[arg(long)]
    dir: PathBuf,
    /// It is the main process of a unit with a delegated cgroup.
    #[arg(long)]
    unit: bool,
}

/// Supervises one shard until its end.
pub fn main(args: &ShimArgs) -> ExitCode {
    match supervise(&args.dir, if args.unit { Place::Unit } else { Place::Detached }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", args.dir.display());
            ExitCode::FAILURE
        }
    }
}

fn supervise(directory: &Path, place: Place) -> io::Result<()> {
    // Fails for the leader of a process group, which a unit's main process may be: then it has a session already.
    let _ = unistd::setsid();
    let lock = fs::OpenOptions::new().create(true).append(true).open(directory.join(record::LOCK))?;
    // The other one does the work: two agents' starts met, or one agent's before and after its death.
    let Ok(_lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else { return Ok(()) };
    let order: Order = record::read(directory)?.ok_or(io::ErrorKind::NotFound)?;
    if record::read::<Shim>(directory)?.is_some() {
        return Ok(());
    }
    prctl::set_child_subreaper(true)?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, KILL_NOW] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;

    let shard = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let enclosure = enclosure::make(place, &order.instance, &shard, &order.slot);
    let shim = Shim {
        process: Process::of(std::process::id())?,
        cgroup: enclosure.as_ref().map(|enclosure| enclosure.directory.clone()),
        has_cpuset: enclosure.as_ref().is_some_and(|enclosure| enclosure.has_cpuset),
    };
    record::write(directory, &shim)?;
    let output = Writer::open(directory)?;
    let exit = match Shard::start(directory, &order, signals, output) {
        Ok(mut shard) => {
            shard.watch()?;
            shard.end(enclosure.as_ref())
        }
        Err(error) => Exit { code: None, oom: false, not_started: Some(error.to_string()) },
    };
    record::write(directory, &exit)?;
    if let Some(enclosure) = enclosure {
        // What is left of it is removed with the shard.
        let _ = enclosure::remove(&enclosure.directory);
    }
    Ok(())
}

/// A started shard and what is heard of it.
struct Shard {
    directory: PathBuf,
    process: Process,
    signals: SignalFd,
    /// Closes when the program is executed; says why when it can't be.
    report: Option<UnixStream>,
    reason: String,
    pipes: [Option<OwnedFd>; 2],
    output: Writer,
    code: Option<i32>,
}

impl Shard {
    fn start(directory: &Path, order: &Order, signals: SignalFd, output: Writer) -> io::Result<Self> {
        let (report, stage_report) = UnixStream::pair()?;
        let (stdout, stage_stdout) = io::pipe()?;
        let (stderr, stage_stderr) = io::pipe()?;
        // Not by path: the file may have been replaced since by another version.
        let child = Command::new("/proc/self/exe")
            .arg("exec-pinned")
            .arg("--dir")
            .arg(directory)
            .env_clear()
            .envs(&order.environment)
            .stdin(OwnedFd::from(stage_report))
            .stdout(stage_stdout)
            .stderr(stage_stderr)
            .spawn()?;
        report.set_nonblocking(true)?;
        let pipes = [OwnedFd::from(stdout), OwnedFd::from(stderr)];
        for pipe in &pipes {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            directory: directory.to_owned(),
            // Not reaped by anyone before `reap`, so it is still there, if only as a zombie.
            process: Process::of(child.id())?,
            signals,
            report: Some(report),
            reason: String::new(),
            pipes: pipes.map(Some),
            output,
            code: None,
        })
    }

    /// Until its first process has ended.
    fn watch(&mut self) -> io::Result<()> {
        while self.code.is_none() {
            self.wait()?;
            // First what it said, then that it ended.
            self.read_output();
            self.read_report()?;
            while let Some(signal) = self.signals.read_signal()? {
                self.handle(i32::try_from(signal.ssi_signo).unwrap_or_default());
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<()> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![readable(self.signals.as_fd())];
        fds.extend(self.report.as_ref().map(|report| readable(report.as_fd())));
        fds.extend(self.pipes.iter().flatten().map(|pipe| readable(pipe.as_fd())));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn handle(&mut self, signal: i32) {
        match Signal::try_from(signal) {
            Ok(Signal::SIGCHLD) => self.reap(),
            Ok(KILL_NOW) => self.signal(Signal::SIGKILL),
            Ok(_) => self.signal(Signal::SIGTERM),
            Err(_) => {}
        }
    }

    /// To the first process: only until it is reaped does its pid mean it.
    fn signal(&self, signal: Signal) {
        if self.code.is_none() {
            let _ = kill(enclosure::pid_of(self.process.pid), signal);
        }
    }

    /// Collects the dead; as a subreaper the shim also inherits what the shard's processes leave behind.
    fn reap(&mut self) {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if pid == enclosure::pid_of(self.process.pid) {
                self.code = Some(code);
            }
        }
    }

    fn read_output(&mut self) {
        let mut buffer = [0; READ_LEN];
        for (pipe, output) in self.pipes.iter_mut().zip([LogOutput::Stdout, LogOutput::Stderr]) {
            for _ in 0..READS_MAX {
                let Some(fd) = pipe else { break };
                match unistd::read(&*fd, &mut buffer) {
                    Ok(0) => *pipe = None,
                    Ok(len) => self.output.add(output, &buffer[..len]),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => break,
                    Err(_) => *pipe = None,
                }
            }
        }
    }

    fn read_report(&mut self) -> io::Result<()> {
        let Some(report) = &mut self.report else { return Ok(()) };
        match report.read_to_string(&mut self.reason) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            _ => self.report = None,
        }
        if self.reason.is_empty() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let started_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            record::write(&self.directory, &Running { process: self.process, started_unix_ms })?;
        }
        Ok(())
    }

    /// Its first process has ended, so everything else of it must.
    fn end(&mut self, enclosure: Option<&Enclosure>) -> Exit {
        let oom = enclosure.is_some_and(|enclosure| enclosure::had_oom_kill(&enclosure.directory));
        if let Some(enclosure) = enclosure
            && let Err(pids) = enclosure::kill_all(&enclosure.directory, DEATH_PATIENCE)
        {
            eprintln!("processes {pids:?} don't die");
        }
        self.kill_descendants();
        self.read_output();
        self.output.finish();
        let not_started = Some(std::mem::take(&mut self.reason)).filter(|reason| !reason.is_empty());
        Exit { code: self.code, oom, not_started }
    }

    fn kill_descendants(&mut self) {
        let deadline = Instant::now() + DEATH_PATIENCE;
        loop {
            self.reap();
            let left = procfs::descendants(std::process::id());
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in left {
                // Its parent is the shim or a descendant of it, and only the shim reaps the former: the pid is right,
                // except for a grandchild that a dying child reaped this instant.
                let _ = kill(enclosure::pid_of(pid), Signal::SIGKILL);
            }
            std::thread::sleep(DYING_POLL);
        }
    }
}
