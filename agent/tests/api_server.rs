//! The API over its real socket, with a fake reconcile loop behind it: answers, and what bad clients can't do.

#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#[path = "fake/agent.rs"]
mod fake_agent;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use fake_agent::{FakeAgent, group};
use serde_json::Value;

const SPEC: &str = "name = \"web\"\n[container]\nimage = \"nginx\"\n";

fn agent() -> FakeAgent {
    FakeAgent::start(vec![group("web", ["ready", "ready"]), group("bad", ["ready", "failed"])])
}

/// Sends bytes and reads until the server closes.
fn exchange(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The server may have answered and closed before it has read everything.
    drop(stream.write_all(request));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Status and body of a request.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: sherd\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let answer = exchange(socket, request.as_bytes());
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (status, if head.contains("transfer-encoding: chunked") { dechunked(body) } else { body.to_owned() })
}

fn dechunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        text.push_str(&rest[..length]);
        body = &rest[length + 2..];
    }
    text
}

fn check_error(socket: &Path, method: &str, path: &str, body: &str, status: u16, code: &str) -> Value {
    let (found, body) = ask(socket, method, path, body);
    let error: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"));
    assert_eq!((found, error["error"]["code"].as_str()), (status, Some(code)), "{method} {path}: {body}");
    assert!(!error["error"]["message"].as_str().unwrap().is_empty(), "{path}");
    error["error"].clone()
}

#[test]
fn every_question_has_its_answer() {
    let agent = agent();
    let get = |path: &str| {
        let (status, body) = ask(&agent.socket(), "GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    };
    let json = |path: &str| serde_json::from_str::<Value>(&get(path)).unwrap();
    assert_eq!(json("/v1/status")["groups"][0]["slots"][1]["cpus"], "1");
    assert_eq!(json("/v1/groups")[1]["name"], "bad");
    assert_eq!(json("/v1/groups/web")["ports"][1]["steering"], "classic");
    assert!(json("/v1/topology").is_object());
    assert_eq!(get("/v1/groups/web/specification"), "# as written\nname = \"web\"\n");
    let document = json("/openapi.json");
    assert_eq!(document["info"]["title"], "sherd");
    let health = &document["components"]["schemas"]["HealthStatus"]["properties"];
    assert!(health["ejected"].is_object() && health["held"].is_object(), "{health}");

    let lines: Vec<Value> =
        get("/v1/groups/web/logs?tail=5").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(
        (&lines[1]["slot"], &lines[1]["output"], &lines[1]["text"]),
        (&0.into(), &"stderr".into(), &"err of 0".into())
    );

    assert_eq!(ask(&agent.socket(), "PUT", "/v1/groups/web?dry-run", SPEC).0, 200);
    assert_eq!(ask(&agent.socket(), "PUT", "/v1/groups/web?dry-run=false&file=a%20b", SPEC).0, 200);
    assert_eq!(ask(&agent.socket(), "DELETE", "/v1/groups/web?purge=true", "").0, 200);
    let plan = serde_json::json!({"specs": [{"file": "web.toml", "text": SPEC}]}).to_string();
    assert_eq!(ask(&agent.socket(), "POST", "/v1/plan", &plan).0, 200);
    let bytes = SPEC.len();
    assert_eq!(
        agent.asked(),
        [
            "logs web None Some(5) false".to_owned(),
            format!("apply web dry_run=true bytes={bytes}"),
            format!("apply web dry_run=false bytes={bytes}"),
            "stop web purge=true".to_owned(),
            "plan 1".to_owned(),
        ]
    );
}

#[test]
fn every_refusal_says_what_to_do() {
    let agent = agent();
    let socket = agent.socket();
    check_error(&socket, "GET", "/", "", 404, "unknown-path");
    check_error(&socket, "POST", "/v1/status", "", 405, "unknown-method");
    check_error(&socket, "GET", "/v1/groups/nope", "", 404, "unknown-group");
    check_error(&socket, "GET", "/v1/groups/..%2f..", "", 404, "unknown-group");
    check_error(&socket, "GET", "/v1/groups/nope/logs", "", 404, "unknown-group");
    check_error(&socket, "DELETE", "/v1/groups/nope", "", 404, "unknown-group");
    check_error(&socket, "DELETE", "/v1/groups/web?purge=maybe", "", 400, "bad-request");
    check_error(&socket, "DELETE", "/v1/groups/web?prune", "", 400, "bad-request");
    check_error(&socket, "GET", "/v1/groups/web/logs?tail=-1", "", 400, "bad-request");
    check_error(&socket, "POST", "/v1/plan", "{", 400, "bad-request");
    check_error(&socket, "POST", "/v1/plan", "{\"specs\": [], \"x\": 1}", 400, "bad-request");
    check_error(&socket, "PUT", "/v1/groups/taken", &SPEC.replace("web", "taken"), 409, "port-taken");
    let error = check_error(&socket, "PUT", "/v1/groups/full", &SPEC.replace("web", "full"), 500, "not-stored");
    assert!(error["message"].as_str().unwrap().contains("/groups/full.toml"), "{error}");
    let error = check_error(&socket, "PUT", "/v1/groups/api", SPEC, 422, "bad-specification");
    assert_eq!(error["faults"][0]["key"], "name");
    let error = check_error(&socket, "PUT", "/v1/groups/web?file=my.toml", "a = 1\nb = 2\n", 422, "bad-specification");
    assert_eq!((&error["faults"][0]["file"], &error["faults"][0]["line"]), (&"my.toml".into(), &1.into()));
    assert!(error["faults"].as_array().unwrap().len() >= 4, "{error}");
}

#[test]
fn garbage_and_huge_bodies_are_refused_and_the_next_client_is_served() {
    let agent = agent();
    let socket = agent.socket();
    let huge = "#".repeat(sherd::api::MAX_BODY_BYTES + 1);
    check_error(&socket, "PUT", "/v1/groups/web", &huge, 413, "long-body");
    let mut latin =
        b"PUT /v1/groups/web HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n".to_vec();
    latin.extend([0xff, 0xfe]);
    assert!(exchange(&socket, &latin).starts_with("HTTP/1.1 400"), "bytes that are not UTF-8");
    for garbage in
        [&b"\0\0\0\0\r\n\r\n"[..], b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n"]
    {
        let answer = exchange_then_close(&socket, garbage);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let long_head = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(100_000));
    let answer = exchange(&socket, long_head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(ask(&socket, "GET", "/v1/status", "").0, 200);
    assert_eq!(agent.asked(), [""; 0], "nothing of it reached the loop");
}

/// Sends bytes, closes the way to the server and reads what it says.
fn exchange_then_close(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    drop(stream.write_all(request));
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn half_requests_are_cut_off_and_hold_nobody_up() {
    let agent = agent();
    let socket = agent.socket();
    let mut halves: Vec<UnixStream> =
        (0..sherd::api::MAX_CONNECTIONS).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for stream in &mut halves {
        stream.write_all(b"GET /v1/status HT").unwrap();
    }
    // All connections are taken: this one waits in the backlog until the halves are cut off.
    let began = Instant::now();
    assert_eq!(ask(&socket, "GET", "/v1/status", "").0, 200);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    for stream in &mut halves {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the server closes it");
    }
}

#[test]
fn many_clients_at_once() {
    let agent = agent();
    let socket = agent.socket();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(ask(&socket, "GET", "/v1/groups/web", "").0, 200);
                }
            });
        }
    });
}

