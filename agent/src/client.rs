//! The client of the agent's API: one request per connection over its unix socket; knows the wire, not the command line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use sherd_topology::model::Host;
use sherd_topology::plan::{GroupName, SlotId};
use thiserror::Error;
use tokio::net::UnixStream;

use crate::api::wire::{ErrorBody, ErrorDetail, LogRecord, PlanBody, Stopped};
use crate::control::{ExplainQuestion, RolloutAction};
use crate::status::{AgentStatus, Event, Explanation, PlanReport, RolloutStatus, UsageReport};

pub use self::lines::Lines;

mod lines;

/// How long the agent may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest document that is read; a status of thousands of slots is a few MiB.
const MAX_DOCUMENT_BYTES: usize = 64 << 20;

/// Where an agent listens.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Which lines of a group's logs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogsQuery {
    /// Go on with new lines.
    pub follow: bool,
    /// Lines of each shard to begin with; all when absent.
    pub tail: Option<usize>,
    /// Only this slot.
    pub slot: Option<SlotId>,
}

/// Why the agent didn't do what was asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no sherd agent answers on {}: start it with `systemctl start sherd`, or by hand with `sherd agent`",
        socket.display()
    )]
    NotRunning {
        /// The agent's socket.
        socket: PathBuf,
    },
    /// The socket is for others.
    #[error("no permission to use {}: be root, or a member of the group `sherd`", socket.display())]
    Forbidden {
        /// The agent's socket.
        socket: PathBuf,
    },
    /// The connection failed.
    #[error("the agent on {} can't be reached", socket.display())]
    Connect {
        /// The agent's socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The agent refused.
    #[error("{}", detail.message)]
    Refused {
        /// Its words.
        detail: ErrorDetail,
    },
    /// The agent went away, or something else answers on its socket.
    #[error("the agent's answer broke off: see its log")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Client {
    /// A client of the agent that listens on `socket`; connects with each request.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The agent's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Everything there is to know.
    pub async fn status(&self) -> Result<AgentStatus, ClientError> {
        self.document(Method::GET, "/v1/status", String::new()).await
    }

    /// The machine, as the agent's planning sees it.
    pub async fn topology(&self) -> Result<Host, ClientError> {
        self.document(Method::GET, "/v1/topology", String::new()).await
    }

    /// Applies a specification; `file` names its text in faults.
    pub async fn apply(
        &self,
        group: &GroupName,
        file: &str,
        text: String,
        dry_run: bool,
    ) -> Result<PlanReport, ClientError> {
        let path = format!("/v1/groups/{group}?dry-run={dry_run}&file={}", percent_encoded(file));
        self.document(Method::PUT, &path, text).await
    }

    /// Plans with these specifications; changes nothing.
    pub async fn plan(&self, body: &PlanBody) -> Result<PlanReport, ClientError> {
        let body = serde_json::to_string(body).map_err(broken)?;
        self.document(Method::POST, "/v1/plan", body).await
    }

    /// Stops a group; back when nothing of it runs.
    pub async fn stop(&self, group: &GroupName, purge: bool) -> Result<Stopped, ClientError> {
        self.document(Method::DELETE, &format!("/v1/groups/{group}?purge={purge}"), String::new()).await
    }

    /// What a group's shards wrote.
    pub async fn logs(&self, group: &GroupName, query: &LogsQuery) -> Result<Lines<LogRecord>, ClientError> {
        let mut path = format!("/v1/groups/{group}/logs?follow={}", query.follow);
        if let Some(tail) = query.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        if let Some(slot) = query.slot {
            path.push_str(&format!("&slot={slot}"));
        }
        Ok(Lines::new(self.answer(Method::GET, &path, String::new()).await?.into_body()))
    }

    /// Which slot a connection goes to, and why.
    pub async fn explain(&self, question: &ExplainQuestion) -> Result<Explanation, ClientError> {
        let client = percent_encoded(&question.client.to_string());
        let mut path = format!("/v1/groups/{}/explain?client={client}", question.group);
        if let Some(port) = question.port {
            path.push_str(&format!("&port={port}"));
        }
        if let Some(to) = question.to {
            path.push_str(&format!("&to={}", percent_encoded(&to.to_string())));
        }
        self.document(Method::GET, &path, String::new()).await
    }

    /// How far a group's last change is, once it was told to do this.
    pub async fn rollout(&self, group: &GroupName, action: RolloutAction) -> Result<RolloutStatus, ClientError> {
        let path = format!("/v1/groups/{group}/rollout");
        match action {
            RolloutAction::Status => self.document(Method::GET, &path, String::new()).await,
            action => self.document(Method::POST, &format!("{path}/{}", action.name()), String::new()).await,
        }
    }

    /// What slots have used up to now.
    pub async fn usage(&self) -> Result<UsageReport, ClientError> {
        self.document(Method::GET, "/v1/usage", String::new()).await
    }

    /// What happens from now on.
    pub async fn events(&self) -> Result<Lines<Event>, ClientError> {
        Ok(Lines::new(self.answer(Method::GET, "/v1/events", String::new()).await?.into_body()))
    }

    async fn document<T: DeserializeOwned>(&self, method: Method, path: &str, body: String) -> Result<T, ClientError> {
        let answer = self.answer(method, path, body).await?;
        serde_json::from_slice(&whole(answer.into_body()).await?).map_err(broken)
    }

    /// The answer to a request, if it is a success.
    async fn answer(&self, method: Method, path: &str, body: String) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the answer's body; what goes wrong is seen there.
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "sherd");
        let request = request.body(Full::new(Bytes::from(body))).map_err(broken)?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let body = whole(answer.into_body()).await?;
        let ErrorBody { error: detail } = serde_json::from_slice(&body).map_err(broken)?;
        Err(ClientError::Refused { detail })
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let socket = self.socket.clone();
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.socket)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        connected.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning { socket },
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket },
            _ => ClientError::Connect { socket, source },
        })
    }
}

async fn whole(body: Incoming) -> Result<Bytes, ClientError> {
    Ok(Limited::new(body, MAX_DOCUMENT_BYTES).collect().await.map_err(ClientError::Broken)?.to_bytes())
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Broken(error.into())
}

/// RFC 3986: what isn't unreserved is written as its bytes.
fn percent_encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
