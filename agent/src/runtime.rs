//! Running shards: what the agent asks of an engine or of the embedded process runtime, and what they answer. Knows
//! nothing of ports, connections or plans; never touches a container or a process that is not labelled as its own.

use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc, time::Duration, time::SystemTime};

use futures_util::{future::BoxFuture, stream::BoxStream};
use serde::{Deserialize, Serialize};
use sherd_topology::{
    model::{CpuSet, NodeSet},
    plan::{GroupName, Slot, SlotId},
};

use crate::spec::{ContainerPort, GroupSpec, SpecHash};

pub(crate) mod cgroup;
pub mod docker;
pub mod environment;
mod error;
mod executed;
pub mod process;
pub(crate) mod procfs;
pub mod verify;

pub use error::{Operation, RuntimeError};
pub use executed::{End, EngineHealth, Executed};

/// Fault points (see [`crate::fault::point`]) that both runtimes pass, in the order of a start and a stop.
/// The process runtime also passes [`process::FAULT_POINTS`].
pub const FAULT_POINTS: [&str; 8] = [
    "create.before",
    "create.after",
    "start.before",
    "start.after",
    "stop.before",
    "stop.after",
    "remove.before",
    "remove.after",
];

/// Whose shard it is: at most one is wanted for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardKey {
    /// Its group.
    pub group: GroupName,
    /// Its slot.
    pub slot: SlotId,
}

impl fmt::Display for ShardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group, self.slot)
    }
}

/// The runtime's name of one shard: a container's id, or a process shard's directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(pub String);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An engine's own name of an image's content, which no tag moves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ImageId(String);

impl ImageId {
    /// `id` as an engine tells it: some say the hash's name before it, some don't.
    pub fn new(id: &str) -> Self {
        Self(id.strip_prefix("sha256:").unwrap_or(id).to_owned())
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything a runtime needs to make one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardOrder {
    /// Whose shard it is.
    pub key: ShardKey,
    /// The group's specification.
    pub spec: Arc<GroupSpec>,
    /// The CPUs and memory it gets.
    pub slot: Slot,
    /// Shards in the group; what `SHERD_SHARDS` says.
    pub shards: u32,
    /// Tells the shards of one slot apart, also across restarts of the agent; never used twice for one key.
    pub generation: u64,
    /// For processes: the port to listen on for each container port, first the one that `PORT` says.
    pub process_ports: Vec<(ContainerPort, u16)>,
    /// For containers: what to put in front of the program; absent: nothing.
    pub shim: Option<ShimOrder>,
}

/// Where the host has what a container with the shim in front needs. Both directories are there before the shard is
/// made, every user can get into them, and they stay for as long as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShimOrder {
    /// The directory with the shim in it, see [`crate::shim::install`].
    pub programs: PathBuf,
    /// A directory for this shard alone, in which the agent's socket `broker` is. The container has the directory and
    /// not the socket: an agent that starts again makes another socket.
    pub door: PathBuf,
    /// Images that go without it.
    pub except: BTreeSet<ImageId>,
}

/// A shard as its runtime describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedShard {
    /// The runtime's name for it.
    pub id: ShardId,
    /// Whose shard it is.
    pub key: ShardKey,
    /// Hash of the specification that it was made from.
    pub spec: SpecHash,
    /// The CPUs it was given; what holds is what [`verify::pinning`] says.
    pub cpus: CpuSet,
    /// The memory nodes it was given; empty when memory is not bound.
    pub mems: NodeSet,
    /// What it does.
    pub state: ShardState,
    /// See [`ShardOrder::generation`].
    pub generation: u64,
    /// See [`ShardOrder::process_ports`]; empty for containers.
    pub process_ports: Vec<(ContainerPort, u16)>,
    /// What a container was made from; absent for processes.
    pub image: Option<ImageId>,
    /// The shim is in front of its program.
    pub behind_shim: bool,
}

/// What a shard does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardState {
    /// Made, not started.
    Created,
    /// Runs.
    Running {
        /// Its first process, in the agent's PID namespace.
        pid: u32,
        /// Since when.
        started: SystemTime,
    },
    /// Frozen by somebody.
    Paused {
        /// Its first process.
        pid: u32,
    },
    /// Ended by itself or stopped; nothing of it runs.
    Exited {
        /// Exit code, 128 + signal when a signal ended it; absent when nobody saw it.
        code: Option<i32>,
        /// The kernel killed something of it for want of memory.
        oom: bool,
    },
    /// Being removed by the runtime.
    Removing,
    /// In no state to go on: remove it. Processes of it may still run until then.
    Dead,
}

