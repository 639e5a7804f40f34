//! Notices when a shim ends, and with it its shard: one task per shim waits on its pidfd. Tells, decides nothing.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{io::unix::AsyncFd, sync::broadcast, task::AbortHandle};

use super::record::Process;
use crate::runtime::{RuntimeEvent, ShardId, ShardKey};

/// Events that a slow reader may be behind; it is told to look anyway.
const EVENTS_MAX: usize = 256;

/// A running process by a descriptor: signals can't hit a later one of its pid.
pub(super) struct Handle(AsyncFd<OwnedFd>);

impl Handle {
    /// None when it has ended.
    pub(super) fn open(process: Process) -> io::Result<Option<Self>> {
        let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
        let Some(pid) = pid else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // After opening: what the descriptor means can't change any more.
        if !process.is_alive() {
            return Ok(None);
        }
        #[allow(
            deprecated,
            reason = "its hazard is a descriptor that closes too early, and this one is owned; `register` is unsafe"
        )]
        Ok(Some(Self(AsyncFd::new(pidfd)?)))
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended meanwhile, which is what signals are for.
        let _ = pidfd_send_signal(self.0.get_ref(), signal);
    }

    /// Until it has ended.
    pub(super) async fn ended(&self) {
        // An error means that the runtime shuts down, and with it whoever waits.
        let _ = self.0.readable().await;
    }

    /// Whether it ended within that time.
    pub(super) async fn ended_within(&self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.ended()).await.is_ok()
    }
}

/// All shims that are watched.
pub(super) struct Watch {
    events: broadcast::Sender<RuntimeEvent>,
    tasks: Mutex<BTreeMap<ShardId, AbortHandle>>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { events: broadcast::channel(EVENTS_MAX).0, tasks: Mutex::default() }
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    pub(super) fn tell(&self, key: &ShardKey, kind: &str) {
        // Nobody may be listening.
        let _ = self.events.send(RuntimeEvent::of(key, kind));
    }

    /// Tells when it ends; a shim that is watched already is not watched twice.
    pub(super) fn add(&self, id: &ShardId, key: &ShardKey, shim: Process) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|_, task| !task.is_finished());
        if tasks.contains_key(id) {
            return;
        }
        let events = self.events.clone();
        let event = RuntimeEvent::of(key, "exit");
        let task = tokio::spawn(async move {
            match Handle::open(shim) {
                Ok(Some(handle)) => handle.ended().await,
                Ok(None) => {}
                Err(error) => tracing::warn!(pid = shim.pid, %error, "a shim can't be watched"),
            }
            let _ = events.send(event);
        });
        tasks.insert(id.clone(), task.abort_handle());
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            task.abort();
        }
    }
}
