//! The way to the engine: an address, a negotiated API version, and a time-out for every call. Knows no shards.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bollard::{API_DEFAULT_VERSION, Docker};
use serde::de::DeserializeOwned;

use super::{failure::Failure, wire};
use crate::runtime::{Operation, RuntimeError};

/// The oldest API that has all we use.
pub(crate) const OLDEST_API: (usize, usize) = (1, 41);
const OLDEST_API_TEXT: &str = "1.41";
/// bollard bounds the time to the response's head only; ours ends earlier and bounds all of it.
const VENDOR_TIMEOUT_S: u64 = 24 * 3600;

/// How long the engine may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a question, or for a change that needs no work.
    pub ask: Duration,
    /// For creating, starting and removing; also added to the grace of a stop.
    pub change: Duration,
    /// For the next word of a pull; the pull as a whole takes what it takes.
    pub pull_stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { ask: Duration::from_secs(10), change: Duration::from_secs(60), pull_stall: Duration::from_secs(180) }
    }
}

/// An engine; connections are made when there is something to ask.
pub(super) struct Connection {
    address: String,
    pub(super) timeouts: Timeouts,
    negotiated: Mutex<Option<Negotiated>>,
}

#[derive(Clone)]
struct Negotiated {
    client: Docker,
    /// Before every path, `/v1.41`.
    prefix: String,
    description: String,
}

impl Connection {
    pub(super) fn new(address: String, timeouts: Timeouts) -> Self {
        Self { address, timeouts, negotiated: Mutex::new(None) }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// A client that speaks a version both sides know.
    pub(super) async fn client(&self, operation: Operation) -> Result<Docker, RuntimeError> {
        Ok(self.negotiated(operation).await?.client)
    }

    /// One question, with an answer of our own types.
    pub(super) async fn get<T: DeserializeOwned>(&self, operation: Operation, path: &str) -> Result<T, Failure> {
        let target = format!("{}{path}", self.negotiated(operation).await?.prefix);
        self.bounded(operation, self.timeouts.ask, wire::get(&self.address, &target)).await
    }

    /// Asks the engine what it is, also when it is known already.
    pub(super) async fn describe(&self) -> Result<String, RuntimeError> {
        Ok(self.negotiate(Operation::Version).await?.description)
    }

    /// A client for an answer without an end, whose head may come with the first word of it (Docker's events): only
    /// that the engine answers at all can be asked for in bounded time.
    pub(super) async fn client_for_stream(&self, operation: Operation) -> Result<Docker, RuntimeError> {
        let ping = |client: Docker| async move { client.ping().await };
        let answered = self.call(operation, self.timeouts.ask, ping).await;
        answered.map_err(|failure| failure.into_error(operation, &self.address))?;
        self.client(operation).await
    }

    /// One call within `after`. What is not about this call's subject is an error of the runtime already.
    pub(super) async fn call<T, F>(
        &self,
        operation: Operation,
        after: Duration,
        call: impl FnOnce(Docker) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, bollard::errors::Error>>,
    {
        let client = self.client(operation).await?;
        self.bounded(operation, after, call(client)).await
    }

    /// The engine that comes back may be of another version.
    pub(super) fn forget(&self) {
        *self.negotiated.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn bounded<T>(
        &self,
        operation: Operation,
        after: Duration,
        answer: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, Failure> {
        let failure = match tokio::time::timeout(after, answer).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Failure::of(error, operation, &self.address),
            Err(_) => Failure::Runtime(RuntimeError::TimedOut { operation, engine: self.address.clone(), after }),
        };
        if let Failure::Runtime(error) = &failure
            && error.is_outage()
        {
            self.forget();
        }
        Err(failure)
    }

    async fn negotiated(&self, operation: Operation) -> Result<Negotiated, RuntimeError> {
        let known = self.negotiated.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(negotiated) => Ok(negotiated),
            None => self.negotiate(operation).await,
        }
    }

    async fn negotiate(&self, operation: Operation) -> Result<Negotiated, RuntimeError> {
        let unversioned = connect(&self.address).map_err(|error| self.unusable(error, operation))?;
        let after = self.timeouts.ask;
        let answer = tokio::time::timeout(after, unversioned.version()).await;
        let version = match answer {
            Ok(Ok(version)) => version,
            Ok(Err(error)) => return Err(self.unusable(error, operation)),
            Err(_) => return Err(RuntimeError::TimedOut { operation, engine: self.address.clone(), after }),
        };
        let text = version.api_version.unwrap_or_default();
        let api = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let api: (usize, usize) = api.ok_or_else(|| RuntimeError::Nonsense {
            operation,
            engine: self.address.clone(),
            answer: format!("its API version is `{text}`"),
        })?;
        if api < OLDEST_API {
            return Err(RuntimeError::EngineTooOld {
                engine: self.address.clone(),
                found: text,
                needed: OLDEST_API_TEXT,
            });
        }
        let ours = (API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version);
        let engine =
            version.components.unwrap_or_default().into_iter().next().map_or("Engine".into(), |first| first.name);
        let description = format!("{engine} {}, API {text}", version.version.unwrap_or_default());
        let (major, minor) = api.min(ours);
        let prefix = format!("/v{major}.{minor}");
        let negotiated = Negotiated { client: versioned(unversioned, prefix.clone()), prefix, description };
        *self.negotiated.lock().unwrap_or_else(PoisonError::into_inner) = Some(negotiated.clone());
        Ok(negotiated)
    }

    fn unusable(&self, error: bollard::errors::Error, operation: Operation) -> RuntimeError {
        match error {
            bollard::errors::Error::UnsupportedURISchemeError { .. } => {
                RuntimeError::BadEngineAddress { engine: self.address.clone() }
            }
            other => Failure::of(other, operation, &self.address).into_error(operation, &self.address),
        }
    }
}

fn connect(address: &str) -> Result<Docker, bollard::errors::Error> {
    match address.split_once("://") {
        Some(("unix", _)) => Docker::connect_with_unix(address, VENDOR_TIMEOUT_S, API_DEFAULT_VERSION),
        Some(("tcp" | "http", _)) => Docker::connect_with_http(address, VENDOR_TIMEOUT_S, API_DEFAULT_VERSION),
        _ => Err(bollard::errors::Error::UnsupportedURISchemeError { uri: address.to_owned() }),
    }
}

/// bollard asks without a version in the path, which means the engine's newest: one that is newer than our types
/// could answer in another shape.
fn versioned(client: Docker, prefix: String) -> Docker {
    client.with_request_modifier(move |mut request| {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let versioned = format!("{prefix}{path}");
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = versioned.parse().ok().or(parts.path_and_query);
        if let Ok(uri) = hyper::Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        request
    })
}
