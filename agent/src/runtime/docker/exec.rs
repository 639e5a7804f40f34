//! A command in a running container, by the engine's exec. One that doesn't end in time is killed: the API has no way to
//! end it, so it is found by its pid, and only where that is a process of the container.

use std::{fs, time::Duration};

use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, timeout_at};

use super::{connection::Connection, failure::Failure};
use crate::runtime::{End, Executed, Operation, RuntimeError, ShardId, executed::Tail, procfs};

/// Runs `command` in the container `id`, whose first process is `pid`.
pub(super) async fn run(
    engine: &Connection,
    id: &ShardId,
    pid: u32,
    command: &[String],
    timeout: Duration,
) -> Result<Executed, RuntimeError> {
    let failed = |failure: Failure| match failure {
        Failure::NotFound(_) => RuntimeError::NoSuchShard { operation: Operation::Exec, id: id.clone() },
        other => other.into_error(Operation::Exec, engine.address()),
    };
    let deadline = Instant::now() + timeout;
    let exec = create(engine, id, command).await.map_err(failed)?;
    let options = StartExecOptions { detach: false, tty: false, output_capacity: None };
    let name = exec.clone();
    let start = |client: bollard::Docker| async move { client.start_exec(&name, Some(options)).await };
    let started = engine.call(Operation::Exec, engine.timeouts.change, start).await.map_err(failed)?;
    let mut tail = Tail::default();
    let ended = match started {
        StartExecResults::Detached => false,
        StartExecResults::Attached { mut output, input: _input } => loop {
            match timeout_at(deadline, output.next()).await {
                Ok(Some(Ok(chunk))) => tail.add(&chunk.into_bytes()),
                // A broken stream says nothing of the command: its exit code is asked for.
                Ok(None | Some(Err(_))) => break true,
                Err(_) => break false,
            }
        },
    };
    let state = inspect(engine, &exec).await.map_err(failed)?;
    let end = match state.code.filter(|_| ended || !state.running) {
        Some(code) => End::Exited(code),
        None if state.pid.is_some_and(|exec| kill(exec, pid)) => End::TimedOut(timeout),
        None => End::Escaped(timeout),
    };
    Ok(Executed { end, output: tail.text() })
}

async fn create(engine: &Connection, id: &ShardId, command: &[String]) -> Result<String, Failure> {
    let options = CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command.to_vec()),
        ..Default::default()
    };
    let name = id.0.clone();
    let create = |client: bollard::Docker| async move { client.create_exec(&name, options).await };
    Ok(engine.call(Operation::Exec, engine.timeouts.ask, create).await?.id)
}

struct State {
    running: bool,
    code: Option<i32>,
    pid: Option<u32>,
}

async fn inspect(engine: &Connection, exec: &str) -> Result<State, Failure> {
    let name = exec.to_owned();
    let inspect = |client: bollard::Docker| async move { client.inspect_exec(&name).await };
    let found = engine.call(Operation::Exec, engine.timeouts.ask, inspect).await?;
    Ok(State {
        running: found.running.unwrap_or_default(),
        code: found.exit_code.and_then(|code| i32::try_from(code).ok()),
        pid: found.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0),
    })
}

/// Kills a process and what it started, if it is one of the container whose first process is `shard`; whether it did. An
/// engine in another PID namespace tells pids that mean others here.
fn kill(pid: u32, shard: u32) -> bool {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let is_of_shard = |pid: u32| pid != shard && namespace(pid).is_some() && namespace(pid) == namespace(shard);
    let end = |pid: u32| -> bool {
        let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
        // The descriptor first: what is asked of the pid then is asked of the process that is killed.
        let Ok(process) = pidfd_open(id, PidfdFlags::empty()) else { return false };
        is_of_shard(pid) && pidfd_send_signal(process, Signal::KILL).is_ok()
    };
    // Children first: without their parent they would be nobody's.
    let children = procfs::descendants(pid);
    for child in children {
        end(child);
    }
    end(pid)
}
