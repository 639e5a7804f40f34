//! Where the agent's log goes: tracing to stderr as text or JSON, or to systemd's journal; set up once, at the start.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use thiserror::Error;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{LogConfig, LogFormat};

/// Overrides the settings' filter.
pub const FILTER_ENV: &str = "SHERD_LOG";

/// A filter that tracing doesn't understand.
#[derive(Debug, Error)]
#[error(
    "`{filter}` is not a log filter: write a level (error, warn, info, debug, trace), or for example \"info,sherd::api=debug\""
)]
pub struct FilterError {
    filter: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Why there is no log.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The filter is wrong.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// Another log was set up in this process.
    #[error("logging is set up already")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Sends what this process logs where the settings say.
pub fn start(config: &LogConfig) -> Result<(), JournalError> {
    let filter = std::env::var(FILTER_ENV).unwrap_or_else(|_| config.filter.clone());
    let filter = EnvFilter::try_new(&filter).map_err(|source| FilterError { filter, source })?;
    let registry = tracing_subscriber::registry().with(output(config.format));
    registry.with(filter).try_init().map_err(JournalError::Twice)
}

/// Checks a filter.
pub fn check_filter(filter: &str) -> Result<(), FilterError> {
    let checked = EnvFilter::try_new(filter).map(drop);
    checked.map_err(|source| FilterError { filter: filter.to_owned(), source })
}

fn output(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let text = || tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_span_events(FmtSpan::NONE);
    match format {
        LogFormat::Json => text().json().flatten_event(true).boxed(),
        LogFormat::Auto if stderr_is_journal() => match tracing_journald::layer() {
            Ok(journald) => journald.boxed(),
            // The stream still reaches the journal, as text, which adds its own time.
            Err(_) => text().without_time().with_ansi(false).boxed(),
        },
        LogFormat::Auto | LogFormat::Text => text().with_ansi(std::io::stderr().is_terminal()).boxed(),
    }
}

/// `JOURNAL_STREAM` is `device:inode` of the journal's stream and is inherited: it counts only where stderr is that stream.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}
