//! Envoy as a TCP proxy: one worker pinned to each CPU, each with a reuseport listener of its own.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{
    Contestant as _, Site, StartError, free_address,
    install::envoy_candidates,
    peer::{Peer, Plan},
};
use crate::measure::pin_thread;

/// Its name in tables.
pub const NAME: &str = "envoy";

/// Envoy's limit is of connections that a worker may have to a cluster; by default 1024, and what is above is closed.
const SLACK_CONNECTIONS: usize = 4096;
/// Its workers' names begin with this (`wrk:worker_0`); the kernel cuts names at 15 bytes.
const WORKER: &str = "wrk:worker_";
/// How long they may take to be there and to have their names.
const WORKERS_DEADLINE: Duration = Duration::from_secs(5);

/// Starts it. `program` is used where given, else the installed one.
pub fn start(site: &Site<'_>, program: Option<&Path>) -> Result<Peer, StartError> {
    start_as(NAME, site, program)
}

/// The same under another name, where its shards are others.
pub fn start_as(name: &'static str, site: &Site<'_>, program: Option<&Path>) -> Result<Peer, StartError> {
    let fail = |action: &str, source| StartError::Failed { name: name.into(), action: action.into(), source };
    let (program, version) = find(name, site.peers, program)?;
    let address = free_address().map_err(|source| fail("be given a port", source))?;
    let workers = site.cpus.len().to_string();
    // What doesn't end in .yaml is read as JSON.
    let path = Peer::configuration_path(name, site);
    let plan = Plan {
        name,
        version,
        program,
        address,
        configuration: configuration(address, site),
        arguments: vec![
            "--config-path".into(),
            path.into(),
            "--concurrency".into(),
            workers.into(),
            // Hot restart is by shared memory that outlives the process, and by abstract sockets that all Envoys share.
            "--disable-hot-restart".into(),
            "--log-level".into(),
            "warning".into(),
        ],
    };
    let peer = Peer::start(plan, site)?;
    pin_workers_once_there(peer.balancer()[0], site.cpus).map_err(|source| fail("have its workers pinned", source))?;
    Ok(peer)
}

/// Whether there is one that runs, in `peers` or on the PATH.
pub fn is_installed(peers: &Path) -> bool {
    find(NAME, peers, None).is_ok()
}

fn find(name: &'static str, peers: &Path, given: Option<&Path>) -> Result<(PathBuf, String), StartError> {
    let candidates = given.map_or_else(|| envoy_candidates(peers), |given| vec![given.to_owned()]);
    let found = candidates.iter().find_map(|program| Some((program.clone(), version(program)?)));
    found.ok_or_else(|| StartError::Missing {
        name,
        reason: format!("none of {candidates:?} runs"),
        install: "sherd-bench install".into(),
    })
}

/// `envoy  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL`.
fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    version_of(&text)
}

fn version_of(text: &str) -> Option<String> {
    let (_, build) = text.lines().find_map(|line| line.split_once("version: "))?;
    build.split('/').nth(1).map(str::to_owned)
}

/// Envoy has no option for it: by itself it leaves its workers to the scheduler.
fn pin_workers_once_there(envoy: Pid, cpus: &[usize]) -> io::Result<()> {
    let start = Instant::now();
    loop {
        let pinned = pin_workers(envoy, cpus)?;
        if pinned == cpus.len() {
            return Ok(());
        }
        if start.elapsed() > WORKERS_DEADLINE {
            let found = format!("{pinned} of its threads are named {WORKER}…, not {}", cpus.len());
            return Err(io::Error::new(io::ErrorKind::TimedOut, found));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Gives how many there are.
fn pin_workers(envoy: Pid, cpus: &[usize]) -> io::Result<usize> {
    let mut pinned = 0;
    for task in fs::read_dir(format!("/proc/{envoy}/task"))? {
        let task = task?;
        let name = fs::read_to_string(task.path().join("comm"))?;
        let Some(number) = name.trim().strip_prefix(WORKER).and_then(|number| number.parse::<usize>().ok()) else {
            continue;
        };
        let thread = task.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
        let cpu = cpus.get(number).ok_or_else(|| io::Error::other(format!("there is a worker {number}")))?;
        pin_thread(Pid::from_raw(thread), &[*cpu])?;
        pinned += 1;
    }
    Ok(pinned)
}

fn configuration(address: SocketAddr, site: &Site<'_>) -> String {
    let endpoint = |shard: &SocketAddr| json!({ "endpoint": { "address": socket_address(*shard) } });
    let connections = site.connections + SLACK_CONNECTIONS;
    let configuration = json!({
        "static_resources": {
            "listeners": [{
                "name": "bench",
                "address": socket_address(address),
                "enable_reuse_port": true,
                "tcp_backlog_size": 4096,
                "filter_chains": [{ "filters": [{
                    "name": "envoy.filters.network.tcp_proxy",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                        "stat_prefix": "bench",
                        "cluster": "shards",
                        "idle_timeout": "600s",
                    },
                }] }],
            }],
            "clusters": [{
                "name": "shards",
                "type": "STATIC",
                "connect_timeout": "5s",
                "lb_policy": "ROUND_ROBIN",
                "circuit_breakers": { "thresholds": [{
                    "max_connections": connections,
                    "max_pending_requests": connections,
                    "max_requests": connections,
                }] },
                "load_assignment": {
                    "cluster_name": "shards",
                    "endpoints": [{ "lb_endpoints": site.shards.iter().map(endpoint).collect::<Vec<_>>() }],
                },
            }],
        },
    });
    serde_json::to_string_pretty(&configuration).expect("texts and numbers are JSON")
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_envoy_is_told() {
        let site = Site {
            scratch: Path::new("/s"),
            cpus: &[0, 3],
            shards: &[SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2))],
            connections: 1000,
            peers: Path::new("/p"),
        };
        let text = configuration(SocketAddr::from(([127, 0, 0, 1], 80)), &site);
        let told: Value = serde_json::from_str(&text).expect("JSON");
        let resources = &told["static_resources"];
        let listener = &resources["listeners"][0];
        assert_eq!(listener["address"]["socket_address"]["port_value"], 80);
        assert_eq!(listener["enable_reuse_port"], true);
        let cluster = &resources["clusters"][0];
        assert_eq!(cluster["circuit_breakers"]["thresholds"][0]["max_connections"], 5096);
        let endpoints = &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"];
        assert_eq!(endpoints[1]["endpoint"]["address"]["socket_address"]["port_value"], 2);
    }

    #[test]
    fn the_version_is_between_commit_and_state() {
        let text = "\n/usr/bin/envoy  version: 9ba3ac4d/1.40.0/Clean/RELEASE/BoringSSL\n\n";
        assert_eq!(version_of(text).as_deref(), Some("1.40.0"));
        assert_eq!(version_of("Usage: envoy"), None);
    }
}
