//! Carries faults out and undoes them: the only place of the scenario that touches shards, agent and engine. What it does to others than
//! the run's own is noted before.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
    unistd::Pid,
};
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};

use super::{
    schedule::{Fault, Kind},
    target::{Target, engine_of},
};
use crate::{
    contestant::{Container, Process, SlotState, Undo, UndoList, set_affinity, tell},
    measure::{allowed_cpus, cpus},
};

/// How long a killed process may take to be gone, and one that was restarted.
const DEATH_DEADLINE: Duration = Duration::from_secs(30);
/// systemd's, as in our unit: RestartSec.
pub(super) const AGENT_AWAY: Duration = Duration::from_millis(250);
/// Between SIGTERM and SIGKILL of `docker restart`, in seconds.
const RESTART_GRACE: &str = "1";

/// A fault under way.
#[derive(Default)]
pub(super) struct UnderWay {
    /// What was done, in a sentence.
    pub(super) what: String,
    /// Processes that are there no more when the group is whole again.
    pub(super) gone: Vec<i32>,
    /// When the last of them had gone, known sooner or later.
    pub(super) died: Death,
    /// What is to be undone when its time is over.
    pub(super) undo: Option<Undoing>,
}

/// When somebody died.
#[derive(Default)]
pub(super) enum Death {
    /// Nobody did.
    #[default]
    None,
    /// Then.
    At(Instant),
    /// It is waited for; what brings it about may fail.
    Awaited(JoinHandle<io::Result<Instant>>),
}

/// What is to be undone.
pub(super) enum Undoing {
    /// As noted.
    Noted(Undo),
    /// As noted, if the agent hasn't put the slot's shard back on these CPUs.
    UnlessRepaired(Undo, Pid, Vec<usize>),
    /// The agent starts again.
    BeginAgent,
    /// The run's own engine starts again.
    BeginEngine,
}

impl Death {
    /// Waits for it.
    pub(super) fn moment(self) -> io::Result<Option<Instant>> {
        match self {
            Self::None => Ok(None),
            Self::At(at) => Ok(Some(at)),
            Self::Awaited(thread) => {
                thread.join().map_err(|_| io::Error::other("the thread that waited for it died"))?.map(Some)
            }
        }
    }
}

/// Brings `fault` about. An error means that nothing was done, or nothing that isn't noted.
pub(super) fn begin(
    fault: &Fault,
    target: &mut Target<'_>,
    list: &mut UndoList,
    restart_engine: Option<&str>,
) -> io::Result<UnderWay> {
    match (fault.kind, fault.slot) {
        (Kind::AgentKill, _) => kill_agent(target),
        (Kind::EngineRestart, _) => restart_the_engine(target, restart_engine),
        (kind, Some(slot)) => {
            let victim = Victim::of(target, slot)?;
            match kind {
                Kind::Kill => victim.kill(),
                Kind::Stop => victim.stop(list),
                Kind::Pause => victim.pause(target, list),
                Kind::Restart => victim.restart(target),
                _ => victim.drift(target, list),
            }
        }
        (_, None) => Err(io::Error::other("it names no slot")),
    }
}

/// Undoes it, and says how, if there is something to say.
pub(super) fn undo(undoing: &Undoing, target: &mut Target<'_>, list: &mut UndoList) -> io::Result<String> {
    match undoing {
        Undoing::Noted(undo) => list.carry_out(undo).map(|()| String::new()),
        Undoing::UnlessRepaired(undo, pid, planned) => match affinity(*pid) {
            Ok(found) if found != *planned => {
                list.carry_out(undo)?;
                Ok(format!("; NOT repaired by the agent: it was on CPUs {}", cpus::list(&found)))
            }
            Ok(_) => list.forget(undo).map(|()| "; repaired by the agent".to_owned()),
            Err(_) => list.forget(undo).map(|()| "; the shard was replaced meanwhile".to_owned()),
        },
        Undoing::BeginAgent => {
            let field = target.field.as_mut().ok_or_else(|| io::Error::other("the agent isn't ours"))?;
            field.group.begin_agent().map(|()| String::new()).map_err(io::Error::other)
        }
        Undoing::BeginEngine => {
            let engine = target.own_engine.as_mut().ok_or_else(|| io::Error::other("the engine isn't ours"))?;
            engine.begin_again().map(|()| String::new()).map_err(io::Error::other)
        }
    }
}

