//! Shards as plain processes, without an engine: each under a shim that outlives the agent, with a directory in which
//! everything about it is recorded. Owns `RUN_DIR/shards`; touches no process that its records don't name.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future, future::BoxFuture, stream, stream::BoxStream};
use nix::sys::signal::kill;
use rustix::process::Signal;
use sherd_topology::plan::Slot;
use tokio::{process::Child, sync::broadcast::error::RecvError};

use self::{
    output::Reader,
    record::{Exit, Order, Running, Shim},
    watch::{Handle, Watch},
};
use super::{
    EngineHealth, Executed, Listing, LogLine, Operation, ProgressSink, Runtime, RuntimeError, RuntimeEvent, ShardId,
    ShardOrder, ShardState, procfs,
};
use crate::{fault, spec::GroupSpec};

mod beside;
mod enclosure;
mod launch;
mod leftovers;
mod listing;
mod output;
mod program;
mod record;
mod repin;
mod shim;
mod stage;
mod watch;

pub use self::{
    launch::Launch,
    shim::{ShimArgs, main as shim_main},
    stage::{ExecPinnedArgs, main as exec_pinned_main},
};

/// Fault points of this runtime alone, in the order of a start and a stop.
pub const FAULT_POINTS: [&str; 4] = ["create.order-written", "start.shim-launched", "stop.signalled", "remove.renamed"];

/// How long a shim may take to get its program to run. It takes milliseconds, and on an overloaded host as long as systemd does to
/// launch its unit: more than 20 s were seen, and a rollout failed by it.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long a shim may take to end once it was told to kill; longer than it gives SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(15);
const START_POLL: Duration = Duration::from_millis(3);
/// Between two looks for new lines, while somebody follows them.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

/// Where the runtime works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessConfig {
    /// Separates several agents on one host.
    pub instance: String,
    /// The agent's run directory; shards are in `shards` below it.
    pub run_dir: PathBuf,
    /// The `sherd` program, which has the subcommands `shim` and `exec-pinned`.
    pub program: PathBuf,
    /// How shims are launched.
    pub launch: Launch,
}

/// The runtime of plain processes.
pub struct ProcessRuntime {
    config: ProcessConfig,
    shards: PathBuf,
    watch: Arc<Watch>,
}

impl ProcessRuntime {
    /// Makes nothing yet.
    pub fn new(config: ProcessConfig) -> Self {
        let shards = config.run_dir.join("shards");
        Self { config, shards, watch: Arc::new(Watch::new()) }
    }

    async fn version(&self) -> Result<String, RuntimeError> {
        private_directory(&self.shards).map_err(file(Operation::Version, &self.shards))?;
        let how = match self.config.launch {
            Launch::Unit => "shards in units of systemd",
            Launch::Detached => "shards in sessions of their own",
        };
        Ok(format!("embedded {}, {how}", env!("CARGO_PKG_VERSION")))
    }

    async fn list(&self) -> Result<Listing, RuntimeError> {
        let (shards, instance) = (self.shards.clone(), self.config.instance.clone());
        let read = tokio::task::spawn_blocking(move || listing::read(&shards, &instance)).await;
        read.map_err(io::Error::other).and_then(|read| read).map_err(file(Operation::List, &self.shards))
    }

    async fn create(&self, order: &ShardOrder) -> Result<ShardId, RuntimeError> {
        let name = listing::name(&order.key, order.generation);
        let order = program::order(order, &self.config.instance, &self.mark(&name))?;
        let directory = self.shards.join(&name);
        fault::point("create.before");
        // Under a name that listings skip, so that a directory that is seen has its order.
        let making = self.hidden("new", &name);
        let made = private_directory(&making).and_then(|()| record::write(&making, &order));
        fault::point("create.order-written");
        let made = made.and_then(|()| fs::rename(&making, &directory));
        fault::point("create.after");
        let Err(error) = made else { return Ok(ShardId(name)) };
        let _ = fs::remove_dir_all(&making);
        match record::read::<Order>(&directory) {
            Ok(Some(found)) if (&found.instance, &found.spec) == (&order.instance, &order.spec) => Ok(ShardId(name)),
            Ok(Some(found)) => {
                let difference = format!("it is of instance {}, specification {}", found.instance, found.spec);
                Err(RuntimeError::Conflict { name: directory.display().to_string(), difference })
            }
            Ok(None) | Err(_) => Err(file(Operation::Create, &directory)(error)),
        }
    }

