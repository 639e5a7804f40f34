//! The questions that the reconcile loop answers: the only way from the API to the agent's state, which one task owns.
//!
//! A reply channel that is dropped without an answer means that the agent is stopping.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use futures_util::stream::BoxStream;
use sherd_topology::model::Host;
use sherd_topology::plan::{GroupName, SlotId};
use thiserror::Error;
use tokio::sync::{broadcast, oneshot};

use crate::metrics::Snapshot;
use crate::spec::{GroupSpec, HostPort};
use crate::status::{AgentStatus, Event, Explanation, PlanReport, RolloutStatus};

/// Requests that may wait for the reconcile loop; one more makes the API answer 503.
pub const REQUEST_QUEUE_LEN: usize = 64;
/// Events that a slow subscriber may be behind before it loses some (it is told how many).
pub const EVENT_QUEUE_LEN: usize = 1024;

/// One question.
#[derive(Debug)]
pub enum Request {
    /// Everything there is to know.
    Status {
        /// The answer.
        reply: oneshot::Sender<AgentStatus>,
    },
    /// What the metrics are made of.
    Metrics {
        /// The answer.
        reply: oneshot::Sender<Snapshot>,
    },
    /// The machine, as planning sees it.
    Topology {
        /// The answer.
        reply: oneshot::Sender<Box<Host>>,
    },
    /// Make the host run this specification, in place of the group's former one.
    Apply {
        /// The checked specification.
        spec: Box<GroupSpec>,
        /// Its text, which is what is stored: comments are the operator's.
        text: String,
        /// Only say what would change.
        dry_run: bool,
        /// The answer: planned, published and stored; the shards start after it.
        reply: oneshot::Sender<Result<PlanReport, ApplyError>>,
    },
    /// Plan the host as if these specifications were applied too; changes nothing.
    Plan {
        /// They replace groups of the same name.
        specs: Vec<GroupSpec>,
        /// The answer. Groups that can't be placed are in its faults.
        reply: oneshot::Sender<PlanReport>,
    },
    /// The stored text of a group's specification.
    Specification {
        /// Which group.
        group: GroupName,
        /// The answer; absent when there is no such group.
        reply: oneshot::Sender<Option<String>>,
    },
    /// Drain a group and stop its shards.
    Stop {
        /// Which group.
        group: GroupName,
        /// Also remove its shards and its specification; otherwise it stays, stopped, until it is applied again.
        purge: bool,
        /// The answer, when nothing of it runs any more.
        reply: oneshot::Sender<Result<(), StopError>>,
    },
    /// Output of a group's shards.
    Logs {
        /// Which group.
        group: GroupName,
        /// Only this slot.
        slot: Option<SlotId>,
        /// Lines per shard to begin with; all there are when absent.
        tail: Option<usize>,
        /// Go on with new lines.
        follow: bool,
        /// The answer: one stream per shard, slots ascending.
        reply: oneshot::Sender<Result<Vec<ShardLogs>, LogsError>>,
    },
    /// Where a connection goes, and why.
    Explain {
        /// The connection.
        question: ExplainQuestion,
        /// The answer.
        reply: oneshot::Sender<Result<Explanation, ExplainError>>,
    },
    /// A group's last change: how far it is, and what is to become of it.
    Rollout {
        /// Which group.
        group: GroupName,
        /// What is asked.
        action: RolloutAction,
        /// How far it is then.
        reply: oneshot::Sender<Result<RolloutStatus, RolloutError>>,
    },
    /// Events from now on.
    Subscribe {
        /// The answer.
        reply: oneshot::Sender<broadcast::Receiver<Event>>,
    },
}

/// What is asked of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutAction {
    /// Only to be told.
    Status,
    /// What is under way comes to its end, and nothing more is replaced.
    Pause,
    /// It goes on.
    Resume,
    /// What ran before is brought back.
    Undo,
}

impl RolloutAction {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Undo => "undo",
        }
    }
}

/// A connection to be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainQuestion {
    /// To which group.
    pub group: GroupName,
    /// Where it comes from.
    pub client: SocketAddr,
    /// The published port, where the group has several.
    pub port: Option<HostPort>,
    /// The host's address that the client connects to; guessed when absent.
    pub to: Option<IpAddr>,
}

/// The output of one shard.
pub struct ShardLogs {
    /// The slot it is in.
    pub slot: SlotId,
    /// Its lines; an error ends it.
    pub lines: LogLines,
}

impl std::fmt::Debug for ShardLogs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardLogs").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Lines of a shard, without their line ends.
pub type LogLines = BoxStream<'static, Result<ShardLine, io::Error>>;

