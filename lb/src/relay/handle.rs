//! The worker as others see it: commands go in, counters and the worker's end come out. Blocks for nothing but the
//! worker's thread at its end.

use std::{
    collections::BTreeMap,
    fmt, io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use nix::{
    sys::{
        eventfd::{EfdFlags, EventFd},
        signal::{SigSet, Signal},
    },
    unistd::gettid,
};

use super::{
    Backend, BackendError, Drained, Pin, PortKey, Role, WorkerConfig, WorkerStats,
    command::{Command, Scope},
    connection::{Client, Tried},
    handed::Handed,
    worker::Core,
};
use crate::{cells::Account, pinning};

/// One relay worker and its thread. Dropping it ends the worker: its connections are reset, and its listeners' other
/// descriptors stay what they are.
#[derive(Debug)]
pub struct Worker {
    shared: WorkerRef,
    thread: Option<JoinHandle<()>>,
}

/// A worker to hand connections to. Keeps neither its thread nor its sockets alive.
#[derive(Clone)]
pub struct WorkerRef(Arc<Shared>);

pub(super) struct Shared {
    slot: u16,
    commands: Sender<Command>,
    bell: EventFd,
    thread_id: OnceLock<u32>,
    ended: OnceLock<String>,
    stats: WorkerStats,
}

impl Worker {
    /// Starts the thread, runs the configuration's `pin` on it, and waits until both have succeeded or failed.
    pub fn spawn(config: WorkerConfig) -> io::Result<Self> {
        Self::spawn_going_on(config, &BTreeMap::new())
    }

    /// The same; its counters go on from a former worker's [`WorkerStats::totals`].
    pub fn spawn_going_on(config: WorkerConfig, totals: &BTreeMap<String, u64>) -> io::Result<Self> {
        let WorkerConfig { slot, name, pin, limits } = config;
        let (commands, inbox) = mpsc::channel();
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let stats = WorkerStats::going_on(totals);
        let shared = WorkerRef(Arc::new(Shared {
            slot,
            commands,
            bell,
            thread_id: OnceLock::new(),
            ended: OnceLock::new(),
            stats,
        }));
        let (started, starts) = mpsc::channel();
        let worker = shared.clone();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| {
                worker.note_thread();
                // A splice to a socket that was reset raises it, and has no flag against that.
                SigSet::from(Signal::SIGPIPE).thread_block()?;
                pin()?;
                // Its shard and it wake each other with every message. Were each to preempt the other, every request
                // would cost two context switches; so the worker finds what came meanwhile all at once.
                pinning::yield_on_wakeup()?;
                let core = Core::new(worker.clone(), limits, inbox)?;
                let _ = started.send(Ok(()));
                core.run()
            }));
            worker.end(result, &started);
        })?;
        match starts.recv() {
            Ok(Ok(())) => Ok(Self { shared, thread: Some(thread) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the relay worker ended while starting")),
        }
    }

    /// Runs `pin` on the worker's thread: its slot has moved.
    pub fn pin(&self, pin: Pin) -> Receiver<io::Result<()>> {
        self.command(|done| Command::Pin { pin, done })
    }

    /// To give to this worker's siblings.
    pub fn handle(&self) -> WorkerRef {
        self.shared.clone()
    }

    /// The worker's counters.
    pub fn stats(&self) -> &WorkerStats {
        self.shared.stats()
    }

    /// The kernel's number of its thread, below `/proc/self/task`.
    pub fn thread_id(&self) -> Option<u32> {
        self.shared.0.thread_id.get().copied()
    }

    /// The thread runs. After it ended, [`last_error`](Self::last_error) says why.
    pub fn is_alive(&self) -> bool {
        self.shared.0.ended.get().is_none()
    }

    /// Why the worker ended: empty after [`shutdown`](Self::shutdown), else the panic or the error.
    pub fn last_error(&self) -> Option<&str> {
        self.shared.0.ended.get().map(String::as_str)
    }

    /// Accepts from `listener`, which is made non-blocking and given the options that its connections inherit.
    /// The receivers of this and the other commands report completion; their sender is dropped if the worker died.
    pub fn serve(&self, port: PortKey, listener: OwnedFd, role: Role) -> Receiver<io::Result<()>> {
        self.command(|done| Command::Serve { port, listener, role, account: None, done })
    }

    /// The same for the slot's listener of a published address, whose connections are counted where steering sees them.
    pub fn serve_slot(
        &self,
        port: PortKey,
        listener: OwnedFd,
        account: Option<Arc<Account>>,
    ) -> Receiver<io::Result<()>> {
        self.command(|done| Command::Serve { port, listener, role: Role::Slot, account, done })
    }

    /// Takes what is in the listener's queue and closes this worker's descriptor of it. The caller has taken the
    /// listener out of the steering table before.
    pub fn stop_serving(&self, port: PortKey, role: Role) -> Receiver<()> {
        self.command(|done| Command::StopServing { port, role, done })
    }

    /// Closes this worker's descriptor of an anchor, and leaves in its queue what waits there: for whoever serves it next, and
    /// safe from this process's end. Under load it never gets empty.
    pub fn leave_anchor(&self, port: PortKey) -> Receiver<()> {
        self.command(|done| Command::LeaveAnchor { port, done })
    }

    /// New connections go to `backend` from now on; those of the former one stay. `None`: the thread goes back to
    /// the namespace it was born in, and accepting pauses. Completes when the thread has moved.
    pub fn set_backend(&self, backend: Option<Backend>) -> Receiver<Result<(), BackendError>> {
        self.command(|done| Command::SetBackend { backend, done })
    }

    /// Whom connections go to that this worker can't connect; nearest first.
    pub fn set_siblings(&self, siblings: Vec<WorkerRef>) {
        self.shared.send(Command::SetSiblings(siblings));
    }

    /// Relays a client that was accepted elsewhere; no byte of it may have been read.
    pub fn adopt(&self, port: PortKey, client: OwnedFd) {
        let client = Client {
            socket: client,
            port,
            role: Role::Slot,
            since: Instant::now(),
            tried: Tried::default(),
            open: None,
        };
        self.shared.send(Command::Adopt { client, prepared: false });
    }

    /// Takes nothing new until the next [`set_backend`](Self::set_backend); at `deadline` what is still open is reset.
    /// Completes when no connection is left.
    pub fn drain(&self, deadline: Instant) -> Receiver<Drained> {
        self.command(|done| Command::Drain { scope: Scope::All, deadline, done })
    }

    /// As [`drain`](Self::drain), but only for connections to backends before the present one; goes on accepting.
    pub fn drain_former(&self, deadline: Instant) -> Receiver<Drained> {
        self.command(|done| Command::Drain { scope: Scope::Former, deadline, done })
    }

    /// Resets every connection to a backend before the present one: after `set_backend(None)` those are all. When it
    /// completes, no socket of this worker is in a former backend's namespace.
    pub fn close_backend_connections(&self) -> Receiver<Drained> {
        self.command(|done| Command::CloseFormer { done })
    }

    /// Accepts nothing more and hands nothing to siblings, until the next [`set_backend`](Self::set_backend). When this has
    /// completed for all siblings, none of them gets anything from another.
    pub fn stop_taking(&self) -> Receiver<()> {
        self.command(|done| Command::StopTaking { done })
    }

    /// Gives up every connection, and every client that waits for one, each as it stands. The caller has told the worker to
    /// [`stop_taking`](Self::stop_taking).
    pub fn release(&self) -> Receiver<Vec<Handed>> {
        self.command(|done| Command::Release { done })
    }

    /// Goes on with connections that another worker gave up, whatever its backend is: established ones need none, and count as
    /// connections of a former backend from the next [`set_backend`](Self::set_backend) on. Completes with how many there were.
    pub fn resume(&self, connections: Vec<Handed>) -> Receiver<u32> {
        self.command(|done| Command::Resume { connections, done })
    }

    /// Ends the worker and waits for its thread. What it still relays is reset.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.send(Command::Shutdown);
        if let Some(thread) = self.thread.take() {
            // The thread catches its own panics.
            let _ = thread.join();
        }
    }

    fn command<T>(&self, make: impl FnOnce(Sender<T>) -> Command) -> Receiver<T> {
        let (done, receiver) = mpsc::channel();
        self.shared.send(make(done));
        receiver
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

impl WorkerRef {
    /// The slot this worker serves.
    pub fn slot(&self) -> u16 {
        self.0.slot
    }

    /// The worker's counters.
    pub fn stats(&self) -> &WorkerStats {
        &self.0.stats
    }

    pub(super) fn bell(&self) -> &EventFd {
        &self.0.bell
    }

    /// Has the worker look around: something outside it has changed.
    pub(super) fn ring(&self) {
        // EAGAIN: the counter is at its end, so the bell rings already.
        let _ = self.0.bell.write(1);
    }

    /// Hands over a client that this crate accepted. Gives it back if the worker has ended.
    pub(super) fn hand_over(&self, client: Client) -> Result<(), Client> {
        match self.0.commands.send(Command::Adopt { client, prepared: true }) {
            Ok(()) => {
                self.ring();
                Ok(())
            }
            Err(mpsc::SendError(Command::Adopt { client, .. })) => Err(client),
            Err(_) => unreachable!("a channel gives back what was sent"),
        }
    }

    fn send(&self, command: Command) {
        // To a worker that has ended: the command is dropped, and its receiver says so.
        if self.0.commands.send(command).is_ok() {
            self.ring();
        }
    }

    fn note_thread(&self) {
        // Thread numbers are positive, and it is set once.
        let _ = u32::try_from(gettid().as_raw()).map(|id| self.0.thread_id.set(id));
    }

    /// Notes why the thread ends, so that nobody takes it for alive.
    fn end(&self, result: thread::Result<io::Result<()>>, started: &Sender<io::Result<()>>) {
        let reason = match result {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => {
                let reason = error.to_string();
                // Nobody listens any more once the start was reported.
                let _ = started.send(Err(error));
                reason
            }
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(ToString::to_string);
                text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panicked".into())
            }
        };
        self.0.stats.set_standing(super::Standing::Absent);
        let _ = self.0.ended.set(reason);
    }
}

impl fmt::Debug for WorkerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerRef").field("slot", &self.0.slot).field("ended", &self.0.ended.get()).finish()
    }
}
