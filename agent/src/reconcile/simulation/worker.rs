//! Simulated workers: no thread and no connection, only what each was told, which is what decides where a connection would go.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::Instant,
};

use sherd_lb::{
    cells::Account,
    relay::{Backend, BackendError, Drained, Handed, Pin, PortKey, Role, WorkerConfig, WorkerStats},
};

use super::state::with;

/// All of this agent, by number; a slot's present one has the highest.
#[derive(Debug, Default)]
pub(super) struct Workers {
    last: u64,
    all: BTreeMap<u64, Told>,
}

/// What one was told.
#[derive(Debug)]
pub(super) struct Told {
    /// `slot/group`.
    name: String,
    /// Where it connects.
    pub(super) backend: Option<SocketAddr>,
    /// It accepts from so many listeners of its slot.
    pub(super) listeners: usize,
    pub(super) is_alive: bool,
    /// It could not enter its backend's namespace, which the loop is about to hear: it has none, and accepts nothing.
    pub(super) is_stranded: bool,
}

impl Workers {
    pub(super) fn of(&self, group: &str, slot: u16) -> Option<&Told> {
        let name = format!("{slot}/{group}");
        self.all.values().rev().find(|told| told.name == name)
    }

    pub(super) fn kill(&mut self, nth: u64) {
        let len = self.all.len().max(1);
        if let Some(told) = self.all.values_mut().nth(nth as usize % len) {
            (told.is_alive, told.backend) = (false, None);
        }
    }
}

/// See [`sherd_lb::relay::Worker`].
#[derive(Debug)]
pub(crate) struct Worker {
    number: u64,
    stats: WorkerStats,
}

/// See [`sherd_lb::relay::WorkerRef`].
#[derive(Debug, Clone, Copy)]
pub(in crate::reconcile) struct WorkerRef;

impl Drop for Worker {
    fn drop(&mut self) {
        if super::is_on() {
            with(|world| drop(world.kernel.workers.all.remove(&self.number)));
        }
    }
}

fn answer<T>(value: T) -> Receiver<T> {
    let (answer, answered) = channel();
    // It is kept until it is looked for.
    let _ = answer.send(value);
    answered
}

impl Worker {
    pub(in crate::reconcile) fn spawn_going_on(config: WorkerConfig, _: &BTreeMap<String, u64>) -> io::Result<Self> {
        with(|world| {
            if world.faults.strike(&mut world.chance, 10) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let workers = &mut world.kernel.workers;
            workers.last += 1;
            let told = Told { name: config.name, backend: None, listeners: 0, is_alive: true, is_stranded: false };
            workers.all.insert(workers.last, told);
            Ok(Self { number: workers.last, stats: WorkerStats::default() })
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Told) -> T) -> Option<T> {
        with(|world| world.kernel.workers.all.get_mut(&self.number).filter(|told| told.is_alive).map(change))
    }

    /// What it answers; nothing when its thread has ended.
    fn answers<T>(&self, value: T) -> Receiver<T> {
        if self.is_alive() { answer(value) } else { channel().1 }
    }

    pub(in crate::reconcile) fn pin(&self, _: Pin) -> Receiver<io::Result<()>> {
        self.answers(Ok(()))
    }

    pub(in crate::reconcile) fn handle(&self) -> WorkerRef {
        WorkerRef
    }

    pub(in crate::reconcile) fn stats(&self) -> &WorkerStats {
        &self.stats
    }

    pub(in crate::reconcile) fn thread_id(&self) -> Option<u32> {
        None
    }

    pub(in crate::reconcile) fn is_alive(&self) -> bool {
        self.change(|_| ()).is_some()
    }

    pub(in crate::reconcile) fn last_error(&self) -> Option<&str> {
        None
    }

    pub(in crate::reconcile) fn serve(&self, _: PortKey, _: OwnedFd, _: Role) -> Receiver<io::Result<()>> {
        self.answers(Ok(()))
    }

    pub(in crate::reconcile) fn serve_slot(
        &self,
        _: PortKey,
        _: OwnedFd,
        _: Option<Arc<Account>>,
    ) -> Receiver<io::Result<()>> {
        if with(|world| world.faults.strike(&mut world.chance, 5)) {
            return self.answers(Err(io::ErrorKind::OutOfMemory.into()));
        }
        self.change(|told| told.listeners += 1);
        self.answers(Ok(()))
    }

    pub(in crate::reconcile) fn stop_serving(&self, _: PortKey, role: Role) -> Receiver<()> {
        if role == Role::Slot {
            self.change(|told| told.listeners = told.listeners.saturating_sub(1));
        }
        self.answers(())
    }

    pub(in crate::reconcile) fn leave_anchor(&self, _: PortKey) -> Receiver<()> {
        self.answers(())
    }

    pub(in crate::reconcile) fn set_backend(&self, backend: Option<Backend>) -> Receiver<Result<(), BackendError>> {
        if backend.is_some() && with(|world| world.faults.strike(&mut world.chance, 10)) {
            self.change(|told| (told.backend, told.is_stranded) = (None, true));
            let source = io::ErrorKind::PermissionDenied.into();
            return self.answers(Err(BackendError::Leave { slot: 0, source }));
        }
        let target = backend.and_then(|backend| Some(backend.ports.first()?.1.address));
        self.change(|told| (told.backend, told.is_stranded) = (target, false));
        self.answers(Ok(()))
    }

    pub(in crate::reconcile) fn set_siblings(&self, _: Vec<WorkerRef>) {}

    pub(in crate::reconcile) fn drain(&self, _: Instant) -> Receiver<Drained> {
        self.answers(Drained { connections: 0, reset: 0 })
    }

    pub(in crate::reconcile) fn drain_former(&self, deadline: Instant) -> Receiver<Drained> {
        self.drain(deadline)
    }

    pub(in crate::reconcile) fn stop_taking(&self) -> Receiver<()> {
        self.answers(())
    }

    pub(in crate::reconcile) fn release(&self) -> Receiver<Vec<Handed>> {
        self.answers(Vec::new())
    }

    pub(in crate::reconcile) fn resume(&self, connections: Vec<Handed>) -> Receiver<u32> {
        let count = connections.into_iter().fold(0, |count, _| count + 1);
        self.answers(count)
    }
}
