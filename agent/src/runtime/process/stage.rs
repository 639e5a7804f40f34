//! `sherd exec-pinned`: the last step before a shard's program, or before a command beside it. Joins the shard's cgroup,
//! takes its CPUs and memory policy, becomes its user, and turns into the program. Single-threaded; a shard's program is
//! the shim's child.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
    unistd::{self, Gid, Uid},
};
use sherd_lb::pinning::{self, MemoryPolicy};
use sherd_topology::plan::{MemoryBinding, Slot};

use super::{
    enclosure,
    record::{self, Account, Order, Shim},
};

/// The shell's codes for a program that can't be run, and for one that isn't there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Arguments of `sherd exec-pinned`; not for operators.
#[derive(Debug, clap::Args)]
pub struct ExecPinnedArgs {
    /// The shard's directory.
    #[arg(long)]
    dir: PathBuf,
    /// The process with which a command beside the shard ends.
    #[arg(long)]
    parent: Option<u32>,
    /// A command beside the shard's program, instead of it.
    #[arg(last = true)]
    beside: Vec<String>,
}

/// Becomes the shard's program, or tells the shim on standard input why not.
pub fn main(args: &ExecPinnedArgs) -> ExitCode {
    if !args.beside.is_empty() {
        let (what, error) = match become_beside(args) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        eprintln!("{what}: {error}");
        return exit_code(&error);
    }
    // The shim sees this socket close when the program is executed, or reads why it was not.
    let mut report = match take_stdin() {
        Ok(report) => report,
        Err(error) => {
            eprintln!("standard input can't be taken: {error}");
            return ExitCode::from(CANNOT_RUN);
        }
    };
    let (what, error) = match become_program(&args.dir) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let _ = write!(report, "{what}: {error}");
    exit_code(&error)
}

fn exit_code(error: &io::Error) -> ExitCode {
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN })
}

fn take_stdin() -> io::Result<File> {
    let report = io::stdin().as_fd().try_clone_to_owned()?;
    unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(report.into())
}

type Failure = (String, io::Error);

fn become_program(directory: &Path) -> Result<std::convert::Infallible, Failure> {
    let (shim, order) = enter(directory)?;
    die_with(shim.process.pid, "shim")?;
    // The shim blocks signals for its signalfd, and a mask survives exec.
    SigSet::empty().thread_set_mask().map_err(|error| ("signal mask".to_owned(), error.into()))?;
    execute(&order.command, None)
}

fn become_beside(args: &ExecPinnedArgs) -> Result<std::convert::Infallible, Failure> {
    let (_, order) = enter(&args.dir)?;
    if let Some(parent) = args.parent {
        die_with(parent, "agent")?;
    }
    execute(&args.beside, Some(&order))
}

/// Becomes a process of the shard but for the program.
fn enter(directory: &Path) -> Result<(Shim, Order), Failure> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let shim = record::read::<Shim>(directory).and_then(|shim| shim.ok_or_else(missing)).map_err(at("shim.json"))?;
    let order =
        record::read::<Order>(directory).and_then(|order| order.ok_or_else(missing)).map_err(at("order.json"))?;
    if let Some(cgroup) = &shim.cgroup {
        enclosure::join(cgroup).map_err(at(&format!("cgroup {}", cgroup.display())))?;
    }
    pin(&order.slot, shim.has_cpuset)?;
    if let Some(account) = &order.user {
        become_user(account).map_err(|error| (format!("uid {}", account.uid), error.into()))?;
    }
    std::env::set_current_dir(&order.working_dir).map_err(at(&format!("cd {}", order.working_dir.display())))?;
    Ok((shim, order))
}

/// Turns into the program, with the shard's environment unless this process has it already.
fn execute(words: &[String], shard: Option<&Order>) -> Result<std::convert::Infallible, Failure> {
    let missing = || ("command".to_owned(), io::ErrorKind::NotFound.into());
    let (program, arguments) = words.split_first().ok_or_else(missing)?;
    let mut command = Command::new(program);
    command.args(arguments);
    if let Some(order) = shard {
        command.env_clear().envs(&order.environment);
    }
    Err((program.clone(), command.exec()))
}

/// With a cpuset an affinity of ours would only stand in the way of its later changes.
fn pin(slot: &Slot, has_cpuset: bool) -> Result<(), Failure> {
    if !has_cpuset {
        let cpus: Vec<u32> = slot.cpus.iter().map(|cpu| cpu.0).collect();
        pinning::set_affinity(&cpus).map_err(at(&format!("CPUs {}", slot.cpus)))?;
    }
    let policy = match slot.memory {
        MemoryBinding::Bind if has_cpuset => return Ok(()),
        MemoryBinding::Bind => MemoryPolicy::Bind,
        MemoryBinding::Prefer => MemoryPolicy::Prefer,
        MemoryBinding::None => return Ok(()),
    };
    let nodes: Vec<u32> = slot.mems.iter().map(|node| node.0).collect();
    match pinning::set_mempolicy(policy, &nodes) {
        // A kernel without NUMA has one node, and everything is on it.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map_err(at(&format!("memory nodes {}", slot.mems))),
    }
}

fn become_user(account: &Account) -> nix::Result<()> {
    let groups: Vec<Gid> = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    // In this order: without its uid a process may no longer change its groups.
    unistd::setgroups(&groups)?;
    unistd::setgid(Gid::from_raw(account.gid))?;
    unistd::setuid(Uid::from_raw(account.uid))
}

/// Only now: a change of the user clears it.
fn die_with(parent: u32, who: &str) -> Result<(), Failure> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| ("parent-death signal".to_owned(), error.into()))?;
    // It may have died before that.
    if unistd::getppid() != enclosure::pid_of(parent) {
        return Err((who.to_owned(), io::Error::other("it is no more")));
    }
    Ok(())
}

fn at(what: &str) -> impl FnOnce(io::Error) -> Failure + use<> {
    let what = what.to_owned();
    move |error| (what, error)
}
