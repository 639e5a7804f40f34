//! What an engine says of containers, read with types of our own: bollard's know a closed set of states, and one
//! container in a state of Podman's own ("stopped") would hide all others. Asks only; changes go through bollard.

use std::{collections::HashMap, time::Duration};

use bollard::errors::Error;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// Longest answer; a thousand containers are about a hundredth of it.
const ANSWER_MAX: usize = 64 * 1024 * 1024;

/// One of a listing.
#[derive(Debug, Deserialize)]
pub(super) struct Listed {
    #[serde(rename = "Id")]
    pub(super) id: Option<String>,
}

/// The part of a container's description that says whose it is and what it does.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Inspected {
    pub(super) id: String,
    pub(super) name: String,
    /// The id of what it was made from; what it was asked for by is in its configuration.
    pub(super) image: String,
    pub(super) state: State,
    pub(super) config: Config,
    pub(super) host_config: HostConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct State {
    pub(super) status: String,
    pub(super) pid: i64,
    pub(super) exit_code: i64,
    #[serde(rename = "OOMKilled")]
    pub(super) oom_killed: bool,
    pub(super) started_at: String,
    /// Of its HEALTHCHECK, where it has one.
    pub(super) health: Option<Health>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Health {
    pub(super) status: String,
    /// The last runs, newest last.
    pub(super) log: Option<Vec<Run>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Run {
    pub(super) output: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    pub(super) labels: Option<HashMap<String, String>>,
    /// A list of words; an engine that says it otherwise must not hide its containers.
    pub(super) entrypoint: serde_json::Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct HostConfig {
    pub(super) cpuset_cpus: String,
    pub(super) cpuset_mems: String,
}

/// The answer to a GET. Errors are bollard's, so that they are judged like all others.
pub(super) async fn get<T: DeserializeOwned>(address: &str, target: &str) -> Result<T, Error> {
    match address.split_once("://") {
        Some(("unix", path)) => ask(UnixStream::connect(path).await?, target).await,
        Some((_, host)) => ask(TcpStream::connect(host).await?, target).await,
        None => Err(Error::UnsupportedURISchemeError { uri: address.to_owned() }),
    }
}

async fn ask<T: DeserializeOwned>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &str,
) -> Result<T, Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(target).header(header::HOST, "engine").body(Empty::<Bytes>::new())?;
    // Both at once: the connection moves only while it is polled, and must not outlive the question.
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        Ok((status, body.map_err(broken_off)?.to_bytes()))
    };
    let mut answer = std::pin::pin!(answer);
    let (status, body) = tokio::select! {
        answer = &mut answer => answer,
        // The connection may end with the last byte of the answer, or before its first.
        ended = connection => match tokio::time::timeout(Duration::from_secs(1), answer).await {
            Ok(answer) => answer,
            Err(_) => Err(ended.err().map_or_else(|| closed().into(), Error::from)),
        },
    }?;
    if !status.is_success() {
        return Err(Error::DockerResponseServerError { status_code: status.as_u16(), message: message(&body) });
    }
    serde_json::from_slice(&body)
        .map_err(|error| Error::JsonDataError { message: error.to_string(), column: error.column() })
}

fn broken_off(error: Box<dyn std::error::Error + Send + Sync>) -> Error {
    match error.downcast::<hyper::Error>() {
        Ok(error) => (*error).into(),
        Err(error) => Error::JsonDataError { message: error.to_string(), column: 0 },
    }
}

fn closed() -> std::io::Error {
    std::io::ErrorKind::UnexpectedEof.into()
}

/// Engines wrap their words in JSON, proxies don't.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Wrapped {
        message: String,
    }
    let wrapped: Result<Wrapped, _> = serde_json::from_slice(body);
    wrapped.map_or_else(|_| String::from_utf8_lossy(body).into_owned(), |wrapped| wrapped.message)
}

/// For a value in a query.
pub(super) fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(encode).collect()
}