/// What a runtime has that carries our instance's label.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Ours, by key and generation.
    pub shards: Vec<ObservedShard>,
    /// Labelled as ours, but not as we label: never touched, only reported.
    pub foreign: Vec<Foreign>,
    /// Ours, and called otherwise than we called them. They are among the shards.
    pub renamed: Vec<Renamed>,
}

/// Something that claims to be ours and can't be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The runtime's name for it.
    pub id: ShardId,
    /// The name that an operator knows it by.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A shard that somebody gave another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// The runtime's name for it, which nobody can change.
    pub id: ShardId,
    /// Whose shard it is.
    pub key: ShardKey,
    /// What it is called.
    pub name: String,
    /// What it was called when it was made; [`Runtime::rename`] gives it that name back.
    pub own_name: String,
}

/// Progress of [`Runtime::prepare`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What it is about, for example a layer of an image.
    pub subject: String,
    /// What happens to it, in the engine's words.
    pub action: String,
    /// Bytes done and of how many, where known.
    pub bytes: Option<(u64, u64)>,
}

/// Gets progress as it happens; called often, so it must be quick.
pub type ProgressSink<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// One line that a shard wrote, without its line end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Where it wrote it.
    pub output: LogOutput,
    /// The line; bytes that are not UTF-8 are replaced, and overlong lines come in pieces.
    pub text: String,
}

/// Where a line was written; a terminal has only standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogOutput {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Something changed: look again with [`Runtime::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeEvent {
    /// Whose shard, where it is known.
    pub key: Option<ShardKey>,
    /// Which one, where it is known.
    pub id: Option<ShardId>,
    /// What happened, in the runtime's words, for example `start`, `die`, `oom`, `exit`.
    pub kind: String,
    /// The signal that somebody had the runtime send, for `kill`.
    pub signal: Option<i32>,
}

impl RuntimeEvent {
    /// What happened to some shard of this key.
    pub fn of(key: &ShardKey, kind: &str) -> Self {
        Self { key: Some(key.clone()), id: None, kind: kind.to_owned(), signal: None }
    }
}

/// Runs shards. Every call has a time-out of its own, may be repeated, and may be cut short by the agent's death at
/// any point: what it has made by then is found again by [`Runtime::list`].
pub trait Runtime: Send + Sync {
    /// `docker` or `process`.
    fn kind(&self) -> &'static str;

    /// Whether it is there, and what it is, for example `Docker Engine 20.10.24, API 1.41`.
    fn version(&self) -> BoxFuture<'_, Result<String, RuntimeError>>;

    /// Everything that carries our instance's label.
    fn list(&self) -> BoxFuture<'_, Result<Listing, RuntimeError>>;

    /// Gets ready what all shards of a group need: pulls the image as the pull policy says; looks up program and user.
    fn prepare<'a>(
        &'a self,
        spec: &'a GroupSpec,
        progress: ProgressSink<'a>,
    ) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Makes a shard; it doesn't run yet. One that is already there with the same labels is adopted.
    fn create<'a>(&'a self, order: &'a ShardOrder) -> BoxFuture<'a, Result<ShardId, RuntimeError>>;

    /// Starts it; no error when it runs already. A program that ends at once is no error of `start`: see the state.
    fn start<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Asks it to end, kills all of it after `grace`; back when nothing of it runs. No error when it is gone.
    fn stop<'a>(&'a self, id: &'a ShardId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Removes all traces of it, killing what may still run. No error when it is gone.
    fn remove<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Lets a paused shard go on; no error when it runs, or is gone.
    fn unpause<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Gives a shard this name; no error when it is gone.
    fn rename<'a>(&'a self, id: &'a ShardId, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Moves a running shard to the slot's present CPUs and memory nodes.
    fn update_cpus<'a>(&'a self, id: &'a ShardId, slot: &'a Slot) -> BoxFuture<'a, Result<(), RuntimeError>>;

    /// Runs a command where a running shard runs, as its user and with its environment. `pid` is the shard's. What it
    /// started is killed after `timeout`; starting it is bounded as other calls are.
    fn exec<'a>(
        &'a self,
        id: &'a ShardId,
        pid: u32,
        command: &'a [String],
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Executed, RuntimeError>>;

    /// What the runtime itself says of the shard's health.
    fn health<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<EngineHealth, RuntimeError>>;

    /// What it wrote: the last `tail` lines or all that is kept, and with `follow` what it writes from now on, until
    /// it ends. An error ends the stream.
    fn logs(
        &self,
        id: &ShardId,
        tail: Option<usize>,
        follow: bool,
    ) -> BoxStream<'static, Result<LogLine, RuntimeError>>;

    /// What happens to our shards from this call on (not from the first poll): list after calling it, and nothing is
    /// missed. Ends with an error when the runtime goes away; call again, with a back-off.
    fn events(&self) -> BoxStream<'static, Result<RuntimeEvent, RuntimeError>>;
}
