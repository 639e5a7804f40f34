//! What the engine tells of our containers, from the moment of the call.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use bollard::{models::EventMessage, query_parameters::EventsOptions};
use futures_util::{Stream, StreamExt, future, stream};

use super::{connection::Connection, failure::Failure, labels};
use crate::runtime::{Operation, RuntimeError, RuntimeEvent, ShardId};

/// Our containers' events; ends with an error when the engine goes away.
pub(super) fn watch(
    engine: Arc<Connection>,
    instance: &str,
) -> impl Stream<Item = Result<RuntimeEvent, RuntimeError>> + Send + 'static {
    let instance = instance.to_owned();
    // The engine replays what happened since then: nothing is lost between this call and its first answer.
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let connected = async move {
        match engine.client_for_stream(Operation::Events).await {
            Ok(client) => {
                let options = options(since, &instance);
                from_engine(&client, engine, options, instance).left_stream()
            }
            Err(error) => stream::once(future::ready(Err(error))).right_stream(),
        }
    };
    stream::once(connected).flatten()
}

fn options(since: std::time::Duration, instance: &str) -> EventsOptions {
    let filters = HashMap::from([
        ("type".to_owned(), vec!["container".to_owned()]),
        ("label".to_owned(), vec![format!("{}={instance}", labels::INSTANCE)]),
    ]);
    let since = format!("{}.{:09}", since.as_secs(), since.subsec_nanos());
    EventsOptions { since: Some(since), until: None, filters: Some(filters) }
}

fn from_engine(
    client: &bollard::Docker,
    engine: Arc<Connection>,
    options: EventsOptions,
    instance: String,
) -> impl Stream<Item = Result<RuntimeEvent, RuntimeError>> + Send + use<> {
    let gone = {
        let engine = engine.clone();
        async move {
            engine.forget();
            let source = "it ended the stream of events".into();
            Err(RuntimeError::EngineGone { operation: Operation::Events, engine: engine.address().to_owned(), source })
        }
    };
    let words = client.events(Some(options)).map(move |event| {
        event.map_err(|error| {
            engine.forget();
            Failure::of(error, Operation::Events, engine.address()).into_error(Operation::Events, engine.address())
        })
    });
    words
        .filter_map(move |event| future::ready(event.map(|event| ours(event, &instance)).transpose()))
        .chain(stream::once(gone))
}

/// `exec` comes with every health check, and says nothing about the shard.
fn ours(event: EventMessage, instance: &str) -> Option<RuntimeEvent> {
    let kind = event.action.filter(|action| !action.starts_with("exec_"))?;
    let actor = event.actor.unwrap_or_default();
    let (id, attributes) = (actor.id.map(ShardId), actor.attributes.unwrap_or_default());
    let name = attributes.get("name").map(|name| name.trim_start_matches('/')).unwrap_or_default();
    let key = labels::Identity::read(&attributes, name, instance).ok().map(|identity| identity.key);
    let signal = attributes.get("signal").and_then(|signal| signal.parse().ok());
    Some(RuntimeEvent { key, id, kind, signal })
}
