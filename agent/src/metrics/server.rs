//! `/metrics` and `/healthz` on a TCP address of their own, read-only; each scrape asks the reconcile loop once.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::{Sampler, Snapshot, render};
use crate::api::{Bounds, serve_router};
use crate::control::Request;

/// The text format's media type.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Scrapers that are served at once.
const MAX_CONNECTIONS: usize = 16;
/// How long the reconcile loop may take; less than a scrape's usual 10 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Source {
    requests: mpsc::Sender<Request>,
    sampler: Arc<Sampler>,
}

/// Why metrics have no address.
#[derive(Debug, Error)]
#[error("metrics can't be served on {address}: give a free address of this host with --metrics, or `off`")]
pub struct BindError {
    /// The address.
    address: SocketAddr,
    /// What the kernel said.
    source: io::Error,
}

/// Binds the address on which metrics are served.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Serves metrics until `stop` is ready.
pub async fn serve(
    listener: TcpListener,
    requests: mpsc::Sender<Request>,
    sampler: Arc<Sampler>,
    stop: impl Future<Output = ()>,
) {
    let source = Source { requests, sampler };
    let router = Router::new().route("/metrics", get(metrics)).route("/healthz", get(healthz)).with_state(source);
    serve_router(listener, router, Bounds { connections: MAX_CONNECTIONS }, stop).await;
}

async fn metrics(State(source): State<Source>) -> Response {
    let Some(snapshot) = snapshot(&source).await else { return unavailable() };
    let sampler = Arc::clone(&source.sampler);
    let text = tokio::task::spawn_blocking(move || render(&snapshot, &sampler.sample(&snapshot), &sampler.of_self()));
    match text.await {
        Ok(text) => ([(CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(_) => unavailable(),
    }
}

/// Healthy is an agent whose reconcile loop answers; groups have metrics of their own.
async fn healthz(State(source): State<Source>) -> Response {
    match snapshot(&source).await {
        Some(_) => "ok\n".into_response(),
        None => unavailable(),
    }
}

async fn snapshot(source: &Source) -> Option<Snapshot> {
    let (reply, answer) = oneshot::channel();
    source.requests.try_send(Request::Metrics { reply }).ok()?;
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.ok()?.ok()
}

fn unavailable() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the agent's reconcile loop does not answer\n").into_response()
}