#[test]
fn events_arrive_and_a_slow_reader_is_told_what_it_lost() {
    let agent = agent();
    let mut stream = UnixStream::connect(agent.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut read = String::new();
    while !read.contains("event 9") {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{read}");
        read.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    // The fake's queue has four places and ten events.
    assert!(read.contains("\"kind\":\"lagged\"") && read.contains("6 events were lost"), "{read}");
}

#[test]
fn the_socket_is_private_and_of_one_agent() {
    let agent = agent();
    let socket = agent.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    assert!(matches!(sherd::api::bind(&socket), Err(sherd::api::BindError::Alive { .. })));
}

#[tokio::test]
async fn the_socket_is_removed_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sherd.sock");
    let (requests, _inbox) = tokio::sync::mpsc::channel(1);
    sherd::api::serve(sherd::api::bind(&socket).unwrap(), requests, Default::default(), std::future::ready(())).await;
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_dead_agents_socket_is_replaced_and_no_other_file_is() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sherd.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    drop(sherd::api::bind(&socket).unwrap());
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "precious").unwrap();
    assert!(matches!(sherd::api::bind(&socket), Err(sherd::api::BindError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
    let missing = directory.path().join("none/sherd.sock");
    assert!(matches!(sherd::api::bind(&missing), Err(sherd::api::BindError::Make { .. })));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn a_loop_that_is_gone_or_full_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("sherd.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (requests, inbox) = tokio::sync::mpsc::channel(1);
    let listener = {
        let _guard = runtime.enter();
        sherd::api::bind(&socket).unwrap()
    };
    runtime.spawn(sherd::api::serve(listener, requests.clone(), Default::default(), std::future::pending()));
    let (reply, _answer) = tokio::sync::oneshot::channel();
    requests.try_send(sherd::control::Request::Status { reply }).unwrap();
    check_error(&socket, "GET", "/v1/status", "", 503, "busy");
    drop(inbox);
    check_error(&socket, "GET", "/v1/status", "", 503, "stopping");
    runtime.shutdown_background();
}
