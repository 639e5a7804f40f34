//! What Prometheus gets: names that promtool accepts, and a real Prometheus that scrapes them.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    traffic,
    world::{World, demo_spec, signal},
};

/// The agent's metrics address in tests.
const METRICS: &str = "127.0.0.1:9478";

/// What the agent tells Prometheus.
pub(crate) fn scrape() -> Option<String> {
    get(METRICS, "/metrics")
}

/// The sum of a metric's samples that have this label.
pub(crate) fn sum(text: &str, metric: &str, label: &str) -> f64 {
    let samples = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

fn get(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

#[test]
fn promtool_accepts_and_prometheus_scrapes() {
    let needed = [Need::Root, Need::Bpf, Need::Program("promtool"), Need::Program("prometheus")];
    if !needs("promtool_accepts_and_prometheus_scrapes", &needed) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("promtool_accepts_and_prometheus_scrapes");
        world.apply("web", &demo_spec("web", 2, "8080:80", ""));
        world.wait_ready("web", 2);
        for _ in 0..50 {
            traffic::ask("127.0.0.1:8080".parse().expect("an address")).expect("an answer");
        }
        let text = get(METRICS, "/metrics").expect("metrics");
        let mut promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool");
        promtool.stdin.take().expect("its input").write_all(text.as_bytes()).expect("it reads");
        let verdict = promtool.wait_with_output().expect("its verdict");
        assert!(verdict.status.success(), "{}\n{text}", String::from_utf8_lossy(&verdict.stderr));

        let settings = world.dir().join("prometheus.yml");
        let scrape = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: sherd\n  static_configs: [{{targets: ['{METRICS}']}}]\n"
        );
        fs::write(&settings, scrape).expect("its settings");
        let mut prometheus = Command::new("prometheus")
            .arg(format!("--config.file={}", settings.display()))
            .arg(format!("--storage.tsdb.path={}", world.dir().join("tsdb").display()))
            .arg("--web.listen-address=127.0.0.1:9090")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus");
        let query = "/api/v1/query?query=sum(sherd_connections_accepted_total)";
        let value = eventually("Prometheus has a sample", Duration::from_secs(60), || {
            let answer: serde_json::Value = serde_json::from_str(&get("127.0.0.1:9090", query)?).ok()?;
            answer["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()
        });
        signal(prometheus.id(), Signal::SIGTERM);
        prometheus.wait().expect("its end");
        assert!(value >= 50.0, "{value} connections");
    });
}
