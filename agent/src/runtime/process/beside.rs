//! A command beside a running shard: in its cgroup, on its CPUs, as its user and with its environment. Ends with its time
//! or with the agent; what it wrote last is kept.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::sys::signal::{Signal, killpg};
use tokio::{io::AsyncReadExt, net::unix::pipe, time::timeout};

use super::{
    enclosure,
    launch::{self, Launch},
};
use crate::runtime::{End, Executed, executed::Tail};

/// How long what it has written may still come after its end; a child of it may have the pipe for ever.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Runs `command` beside the shard of `directory`. `name` is that of its unit, where units are used.
pub(super) async fn run(
    launch: Launch,
    program: &Path,
    directory: &Path,
    name: &str,
    command: &[String],
    bound: Duration,
) -> io::Result<Executed> {
    let (reader, writer) = io::pipe()?;
    let mut run = launch::beside(launch, program, directory, name, command, bound);
    let mut child = run.stdout(writer.try_clone()?).stderr(writer).kill_on_drop(true).process_group(0).spawn()?;
    // It has copies of the pipe's end.
    drop(run);
    let group = child.id();
    let tail = Arc::new(Mutex::new(Tail::default()));
    let mut reading = tokio::spawn(keep_tail(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?, Arc::clone(&tail)));
    let end = match timeout(bound, child.wait()).await {
        Ok(status) => End::Exited(code(status?)),
        Err(_) => {
            if let Some(group) = group {
                let _ = killpg(enclosure::pid_of(group), Signal::SIGKILL);
            }
            child.wait().await?;
            End::TimedOut(bound)
        }
    };
    if timeout(LAST_WORDS, &mut reading).await.is_err() {
        reading.abort();
    }
    let output = tail.lock().unwrap_or_else(PoisonError::into_inner).text();
    Ok(Executed { end, output })
}

async fn keep_tail(mut pipe: pipe::Receiver, tail: Arc<Mutex<Tail>>) {
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = pipe.read(&mut buffer).await {
        tail.lock().unwrap_or_else(PoisonError::into_inner).add(&buffer[..len]);
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}
