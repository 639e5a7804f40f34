//! Errors as HTTP answers: status, code and message of each way a request can fail.

use std::error::Error;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::wire::{ErrorBody, ErrorDetail};
use crate::control::{ApplyError, ExplainError, LogsError, RolloutError, StopError};
use crate::spec::{SpecFault, SpecFaults};

/// An answer that isn't a success.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    faults: Vec<SpecFault>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), faults: Vec::new() }
    }

    /// The request itself is wrong.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", message)
    }

    /// The reconcile loop has more to do than it can queue.
    pub(super) fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "the agent is busy: try again")
    }

    /// The reconcile loop is gone.
    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the agent is stopping: try again when it is back")
    }

    /// The reconcile loop doesn't answer.
    pub(super) fn no_answer() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "no-answer", "the agent does not answer: its log says what it waits for")
    }

    pub(super) fn unknown_group(group: &str) -> Self {
        let message = format!("no group {group}: `sherd ps` lists them");
        Self::new(StatusCode::NOT_FOUND, "unknown-group", message)
    }

    fn of(status: StatusCode, code: &'static str, error: &dyn Error) -> Self {
        Self::new(status, code, chain(error))
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = ErrorDetail { code: self.code.to_owned(), message: self.message, faults: self.faults };
        (self.status, Json(ErrorBody { error })).into_response()
    }
}

impl From<SpecFaults> for ApiError {
    fn from(faults: SpecFaults) -> Self {
        let count = faults.faults.len();
        let message = format!("the specification has {count} fault{}", if count == 1 { "" } else { "s" });
        let error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "bad-specification", message);
        Self { faults: faults.faults, ..error }
    }
}

impl From<ApplyError> for ApiError {
    fn from(error: ApplyError) -> Self {
        let (status, code) = match &error {
            ApplyError::Unplaceable { .. } => (StatusCode::CONFLICT, "unplaceable"),
            ApplyError::PortOfGroup { .. } => (StatusCode::CONFLICT, "port-of-group"),
            ApplyError::PortTaken { .. } => (StatusCode::CONFLICT, "port-taken"),
            ApplyError::Publish { .. } => (StatusCode::CONFLICT, "not-published"),
            ApplyError::Runtime { .. } => (StatusCode::SERVICE_UNAVAILABLE, "runtime-unavailable"),
            ApplyError::Image { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "bad-image"),
            ApplyError::TooManySlots { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "too-many-slots"),
            ApplyError::Refused { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
            ApplyError::Store { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "not-stored"),
        };
        Self::of(status, code, &error)
    }
}

impl From<StopError> for ApiError {
    fn from(error: StopError) -> Self {
        let (status, code) = match &error {
            StopError::UnknownGroup { .. } => (StatusCode::NOT_FOUND, "unknown-group"),
            StopError::Shards { .. } => (StatusCode::SERVICE_UNAVAILABLE, "not-stopped"),
            StopError::Applied { .. } => (StatusCode::CONFLICT, "applied"),
            StopError::Store { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "not-stored"),
        };
        Self::of(status, code, &error)
    }
}

impl From<ExplainError> for ApiError {
    fn from(error: ExplainError) -> Self {
        let (status, code) = match &error {
            ExplainError::UnknownGroup { .. } => (StatusCode::NOT_FOUND, "unknown-group"),
            ExplainError::NotPublished { .. } => (StatusCode::NOT_FOUND, "not-published"),
            ExplainError::WhichPort { .. } => (StatusCode::CONFLICT, "which-port"),
        };
        Self::of(status, code, &error)
    }
}

impl From<RolloutError> for ApiError {
    fn from(error: RolloutError) -> Self {
        let (status, code) = match &error {
            RolloutError::UnknownGroup { .. } => (StatusCode::NOT_FOUND, "unknown-group"),
            RolloutError::Unchanged { .. } => (StatusCode::NOT_FOUND, "unchanged"),
            RolloutError::NotUnderWay { .. } => (StatusCode::CONFLICT, "not-under-way"),
            RolloutError::NothingBefore { .. } => (StatusCode::CONFLICT, "nothing-before"),
            RolloutError::Unusable { .. } | RolloutError::Apply { .. } => (StatusCode::CONFLICT, "not-undone"),
        };
        Self::of(status, code, &error)
    }
}

impl From<LogsError> for ApiError {
    fn from(error: LogsError) -> Self {
        let (status, code) = match &error {
            LogsError::UnknownGroup { .. } => (StatusCode::NOT_FOUND, "unknown-group"),
            LogsError::UnknownSlot { .. } => (StatusCode::NOT_FOUND, "unknown-slot"),
            LogsError::Runtime { .. } => (StatusCode::SERVICE_UNAVAILABLE, "runtime-unavailable"),
        };
        Self::of(status, code, &error)
    }
}
