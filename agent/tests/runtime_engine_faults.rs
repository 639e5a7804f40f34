//! Engines that are not there, hang, break off, or answer nonsense: each is an error that says so, in bounded time.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt};
use sherd::runtime::{
    LogLine, Progress, Runtime, RuntimeError, ShardId,
    docker::{DockerConfig, DockerRuntime, Timeouts},
};

#[path = "runtime/support.rs"]
#[allow(dead_code, reason = "shared with the tests of real runtimes")]
mod support;

use support::{block_on, cpus, order, slot};

const SHORT: Duration = Duration::from_millis(300);
const VERSION: &str = r#"{"Version": "99", "ApiVersion": "1.41", "Components": [{"Name": "Fake", "Version": "99"}]}"#;

/// What a fake does with a request, given its path without the version.
type Behaviour = fn(&str, &mut UnixStream);

/// An engine on a socket of its own; its thread ends with the test's process.
struct Fake {
    directory: tempfile::TempDir,
}

impl Fake {
    fn new(behaviour: Behaviour) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("engine.sock")).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream, behaviour));
            }
        });
        Self { directory }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("engine.sock")
    }

    fn runtime(&self) -> DockerRuntime {
        runtime(&format!("unix://{}", self.socket().display()))
    }
}

fn runtime(address: &str) -> DockerRuntime {
    let timeouts = Timeouts { ask: SHORT, change: SHORT, pull_stall: SHORT };
    DockerRuntime::new(DockerConfig {
        address: address.to_owned(),
        instance: "fake".into(),
        timeouts,
        credentials: None,
        own_ids: None,
    })
}

fn serve(mut stream: UnixStream, behaviour: Behaviour) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().trim_start_matches("/v1.41");
    behaviour(path, &mut stream);
}

fn answer(stream: &mut UnixStream, status: u16, body: &str) {
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body.as_bytes());
}

fn hang(stream: &mut UnixStream) {
    // Until the client goes away.
    while stream.read(&mut [0; 1024]).is_ok_and(|len| len > 0) {}
}

/// `Ok` for a negotiated version, then `rest`.
macro_rules! after_version {
    (|$path:ident, $stream:ident| $rest:expr) => {
        |$path, $stream| if $path.starts_with("/version") { answer($stream, 200, VERSION) } else { $rest }
    };
}

#[track_caller]
fn check_list(behaviour: Behaviour, expected: fn(&RuntimeError) -> bool) {
    let fake = Fake::new(behaviour);
    let begin = Instant::now();
    let error = block_on(fake.runtime().list()).unwrap_err();
    assert!(expected(&error), "{error:?}");
    assert!(error.is_outage(), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let message = error.to_string();
    assert!(message.contains("engine.sock"), "it names the engine: {message}");
}

fn is_nonsense(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Nonsense { .. })
}

fn is_gone(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::EngineGone { .. })
}

fn is_timed_out(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::TimedOut { .. })
}

#[test]
fn an_engine_that_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let error = block_on(runtime(&format!("unix://{}", socket.display())).list()).unwrap_err();
    assert!(is_gone(&error), "{error:?}");
    // The socket of an engine that was killed is still a file.
    drop(UnixListener::bind(&socket).unwrap());
    let error = block_on(runtime(&format!("unix://{}", socket.display())).list()).unwrap_err();
    assert!(is_gone(&error), "{error:?}");
    let error = block_on(runtime("tcp://127.0.0.1:1").list()).unwrap_err();
    assert!(is_gone(&error), "{error:?}");
    for address in ["/var/run/docker.sock", "ssh://host", ""] {
        let error = block_on(runtime(address).list()).unwrap_err();
        assert!(matches!(error, RuntimeError::BadEngineAddress { .. }), "{address}: {error:?}");
    }
}

#[test]
fn an_engine_that_hangs() {
    check_list(|_, stream| hang(stream), is_timed_out);
    check_list(after_version!(|_path, stream| hang(stream)), is_timed_out);
    // Answers the head, and then no body.
    check_list(
        after_version!(|_path, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[");
            hang(stream);
        }),
        is_timed_out,
    );
}

