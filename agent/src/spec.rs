//! What an operator asks of one group, as checked values; owns the specification's file format and may not touch the host.
//!
//! A specification is TOML, one file per group. [`GroupSpec::parse`] is the only way in: behind it every value is in its
//! bounds, and in front of it every fault of the file is reported at once with its line, its key and what would be right.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sherd_topology::plan::{GroupName, LayoutRequest};

pub use self::fault::{SpecFault, SpecFaults};
pub use self::health::{BodyMatch, Check, HealthPolicy, HttpCheck, METHODS, Observe, Pattern, Readiness};
pub use self::path::PathChoice;
pub use self::port::{ContainerPort, HostAddress, HostPort, PortSpec, PublishError};
pub use self::rollout::{FailureAction, Order, RolloutPolicy, TrafficPolicy};
pub use sherd_lb::table::Policy;

pub mod document;
pub mod fault;
mod hash;
mod health;
mod image;
mod parse;
mod path;
mod port;
mod read;
mod render;
mod rollout;
pub mod units;
mod words;

/// One sharded service: what runs, on which part of the machine, behind which ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSpec {
    /// The group's name; also the name of its file.
    pub name: GroupName,
    /// What it asks of the planner. `layout.group` is always [`GroupSpec::name`].
    pub layout: LayoutRequest,
    /// What runs in each slot.
    pub runtime: RuntimeSpec,
    /// Published ports, in the order of the file. No two of them overlap. May be empty.
    pub ports: Vec<PortSpec>,
    /// Who accepts the connections of those ports. Never `Direct` for a process.
    pub path: PathChoice,
    /// When a shard gets connections.
    pub readiness: Readiness,
    /// What follows for the group from how its shards are.
    pub health: HealthPolicy,
    /// What happens to a connection while no shard of the group is ready.
    pub unready: Unready,
    /// How long established connections may go on after a slot is taken out of service.
    pub drain: Duration,
    /// How long a shard has between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// How restarts of a failing shard are spaced.
    pub backoff: Backoff,
    /// How shards are replaced by those of another specification.
    pub rollout: RolloutPolicy,
    /// Bounds of the relay path, for each slot.
    pub relay: RelayLimits,
    /// Environment of every shard. What is set here wins over what the agent would set.
    pub environment: BTreeMap<String, String>,
}

impl GroupSpec {
    /// Reads a specification. `file` only names the text in faults.
    pub fn parse(file: &str, text: &str) -> Result<Self, SpecFaults> {
        parse::group(file, text)
    }

    /// The specification as TOML: `parse(to_toml(x)) == x`, and the text is the same for equal values.
    pub fn to_toml(&self) -> String {
        render::group(self)
    }

    /// Whether its shards start behind the shim (see [`crate::shim`]), as the direct path needs them to. Who publishes
    /// nothing has nothing to be accepted.
    pub fn is_behind_shim(&self) -> bool {
        self.could_be_direct() && !self.may_administer_network()
    }

    /// Whether it is relayed only because its containers administer networks: a listener's is the host's, and what
    /// ioctl(2) does there no guard sees (SIOCSIFMTU on a listener, tried on 6.18).
    pub fn is_too_capable(&self) -> bool {
        self.could_be_direct() && self.may_administer_network()
    }

    fn could_be_direct(&self) -> bool {
        let container = matches!(self.runtime, RuntimeSpec::Docker(_));
        container && self.path != PathChoice::Relay && !self.ports.is_empty()
    }

    fn may_administer_network(&self) -> bool {
        matches!(&self.runtime, RuntimeSpec::Docker(container) if container.may_administer_network())
    }

    /// Identifies everything that a running shard can only get by a restart; see [`SpecHash`].
    pub fn hash(&self) -> SpecHash {
        hash::of(self)
    }
}

/// Hash of the part of a specification that a running shard cannot be given without a restart: image, command,
/// environment, engine options, with the shim in front what is published where, and for processes the container ports. Not
/// policies, weights, readiness or deadlines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpecHash(pub String);

impl fmt::Display for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What runs in a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeSpec {
    /// A container of the Docker Engine API (Docker, Podman).
    Docker(Box<ContainerSpec>),
    /// A plain process of the embedded runtime.
    Process(ProcessSpec),
}

impl RuntimeSpec {
    /// `docker` or `process`, as in the command line's `--runtime`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Docker(_) => "docker",
            Self::Process(_) => "process",
        }
    }
}

