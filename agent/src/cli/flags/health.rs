//! The flags of `sherd run` about the health of shards, named as `docker run` has them where it does.

use clap::Args;
use toml::{Table, Value};

use super::put;

/// When a shard gets connections.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health")]
pub(super) struct HealthFlags {
    /// A shard is ready when a GET of this path is answered with 200 to 399.
    #[arg(long, value_name = "PATH", conflicts_with = "health_cmd")]
    ready_path: Option<String>,
    /// How a shard is checked: tcp, http, or `image`: by its image's HEALTHCHECK. tcp by default, http with --ready-path.
    #[arg(long, value_name = "KIND", conflicts_with = "health_cmd")]
    health_check: Option<String>,
    /// A shard is ready when this command of its shell, run in it, ends with exit code 0.
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two checks.
    #[arg(long, value_name = "DURATION")]
    health_interval: Option<String>,
    /// How long a check may take.
    #[arg(long, value_name = "DURATION")]
    health_timeout: Option<String>,
    /// Failures in a row until a shard gets no more connections.
    #[arg(long, value_name = "N")]
    health_retries: Option<i64>,
    /// How long a new shard may fail without that counting.
    #[arg(long, value_name = "DURATION")]
    health_start_period: Option<String>,
    /// How long a shard that comes into service takes to get its whole share of connections.
    #[arg(long, value_name = "DURATION")]
    slow_start: Option<String>,
}

impl HealthFlags {
    /// Puts them into a specification.
    pub(super) fn put(&self, root: &mut Table) {
        let mut readiness = Table::new();
        if let Some(command) = &self.health_cmd {
            readiness.insert("check".to_owned(), "command".into());
            readiness.insert("command".to_owned(), vec!["/bin/sh", "-c", command.as_str()].into());
        }
        if self.ready_path.is_some() {
            readiness.insert("check".to_owned(), "http".into());
        }
        put(&mut readiness, "check", self.health_check.as_ref());
        put(&mut readiness, "path", self.ready_path.as_ref());
        put(&mut readiness, "interval", self.health_interval.as_ref());
        put(&mut readiness, "timeout", self.health_timeout.as_ref());
        if let Some(retries) = self.health_retries {
            readiness.insert("fall".to_owned(), Value::Integer(retries));
        }
        put(&mut readiness, "start_period", self.health_start_period.as_ref());
        let mut health = Table::new();
        put(&mut health, "slow_start", self.slow_start.as_ref());
        for (name, table) in [("readiness", readiness), ("health", health)] {
            if !table.is_empty() {
                root.insert(name.to_owned(), Value::Table(table));
            }
        }
    }
}
