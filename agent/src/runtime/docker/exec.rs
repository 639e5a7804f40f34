//! Commands in running containers, by the engine's exec, at most one for each container. One that doesn't end in time is
//! killed: the API has no way to end it, so it is found by its pid, and only where that is a process of the container.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, timeout_at};

use super::{connection::Connection, failure::Failure};
use crate::runtime::{End, Executed, Operation, RuntimeError, ShardId, executed::Tail, procfs};

/// In the environment of each command: what a killed agent has left is known by it.
const MARK: &str = "SHERD_CHECK";
/// Containers whose leftovers are remembered to have been killed; beyond that all are looked for again.
const MAX_SWEPT: usize = 4096;
/// Between two looks for an exit code.
const EXIT_POLL: Duration = Duration::from_millis(10);

/// The commands in an engine's containers.
pub(super) struct Execs {
    engine: Arc<Connection>,
    /// Commands that could not be killed, by their container: no other is started while one runs.
    escaped: Mutex<BTreeMap<ShardId, String>>,
    /// Containers in which nothing of a former agent runs.
    swept: Mutex<BTreeSet<ShardId>>,
}

impl Execs {
    pub(super) fn new(engine: Arc<Connection>) -> Self {
        Self { engine, escaped: Mutex::default(), swept: Mutex::default() }
    }

    /// Runs `command` in the container `id`, whose first process is `pid`. It is also ended when nobody waits for it any more.
    pub(super) async fn run(
        self: Arc<Self>,
        id: ShardId,
        pid: u32,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<Executed, RuntimeError> {
        let engine = self.engine.address().to_owned();
        let task = tokio::spawn(async move {
            let failed = |failure: Failure| match failure {
                Failure::NotFound(_) => RuntimeError::NoSuchShard { operation: Operation::Exec, id: id.clone() },
                other => other.into_error(Operation::Exec, self.engine.address()),
            };
            self.execute(&id, pid, &command, timeout).await.map_err(failed)
        });
        // It panicked, or what it runs on is ending: nothing was learnt of the shard.
        task.await.unwrap_or_else(|error| {
            Err(RuntimeError::EngineGone { operation: Operation::Exec, engine, source: Box::new(error) })
        })
    }

    async fn execute(
        &self,
        id: &ShardId,
        pid: u32,
        command: &[String],
        timeout: Duration,
    ) -> Result<Executed, Failure> {
        if self.former_runs(id).await? {
            return Ok(Executed { end: End::Escaped(timeout), output: String::new() });
        }
        self.sweep(id, pid).await;
        let deadline = Instant::now() + timeout;
        let exec = create(&self.engine, id, command).await?;
        let (tail, ended) = start(&self.engine, &exec, deadline).await?;
        let mut state = inspect(&self.engine, &exec).await?;
        // Its output ends a moment before the engine has its exit code.
        while ended && state.running && Instant::now() < deadline {
            tokio::time::sleep(EXIT_POLL).await;
            state = inspect(&self.engine, &exec).await?;
        }
        let end = match state.code.filter(|_| !state.running) {
            Some(code) => End::Exited(code),
            None if state.pid.is_some_and(|exec| kill(exec, pid)) => End::TimedOut(timeout),
            None => {
                self.escaped.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), exec);
                End::Escaped(timeout)
            }
        };
        Ok(Executed { end, output: tail.text() })
    }

    /// Whether a command that could not be killed is still there.
    async fn former_runs(&self, id: &ShardId) -> Result<bool, Failure> {
        let former = self.escaped.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        let Some(former) = former else { return Ok(false) };
        let runs = match inspect(&self.engine, &former).await {
            Ok(state) => state.running,
            Err(Failure::NotFound(_)) => false,
            Err(failure) => return Err(failure),
        };
        if !runs {
            self.escaped.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        }
        Ok(runs)
    }

    /// Kills, once for each container, what an agent that was killed had begun.
    async fn sweep(&self, id: &ShardId, pid: u32) {
        {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            if swept.len() >= MAX_SWEPT {
                swept.clear();
            }
            if !swept.insert(id.clone()) {
                return;
            }
        }
        let mark = id.0.clone();
        let killed = tokio::task::spawn_blocking(move || {
            let left = procfs::with_variable(MARK, &mark);
            left.into_iter().filter(|left| kill(*left, pid)).count()
        });
        if let Ok(killed @ 1..) = killed.await {
            tracing::info!(container = %id, killed, "checks that a former agent had begun are ended");
        }
    }
}

/// Until the command ends or the deadline comes: what it wrote, and whether it has ended.
async fn start(engine: &Connection, exec: &str, deadline: Instant) -> Result<(Tail, bool), Failure> {
    let options = StartExecOptions { detach: false, tty: false, output_capacity: None };
    let name = exec.to_owned();
    let start = |client: bollard::Docker| async move { client.start_exec(&name, Some(options)).await };
    let mut tail = Tail::default();
    let StartExecResults::Attached { mut output, input: _input } =
        engine.call(Operation::Exec, engine.timeouts.change, start).await?
    else {
        return Ok((tail, false));
    };
    loop {
        match timeout_at(deadline, output.next()).await {
            Ok(Some(Ok(chunk))) => tail.add(&chunk.into_bytes()),
            // A broken stream says nothing of the command: its exit code is asked for.
            Ok(None | Some(Err(_))) => return Ok((tail, true)),
            Err(_) => return Ok((tail, false)),
        }
    }
}

async fn create(engine: &Connection, id: &ShardId, command: &[String]) -> Result<String, Failure> {
    let options = CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command.to_vec()),
        env: Some(vec![format!("{MARK}={id}")]),
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
