//! `sherd agent`: the flags over the settings' file, then the daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::Failure;
use crate::config::{AgentConfig, DockerHost, LogFormat, ReservedCpus};

/// Run the agent of this host.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Settings come from /etc/sherd/sherd.toml; flags go over them. The file's keys, with their defaults:
  instance = \"default\"
  run_dir = \"/run/sherd\"
  state_dir = \"/var/lib/sherd\"
  reserved_cpus = \"auto\"        none below 8 cores, else one core for each 64 or part of them
  metrics = \"127.0.0.1:9478\"
  docker = \"unix:///var/run/docker.sock\"
  relay_handover = \"5m\"         how long relayed connections wait for the next agent
  [log]
  format = \"auto\"               the journal's fields under systemd, else text
  filter = \"info\"

Examples:
  systemctl start sherd
  sherd agent --docker off --metrics off
  sherd agent --instance test --run-dir /tmp/t/run --state-dir /tmp/t/state --log-format text")]
pub(super) struct Args {
    /// The settings' file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Separates several agents on one host.
    #[arg(long, value_name = "NAME", value_parser = instance)]
    instance: Option<String>,
    /// Where specifications are kept.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// PUs that no group gets: a list, `auto` or `none`.
    #[arg(long, value_name = "LIST")]
    reserved_cpus: Option<ReservedCpus>,
    /// Where metrics are served: an address with a port, or `off`.
    #[arg(long, value_name = "ADDRESS", value_parser = metrics)]
    metrics: Option<Metrics>,
    /// Socket of the container engine, or `off`.
    #[arg(long, value_name = "SOCKET", env = "DOCKER_HOST", value_parser = docker)]
    docker: Option<DockerHost>,
    /// What a log record looks like: `auto`, `text` or `json`.
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    log_format: Option<LogFormat>,
    /// What is logged: a level, or tracing's directives.
    #[arg(long, value_name = "FILTER", env = crate::journal::FILTER_ENV)]
    log: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Metrics(Option<SocketAddr>);

pub(super) fn run(args: Args, run_dir: Option<&Path>) -> Result<ExitCode, Failure> {
    let file = AgentConfig::load(args.config.as_deref())?;
    let config = args.over(file, run_dir)?;
    crate::daemon::run(&config)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn over(self, mut config: AgentConfig, run_dir: Option<&Path>) -> Result<AgentConfig, Failure> {
        config.instance = self.instance.unwrap_or(config.instance);
        config.run_dir = run_dir.map_or(Ok(config.run_dir), absolute)?;
        config.state_dir = self.state_dir.as_deref().map_or(Ok(config.state_dir), absolute)?;
        config.reserved_cpus = self.reserved_cpus.unwrap_or(config.reserved_cpus);
        config.metrics_address = self.metrics.map_or(config.metrics_address, |metrics| metrics.0);
        config.docker = self.docker.unwrap_or(config.docker);
        config.log.format = self.log_format.unwrap_or(config.log.format);
        config.log.filter = self.log.unwrap_or(config.log.filter);
        Ok(config)
    }
}

/// The agent hands its directories to shims, which have another working directory.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|source| Failure::File {
        path: path.display().to_string(),
        action: "made absolute",
        source,
    })
}

fn instance(text: &str) -> Result<String, String> {
    match crate::config::is_instance(text) {
        true => Ok(text.to_owned()),
        false => Err("must be 1 to 63 lower-case letters, digits and `-`".to_owned()),
    }
}

fn metrics(text: &str) -> Result<Metrics, String> {
    match text {
        "off" => Ok(Metrics(None)),
        _ => text.parse().map(|address| Metrics(Some(address))).map_err(|_| "write 127.0.0.1:9478, or off".to_owned()),
    }
}

fn docker(text: &str) -> Result<DockerHost, String> {
    crate::config::docker_host(text).ok_or_else(|| "write unix:///var/run/docker.sock, or off".to_owned())
}

fn format(text: &str) -> Result<LogFormat, String> {
    crate::config::log_format(text).ok_or_else(|| "write auto, text or json".to_owned())
}
