//! What can go wrong with a runtime: one type, its context in fields, and in each message what to do about it.

use std::{fmt, io, path::PathBuf, time::Duration};

use super::ShardId;

/// What the agent was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the calls of `Runtime`")]
pub enum Operation {
    Version,
    List,
    InspectImage,
    Pull,
    Create,
    Start,
    Stop,
    Remove,
    Unpause,
    Rename,
    UpdateCpus,
    Exec,
    Health,
    Logs,
    Events,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "asking for its version",
            Self::List => "listing shards",
            Self::InspectImage => "looking up an image",
            Self::Pull => "pulling an image",
            Self::Create => "creating a shard",
            Self::Start => "starting a shard",
            Self::Stop => "stopping a shard",
            Self::Remove => "removing a shard",
            Self::Unpause => "letting a paused shard go on",
            Self::Rename => "giving a shard its name back",
            Self::UpdateCpus => "moving a shard to other CPUs",
            Self::Exec => "running a command beside a shard",
            Self::Health => "asking for a shard's health",
            Self::Logs => "reading a shard's logs",
            Self::Events => "watching for events",
        })
    }
}

/// Why a runtime did not do what it was asked. Nothing that ran before has changed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nobody answers there, or the connection broke.
    #[error(
        "{operation}: no engine answers at {engine}; start it (`systemctl start docker`), or set the agent's engine address"
    )]
    EngineGone {
        /// What was being done.
        operation: Operation,
        /// The engine's address.
        engine: String,
        /// What the connection said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is there and doesn't answer in time.
    #[error(
        "{operation}: the engine at {engine} did not answer within {after:?}; it is overloaded or stuck, see its log"
    )]
    TimedOut {
        /// What was being done.
        operation: Operation,
        /// The engine's address.
        engine: String,
        /// The time it had.
        after: Duration,
    },
    /// The answer is not one of a Docker Engine API.
    #[error(
        "{operation}: the answer from {engine} makes no sense ({answer}); is that a Docker Engine API 1.41 or later?"
    )]
    Nonsense {
        /// What was being done.
        operation: Operation,
        /// The engine's address.
        engine: String,
        /// What is wrong with it.
        answer: String,
    },
    /// The engine's API is older than what we need.
    #[error("the engine at {engine} has API {found}, and sherd needs {needed}; upgrade it (Docker 20.10, Podman 4)")]
    EngineTooOld {
        /// The engine's address.
        engine: String,
        /// The version it has.
        found: String,
        /// The oldest that will do.
        needed: &'static str,
    },
    /// The engine's address can't be used.
    #[error("`{engine}` is no address of an engine; use unix:///PATH or tcp://HOST:PORT")]
    BadEngineAddress {
        /// As configured.
        engine: String,
    },
    /// The socket or the engine says that we may not.
    #[error("{operation}: not permitted at {engine}; run the agent as root or put it into the engine's group")]
    Denied {
        /// What was being done.
        operation: Operation,
        /// The engine's address.
        engine: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no such image, here or in its registry.
    #[error("there is no image {image} ({reason}); check its name and tag, or `docker pull` it")]
    NoSuchImage {
        /// As specified.
        image: String,
        /// What the engine or the registry said.
        reason: String,
    },
    /// Nothing says what to run. Where no shim is in front the engine itself says so.
    #[error("no command specified: image {image} brings none; set `command` or `entrypoint` in [container]")]
    NoCommand {
        /// As specified.
        image: String,
    },
    /// The image's own check is to be followed, and there is none.
    #[error(
        "image {image} has no HEALTHCHECK for `check = \"image\"` to follow; give it one, set `extra.Healthcheck` in [container], or use another check"
    )]
    NoHealthcheck {
        /// As specified.
        image: String,
    },
    /// The registry wants other credentials.
    #[error(
        "registry {registry} does not let us have {image} ({reason}); `docker login {registry}` as the agent's user"
    )]
    RegistryDenied {
        /// As specified.
        image: String,
        /// The registry that it comes from.
        registry: String,
        /// What it said.
        reason: String,
    },
    /// The registry can't be reached, or the transfer failed.
    #[error(
        "image {image} can't be pulled ({reason}); check the network and the registry, or load it with `docker load`"
    )]
    PullFailed {
        /// As specified.
        image: String,
        /// What the engine said.
        reason: String,
    },
    /// Credentials that Docker's configuration points to can't be read.
    #[error("credentials for {registry} can't be read from {path} ({reason}); repair it or `docker login {registry}`")]
    BadCredentials {
        /// The registry they are for.
        registry: String,
        /// The configuration file or the helper program.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Not an image reference.
    #[error("`{image}` is no image reference: {reason}; write [REGISTRY/]NAME[:TAG][@DIGEST] in lower case")]
    BadReference {
        /// As specified.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key of the create body that sherd decides itself.
    #[error("`extra` sets {key}: {reason}; remove it")]
    DecidedBySherd {
        /// The key, dotted.
        key: String,
        /// Who decides it, or where it is to be set instead.
        reason: &'static str,
    },
    /// A key or type that Docker's create body does not have.
    #[error(
        "`extra` is not a create body of Docker: {reason}; see `docker inspect` for the keys, which begin with capitals"
    )]
    BadExtra {
        /// What is wrong, naming the key.
        reason: String,
    },
    /// The name that the shard would have is taken by something that is not this shard.
    #[error(
        "{name} exists already and is not the shard that is to be made ({difference}); remove or rename it: `docker rm {name}`"
    )]
    Conflict {
        /// The container's name, or the directory.
        name: String,
        /// How it differs.
        difference: String,
    },
    /// The shard is not there.
    #[error("{operation}: there is no shard {id}; somebody removed it")]
    NoSuchShard {
        /// What was being done.
        operation: Operation,
        /// Which one.
        id: ShardId,
    },
    /// The engine understood and refuses.
    #[error("{operation}: the engine at {engine} refuses ({status}): {message}")]
    Refused {
        /// What was being done.
        operation: Operation,
        /// The engine's address.
        engine: String,
        /// Its HTTP status.
        status: u16,
        /// What it said.
        message: String,
    },
    /// The specification is for the other runtime.
    #[error("group {group} is not for the {runtime} runtime")]
    WrongRuntime {
        /// The group.
        group: String,
        /// This runtime.
        runtime: &'static str,
    },
    /// The program can't be run.
    #[error("`{program}` can't be run: {reason}; give the path of an executable file")]
    NoSuchProgram {
        /// As specified.
        program: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The user doesn't exist.
    #[error("there is no user or group `{user}`; create it, or name another as USER[:GROUP]")]
    NoSuchUser {
        /// As specified.
        user: String,
    },
    /// The working directory can't be used.
    #[error("working directory {} can't be used; create it, or name another", path.display())]
    BadWorkingDirectory {
        /// As specified.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The shim didn't get the program to run.
    #[error("shard {id} did not start: {reason}")]
    NotStarted {
        /// Which one.
        id: ShardId,
        /// What shim or stage said.
        reason: String,
    },
    /// Processes of the shard that SIGKILL doesn't end.
    #[error(
        "shard {id} has processes that don't die: {pids:?}; they hang in the kernel (state D), see `ps -o pid,stat,wchan`"
    )]
    Unkillable {
        /// Which one.
        id: ShardId,
        /// Its processes.
        pids: Vec<u32>,
    },
    /// CPUs of a running process can't be changed.
    #[error("shard {id} can't be moved while it runs ({reason}); it gets its CPUs by a restart")]
    CannotMove {
        /// Which one.
        id: ShardId,
        /// Why.
        reason: String,
    },
    /// A file of the process runtime.
    #[error("{operation}: {} can't be used; check the run directory's owner, mode and free space", path.display())]
    File {
        /// What was being done.
        operation: Operation,
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RuntimeError {
    /// Whether the runtime as a whole is out of reach, so that other calls will fail too until it is back.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::EngineGone { .. }
                | Self::TimedOut { .. }
                | Self::Nonsense { .. }
                | Self::EngineTooOld { .. }
                | Self::BadEngineAddress { .. }
                | Self::Denied { .. }
        )
    }
}
