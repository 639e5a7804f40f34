//! Metrics over HTTP: what promtool says of them, and what is in them.

#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#[path = "fake/agent.rs"]
mod fake_agent;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use fake_agent::{group, snapshot};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use sherd::control::Request;
use sherd::metrics::{self, ForeignTime, Sample, Sampler, Usage};
use sherd_topology::model::NodeId;
use sherd_topology::plan::SlotId;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

fn text() -> String {
    let usage = Usage {
        cpu_seconds: 1.5,
        throttled_seconds: Some(0.25),
        throttled_periods: Some(3),
        memory_bytes: Some(8192),
        memory_by_node: BTreeMap::from([(NodeId(0), 4096), (NodeId(1), 1024)]),
    };
    let foreign = ForeignTime { irq: 0.5, softirq: 1.0, steal: 2.0, relay: 4.0, others: 8.0 };
    let sample = Sample {
        at: Duration::from_secs(1),
        shards: BTreeMap::from([(std::process::id(), usage)]),
        foreign: BTreeMap::from([(("web".parse().unwrap(), SlotId(1)), foreign)]),
    };
    let groups = vec![group("web", ["ready", "waiting"]), group("api", ["ready", "ready"])];
    metrics::render(&snapshot(groups), &sample, &Sampler::new().of_self())
}

