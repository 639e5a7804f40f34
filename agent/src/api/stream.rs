//! Handlers that answer with lines for as long as the client reads: logs and events, as newline-delimited JSON.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{BoxStream, select_all};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;
use sherd_topology::plan::SlotId;
use tokio::sync::broadcast::{self, error::RecvError};

use super::ask::Loop;
use super::error::{ApiError, chain};
use super::groups::group;
use super::routes::Query;
use super::wire::{ErrorBody, LogRecord};
use crate::control::{Output, Request, ShardLine, ShardLogs};
use crate::status::Event;

/// What a group's shards wrote: whole shards one after the other, or line by line as they come with `follow`.
#[utoipa::path(get, path = "/v1/groups/{group}/logs", params(("group" = String, Path, description = "Name of the group"),
        ("follow" = Option<bool>, Query, description = "Go on with new lines"),
        ("tail" = Option<usize>, Query, description = "Lines of each shard to begin with; all by default"),
        ("slot" = Option<u32>, Query, description = "Only this slot")),
    responses((status = 200, body = LogRecord, content_type = "application/x-ndjson"), (status = 404, body = ErrorBody)))]
pub(super) async fn logs(
    State(state): State<Loop>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["follow", "tail", "slot"])?;
    let (group, follow) = (group(&name)?, query.flag("follow")?);
    let (slot, tail) = (query.number("slot")?.map(SlotId), query.number("tail")?);
    let logs = state.ask(|reply| Request::Logs { group, slot, tail, follow, reply }).await??;
    let shards: Vec<_> = logs.into_iter().map(records).collect();
    Ok(match follow {
        true => ndjson(select_all(shards)),
        false => ndjson(stream::iter(shards).flatten()),
    })
}

/// What happens from now on.
#[utoipa::path(get, path = "/v1/events", responses(
    (status = 200, body = Event, content_type = "application/x-ndjson"), (status = 503, body = ErrorBody)))]
pub(super) async fn events(State(state): State<Loop>) -> Result<Response, ApiError> {
    let receiver = state.ask(|reply| Request::Subscribe { reply }).await?;
    Ok(ndjson(stream::unfold(receiver, next_event)))
}

async fn next_event(mut receiver: broadcast::Receiver<Event>) -> Option<(Event, broadcast::Receiver<Event>)> {
    match receiver.recv().await {
        Ok(event) => Some((event, receiver)),
        Err(RecvError::Lagged(lost)) => {
            let message = format!("{lost} events were lost: this client reads too slowly");
            let at_unix_ms = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64);
            let event = Event { at_unix_ms, group: None, slot: None, kind: "lagged".to_owned(), state: None, message };
            Some((event, receiver))
        }
        Err(RecvError::Closed) => None,
    }
}

fn records(logs: ShardLogs) -> BoxStream<'static, LogRecord> {
    let slot = logs.slot;
    let record = move |line| match line {
        Ok(ShardLine { output, text }) => {
            let output = match output {
                Output::Stdout => "stdout",
                Output::Stderr => "stderr",
            };
            LogRecord { slot, output: Some(output.to_owned()), text: Some(text), error: None }
        }
        Err(error) => LogRecord { slot, output: None, text: None, error: Some(chain(&error)) },
    };
    logs.lines.map(record).boxed()
}

fn ndjson<T: Serialize>(items: impl Stream<Item = T> + Send + 'static) -> Response {
    let lines = items.map(|item| {
        let mut line = serde_json::to_vec(&item).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
