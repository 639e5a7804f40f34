//! The agent's own settings: `/etc/sherd/sherd.toml` and the flags over it, as checked values; reads one file and nothing else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sherd_topology::model::{CpuSet, Host};
use thiserror::Error;

use crate::spec::SpecFaults;

pub(crate) use self::parse::{docker_host, is_instance, log_format};
pub use self::reserved::ReservedCpus;

mod parse;
mod reserved;

/// Where the settings are, unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/sherd/sherd.toml";
/// Name of the API's socket in the runtime directory.
pub const API_SOCKET: &str = "sherd.sock";
/// Runtime directory, unless said otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/sherd";
/// State directory, unless said otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/sherd";
/// Metrics address, unless said otherwise.
pub const DEFAULT_METRICS: &str = "127.0.0.1:9478";

/// How long relayed connections wait for the next agent, unless said otherwise.
pub const DEFAULT_RELAY_HANDOVER: Duration = Duration::from_secs(5 * 60);

/// Settings of one agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// Separates several agents on one host: only shards with this label are its own.
    pub instance: String,
    /// Sockets and what need not outlive a reboot.
    pub run_dir: PathBuf,
    /// Specifications.
    pub state_dir: PathBuf,
    /// PUs that no group gets.
    pub reserved_cpus: ReservedCpus,
    /// Where metrics are served; absent: nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// Which engine.
    pub docker: DockerHost,
    /// How long the holder keeps relayed connections for the next agent, when one ends by a signal; 0: they are not handed
    /// over, and have 10 s to finish. At most [`sherd_lb::holder::MAX_TIME`].
    pub relay_handover: Duration,
    /// How the agent logs.
    pub log: LogConfig,
}

impl AgentConfig {
    /// Reads settings. `file` only names the text in faults.
    pub fn parse(file: &str, text: &str) -> Result<Self, SpecFaults> {
        parse::config(file, text)
    }

    /// Reads the file at `path`, or the one at [`DEFAULT_PATH`], which may be missing.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => String::new(),
            Err(source) => return Err(ConfigError::Read { path: file.to_owned(), source }),
        };
        Ok(Self::parse(&file.display().to_string(), &text)?)
    }

    /// The API's socket.
    pub fn api_socket(&self) -> PathBuf {
        self.run_dir.join(API_SOCKET)
    }

    /// The holder's socket.
    pub fn holder_socket(&self) -> PathBuf {
        self.run_dir.join("holder.sock")
    }

    /// The PUs that no group gets on this host.
    pub fn reserved_on(&self, host: &Host) -> CpuSet {
        self.reserved_cpus.on(host)
    }
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            instance: "default".to_owned(),
            run_dir: DEFAULT_RUN_DIR.into(),
            state_dir: DEFAULT_STATE_DIR.into(),
            reserved_cpus: ReservedCpus::Auto,
            metrics_address: DEFAULT_METRICS.parse().ok(),
            docker: DockerHost::Default,
            relay_handover: DEFAULT_RELAY_HANDOVER,
            log: LogConfig::default(),
        }
    }
}

/// Which container engine the agent uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerHost {
    /// The engine's usual socket, `/var/run/docker.sock`.
    Default,
    /// Another unix socket, as Podman's `/run/podman/podman.sock`.
    Socket(PathBuf),
    /// None: only the embedded runtime.
    Off,
}

impl DockerHost {
    /// The engine's socket; none without an engine.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Default => Some(Path::new("/var/run/docker.sock")),
            Self::Socket(path) => Some(path),
            Self::Off => None,
        }
    }
}

/// How the agent logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// What a record looks like.
    pub format: LogFormat,
    /// What is logged: `info`, or tracing's directives such as `info,sherd::api=debug`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info".to_owned() }
    }
}

/// What a log record looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal's own fields where stderr is the journal, else text.
    Auto,
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why the settings can't be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{} can't be read: name the agent's settings with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// The file has faults.
    #[error("{0}")]
    Faults(#[from] SpecFaults),
}
