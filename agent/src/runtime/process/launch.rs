//! Getting a shim to run so that it outlives the agent: a unit of its own under systemd, else a session of its own.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::{Child, Command};

use super::record;

/// systemd's own test for being PID 1, sd_booted(3).
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// Which way shims are launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launch {
    /// In a transient unit; the agent's unit can then be restarted without them.
    Unit,
    /// As children that leave the agent's session.
    Detached,
}

impl Launch {
    /// What this host asks for.
    pub fn of_this_host() -> Self {
        if Path::new(SYSTEMD_RUNS).is_dir() { Self::Unit } else { Self::Detached }
    }
}

/// Starts the shim of the shard in `directory`. The child is the shim itself, or systemd-run, which ends once the
/// unit runs.
pub(super) fn shim(launch: Launch, program: &Path, directory: &Path, unit: &str) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(directory.join(record::SHIM_LOG))?;
    let mut command = match launch {
        Launch::Detached => Command::new(program),
        Launch::Unit => systemd_run(program, directory, unit),
    };
    command.args(["shim", "--dir"]).arg(directory);
    if launch == Launch::Unit {
        command.arg("--unit");
    }
    command.env_remove(crate::systemd::NOTIFY_SOCKET);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()
}

/// A command beside the shard in `directory`, which ends by `bound` whatever becomes of the agent. The caller has its output.
pub(super) fn beside(
    launch: Launch,
    program: &Path,
    directory: &Path,
    unit: &str,
    words: &[String],
    bound: Duration,
) -> Command {
    let mut command = match launch {
        Launch::Detached => Command::new(program),
        // The agent's own unit may not do what a shard's user may, and may not become another user.
        Launch::Unit => {
            let mut command = Command::new("systemd-run");
            command
                .args(["--quiet", "--collect", "--pipe", "--wait", "--slice=sherd.slice", "--unit", unit])
                .arg(format!("--property=RuntimeMaxSec={}ms", bound.as_millis()))
                .arg("--property=KillSignal=SIGKILL")
                .arg("--")
                .arg(program);
            command
        }
    };
    command.args(["exec-pinned", "--dir"]).arg(directory);
    if launch == Launch::Detached {
        command.arg("--parent").arg(std::process::id().to_string());
    }
    command.arg("--").args(words);
    command.env_remove(crate::systemd::NOTIFY_SOCKET).current_dir("/").stdin(Stdio::null());
    command
}

fn systemd_run(program: &Path, directory: &Path, unit: &str) -> Command {
    let mut log: PathBuf = directory.to_owned();
    log.push(record::SHIM_LOG);
    let mut command = Command::new("systemd-run");
    command
        .args(["--quiet", "--collect", "--slice=sherd.slice", "--unit", unit])
        // The shim moves itself and its shard into cgroups of its own.
        .arg("--property=Delegate=yes")
        // SIGTERM is for the shim alone, which passes it on; SIGKILL is for all.
        .arg("--property=KillMode=mixed")
        // A shard is restarted by the agent, and the kernel's choice among shards is not an end of the unit.
        .arg("--property=Restart=no")
        .arg("--property=OOMPolicy=continue")
        .arg(format!("--property=StandardError=append:{}", log.display()))
        .arg("--")
        .arg(program);
    command
}
