//! HTTP/1 connections of a listener, with a bound on their number and on the time they may idle; knows no route.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::debug;

/// How long a client may take for the head of a request, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest head of a request.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// How long open connections may go on after the server is told to stop.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bounds of a server.
pub(crate) struct Bounds {
    /// Connections served at once; more wait in the listener's backlog.
    pub(crate) connections: usize,
}

/// Serves until `stop` is ready, then lets requests in flight end, within a bound.
pub(crate) async fn serve_router<L: Listener>(
    mut listener: L,
    router: Router,
    bounds: Bounds,
    stop: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(bounds.connections));
    let (closing, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let (io, slot) = tokio::select! {
            () = &mut stop => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&mut listener, &slots) => accepted,
        };
        connections.spawn(connection(io, router.clone(), closing.subscribe(), slot));
    }
    drop(listener);
    closing.send_replace(true);
    let all_closed = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(CLOSE_TIMEOUT, all_closed).await.is_err() {
        debug!(open = connections.len(), "connections are cut");
    }
}

async fn accept<L: Listener>(listener: &mut L, slots: &Arc<Semaphore>) -> (L::Io, OwnedSemaphorePermit) {
    match Arc::clone(slots).acquire_owned().await {
        Ok(slot) => (listener.accept().await.0, slot),
        // Nobody closes the semaphore.
        Err(_) => std::future::pending().await,
    }
}

async fn connection<I>(io: I, router: Router, mut closing: watch::Receiver<bool>, _slot: OwnedSemaphorePermit)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = async { drop(closing.wait_for(|closing| *closing).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, "connection");
    }
}
