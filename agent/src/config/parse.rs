//! TOML to [`AgentConfig`], with the same faults as a specification.

use std::path::PathBuf;
use std::time::Duration;

use super::{AgentConfig, DockerHost, LogConfig, LogFormat};
use crate::journal;
use crate::spec::SpecFaults;
use crate::spec::document::{Format, Section, inspect};

const KEYS: &[&str] =
    &["instance", "run_dir", "state_dir", "reserved_cpus", "metrics", "docker", "relay_handover", "log"];
const LOG_KEYS: &[&str] = &["format", "filter"];

const FORMATS: &[(&str, LogFormat)] =
    &[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];

pub(super) fn config(file: &str, text: &str) -> Result<AgentConfig, SpecFaults> {
    let home_of = |key: &str| LOG_KEYS.contains(&key).then_some("log");
    inspect(file, text, &Format { keys: KEYS, home_of }, |root| Some(read(root)))
}

fn read(root: &Section<'_, '_>) -> AgentConfig {
    let default = AgentConfig::default();
    AgentConfig {
        instance: instance(root).unwrap_or(default.instance),
        run_dir: directory(root, "run_dir").unwrap_or(default.run_dir),
        state_dir: directory(root, "state_dir").unwrap_or(default.state_dir),
        reserved_cpus: root.parsed("reserved_cpus").unwrap_or(default.reserved_cpus),
        metrics_address: match root.text("metrics") {
            Some(text) => metrics(root, &text),
            None => default.metrics_address,
        },
        docker: docker(root).unwrap_or(default.docker),
        relay_handover: relay_handover(root).unwrap_or(default.relay_handover),
        log: log(root),
    }
}

fn instance(root: &Section<'_, '_>) -> Option<String> {
    let name = root.text("instance")?;
    if !is_instance(&name) {
        root.fault("instance", "must be 1 to 63 lower-case letters, digits and `-`, for example \"default\"");
    }
    Some(name)
}

/// Whether it can be a label's value, a file's name and a cgroup's name.
pub(crate) fn is_instance(name: &str) -> bool {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(inside) && !name.starts_with('-') && !name.ends_with('-')
}

fn directory(root: &Section<'_, '_>, key: &str) -> Option<PathBuf> {
    let path = PathBuf::from(root.text(key)?);
    if !path.is_absolute() {
        root.fault(key, "must be an absolute path");
    }
    Some(path)
}

fn metrics(root: &Section<'_, '_>, text: &str) -> Option<std::net::SocketAddr> {
    let address = text.parse().ok();
    if address.is_none() && text != "off" {
        root.fault("metrics", "must be an address with a port, for example \"127.0.0.1:9478\", or \"off\"");
    }
    address
}

fn docker(root: &Section<'_, '_>) -> Option<DockerHost> {
    let text = root.text("docker")?;
    let host = docker_host(&text);
    if host.is_none() {
        root.fault("docker", "must be a unix socket, for example \"unix:///var/run/docker.sock\", or \"off\"");
    }
    host
}

fn relay_handover(root: &Section<'_, '_>) -> Option<Duration> {
    root.field("relay_handover")?.duration(Duration::ZERO..=sherd_lb::holder::MAX_TIME)
}

/// `off`, or a unix socket as `DOCKER_HOST` or as a path.
pub(crate) fn docker_host(text: &str) -> Option<DockerHost> {
    let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(text));
    match text {
        "off" => Some(DockerHost::Off),
        _ => path.is_absolute().then_some(DockerHost::Socket(path)),
    }
}

/// `auto`, `text` or `json`.
pub(crate) fn log_format(text: &str) -> Option<LogFormat> {
    FORMATS.iter().find(|(name, _)| *name == text).map(|&(_, format)| format)
}

fn log(root: &Section<'_, '_>) -> LogConfig {
    let default = LogConfig::default();
    let Some(section) = root.section("log", LOG_KEYS) else { return default };
    let filter = section.text("filter").unwrap_or(default.filter);
    if let Err(error) = journal::check_filter(&filter) {
        section.fault("filter", error.to_string());
    }
    LogConfig { format: section.choice("format", FORMATS).unwrap_or(default.format), filter }
}