/// One line that a shard wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardLine {
    /// Where it wrote it.
    pub output: Output,
    /// The line; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a specification is not applied. What runs goes on as it is.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The planner finds no place.
    #[error("group {group} can't be placed: {}", faults.join("; "))]
    Unplaceable {
        /// The group.
        group: GroupName,
        /// What is short and what to do.
        faults: Vec<String>,
    },
    /// Another group publishes it.
    #[error("{address} is published by group {other}: choose another port, or stop it with `sherd stop -g {other}`")]
    PortOfGroup {
        /// What the specification wants.
        address: SocketAddr,
        /// The group that has it.
        other: GroupName,
    },
    /// Someone else on the host listens there.
    #[error("{address} is taken by {by}: stop it, or publish another port")]
    PortTaken {
        /// What the specification wants.
        address: SocketAddr,
        /// Who listens, as far as it is known: command, pid, uid.
        by: String,
    },
    /// The address can't be bound for another reason.
    #[error("{address} can't be published: check that the host has the address and that the agent may bind the port")]
    Publish {
        /// What the specification wants.
        address: SocketAddr,
        /// What the kernel said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime isn't there.
    #[error("the {runtime} runtime can't be used: {reason}")]
    Runtime {
        /// `docker` or `process`.
        runtime: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// The image isn't there or can't be had.
    #[error("image {image} can't be used: {reason}")]
    Image {
        /// As specified.
        image: String,
        /// Why, and what to do.
        reason: String,
    },
    /// More slots than one port can have.
    #[error(
        "group {group} would have {slots} slots: at most {max} are possible; ask for fewer shards or a larger unit"
    )]
    TooManySlots {
        /// The group.
        group: GroupName,
        /// What the plan gives.
        slots: usize,
        /// The bound.
        max: usize,
    },
    /// The specification asks for something that the plan doesn't agree with.
    #[error("group {group}: {reason}")]
    Refused {
        /// The group.
        group: GroupName,
        /// What, and what to do.
        reason: String,
    },
    /// It can't be stored.
    #[error("the specification can't be written to {}: make room, or check the state directory's owner", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

/// Why a group isn't stopped.
#[derive(Debug, Error)]
pub enum StopError {
    /// There is none of that name.
    #[error("no group {group}: `sherd ps` lists them")]
    UnknownGroup {
        /// The name.
        group: GroupName,
    },
    /// A shard didn't end, or its runtime didn't answer.
    #[error("group {group} is not stopped yet: {reason}; the agent goes on trying")]
    Shards {
        /// The group.
        group: GroupName,
        /// Which, and why.
        reason: String,
    },
    /// Somebody applied a specification of it meanwhile.
    #[error("group {group} is not stopped: a specification of it was applied meanwhile, and it runs")]
    Applied {
        /// The group.
        group: GroupName,
    },
    /// Its specification can't be removed or marked.
    #[error("{} can't be changed: check the state directory's owner", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
}

/// Why a rollout isn't told of, paused, resumed or undone.
#[derive(Debug, Error)]
pub enum RolloutError {
    /// There is none of that name.
    #[error("no group {group}: `sherd ps` lists them")]
    UnknownGroup {
        /// The name.
        group: GroupName,
    },
    /// Nothing of it was ever changed.
    #[error("group {group} was never changed since it was first applied: there is no rollout of it")]
    Unchanged {
        /// The group.
        group: GroupName,
    },
    /// There is nothing to pause, or nothing that is paused.
    #[error("group {group} has no rollout to {}: `sherd rollout status {group}` tells how far it is", action.name())]
    NotUnderWay {
        /// The group.
        group: GroupName,
        /// What was asked.
        action: RolloutAction,
    },
    /// Nothing ran before.
    #[error("nothing ran before what group {group} runs now: there is nothing to go back to")]
    NothingBefore {
        /// The group.
        group: GroupName,
    },
    /// What ran before can't be read any more.
    #[error("what ran before in group {group} can't be used: {reason}")]
    Unusable {
        /// The group.
        group: GroupName,
        /// Its faults.
        reason: String,
    },
    /// What ran before can't be applied.
    #[error("group {group} can't go back")]
    Apply {
        /// The group.
        group: GroupName,
        /// Why.
        source: ApplyError,
    },
}

/// Why a connection can't be explained.
#[derive(Debug, Error)]
pub enum ExplainError {
    /// There is none of that name.
    #[error("no group {group}: `sherd ps` lists them")]
    UnknownGroup {
        /// The name.
        group: GroupName,
    },
    /// Nothing of the group takes such a connection.
    #[error("group {group} publishes nothing that takes a connection from {client}: `sherd ps` lists its ports")]
    NotPublished {
        /// The group.
        group: GroupName,
        /// The client.
        client: SocketAddr,
    },
    /// It could be meant for several ports.
    #[error("group {group} publishes the ports {}: name one with --port", ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    WhichPort {
        /// The group.
        group: GroupName,
        /// Its ports.
        ports: Vec<HostPort>,
    },
}

/// Why there are no logs.
#[derive(Debug, Error)]
pub enum LogsError {
    /// There is none of that name.
    #[error("no group {group}: `sherd ps` lists them")]
    UnknownGroup {
        /// The name.
        group: GroupName,
    },
    /// The group has no such slot.
    #[error("group {group} has no slot {slot}: `sherd ps` lists its slots")]
    UnknownSlot {
        /// The group.
        group: GroupName,
        /// The slot.
        slot: SlotId,
    },
    /// The runtime can't give them.
    #[error("the logs of group {group}, slot {slot} can't be read: {reason}")]
    Runtime {
        /// The group.
        group: GroupName,
        /// The slot.
        slot: SlotId,
        /// Why, and what to do.
        reason: String,
    },
}
