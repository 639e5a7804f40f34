//! A reconcile loop that answers from fixed values, behind the real API server on a socket of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use sherd::control::{
    ApplyError, ExplainError, ExplainQuestion, LogLines, LogsError, Output, Request, RolloutAction, RolloutError,
    ShardLine, ShardLogs, StopError,
};
use sherd::metrics::{
    GroupCounters, HandoverCounters, Histogram, KernelCounters, PortCounters, RelayCounters, SlotCounters, Snapshot,
};
use sherd::spec::HostPort;
use sherd::status::{
    AgentStatus, Destination, Event, Explanation, GroupStatus, Level, Outcome, PlanReport, RolloutPhase, RolloutSlot,
    RolloutStage, RolloutStatus,
};
use sherd_topology::plan::{GroupName, SlotId};
use tokio::sync::{broadcast, mpsc, oneshot};

/// A fake agent; ends with its value.
pub struct FakeAgent {
    directory: tempfile::TempDir,
    /// What was asked for, in words.
    pub asked: Arc<Mutex<Vec<String>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FakeAgent {
    /// Starts one that reports `groups`.
    pub fn start(groups: Vec<GroupStatus>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let (socket, log) = (directory.path().join("sherd.sock"), Arc::clone(&asked));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = sherd::api::bind(&socket).unwrap();
                let (requests, inbox) = mpsc::channel(64);
                tokio::spawn(answer(inbox, groups, log));
                bound.send(()).unwrap();
                sherd::api::serve(listener, requests, Default::default(), async { drop(stopped.await) }).await;
            });
        });
        is_bound.recv_timeout(Duration::from_secs(10)).unwrap();
        Self { directory, asked, stop: Some(stop), thread: Some(thread) }
    }

    /// The directory of its socket.
    pub fn run_dir(&self) -> &Path {
        self.directory.path()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("sherd.sock")
    }

    /// What was asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn answer(mut inbox: mpsc::Receiver<Request>, groups: Vec<GroupStatus>, log: Arc<Mutex<Vec<String>>>) {
    let (events, _) = broadcast::channel(4);
    while let Some(request) = inbox.recv().await {
        let note = |text: String| log.lock().unwrap().push(text);
        match request {
            Request::Status { reply } => drop(reply.send(status(groups.clone()))),
            Request::Metrics { reply } => drop(reply.send(snapshot(groups.clone()))),
            Request::Topology { reply } => {
                let host = sherd_topology::discover::synthetic("package:1 core:2 pu:2").unwrap();
                drop(reply.send(Box::new(host)));
            }
            Request::Apply { spec, text, dry_run, reply } => {
                note(format!("apply {} dry_run={dry_run} bytes={}", spec.name, text.len()));
                drop(reply.send(apply(&spec.name, dry_run)));
            }
            Request::Plan { specs, reply } => {
                note(format!("plan {}", specs.len()));
                drop(reply.send(report(true)));
            }
            Request::Specification { group, reply } => {
                drop(reply.send((group.as_str() == "web").then(|| "# as written\nname = \"web\"\n".to_owned())));
            }
            Request::Stop { group, purge, reply } => {
                note(format!("stop {group} purge={purge}"));
                let known = groups.iter().any(|known| known.name == group);
                drop(reply.send(if known { Ok(()) } else { Err(StopError::UnknownGroup { group }) }));
            }
            Request::Logs { group, slot, tail, follow, reply } => {
                note(format!("logs {group} {slot:?} {tail:?} {follow}"));
                let known = groups.iter().find(|known| known.name == group);
                drop(reply.send(known.map(|group| logs(group, slot)).ok_or(LogsError::UnknownGroup { group })));
            }
            Request::Explain { question, reply } => {
                note(format!("explain {question:?}"));
                drop(reply.send(explanation(question)));
            }
            Request::Rollout { group, action, reply } => {
                note(format!("rollout {group} {action:?}"));
                drop(reply.send(rollout(group, action)));
            }
            Request::Subscribe { reply } => {
                drop(reply.send(events.subscribe()));
                for index in 0..10 {
                    let message = format!("event {index}");
                    let event =
                        Event { at_unix_ms: index, group: None, slot: None, kind: "plan".into(), state: None, message };
                    drop(events.send(event));
                }
            }
        }
    }
}

