//! The agent's HTTP API on a unix socket: JSON in front, [`control::Request`](crate::control::Request)s behind. Owns
//! connections and their bounds; never touches the agent's state.
//!
//! Who may write to the socket can become root (a specification names any command, any user, any volume): it is
//! readable by root and the group `sherd` only.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::control::Request;
use crate::metrics::Sampler;

pub(crate) use self::connections::{Bounds, serve_router};
pub use self::openapi::document;
pub use self::socket::{ApiSocket, BindError, bind};

mod ask;
mod connections;
mod error;
mod explain;
mod groups;
mod openapi;
mod rollout;
mod routes;
mod socket;
mod stream;
mod usage;
pub mod wire;

/// Connections served at once; more wait in the socket's backlog.
pub const MAX_CONNECTIONS: usize = 128;
/// Longest request body.
pub const MAX_BODY_BYTES: usize = 1 << 20;

/// Serves the API until `stop` is ready, then lets requests in flight end, within a bound, and removes the socket.
pub async fn serve(
    socket: ApiSocket,
    requests: mpsc::Sender<Request>,
    sampler: Arc<Sampler>,
    stop: impl Future<Output = ()>,
) {
    let ApiSocket { listener, path } = socket;
    // Removed before the connections end: who comes now starts no conversation with an agent that leaves.
    let stop = async {
        stop.await;
        socket::remove(&path);
    };
    let router = routes::router(ask::Served { reconcile: ask::Loop(requests), sampler });
    serve_router(listener, router, Bounds { connections: MAX_CONNECTIONS }, stop).await;
}