#[test]
fn promtool_finds_nothing_to_say() {
    let mut promtool = match Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(promtool) => promtool,
        Err(error) => {
            println!("SKIPPED promtool_finds_nothing_to_say: promtool (Debian's prometheus) can't be run: {error}");
            return;
        }
    };
    promtool.stdin.take().unwrap().write_all(text().as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn values_are_where_they_belong() {
    let text = text();
    for line in [
        "sherd_build_info{version=\"0.0.0\",agent=\"test\"} 1",
        "sherd_groups{state=\"ready\"} 1",
        "sherd_groups{state=\"degraded\"} 1",
        "sherd_slots{group=\"web\"} 2",
        "sherd_shards{group=\"web\",state=\"waiting\"} 1",
        "sherd_shards{group=\"web\",state=\"failed\"} 0",
        "sherd_shard_ready{group=\"web\",slot=\"1\"} 0",
        "sherd_shard_restarts_total{group=\"web\",slot=\"0\"} 0",
        "sherd_shard_cpu_seconds_total{group=\"web\",slot=\"0\"} 1.5",
        "sherd_shard_cpu_throttled_seconds_total{group=\"web\",slot=\"0\"} 0.25",
        "sherd_shard_cpu_throttled_periods_total{group=\"web\",slot=\"0\"} 3",
        "sherd_shard_memory_bytes{group=\"web\",slot=\"0\"} 8192",
        "sherd_slot_memory_bytes{group=\"web\",slot=\"0\",locality=\"local\"} 4096",
        "sherd_slot_memory_bytes{group=\"web\",slot=\"0\",locality=\"remote\"} 1024",
        "sherd_slot_foreign_cpu_seconds_total{group=\"web\",slot=\"1\",kind=\"irq\"} 0.5",
        "sherd_slot_foreign_cpu_seconds_total{group=\"web\",slot=\"1\",kind=\"softirq\"} 1",
        "sherd_slot_foreign_cpu_seconds_total{group=\"web\",slot=\"1\",kind=\"steal\"} 2",
        "sherd_slot_foreign_cpu_seconds_total{group=\"web\",slot=\"1\",kind=\"relay\"} 4",
        "sherd_slot_foreign_cpu_seconds_total{group=\"web\",slot=\"1\",kind=\"others\"} 8",
        "sherd_slot_healthy{group=\"web\",slot=\"0\"} 1",
        "sherd_slot_healthy{group=\"web\",slot=\"1\"} 0",
        "sherd_slot_held{group=\"web\",slot=\"1\"} 1",
        "sherd_slot_share_percent{group=\"web\",slot=\"0\"} 28",
        "sherd_slot_checks_total{group=\"web\",slot=\"0\",result=\"failed\"} 5",
        "sherd_slot_ejections_total{group=\"web\",slot=\"0\",reason=\"check\"} 6",
        "sherd_group_panic{group=\"web\"} 1",
        "sherd_connections_unanswered_total{group=\"web\",slot=\"0\"} 13",
        "sherd_pinning_errors_total{group=\"web\",slot=\"0\"} 1",
        "sherd_connections_active{group=\"web\",slot=\"0\"} 6",
        "sherd_relay_bytes_total{group=\"web\",slot=\"0\",direction=\"out\"} 9",
        "sherd_relay_errors_total{group=\"web\",slot=\"0\",cause=\"connect_refused\"} 12",
        "sherd_relay_connect_duration_seconds_bucket{group=\"web\",slot=\"0\",le=\"0.01\"} 3",
        "sherd_relay_connect_duration_seconds_bucket{group=\"web\",slot=\"0\",le=\"+Inf\"} 6",
        "sherd_relay_connect_duration_seconds_sum{group=\"web\",slot=\"0\"} 4.5",
        "sherd_steering_mode{group=\"web\",address=\"[::]:8080\",mode=\"classic\"} 1",
        "sherd_steering_picks_total{group=\"web\",address=\"[::]:8080\",slot=\"0\"} 5",
        "sherd_listener_queue_length{group=\"web\",address=\"[::]:8080\",slot=\"anchor\"} 4",
        "sherd_plan_changes_total{kind=\"added\"} 2",
        "sherd_reconcile_duration_seconds_count 6",
        "sherd_unready_ended_total{group=\"api\"} 1",
        "sherd_slot_connections_steered_total{group=\"web\",address=\"[::]:8080\",slot=\"0\"} 1",
        "sherd_slot_connections_open{group=\"web\",address=\"[::]:8080\",slot=\"0\"} 1",
        "sherd_slot_load{group=\"web\",address=\"[::]:8080\",slot=\"0\"} 5",
        "sherd_slot_hung{group=\"web\",slot=\"0\"} 1",
        "sherd_slot_hung_total{group=\"web\",slot=\"0\"} 2",
        "sherd_direct_bytes_total{group=\"web\",address=\"[::]:8080\",slot=\"0\",direction=\"in\"} 7",
        "sherd_direct_unanswered_total{group=\"web\",address=\"[::]:8080\",slot=\"0\"} 4",
        "sherd_direct_first_answer_seconds_sum{group=\"web\",address=\"[::]:8080\",slot=\"0\"} 4.5",
        "sherd_direct_rtt_seconds_sum{group=\"web\",address=\"[::]:8080\",slot=\"0\"} 4.5",
        "sherd_steering_deflected_total{group=\"web\",address=\"[::]:8080\"} 5",
        "sherd_delayed_listens_total 3",
        "sherd_contained_listeners_total 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(
        !text.contains("sherd_shard_cpu_seconds_total{group=\"web\",slot=\"1\"}"),
        "a slot without a shard has used nothing"
    );
}

async fn get(address: std::net::SocketAddr, path: &str) -> (u16, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(path).header("host", "x").body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn metrics_and_health_are_served_and_follow_the_loop() {
    let listener = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, mut inbox) = mpsc::channel(4);
    let (stop, stopped) = oneshot::channel::<()>();
    let server =
        tokio::spawn(metrics::serve(listener, requests, Arc::new(Sampler::new()), async { drop(stopped.await) }));
    let answers = tokio::spawn(async move {
        for _ in 0..2 {
            let Some(Request::Metrics { reply }) = inbox.recv().await else { panic!("not about metrics") };
            reply.send(snapshot(vec![group("web", ["ready", "ready"])])).unwrap();
        }
    });
    let (status, body) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    assert!(body.contains("sherd_shard_cpu_seconds_total{group=\"web\",slot=\"0\"}"), "{body}");
    assert_eq!(get(address, "/healthz").await, (200, "ok\n".to_owned()));
    answers.await.unwrap();
    // The loop is gone now.
    assert_eq!(get(address, "/healthz").await.0, 503);
    assert_eq!(get(address, "/metrics").await.0, 503);
    assert_eq!(get(address, "/other").await.0, 404);
    drop(stop);
    server.await.unwrap();
    // Another test's child has a copy of the listener for a moment, between fork and exec.
    let again = || std::net::TcpListener::bind(address).ok();
    sherd_testkit::eventually("the address is free again", Duration::from_secs(5), again);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let listener = metrics::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let error = metrics::bind(address).await.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