fn rollout(group: GroupName, action: RolloutAction) -> Result<RolloutStatus, RolloutError> {
    match (group.as_str(), action) {
        ("web", RolloutAction::Resume) => Err(RolloutError::NotUnderWay { group, action }),
        ("web", _) => Ok(RolloutStatus {
            phase: RolloutPhase::Progressing,
            reason: None,
            started_unix_s: 7,
            ended_unix_s: None,
            can_undo: true,
            slots: vec![RolloutSlot { slot: SlotId(0), stage: RolloutStage::Trial, stop_first: None }],
        }),
        _ => Err(RolloutError::UnknownGroup { group }),
    }
}

fn apply(group: &GroupName, dry_run: bool) -> Result<PlanReport, ApplyError> {
    match group.as_str() {
        "taken" => Err(ApplyError::PortTaken { address: "0.0.0.0:80".parse().unwrap(), by: "nginx, pid 7".to_owned() }),
        "full" => Err(ApplyError::Store {
            path: "/var/lib/sherd/groups/full.toml".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        }),
        _ => Ok(report(dry_run)),
    }
}

fn report(dry_run: bool) -> PlanReport {
    PlanReport { dry_run, layouts: Vec::new(), changes: Vec::new(), faults: Vec::new() }
}

fn logs(group: &GroupStatus, only: Option<SlotId>) -> Vec<ShardLogs> {
    let slots = group.slots.iter().filter(|slot| only.is_none_or(|only| only == slot.slot));
    let lines = |slot: SlotId| -> LogLines {
        let out = ShardLine { output: Output::Stdout, text: format!("out of {slot}") };
        let err = ShardLine { output: Output::Stderr, text: format!("err of {slot}") };
        stream::iter([Ok(out), Ok(err)]).boxed()
    };
    slots.map(|slot| ShardLogs { slot: slot.slot, lines: lines(slot.slot) }).collect()
}

