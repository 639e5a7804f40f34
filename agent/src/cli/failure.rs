//! Why a command failed, and how that is said: on stderr, one line for each fault, with what to do.

use std::io;
use std::process::ExitCode;

use thiserror::Error;

use crate::client::ClientError;
use crate::config::ConfigError;
use crate::spec::SpecFault;

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Failure {
    /// A file has faults.
    #[error("{}", lines(.0))]
    Faults(Vec<SpecFault>),
    /// The agent can't be reached, or refused.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// The agent's settings can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Standard output can't be written.
    #[error("standard output can't be written")]
    Output(#[source] io::Error),
    /// A file can't be read or written.
    #[error("{path} can't be {action}")]
    File {
        /// The file.
        path: String,
        /// `read` or `written`.
        action: &'static str,
        /// What the file system said.
        source: io::Error,
    },
    /// Anything else, in words that say what to do.
    #[error("{message}")]
    Other {
        /// The words.
        message: String,
        /// What it comes from.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// It was said already, where it happened.
    #[error("")]
    Said,
}

impl Failure {
    /// A failure in words.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Other { message: message.into(), source: None }
    }

    /// A failure of the host that has nothing to do with what was asked.
    pub fn system(source: io::Error) -> Self {
        Self::Other { message: "the system refuses what every program needs".to_owned(), source: Some(source.into()) }
    }

    /// Says it, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            // `sherd ps | head` has read enough.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Said => return ExitCode::FAILURE,
            Self::Agent(ClientError::Refused { detail }) if !detail.faults.is_empty() => {
                eprint_lines(&lines(&detail.faults));
            }
            _ => eprint_lines(&self.chain()),
        }
        ExitCode::FAILURE
    }

    fn chain(&self) -> String {
        let first = std::error::Error::source(self);
        let causes = std::iter::successors(first, |&error| error.source());
        causes.fold(self.to_string(), |text, cause| format!("{text}: {cause}"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

/// Says something that is not the command's answer.
pub(super) fn eprint_lines(text: &str) {
    for line in text.lines() {
        eprintln!("sherd: {line}");
    }
}

fn lines(faults: &[SpecFault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