/// Options of a container, in Docker's words. CPUs, memory nodes, restart policy and published ports are the agent's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerSpec {
    /// Image reference, `[REGISTRY/]NAME[:TAG][@DIGEST]`.
    pub image: String,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// `SOURCE:TARGET[:OPTIONS]`, Docker's binds; the source is an absolute path or a volume's name.
    pub volumes: Vec<String>,
    /// Memory limit of each shard. Excludes `layout.memory_limit_bytes`, which is the group's and divided by its shards.
    pub memory_bytes: Option<u64>,
    /// `USER[:GROUP]`, names or numbers.
    pub user: Option<String>,
    /// Capabilities to add.
    pub cap_add: Vec<String>,
    /// Capabilities to drop.
    pub cap_drop: Vec<String>,
    /// Docker's network mode; the engine's default when absent. Never `host`: shards would fight for their ports.
    pub network: Option<String>,
    /// Log driver; the engine's default when absent.
    pub logging: Option<Logging>,
    /// Resource limits by name.
    pub ulimits: Vec<Ulimit>,
    /// Labels; `sherd.*` is the agent's own.
    pub labels: BTreeMap<String, String>,
    /// Working directory inside the container.
    pub working_dir: Option<String>,
    /// Root file system mounted read-only.
    pub read_only: bool,
    /// Target -> mount options of tmpfs mounts (options may be empty).
    pub tmpfs: BTreeMap<String, String>,
    /// Docker's security options.
    pub security_opt: Vec<String>,
    /// When the image is pulled. Changing it restarts nothing.
    #[serde(skip)]
    pub pull: PullPolicy,
    /// The rest of Docker's create body, a JSON object without nulls; typed options above win over it.
    pub extra: serde_json::Value,
}

impl ContainerSpec {
    /// Whether it has CAP_NET_ADMIN. `cap_drop` doesn't count: engines differ in what wins.
    pub fn may_administer_network(&self) -> bool {
        let host = &self.extra["HostConfig"];
        let more = host["CapAdd"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
        let is_it = |name: &str| {
            let name = name.to_ascii_uppercase();
            matches!(name.strip_prefix("CAP_").unwrap_or(&name), "NET_ADMIN" | "ALL")
        };
        host["Privileged"] == true || self.cap_add.iter().map(String::as_str).chain(more).any(is_it)
    }

    /// A container of `image` with every option at its default.
    pub fn of_image(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            command: None,
            entrypoint: None,
            volumes: Vec::new(),
            memory_bytes: None,
            user: None,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            network: None,
            logging: None,
            ulimits: Vec::new(),
            labels: BTreeMap::new(),
            working_dir: None,
            read_only: false,
            tmpfs: BTreeMap::new(),
            security_opt: Vec::new(),
            pull: PullPolicy::default(),
            extra: serde_json::Value::Object(serde_json::Map::new()),
        }
    }
}

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Logging {
    /// Name of the engine's log driver.
    pub driver: String,
    /// The driver's options.
    pub options: BTreeMap<String, String>,
}

/// One resource limit of a container; -1 is unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ulimit {
    /// Docker's name of the limit, for example `nofile`.
    pub name: String,
    /// Soft limit.
    pub soft: i64,
    /// Hard limit, at least the soft one.
    pub hard: i64,
}

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Only when the engine doesn't have it.
    #[default]
    Missing,
    /// Before every start.
    Always,
    /// Never; a missing image is an error.
    Never,
}

/// A shard of the embedded runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProcessSpec {
    /// Program and arguments; never empty. A program without `/` is looked up in PATH.
    pub command: Vec<String>,
    /// Working directory; `/` when absent.
    pub working_dir: Option<String>,
    /// `USER[:GROUP]` to run as; the agent's own when absent.
    pub user: Option<String>,
}

/// What happens to a new connection while no shard of its group is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// It waits at the anchor, at most this long.
    Wait(Duration),
    /// It is refused.
    Refuse,
}

impl Default for Unready {
    fn default() -> Self {
        Self::Wait(Duration::from_secs(10))
    }
}

/// How restarts of a failing shard are spaced: doubling from `first` to `max`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    /// Wait before the first restart.
    pub first: Duration,
    /// Longest wait.
    pub max: Duration,
    /// A shard that ran this long starts again from `first`.
    pub reset_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), max: Duration::from_secs(30), reset_after: Duration::from_secs(60) }
    }
}

/// Bounds of the relay path, for each slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayLimits {
    /// Connections relayed at once.
    pub max_connections: u32,
    /// Connections that may wait for one of them to end.
    pub max_pending: u32,
    /// How long connecting to the shard may take.
    pub connect_timeout: Duration,
    /// Ends a connection on which nothing moved for this long; absent: never.
    pub idle_timeout: Option<Duration>,
    /// TCP keepalive time on both sides; absent: off.
    pub keepalive: Option<Duration>,
    /// Other slots that are tried when connecting fails.
    pub retries: u8,
    /// Backlog of each listener; the kernel caps it at `net.core.somaxconn`.
    pub backlog: u32,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self {
            max_connections: 65_536,
            max_pending: 4_096,
            connect_timeout: Duration::from_secs(3),
            idle_timeout: None,
            keepalive: Some(Duration::from_secs(60)),
            retries: 3,
            backlog: 4_096,
        }
    }
}

/// How long a drain lasts when the specification doesn't say.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);
/// How long a shard has to stop when the specification doesn't say.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);