/// The status of an agent with these groups.
pub fn status(groups: Vec<GroupStatus>) -> AgentStatus {
    AgentStatus {
        version: "0.0.0".to_owned(),
        pid: 1,
        instance: "test".to_owned(),
        started_unix_ms: 1_700_000_000_000,
        host: "host".to_owned(),
        usable_cpus: "0-3".parse().unwrap(),
        reserved_cpus: Default::default(),
        runtimes: serde_json::from_str(r#"[{"name": "docker", "available": true, "version": "1", "error": null}]"#)
            .unwrap(),
        groups,
        warnings: Vec::new(),
    }
}

/// A group of two slots in these states.
pub fn group(name: &str, states: [&str; 2]) -> GroupStatus {
    let slot = |index: usize| {
        let ready = states[index] == "ready";
        serde_json::json!({
            "slot": index, "cpus": index.to_string(), "mems": "0", "node": "0", "state": states[index], "path": "relay",
            "shard": format!("{index}").repeat(64), "pid": if ready { Some(std::process::id()) } else { None },
            "generation": 1, "since_unix_ms": 1_700_000_000_000_u64, "shard_started_unix_ms": 1_700_000_000_000_u64,
            "health": {"check": "http", "passing": ready, "ejected": null, "held": !ready, "checks_failed": 3,
                       "share_percent": 28},
            "restarts": 0, "ready": ready, "connections": 3, "accepted": 9,
            "cause": if ready { None } else { Some("exited with code 1") }, "last_error": null,
        })
    };
    let all_ready = states == ["ready", "ready"];
    serde_json::from_value(serde_json::json!({
        "name": name, "runtime": "docker", "unit": "core", "spec": "0", "message": null,
        "state": if all_ready { "ready" } else { "degraded" },
        "ports": [
            {"address": "0.0.0.0:8080", "container_port": 80, "policy": "connection", "steering": "ebpf",
             "steering_reason": null, "path": "relay", "error": null},
            {"address": "[::]:8080", "container_port": 80, "policy": "connection", "steering": "classic",
             "steering_reason": "bpf(2) is not permitted", "path": "relay", "error": null},
        ],
        "slots": [slot(0), slot(1)],
    }))
    .unwrap()
}

/// A snapshot with a value for every metric.
pub fn snapshot(groups: Vec<GroupStatus>) -> Snapshot {
    let histogram = Histogram { bounds_seconds: vec![0.001, 0.01], counts: vec![1, 2, 3], sum_seconds: 4.5 };
    let relay = RelayCounters {
        thread_id: None,
        accepted: 1,
        adopted: 2,
        handed_over: 3,
        resumed: 8,
        established: 4,
        unanswered: 13,
        closed: 5,
        active: 6,
        pending: 7,
        bytes_in: 8,
        bytes_out: 9,
        bytes_spliced: 10,
        wakeups: 11,
        errors: vec![("connect_refused", 12), ("limit", 0)],
        connect: histogram.clone(),
    };
    let kernel = KernelCounters {
        steered: 1,
        established: 3,
        closed: 2,
        migrated: 4,
        load: 5,
        bound: 6,
        bytes_in: 7,
        bytes_out: 8,
        retransmits: 9,
        unanswered: 4,
        first_answer: histogram.clone(),
        rtt: histogram.clone(),
        duration: histogram.clone(),
    };
    let names: Vec<GroupName> = groups.iter().map(|group| group.name.clone()).collect();
    Snapshot {
        slots: names
            .iter()
            .map(|group| SlotCounters {
                group: group.clone(),
                slot: SlotId(0),
                pinning_errors: 1,
                relay: Some(relay.clone()),
                kernel: vec![("[::]:8080".parse().unwrap(), kernel.clone())],
                hung: 2,
                is_hung: true,
                checks: (4, 5),
                ejections: vec![("check", 6)],
            })
            .collect(),
        ports: names
            .iter()
            .map(|group| PortCounters {
                group: group.clone(),
                address: "[::]:8080".parse().unwrap(),
                picks: vec![(SlotId(0), 5)],
                failovers: 1,
                anchored: 2,
                dropped: 3,
                migrated: 4,
                deflected: 5,
                unread: 0,
                foreign: 0,
                queued: vec![(None, 4), (Some(SlotId(0)), 5)],
            })
            .collect(),
        groups: names
            .iter()
            .map(|group| GroupCounters { group: group.clone(), overdue: 1, rollout_failures: 0, held: 2 })
            .collect(),
        status: status(groups),
        reconcile: histogram,
        reconcile_unsettled: 0,
        plan_changes: vec![("added", 2)],
        held_descriptors: Some(9),
        drifts: vec![(Some("web".parse().unwrap()), "cpuset", 2), (None, "engine", 1)],
        repairs: (2, 0.5),
        delayed_listens: 3,
        contained: Some(1),
        handover: HandoverCounters { handed: 5, taken_back: 4, lost: vec![("missing", 1)] },
    }
}

fn explanation(question: ExplainQuestion) -> Result<Explanation, ExplainError> {
    let ExplainQuestion { group, client, port, to } = question;
    let Some(port) = port else {
        return Err(ExplainError::WhichPort { group, ports: vec![HostPort(8080), HostPort(9090)] });
    };
    let goes = |slot, level| Destination {
        outcome: Outcome::Slot,
        slot: Some(SlotId(slot)),
        path: Some(sherd::status::Path::Direct),
        level: Some(level),
    };
    Ok(Explanation {
        group,
        client,
        server: (to.unwrap_or(client.ip()), port.0).into(),
        server_guessed: to.is_none(),
        published: format!("[::]:{port}").parse().unwrap(),
        policy: "connection".to_owned(),
        steering: sherd::status::Steering::Ebpf,
        hash: Some("0x2a".to_owned()),
        entry: Some(7),
        table_len: 65_537,
        first_choice: Some(SlotId(1)),
        in_service: vec![SlotId(0)],
        goes: Some(goes(0, Level::L3)),
        otherwise: None,
        by_cpu: Vec::new(),
    })
}