/// A shard, held by a descriptor: no other process gets what is meant for it.
struct Victim {
    slot: SlotState,
    pid: Pid,
    process: OwnedFd,
}

impl Victim {
    fn of(target: &Target<'_>, number: u32) -> io::Result<Self> {
        let ask = || {
            let slot = target.slot(number).map_err(|error| io::Error::other(error.to_string()))?;
            let pid = slot.process().ok_or_else(|| io::Error::other(format!("slot {number} has no shard now")))?;
            Ok::<_, io::Error>((slot, pid))
        };
        let (_, pid) = ask()?;
        let process = open(pid)?;
        // Still its shard's: so the descriptor is that shard's too.
        match ask()? {
            (slot, again) if again == pid => Ok(Self { slot, pid, process }),
            _ => Err(io::Error::other(format!("slot {number} changes its shard just now"))),
        }
    }

    fn name(&self) -> String {
        format!("slot {} (process {})", self.slot.slot, self.pid)
    }

    fn container(&self, target: &Target<'_>) -> io::Result<Container> {
        let id = self.slot.shard.clone().ok_or_else(|| io::Error::other("its slot has no container now"))?;
        Ok(Container { engine: engine_of(target)?, id })
    }

    fn kill(self) -> io::Result<UnderWay> {
        send(&self.process, rustix::process::Signal::KILL)?;
        let died = await_end(&self.process)?;
        let (what, gone) = (format!("SIGKILL to {}", self.name()), vec![self.pid.as_raw()]);
        Ok(UnderWay { what, gone, died: Death::At(died), undo: None })
    }

    fn stop(self, list: &mut UndoList) -> io::Result<UnderWay> {
        let undo = Undo::Continue(Process::of(self.pid)?);
        list.note(undo.clone())?;
        send(&self.process, rustix::process::Signal::STOP)?;
        Ok(UnderWay {
            what: format!("SIGSTOP to {}", self.name()),
            undo: Some(Undoing::Noted(undo)),
            ..UnderWay::default()
        })
    }

    fn pause(self, target: &Target<'_>, list: &mut UndoList) -> io::Result<UnderWay> {
        let container = self.container(target)?;
        let undo = Undo::Unpause(container.clone());
        list.note(undo.clone())?;
        tell(&container.engine, &["pause", &container.id])?;
        Ok(UnderWay {
            what: format!("docker pause of {}", self.name()),
            undo: Some(Undoing::Noted(undo)),
            ..UnderWay::default()
        })
    }

    fn restart(self, target: &Target<'_>) -> io::Result<UnderWay> {
        let container = self.container(target)?;
        let (what, gone) = (format!("docker restart of {}", self.name()), vec![self.pid.as_raw()]);
        let process = self.process;
        let command =
            thread::spawn(move || tell(&container.engine, &["restart", "--time", RESTART_GRACE, &container.id]));
        let died = thread::spawn(move || {
            let died = await_end(&process);
            // What the engine says is of interest only if nobody died.
            match (died, command.join()) {
                (Err(_), Ok(Err(error))) => Err(error),
                (died, _) => died,
            }
        });
        Ok(UnderWay { what, gone, died: Death::Awaited(died), undo: None })
    }

