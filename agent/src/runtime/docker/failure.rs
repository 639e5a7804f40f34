//! What bollard reports, in our words: which failures are the engine's, and which are about the thing asked for.

use std::{error::Error as _, io};

use bollard::errors::Error;

use crate::runtime::{Operation, RuntimeError};

/// Longest excerpt of an answer that goes into a message.
const EXCERPT_MAX: usize = 200;

/// A failed call: what only the caller can judge, or an error already.
#[derive(Debug)]
pub(super) enum Failure {
    /// 404: the thing is not there.
    NotFound(String),
    /// 409: it is there already, or in a state that forbids the change.
    Conflict(String),
    /// Another refusal.
    Refused { status: u16, message: String },
    /// Anything else.
    Runtime(RuntimeError),
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        Self::Runtime(error)
    }
}

impl Failure {
    pub(super) fn of(error: Error, operation: Operation, engine: &str) -> Self {
        let engine = engine.to_owned();
        let nonsense = |answer: String, engine| {
            Self::Runtime(RuntimeError::Nonsense { operation, engine, answer: excerpt(&answer) })
        };
        match error {
            Error::DockerResponseServerError { status_code, message } => match status_code {
                404 => Self::NotFound(excerpt(&message)),
                409 => Self::Conflict(excerpt(&message)),
                // Podman's way of saying it.
                500 if message.contains("already in use") => Self::Conflict(excerpt(&message)),
                401 | 403 => Self::Runtime(RuntimeError::Denied { operation, engine, source: message.into() }),
                400..=599 => Self::Refused { status: status_code, message: excerpt(&message) },
                other => nonsense(format!("HTTP status {other}"), engine),
            },
            Error::DockerStreamError { error } => Self::Refused { status: 200, message: excerpt(&error) },
            Error::JsonDataError { message, .. } => nonsense(message, engine),
            Error::JsonSerdeError { err } => nonsense(err.to_string(), engine),
            Error::APIVersionParseError {} => nonsense("no API version".to_owned(), engine),
            other => match cause(&other) {
                Cause::Forbidden => Self::Runtime(RuntimeError::Denied { operation, engine, source: Box::new(other) }),
                Cause::NotHttp => nonsense(chain(&other), engine),
                Cause::Gone => Self::Runtime(RuntimeError::EngineGone { operation, engine, source: Box::new(other) }),
            },
        }
    }

    /// For callers to whom nothing of it is special.
    pub(super) fn into_error(self, operation: Operation, engine: &str) -> RuntimeError {
        let refused = |status, message| RuntimeError::Refused { operation, engine: engine.to_owned(), status, message };
        match self {
            Self::Runtime(error) => error,
            Self::NotFound(message) => refused(404, message),
            Self::Conflict(message) => refused(409, message),
            Self::Refused { status, message } => refused(status, message),
        }
    }
}

enum Cause {
    Forbidden,
    NotHttp,
    Gone,
}

fn cause(error: &Error) -> Cause {
    let mut next = error.source();
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied) {
            return Cause::Forbidden;
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return Cause::NotHttp;
        }
        next = error.source();
    }
    Cause::Gone
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

/// The engine's words on one line, bounded.
fn excerpt(message: &str) -> String {
    let line = message.trim().replace(['\n', '\r'], " ");
    match line.char_indices().nth(EXCERPT_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
