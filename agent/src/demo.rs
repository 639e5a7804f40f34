//! The demonstration service behind `make run`: answers which shard it is and which CPUs it may use, as JSON.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sched::sched_getcpu;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Where it listens when nobody says.
const DEFAULT_PORT: u16 = 8080;
/// How long open connections may go on after SIGTERM.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves on `PORT` until SIGTERM or SIGINT, then lets requests in flight end.
pub fn run() -> anyhow::Result<()> {
    let port = match std::env::var("PORT") {
        Ok(port) => {
            port.parse().map_err(|_| anyhow::anyhow!("PORT is `{port}`: set it to a number from 1 to 65535"))?
        }
        Err(_) => DEFAULT_PORT,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(port))
}

async fn serve(port: u16) -> anyhow::Result<()> {
    let listener = listen(port).await?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (closing, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    // No descriptors left: accepting again at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let mut closing = closing.subscribe();
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            let mut connection = std::pin::pin!(connection);
            // What a client does to its connection is nobody's error.
            tokio::select! {
                ended = &mut connection => drop(ended),
                () = async { drop(closing.wait_for(|closing| *closing).await) } => {
                    connection.as_mut().graceful_shutdown();
                    drop(connection.await);
                }
            }
        });
    }
    drop(listener);
    closing.send_replace(true);
    let all_closed = async { while connections.join_next().await.is_some() {} };
    // Connections that are still open are cut by the exit.
    drop(tokio::time::timeout(CLOSE_TIMEOUT, all_closed).await);
    Ok(())
}

/// IPv6 and IPv4, or IPv4 where the host has no IPv6.
async fn listen(port: u16) -> std::io::Result<TcpListener> {
    match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await
        }
        listener => listener,
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let variable = |name: &str| std::env::var(name).ok();
    let number = |name: &str| variable(name).and_then(|value| value.parse::<u32>().ok());
    let body = json!({
        "group": variable("SHERD_GROUP"),
        "slot": number("SHERD_SLOT"),
        "shards": number("SHERD_SHARDS"),
        "pid": std::process::id(),
        "cpu": sched_getcpu().ok(),
        "cpus": allowed_cpus(),
        "path": request.uri().path(),
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The CPUs that this process may use, in the kernel's list format; read as text, since a `cpu_set_t` ends at 1024.
fn allowed_cpus() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    Some(list.trim().to_owned())
}