    async fn start(&self, id: &ShardId) -> Result<(), RuntimeError> {
        let directory = self.directory(id);
        let read = file(Operation::Start, &directory);
        let order = self.order(id, Operation::Start)?;
        fault::point("start.before");
        let child = match record::read::<Shim>(&directory).map_err(read)? {
            Some(_) => None,
            None => {
                let unit = format!("sherd-shard-{}-{}.service", self.config.instance, id.0);
                let launched = launch::shim(self.config.launch, &self.config.program, &directory, &unit);
                Some(launched.map_err(|error| self.not_started(id, &error.to_string()))?)
            }
        };
        fault::point("start.shim-launched");
        let started = self.started(id, &directory, child).await;
        fault::point("start.after");
        if let Ok(Some(shim)) = record::read::<Shim>(&directory) {
            self.watch.add(id, &order.key, shim.process);
        }
        self.watch.tell(&order.key, "start");
        started
    }

    /// Waits until the shim reports that the program runs, or that it doesn't.
    async fn started(&self, id: &ShardId, directory: &Path, mut child: Option<Child>) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + START_PATIENCE;
        let outcome = loop {
            let status = child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(outcome) = self.outcome(id, directory)? {
                break outcome;
            }
            // Success is a unit that systemd-run has launched, or a shim that found another one at work.
            let gave_up = status.is_some_and(|status| !status.success());
            if gave_up || Instant::now() > deadline {
                let log = fs::read_to_string(directory.join(record::SHIM_LOG)).unwrap_or_default();
                let last = log.lines().next_back().unwrap_or("its shim said nothing");
                break Err(self.not_started(id, last));
            }
            tokio::time::sleep(START_POLL).await;
        };
        if let Some(mut child) = child {
            // Or it stays a zombie when it ends.
            tokio::spawn(async move { child.wait().await });
        }
        outcome
    }

    /// What the shim has reported so far.
    fn outcome(&self, id: &ShardId, directory: &Path) -> Result<Option<Result<(), RuntimeError>>, RuntimeError> {
        let read = || file(Operation::Start, directory);
        let shim = record::read::<Shim>(directory).map_err(read())?;
        let shim_lives = shim.as_ref().is_some_and(|shim| shim.process.is_alive());
        if let Some(exit) = record::read::<Exit>(directory).map_err(read())? {
            return Ok(Some(exit.not_started.map_or(Ok(()), |reason| Err(self.not_started(id, &reason)))));
        }
        if record::read::<Running>(directory).map_err(read())?.is_some() && shim_lives {
            return Ok(Some(Ok(())));
        }
        let killed = shim.is_some() && !shim_lives;
        Ok(killed.then(|| Err(self.not_started(id, "its shim was killed"))))
    }

    async fn stop(&self, id: &ShardId, grace: Duration) -> Result<(), RuntimeError> {
        let directory = self.directory(id);
        fault::point("stop.before");
        if let Some(shim) = self.shim(&directory, Operation::Stop)? {
            shim.signal(Signal::TERM);
            fault::point("stop.signalled");
            if !shim.ended_within(grace).await {
                self.kill(id, &shim, &directory).await?;
            }
        }
        let done = self.clear_leftovers(id).await;
        fault::point("stop.after");
        done
    }

    async fn remove(&self, id: &ShardId) -> Result<(), RuntimeError> {
        let directory = self.directory(id);
        fault::point("remove.before");
        if let Some(shim) = self.shim(&directory, Operation::Remove)? {
            self.kill(id, &shim, &directory).await?;
        }
        self.clear_leftovers(id).await?;
        // Out of the listings at once: a half-removed directory would look like a lost shard.
        let going = self.hidden("gone", &id.0);
        let removed = match fs::rename(&directory, &going) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                fault::point("remove.renamed");
                fs::remove_dir_all(&going)
            }
        };
        fault::point("remove.after");
        removed.map_err(file(Operation::Remove, &directory))
    }

    async fn kill(&self, id: &ShardId, shim: &Handle, directory: &Path) -> Result<(), RuntimeError> {
        shim.signal(Signal::USR1);
        if shim.ended_within(KILL_PATIENCE).await {
            return Ok(());
        }
        let running = record::read::<Running>(directory).ok().flatten();
        Err(RuntimeError::Unkillable { id: id.clone(), pids: running.map(|it| it.process.pid).into_iter().collect() })
    }

    /// What a killed shim has left; one that ended by itself has left nothing, or an empty cgroup.
    async fn clear_leftovers(&self, id: &ShardId) -> Result<(), RuntimeError> {
        let (directory, mark) = (self.directory(id), self.mark(&id.0));
        let cleared = tokio::task::spawn_blocking(move || leftovers::clear(&directory, &mark)).await;
        cleared.unwrap_or(Ok(())).map_err(|pids| RuntimeError::Unkillable { id: id.clone(), pids })
    }

    /// Whoever stopped it may have stopped what it started too.
    async fn unpause(&self, id: &ShardId) -> Result<(), RuntimeError> {
        let directory = self.directory(id);
        let running = record::read::<Running>(&directory).map_err(file(Operation::Unpause, &directory))?;
        let Some(Running { process, .. }) = running else { return Ok(()) };
        let Some(first) = Handle::open(process).map_err(file(Operation::Unpause, &directory))? else { return Ok(()) };
        for pid in procfs::descendants(process.pid).into_iter().filter(|pid| procfs::is_stopped(*pid)) {
            // It may have ended meanwhile.
            let _ = kill(enclosure::pid_of(pid), nix::sys::signal::Signal::SIGCONT);
        }
        first.signal(Signal::CONT);
        Ok(())
    }

    async fn update_cpus(&self, id: &ShardId, slot: &Slot) -> Result<(), RuntimeError> {
        let directory = self.directory(id);
        let mut order = self.order(id, Operation::UpdateCpus)?;
        repin::move_to(&directory, &order, slot)
            .map_err(|reason| RuntimeError::CannotMove { id: id.clone(), reason })?;
        order.slot = slot.clone();
        record::write(&directory, &order).map_err(file(Operation::UpdateCpus, &directory))
    }

    async fn exec(&self, id: &ShardId, command: &[String], timeout: Duration) -> Result<Executed, RuntimeError> {
        let directory = self.directory(id);
        self.order(id, Operation::Exec)?;
        let unit = format!("sherd-check-{}-{}.service", self.config.instance, id.0);
        let ran = beside::run(self.config.launch, &self.config.program, &directory, &unit, command, timeout).await;
        ran.map_err(file(Operation::Exec, &directory))
    }

    /// The running shim of a shard.
    fn shim(&self, directory: &Path, operation: Operation) -> Result<Option<Handle>, RuntimeError> {
        let shim = record::read::<Shim>(directory).map_err(file(operation, directory))?;
        match shim.map(|shim| Handle::open(shim.process)) {
            Some(handle) => handle.map_err(file(operation, directory)),
            None => Ok(None),
        }
    }

    fn order(&self, id: &ShardId, operation: Operation) -> Result<Order, RuntimeError> {
        let directory = self.directory(id);
        let order = record::read(&directory).map_err(file(operation, &directory))?;
        order.ok_or_else(|| RuntimeError::NoSuchShard { operation, id: id.clone() })
    }

    fn directory(&self, id: &ShardId) -> PathBuf {
        self.shards.join(&id.0)
    }

    fn hidden(&self, what: &str, name: &str) -> PathBuf {
        self.shards.join(format!("{}{}-{what}-{name}", listing::HIDDEN, std::process::id()))
    }

    fn mark(&self, name: &str) -> String {
        format!("{}/{name}", self.config.instance)
    }

    fn not_started(&self, id: &ShardId, reason: &str) -> RuntimeError {
        RuntimeError::NotStarted { id: id.clone(), reason: reason.to_owned() }
    }

    /// Watches every shim that runs, also those of an agent before this one.
    fn watch_all(&self) {
        let Ok(listing) = listing::read(&self.shards, &self.config.instance) else { return };
        for shard in listing.shards {
            let shim = record::read::<Shim>(&self.directory(&shard.id)).ok().flatten();
            if let Some(shim) = shim.filter(|shim| shim.process.is_alive()) {
                self.watch.add(&shard.id, &shard.key, shim.process);
            }
        }
    }
}

fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn file(operation: Operation, path: &Path) -> impl FnOnce(io::Error) -> RuntimeError + use<> {
    let path = path.to_owned();
    move |source| RuntimeError::File { operation, path, source }
}

/// Lines until there are no more; with `follow` until the shard has ended too.
struct Lines {
    directory: PathBuf,
    reader: Reader,
    follow: bool,
}

impl Lines {
    async fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            // Before reading: what it wrote by its end is then read.
            let ended = !self.follow || !is_alive(listing::state(&self.directory)?);
            match self.reader.next()? {
                Some(line) => return Ok(Some(line)),
                None if ended => return Ok(None),
                None => tokio::time::sleep(FOLLOW_POLL).await,
            }
        }
    }
}

fn is_alive(state: ShardState) -> bool {
    matches!(state, ShardState::Created | ShardState::Running { .. } | ShardState::Paused { .. })
}

impl Runtime for ProcessRuntime {
    fn kind(&self) -> &'static str {
        "process"
    }

    fn version(&self) -> BoxFuture<'_, Result<String, RuntimeError>> {
        self.version().boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Listing, RuntimeError>> {
        self.list().boxed()
    }

    fn prepare<'a>(
        &'a self,
        spec: &'a GroupSpec,
        _progress: ProgressSink<'a>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        future::ready(program::check(spec)).boxed()
    }

    fn create<'a>(&'a self, order: &'a ShardOrder) -> BoxFuture<'a, Result<ShardId, RuntimeError>> {
        self.create(order).boxed()
    }

    fn start<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.start(id).boxed()
    }

    fn stop<'a>(&'a self, id: &'a ShardId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.stop(id, grace).boxed()
    }

    fn remove<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.remove(id).boxed()
    }

    fn unpause<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.unpause(id).boxed()
    }

    /// A shard is the directory of its name: whoever renames that has made another one.
    fn rename<'a>(&'a self, _id: &'a ShardId, _name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        future::ready(Ok(())).boxed()
    }

    fn update_cpus<'a>(&'a self, id: &'a ShardId, slot: &'a Slot) -> BoxFuture<'a, Result<(), RuntimeError>> {
        self.update_cpus(id, slot).boxed()
    }

    fn exec<'a>(
        &'a self,
        id: &'a ShardId,
        _pid: u32,
        command: &'a [String],
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Executed, RuntimeError>> {
        self.exec(id, command, timeout).boxed()
    }

    fn health<'a>(&'a self, _id: &'a ShardId) -> BoxFuture<'a, Result<EngineHealth, RuntimeError>> {
        future::ready(Ok(EngineHealth::None)).boxed()
    }

    fn logs(
        &self,
        id: &ShardId,
        tail: Option<usize>,
        follow: bool,
    ) -> BoxStream<'static, Result<LogLine, RuntimeError>> {
        let directory = self.directory(id);
        if let Err(error) = self.order(id, Operation::Logs) {
            return stream::once(future::ready(Err(error))).boxed();
        }
        let failed = file(Operation::Logs, &directory);
        match Reader::open(&directory, tail) {
            Ok(reader) => stream::unfold(Some(Lines { directory, reader, follow }), async |lines| {
                let mut lines = lines?;
                match lines.next().await {
                    Ok(line) => Some((Ok(line?), Some(lines))),
                    Err(error) => Some((Err(file(Operation::Logs, &lines.directory)(error)), None)),
                }
            })
            .boxed(),
            Err(error) => stream::once(future::ready(Err(failed(error)))).boxed(),
        }
    }

    fn events(&self) -> BoxStream<'static, Result<RuntimeEvent, RuntimeError>> {
        let events = self.watch.subscribe();
        self.watch_all();
        stream::unfold(events, async |mut events| {
            let event = match events.recv().await {
                Ok(event) => event,
                Err(RecvError::Lagged(_)) => {
                    RuntimeEvent { key: None, id: None, kind: "many".to_owned(), signal: None }
                }
                Err(RecvError::Closed) => return None,
            };
            Some((Ok(event), events))
        })
        .boxed()
    }
}
