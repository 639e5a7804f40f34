//! One question to the reconcile loop and its answer, bounded in time and in number.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRef;
use axum::http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{mpsc, oneshot};

use super::MAX_BODY_BYTES;
use super::error::ApiError;
use crate::control::Request;
use crate::metrics::Sampler;

/// How long the loop may take for what it knows by heart.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The way to the reconcile loop.
#[derive(Debug, Clone)]
pub(super) struct Loop(pub(super) mpsc::Sender<Request>);

/// What handlers answer from.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) reconcile: Loop,
    pub(super) sampler: Arc<Sampler>,
}

impl FromRef<Served> for Loop {
    fn from_ref(served: &Served) -> Self {
        served.reconcile.clone()
    }
}

impl Loop {
    /// Asks what the loop knows.
    pub(super) async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, ApiError> {
        let answer = self.demand(request);
        tokio::time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| Err(ApiError::no_answer()))
    }

    /// Asks for something that takes as long as it takes (a drain, a pull). The client may go away at any time.
    pub(super) async fn demand<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.0.try_send(request(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ApiError::busy(),
            mpsc::error::TrySendError::Closed(_) => ApiError::stopping(),
        })?;
        answer.await.map_err(|_| ApiError::stopping())
    }
}

/// Reads a body of text within its bounds.
pub(super) async fn text(body: Body) -> Result<String, ApiError> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "late-body", "the request's body did not come in time");
    let body = collected.map_err(late)?.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => {
            let message = format!("the request's body is longer than {} KiB", MAX_BODY_BYTES / 1024);
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "long-body", message)
        }
        None => ApiError::bad_request(format!("the request's body can't be read: {error}")),
    })?;
    String::from_utf8(body.to_bytes().into()).map_err(|_| ApiError::bad_request("the request's body is not UTF-8"))
}