#[test]
fn an_engine_that_breaks_off() {
    check_list(|_, _| {}, is_gone);
    check_list(after_version!(|_path, _stream| {}), is_gone);
    check_list(
        after_version!(|_path, stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[");
        }),
        is_gone,
    );
}

#[test]
fn an_engine_that_talks_nonsense() {
    check_list(|_, stream| drop(stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")), is_nonsense);
    check_list(|_, stream| answer(stream, 200, "<html>"), is_nonsense);
    check_list(|_, stream| answer(stream, 200, "{}"), is_nonsense);
    check_list(|_, stream| answer(stream, 200, r#"{"ApiVersion": "new"}"#), is_nonsense);
    check_list(after_version!(|_path, stream| answer(stream, 200, "not json")), is_nonsense);
    check_list(after_version!(|_path, stream| answer(stream, 200, "[{\"Id\": 7}]")), is_nonsense);
    check_list(after_version!(|_path, stream| answer(stream, 200, "[")), is_nonsense);
    check_list(after_version!(|_path, stream| answer(stream, 200, "")), is_nonsense);
    check_list(
        |_, stream| answer(stream, 200, r#"{"ApiVersion": "1.40"}"#),
        |error| matches!(error, RuntimeError::EngineTooOld { found, .. } if found == "1.40"),
    );
}

#[test]
fn an_engine_that_refuses() {
    let fake = Fake::new(after_version!(|_path, stream| answer(stream, 500, r#"{"message": "no space left"}"#)));
    let error = block_on(fake.runtime().list()).unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Refused { status: 500, message, .. } if message == "no space left"),
        "{error:?}"
    );
    assert!(!error.is_outage());
    let fake = Fake::new(after_version!(|_path, stream| answer(stream, 403, "a proxy says no")));
    let error = block_on(fake.runtime().list()).unwrap_err();
    assert!(matches!(error, RuntimeError::Denied { .. }), "{error:?}");
}

#[test]
fn nonsense_about_one_container_is_foreign_or_an_error_never_a_shard() {
    let fake = Fake::new(after_version!(|path, stream| if path.starts_with("/containers/json") {
        answer(stream, 200, r#"[{"Id": "a"}, {"Id": "b"}, {}]"#);
    } else if path.starts_with("/containers/a/") {
        answer(stream, 200, "{}");
    } else {
        answer(stream, 404, r#"{"message": "gone"}"#);
    }));
    let listing = block_on(fake.runtime().list()).unwrap();
    assert_eq!((listing.shards.len(), listing.foreign.len()), (0, 1), "{listing:?}");
}

#[test]
fn streams_end_with_an_error_when_the_engine_goes() {
    let fake = Fake::new(after_version!(|path, stream| if path.starts_with("/_ping") {
        answer(stream, 200, "OK");
    } else {
        let event = r#"{"Type": "container", "Action": "start", "Actor": {"ID": "x", "Attributes": {"name": "y"}}}"#;
        let chunk =
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{event}\n\r\n", event.len() + 1);
        let _ = stream.write_all(chunk.as_bytes());
    }));
    block_on(async {
        let runtime = fake.runtime();
        let mut events = runtime.events();
        let first = events.next().await.unwrap().unwrap();
        assert_eq!((first.key, first.kind.as_str()), (None, "start"));
        let error = events.next().await.unwrap().unwrap_err();
        assert!(is_gone(&error), "{error:?}");
    });
    let fake = Fake::new(after_version!(|_path, stream| hang(stream)));
    block_on(async {
        let runtime = fake.runtime();
        let id = ShardId("x".into());
        let lines: Result<Vec<LogLine>, _> = runtime.logs(&id, None, false).try_collect().await;
        assert!(is_timed_out(&lines.unwrap_err()));
    });
}

#[test]
fn an_engine_that_comes_back_is_asked_anew() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("engine.sock");
    let runtime = runtime(&format!("unix://{}", socket.display()));
    block_on(async {
        assert!(is_gone(&runtime.list().await.unwrap_err()));
        let fake = Fake::new(after_version!(|_path, stream| answer(stream, 200, "[]")));
        std::os::unix::fs::symlink(fake.socket(), &socket).unwrap();
        assert!(runtime.list().await.unwrap().shards.is_empty());
        assert_eq!(runtime.version().await.unwrap(), "Fake 99, API 1.41");
        std::fs::remove_file(&socket).unwrap();
        assert!(is_gone(&runtime.list().await.unwrap_err()));
    });
}

#[test]
fn calls_about_one_shard_are_bounded_too() {
    let fake = Fake::new(after_version!(|_path, stream| hang(stream)));
    let runtime = fake.runtime();
    let toml = "name = \"web\"\n[container]\nimage = \"x\"\n";
    let order = order(toml, slot(0, &cpus()[..1]), 1);
    block_on(async {
        let id = ShardId("x".into());
        assert!(is_timed_out(&runtime.create(&order).await.unwrap_err()));
        assert!(is_timed_out(&runtime.start(&id).await.unwrap_err()));
        assert!(is_timed_out(&runtime.stop(&id, Duration::ZERO).await.unwrap_err()));
        assert!(is_timed_out(&runtime.remove(&id).await.unwrap_err()));
        assert!(is_timed_out(&runtime.update_cpus(&id, &order.slot).await.unwrap_err()));
        let progress = |_: Progress| {};
        assert!(is_timed_out(&runtime.prepare(&order.spec, &progress).await.unwrap_err()));
    });
}

#[test]
fn a_pull_reports_and_explains() {
    fn pull(path: &str, stream: &mut UnixStream) {
        let says = |stream: &mut UnixStream, words: &str| answer(stream, 200, words);
        match path {
            path if path.starts_with("/version") => answer(stream, 200, VERSION),
            path if path.contains("fromImage=quiet") => hang(stream),
            path if path.contains("fromImage=denied") => {
                answer(stream, 404, r#"{"message": "pull access denied for x"}"#);
            }
            path if path.contains("fromImage=unknown") => answer(stream, 404, r#"{"message": "manifest unknown"}"#),
            path if path.contains("fromImage=broken") => {
                says(
                    stream,
                    "{\"status\": \"Downloading\", \"id\": \"l1\", \"progressDetail\": {\"current\": 1, \"total\": 2}}\n{\"errorDetail\": {\"message\": \"connection reset\"}, \"error\": \"connection reset\"}\n",
                );
            }
            path if path.contains("fromImage=liar") => says(stream, "{\"status\": \"Done\"}\n"),
            _ => answer(stream, 404, r#"{"message": "No such image"}"#),
        }
    }
    let fake = Fake::new(pull);
    let runtime = fake.runtime();
    let check = |image: &str, expected: fn(&RuntimeError) -> bool| {
        let toml = format!("name = \"web\"\n[container]\nimage = \"{image}\"\n");
        let order = order(&toml, slot(0, &cpus()[..1]), 1);
        let seen = std::sync::Mutex::new(Vec::new());
        let progress = |step: Progress| seen.lock().unwrap().push(step);
        let error = block_on(runtime.prepare(&order.spec, &progress)).unwrap_err();
        assert!(expected(&error), "{image}: {error:?}");
        seen.into_inner().unwrap()
    };
    check("quiet", is_timed_out);
    check("denied", |error| matches!(error, RuntimeError::RegistryDenied { .. }));
    check("unknown", |error| matches!(error, RuntimeError::NoSuchImage { .. }));
    check("liar", |error| matches!(error, RuntimeError::NoSuchImage { .. }));
    let seen = check("broken", |error| matches!(error, RuntimeError::PullFailed { .. }));
    assert_eq!(seen, [Progress { subject: "l1".into(), action: "Downloading".into(), bytes: Some((1, 2)) }]);
}
