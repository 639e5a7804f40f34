//! What a container writes, as the engine multiplexes it: read from an engine's socket, cut into lines of bounded length.

#![no_main]

use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    sync::{
        LazyLock,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use futures_util::StreamExt;
use libfuzzer_sys::fuzz_target;
use sherd::runtime::{
    Runtime, ShardId,
    docker::{DockerConfig, DockerRuntime, Timeouts},
};

/// Longest line that is given on, and what bytes that are no UTF-8 become at most.
const LINE_MAX: usize = 3 * 16 * 1024;

/// An engine that answers every question for logs with the next of these.
static ENGINE: LazyLock<(String, SyncSender<Vec<u8>>)> = LazyLock::new(|| {
    let path = tempfile::tempdir().expect("a directory").keep().join("engine");
    let listener = UnixListener::bind(&path).expect("a socket");
    let (written, next) = sync_channel::<Vec<u8>>(1);
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("a client");
            let request = request(&mut client);
            let (kind, body) = if request.contains("/logs?") {
                ("application/vnd.docker.multiplexed-stream", next.recv().expect("what a container wrote"))
            } else if request.contains("/_ping") {
                ("text/plain", b"OK".to_vec())
            } else {
                ("application/json", br#"{"Version":"28.0.0","ApiVersion":"1.43","MinAPIVersion":"1.24"}"#.to_vec())
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nApi-Version: 1.43\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            // Whoever has seen enough is gone.
            let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(&body));
        }
    });
    (format!("unix://{}", path.display()), written)
});

fn request(client: &mut impl Read) -> String {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|len| len == 1) {
        text.push(byte[0]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn runtime() -> DockerRuntime {
    DockerRuntime::new(DockerConfig {
        address: ENGINE.0.clone(),
        instance: "fuzz".to_owned(),
        timeouts: Timeouts { ask: Duration::from_secs(5), change: Duration::from_secs(5), ..Timeouts::default() },
        credentials: None,
        own_ids: None,
    })
}

fuzz_target!(|written: &[u8]| {
    thread_local! {
        static HERE: (tokio::runtime::Runtime, DockerRuntime) =
            (tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"), runtime());
    }
    ENGINE.1.send(written.to_vec()).expect("the engine runs");
    HERE.with(|(here, docker)| {
        here.block_on(async {
            let mut lines = docker.logs(&ShardId("shard".to_owned()), None, false);
            let (mut count, mut ended) = (0, false);
            while let Some(line) = lines.next().await {
                assert!(!ended, "there is more after an error");
                match line {
                    Ok(line) => {
                        count += 1;
                        assert!(line.text.len() <= LINE_MAX && !line.text.contains('\n'), "{} bytes", line.text.len());
                    }
                    Err(error) => {
                        assert!(!error.is_outage(), "a container's words make the engine look away: {error}");
                        ended = true;
                    }
                }
            }
            assert!(count <= written.len(), "{count} lines of {} bytes", written.len());
        });
    });
});