    fn drift(self, target: &Target<'_>, list: &mut UndoList) -> io::Result<UnderWay> {
        let planned = cpus::parse_list(&self.slot.cpus).map_err(io::Error::other)?;
        let other = allowed_cpus()?.into_iter().find(|cpu| !planned.contains(cpu));
        let other = other.ok_or_else(|| io::Error::other("there is no CPU that isn't its slot's"))?;
        let (undo, what) = if target.engine.is_some() {
            let container = self.container(target)?;
            let undo = Undo::Cpuset(container.clone(), self.slot.cpus.clone());
            list.note(undo.clone())?;
            tell(&container.engine, &["update", "--cpuset-cpus", &other.to_string(), &container.id])?;
            (undo, format!("docker update --cpuset-cpus {other} of {}", self.name()))
        } else {
            let undo = Undo::Affinity(Process::of(self.pid)?, planned.clone());
            list.note(undo.clone())?;
            set_affinity(self.pid, &[other])?;
            (undo, format!("sched_setaffinity to CPU {other} of {}", self.name()))
        };
        let undo = Some(Undoing::UnlessRepaired(undo, self.pid, planned));
        Ok(UnderWay { what, undo, ..UnderWay::default() })
    }
}

fn kill_agent(target: &mut Target<'_>) -> io::Result<UnderWay> {
    if let Some(field) = &mut target.field {
        let pid = field.group.agent();
        field.group.end_agent(Signal::SIGKILL).map_err(io::Error::other)?;
        let (what, died) = (format!("SIGKILL to the agent (process {pid})"), Death::At(Instant::now()));
        return Ok(UnderWay { what, gone: vec![pid.as_raw()], died, undo: Some(Undoing::BeginAgent) });
    }
    let ask = || target.agent().map_err(|error| io::Error::other(error.to_string()));
    let pid = ask()?;
    let process = open(pid)?;
    if ask()? != pid {
        return Err(io::Error::other("the agent is just being replaced"));
    }
    send(&process, rustix::process::Signal::KILL)?;
    let (what, died) = (format!("SIGKILL to the agent (process {pid})"), await_end(&process)?);
    // Its service manager starts it again.
    Ok(UnderWay { what, gone: vec![pid.as_raw()], died: Death::At(died), undo: None })
}

fn restart_the_engine(target: &mut Target<'_>, command: Option<&str>) -> io::Result<UnderWay> {
    let shards = target.shards().map_err(|error| io::Error::other(error.to_string()))?;
    let processes = shards.iter().map(|pid| open(*pid)).collect::<io::Result<Vec<_>>>()?;
    if let Some(engine) = &mut target.own_engine {
        let died = thread::spawn(move || processes.iter().try_fold(Instant::now(), |_, process| await_end(process)));
        engine.stop().map_err(io::Error::other)?;
        let gone = shards.iter().map(|pid| pid.as_raw()).collect();
        let what = "SIGTERM to the container engine, which takes all containers with it".to_owned();
        return Ok(UnderWay { what, gone, died: Death::Awaited(died), undo: Some(Undoing::BeginEngine) });
    }
    let command = command.ok_or_else(|| io::Error::other("nobody said how: give --restart-engine COMMAND"))?.to_owned();
    let what = format!("`{command}`");
    let ended = thread::spawn(move || run(&command).map(|()| Instant::now()));
    // Whether it takes containers with it is the engine's matter (live-restore); what died is seen by its slot.
    Ok(UnderWay { what, gone: Vec::new(), died: Death::Awaited(ended), undo: None })
}

fn run(command: &str) -> io::Result<()> {
    let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

fn open(pid: Pid) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or_else(|| io::Error::other("process 0"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

fn send(process: &OwnedFd, signal: rustix::process::Signal) -> io::Result<()> {
    Ok(pidfd_send_signal(process, signal)?)
}

/// pidfd_open(2): a pidfd is readable when its process has ended.
fn await_end(process: &OwnedFd) -> io::Result<Instant> {
    let deadline = Instant::now() + DEATH_DEADLINE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("it lives on after {DEATH_DEADLINE:?}")));
        }
        let timeout = PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(Instant::now()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Where the kernel lets a process run: the first thread's, as the agent's own look has it of all.
fn affinity(pid: Pid) -> io::Result<Vec<usize>> {
    let status = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/status")))?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let list = list.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no Cpus_allowed_list"))?;
    cpus::parse_list(list).map_err(io::Error::other)
}
