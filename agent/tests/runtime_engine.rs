//! The runtime of containers against real engines, Docker and Podman: every test runs once on each that is there.

use std::{path::Path, time::Duration};

use futures_util::{StreamExt, TryStreamExt};
use serde_json::json;
use sherd::{
    metrics::UsageReader,
    runtime::{LogLine, LogOutput, Runtime, RuntimeError, ShardState, ShimOrder, docker::describe_engine, verify},
    shim,
};
use sherd_shim::hello::Hello;
use sherd_testkit::{Need, docker_socket, needs, podman_socket};

#[path = "runtime/door.rs"]
mod door;
#[path = "runtime/engine.rs"]
mod engine;
#[path = "runtime/support.rs"]
mod support;

use door::Door;
use engine::Engine;
use support::{block_on, cpus, eventually, exit_code, find, lines, order, pairs, running_pid, slot, state};

const GRACE: Duration = Duration::from_secs(5);

/// One test per engine.
macro_rules! on_each_engine {
    ($($name:ident),* $(,)?) => {
        mod docker {
            $(#[test]
            fn $name() {
                if super::needs(concat!("docker::", stringify!($name)), &[super::Need::Root, super::Need::Docker]) {
                    let engine = super::Engine::new(super::docker_socket(), &stringify!($name).replace('_', "-"));
                    super::block_on(super::$name(&engine));
                }
            })*
        }
        mod podman {
            $(#[test]
            fn $name() {
                if super::needs(concat!("podman::", stringify!($name)), &[super::Need::Root, super::Need::Podman]) {
                    let engine = super::Engine::new(super::podman_socket(), &stringify!($name).replace('_', "-"));
                    super::block_on(super::$name(&engine));
                }
            })*
        }
    };
}

on_each_engine!(
    a_shard_lives_where_its_slot_says,
    what_the_operator_sets_is_there,
    the_shim_becomes_the_image_s_program,
    a_running_shard_is_moved,
    ends_are_reported,
    images_that_are_not_there,
    forged_labels_are_foreign,
    a_renamed_shard_is_ours_and_a_paused_one_goes_on,
    logs_come_as_lines,
    events_name_the_shard,
    what_a_killed_agent_made_is_adopted,
    an_engine_describes_itself,
    what_a_container_uses_is_counted,
);

async fn an_engine_describes_itself(engine: &Engine) {
    let described = describe_engine(Path::new(&engine.socket)).await.unwrap();
    let (_, version) = engine.json("GET", "/version", &json!(null));
    let (_, info) = engine.json("GET", "/info", &json!(null));
    assert_eq!(version["Version"], described.version.as_str());
    assert_eq!(version["Components"][0]["Name"], described.name.as_str());
    assert_eq!(version["ApiVersion"], format!("{}.{}", described.api.0, described.api.1));
    assert_eq!(info["LiveRestoreEnabled"].as_bool().unwrap_or(false), described.live_restore);
    assert!(describe_engine(Path::new("/nobody/listens.sock")).await.is_err());
}

async fn what_a_container_uses_is_counted(engine: &Engine) {
    let runtime = engine.runtime();
    let script = "n=0; while test $n -lt 20000; do n=$((n+1)); done; echo done; while :; do sleep 0.05; done";
    let order = order(&engine.shell(script, ""), slot(0, &cpus()[..1]), 1);
    runtime.prepare(&order.spec, &|_| {}).await.unwrap();
    let id = runtime.create(&order).await.unwrap();
    runtime.start(&id).await.unwrap();
    let pid = running_pid(&runtime, &id).await;
    eventually("it has worked", async || {
        lines(&runtime, &id, None).await.iter().any(|line| line == "done").then_some(())
    })
    .await;
    let usage = UsageReader::new().of_shards([pid]).remove(&pid).unwrap();
    assert!(usage.cpu_seconds > 0.0 && usage.cpu_seconds < 60.0, "{usage:?}");
    // A control group of its own counts its memory; only that says on which nodes it is.
    let on_nodes: u64 = usage.memory_by_node.values().sum();
    assert!(on_nodes > 0 && usage.memory_bytes.is_some_and(|bytes| bytes > 0), "{usage:?}");
    assert!(usage.throttled_periods.is_some(), "{usage:?}");
    runtime.remove(&id).await.unwrap();
}

async fn a_shard_lives_where_its_slot_says(engine: &Engine) {
    let runtime = engine.runtime();
    assert!(runtime.version().await.unwrap().contains("API 1."));
    let script = "env; cat /proc/self/status; trap 'exit 5' TERM; while :; do sleep 0.05; done";
    let order = order(&engine.shell(script, ""), slot(1, &cpus()[..1]), 3);
    let progress = |_| {};
    runtime.prepare(&order.spec, &progress).await.unwrap();

    let id = runtime.create(&order).await.unwrap();
    let created = find(&runtime, &id).await.unwrap();
    assert_eq!((created.state, &created.key, created.generation), (ShardState::Created, &order.key, 3));
    assert_eq!((&created.spec, &created.cpus), (&order.spec.hash(), &order.slot.cpus));
    assert_eq!(created.mems, order.slot.mems);

    runtime.start(&id).await.unwrap();
    runtime.start(&id).await.unwrap();
    let pid = running_pid(&runtime, &id).await;
    verify::pinning(pid, &order.slot).unwrap();
    let said = eventually("it says where it is", async || {
        let said = pairs(&lines(&runtime, &id, None).await);
        said.contains_key("Mems_allowed_list").then_some(said)
    })
    .await;
    for (name, value) in [
        ("Cpus_allowed_list", order.slot.cpus.to_string().as_str()),
        ("Mems_allowed_list", "0"),
        ("SHERD_GROUP", "web"),
        ("SHERD_SLOT", "1"),
        ("GOMAXPROCS", "1"),
        ("FROM_IMAGE", "yes"),
        ("JAVA_TOOL_OPTIONS", "-Xss1m -XX:ActiveProcessorCount=1"),
    ] {
        assert_eq!(said.get(name).map(String::as_str), Some(value), "{name}");
    }

    runtime.stop(&id, GRACE).await.unwrap();
    assert_eq!(state(&runtime, &id).await, ShardState::Exited { code: Some(5), oom: false });
    runtime.stop(&id, GRACE).await.unwrap();
    runtime.remove(&id).await.unwrap();
    runtime.remove(&id).await.unwrap();
    assert_eq!(find(&runtime, &id).await, None);
    runtime.stop(&id, GRACE).await.unwrap();
    assert!(matches!(runtime.start(&id).await, Err(RuntimeError::NoSuchShard { .. })));
    assert!(matches!(verify::pinning(pid, &order.slot), Err(verify::PinningFault::Gone { .. })));
}

async fn what_the_operator_sets_is_there(engine: &Engine) {
    let runtime = engine.runtime();
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("file"), "shared").unwrap();
    let more = format!(
        "user = \"web\"\nmemory = \"64MiB\"\nread_only = true\nworking_dir = \"/etc\"\ncap_drop = [\"ALL\"]\n\
         volumes = [\"{}:/shared:ro\"]\nextra = {{ HostConfig = {{ ShmSize = 1048576 }}, Hostname = \"shard\", \
         Env = [\"FROM_EXTRA=1\"] }}\n[container.tmpfs]\n\"/scratch\" = \"size=1m\"\n\
         [container.labels]\n\"example.team\" = \"web\"\n[environment]\nGOMAXPROCS = \"17\"",
        shared.path().display()
    );
    let script = "id -u; cat /shared/file; echo; touch /scratch/x && echo scratch; touch /x || echo read-only; \
                  pwd; env | grep -E 'GOM|EXTRA'; grep CapBnd /proc/self/status; cat /proc/sys/kernel/hostname";
    let order = order(&engine.shell(script, &more), slot(0, &cpus()[..1]), 1);
    let id = runtime.create(&order).await.unwrap();
    runtime.start(&id).await.unwrap();
    assert_eq!(exit_code(&runtime, &id).await, Some(0));
    let said = lines(&runtime, &id, None).await;
    let limit = 64 * 1024 * 1024 / 100 * 90;
    for expected in ["1000", "shared", "scratch", "read-only", "/etc", "GOMAXPROCS=17", "FROM_EXTRA=1", "shard"] {
        assert!(said.iter().any(|line| line == expected), "{expected} in {said:?}");
    }
    assert!(said.contains(&format!("GOMEMLIMIT={limit}")), "{said:?}");
    assert!(said.contains(&"CapBnd:\t0000000000000000".to_owned()), "{said:?}");
    let (_, inspected) = engine.json("GET", &format!("/containers/{id}/json"), &json!(null));
    assert_eq!(inspected["HostConfig"]["Memory"], json!(64 * 1024 * 1024));
    assert_eq!(inspected["HostConfig"]["ShmSize"], json!(1_048_576));
    assert_eq!(inspected["Config"]["Labels"]["example.team"], json!("web"));
    let policy = &inspected["HostConfig"]["RestartPolicy"]["Name"];
    assert!(policy == "no" || policy == "", "{policy}");
    runtime.remove(&id).await.unwrap();
}

/// From an image without a C library, as a user that nobody knows, behind the engine's own init, with nothing writable.
async fn the_shim_becomes_the_image_s_program(engine: &Engine) {
    let script = "id -u; touch /x || echo read-only; cat /proc/1/comm; cat /shared/file; ls -A /.sherd/run; exit 7";
    let program = ["ENTRYPOINT [\"/bin/sh\"]".to_owned(), format!("CMD [\"-c\", \"{script}\"]")];
    let test = format!("{}-program", engine.instance);
    let engine = Engine::with_image(engine.socket.clone(), &test, &program.each_ref().map(String::as_str));
    let runtime = engine.runtime();
    let programs = tempfile::tempdir().unwrap();
    shim::install(programs.path()).unwrap();
    let door = Door::new();
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("file"), "shared\n").unwrap();
    let toml = format!(
        "name = \"web\"\npath = \"direct\"\n[container]\nimage = \"{}\"\nnetwork = \"none\"\npull = \"never\"\n\
         user = \"4321:4321\"\nread_only = true\nvolumes = [\"{}:/shared:ro\"]\n\
         extra = {{ HostConfig = {{ Init = true }} }}\n",
        engine.image,
        shared.path().display()
    );
    let mut order = order(&toml, slot(0, &cpus()[..1]), 1);
    order.shim = Some(ShimOrder {
        programs: programs.path().to_owned(),
        door: door.path().to_owned(),
        except: Default::default(),
    });

    let id = runtime.create(&order).await.unwrap();
    runtime.start(&id).await.unwrap();
    let (hello, trap) = door.let_go().await;
    assert_eq!((hello, trap.is_some()), (Hello::Trapped, true));
    assert_eq!(exit_code(&runtime, &id).await, Some(7));
    let said = lines(&runtime, &id, None).await;
    for expected in ["4321", "read-only", "shared", "broker"] {
        assert!(said.iter().any(|line| line == expected), "{expected} in {said:?}");
    }
    assert!(!said.contains(&"sh".to_owned()), "an init is the first process: {said:?}");
    runtime.remove(&id).await.unwrap();
}

async fn a_running_shard_is_moved(engine: &Engine) {
    let cpus = cpus();
    let [first, second, ..] = cpus[..] else {
        eprintln!("SKIPPED a_running_shard_is_moved: lacks a second CPU");
        return;
    };
    let runtime = engine.runtime();
    let order = order(&engine.shell("sleep 1000 & sleep 1000", ""), slot(0, &[first]), 1);
    let id = runtime.create(&order).await.unwrap();
    runtime.start(&id).await.unwrap();
    let pid = running_pid(&runtime, &id).await;
    verify::pinning(pid, &order.slot).unwrap();
    let there = slot(0, &[second]);
    assert!(verify::pinning(pid, &there).is_err());
    match runtime.update_cpus(&id, &there).await {
        Ok(()) => {
            verify::pinning(pid, &there).unwrap();
            assert_eq!(find(&runtime, &id).await.unwrap().cpus, there.cpus);
            assert!(matches!(verify::pinning(pid, &order.slot), Err(verify::PinningFault::CgroupCpus { .. })));
        }
        // Podman before 4.4 has no such call in its Docker API.
        Err(error) => {
            assert!(matches!(error, RuntimeError::CannotMove { .. }), "{error}");
            verify::pinning(pid, &order.slot).unwrap();
        }
    }
    runtime.stop(&id, Duration::ZERO).await.unwrap();
    runtime.remove(&id).await.unwrap();
}

async fn ends_are_reported(engine: &Engine) {
    let runtime = engine.runtime();
    let order_of = |toml: &str, generation| order(toml, slot(0, &cpus()[..1]), generation);
    let id = runtime.create(&order_of(&engine.shell("exit 7", ""), 1)).await.unwrap();
    runtime.start(&id).await.unwrap();
    assert_eq!(exit_code(&runtime, &id).await, Some(7));
    runtime.remove(&id).await.unwrap();

    let toml = engine.shell("exit 0", "").replace("/bin/sh", "/no/such/program");
    let id = runtime.create(&order_of(&toml, 2)).await.unwrap();
    let error = runtime.start(&id).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::NotStarted { reason, .. } if reason.contains("no such")), "{error}");
    let left = state(&runtime, &id).await;
    assert!(matches!(left, ShardState::Exited { .. } | ShardState::Created), "{left:?}");
    runtime.remove(&id).await.unwrap();

    let id = runtime
        .create(&order_of(&engine.shell("trap '' TERM; echo ready; while :; do sleep 0.05; done", ""), 3))
        .await
        .unwrap();
    runtime.start(&id).await.unwrap();
    eventually("it ignores SIGTERM", async || (!lines(&runtime, &id, None).await.is_empty()).then_some(())).await;
    runtime.stop(&id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(exit_code(&runtime, &id).await, Some(137));
    runtime.remove(&id).await.unwrap();
    assert!(engine.containers().is_empty());
}

async fn images_that_are_not_there(engine: &Engine) {
    let runtime = engine.runtime();
    let prepare = async |image: &str, pull: &str| {
        let toml = format!("name = \"web\"\n[container]\nimage = \"{image}\"\npull = \"{pull}\"\n");
        let order = order(&toml, slot(0, &cpus()[..1]), 1);
        let progress = |_| {};
        let prepared = runtime.prepare(&order.spec, &progress).await;
        (prepared, runtime.create(&order).await)
    };
    let absent = "localhost/sherd-test-absent:1";
    let (prepared, created) = prepare(absent, "never").await;
    assert!(matches!(prepared, Err(RuntimeError::NoSuchImage { .. })), "{prepared:?}");
    assert!(matches!(created, Err(RuntimeError::NoSuchImage { .. })), "{created:?}");
    // Nobody listens on the registry's port.
    let (prepared, _) = prepare("127.0.0.1:1/sherd/absent:1", "missing").await;
    assert!(matches!(prepared, Err(RuntimeError::PullFailed { .. })), "{prepared:?}");
    let id = format!("sha256:{}", "0".repeat(64));
    let (prepared, _) = prepare(&id, "missing").await;
    assert!(matches!(prepared, Err(RuntimeError::NoSuchImage { .. })), "{prepared:?}");
    assert!(engine.containers().is_empty());
}

async fn forged_labels_are_foreign(engine: &Engine) {
    let runtime = engine.runtime();
    let order = order(&engine.shell("sleep 1000", ""), slot(0, &cpus()[..1]), 1);
    let ours = runtime.create(&order).await.unwrap();
    let make = |name: &str, labels: serde_json::Value| {
        let body =
            json!({"Image": engine.image, "Cmd": ["/bin/sleep", "1000"], "Labels": labels, "NetworkDisabled": true});
        let (status, created) = engine.json("POST", &format!("/containers/create?name={name}"), &body);
        assert_eq!(status, 201, "{created}");
    };
    let instance = &engine.instance;
    make(&format!("a-{instance}"), json!({"sherd.instance": instance}));
    make(&format!("b-{instance}"), json!({"sherd.instance": instance, "sherd.group": "../x", "sherd.slot": "-1"}));
    // Perfect labels, copied from a shard by somebody's tool: only the name is not the shard's.
    let perfect = json!({"sherd.instance": instance, "sherd.group": "web", "sherd.slot": "0",
        "sherd.spec": order.spec.hash().to_string(), "sherd.generation": "1", "sherd.cpus": "0", "sherd.mems": "0"});
    make(&format!("c-{instance}"), perfect);
    // A stranger with the name of the shard to come.
    make(&format!("sherd-{instance}-web-0-2"), json!({"sherd.instance": instance}));
    let listing = runtime.list().await.unwrap();
    assert_eq!(listing.shards.iter().map(|shard| &shard.id).collect::<Vec<_>>(), [&ours]);
    assert_eq!(listing.foreign.len(), 4, "{listing:?}");
    let mut next = order.clone();
    next.generation = 2;
    let error = runtime.create(&next).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Conflict { name, .. } if name.ends_with("-web-0-2")), "{error}");
    assert_eq!(runtime.list().await.unwrap().foreign.len(), 4, "none of them was touched");
    runtime.remove(&ours).await.unwrap();
}

async fn a_renamed_shard_is_ours_and_a_paused_one_goes_on(engine: &Engine) {
    let runtime = engine.runtime();
    let id = runtime.create(&order(&engine.shell("sleep 1000", ""), slot(0, &cpus()[..1]), 1)).await.unwrap();
    runtime.start(&id).await.unwrap();
    let pid = running_pid(&runtime, &id).await;
    let post = |path: String| {
        let (status, answer) = engine.json("POST", &path, &json!(null));
        assert_eq!(status, 204, "{path}: {answer}");
    };
    post(format!("/containers/{}/pause", id.0));
    assert!(matches!(state(&runtime, &id).await, ShardState::Paused { pid: paused } if paused == pid));
    // Also when somebody else was quicker.
    for _ in 0..2 {
        runtime.unpause(&id).await.unwrap();
        assert_eq!(running_pid(&runtime, &id).await, pid);
    }

    let other = format!("other-{}", engine.instance);
    post(format!("/containers/{}/rename?name={other}", id.0));
    // To whoever never saw it under its own name it may be anybody's.
    let stranger = engine.runtime().list().await.unwrap();
    assert_eq!((stranger.shards.len(), stranger.foreign.len()), (0, 1), "{stranger:?}");
    let listing = runtime.list().await.unwrap();
    assert_eq!((listing.shards.len(), listing.foreign.len()), (1, 0), "{listing:?}");
    let [renamed] = &listing.renamed[..] else { panic!("{listing:?}") };
    assert_eq!((&renamed.id, &renamed.name), (&id, &other));
    runtime.rename(&id, &renamed.own_name).await.unwrap();
    assert_eq!(runtime.list().await.unwrap().renamed, []);
    assert_eq!(engine.runtime().list().await.unwrap().shards.len(), 1);
    runtime.remove(&id).await.unwrap();
    runtime.unpause(&id).await.unwrap();
    runtime.rename(&id, "gone").await.unwrap();
}

async fn logs_come_as_lines(engine: &Engine) {
    let runtime = engine.runtime();
    // Docker 20.10 may end a follower before the last words of a shard: they are asked for afterwards.
    let script = "for i in 1 2 3; do echo out $i; sleep 0.05; done; echo oops >&2; sleep 0.3; echo last";
    let id = runtime.create(&order(&engine.shell(script, ""), slot(0, &cpus()[..1]), 1)).await.unwrap();
    runtime.start(&id).await.unwrap();
    let all: Vec<LogLine> = runtime.logs(&id, None, true).try_collect().await.unwrap();
    let (errors, output): (Vec<_>, Vec<_>) = all.into_iter().partition(|line| line.output == LogOutput::Stderr);
    let texts = |lines: Vec<LogLine>| lines.into_iter().map(|line| line.text).collect::<Vec<_>>();
    assert_eq!(texts(output)[..3], ["out 1", "out 2", "out 3"]);
    assert_eq!(texts(errors), ["oops"]);
    exit_code(&runtime, &id).await;
    assert_eq!(lines(&runtime, &id, Some(1)).await, ["last"]);
    runtime.remove(&id).await.unwrap();
    let gone: Result<Vec<LogLine>, _> = runtime.logs(&id, None, false).try_collect().await;
    assert!(matches!(gone, Err(RuntimeError::NoSuchShard { .. })), "{gone:?}");

    let toml = engine.shell("echo one; echo two", "extra = { Tty = true }");
    let id = runtime.create(&order(&toml, slot(0, &cpus()[..1]), 2)).await.unwrap();
    runtime.start(&id).await.unwrap();
    exit_code(&runtime, &id).await;
    assert_eq!(lines(&runtime, &id, None).await, ["one", "two"]);
    runtime.remove(&id).await.unwrap();
}

async fn events_name_the_shard(engine: &Engine) {
    let runtime = engine.runtime();
    let mut events = runtime.events();
    // Not polled yet: what happens from the call on is told all the same.
    let order = order(&engine.shell("exit 3", ""), slot(4, &cpus()[..1]), 1);
    let id = runtime.create(&order).await.unwrap();
    runtime.start(&id).await.unwrap();
    exit_code(&runtime, &id).await;
    let mut seen = Vec::new();
    while !seen.iter().any(|kind| kind == "die" || kind == "died") {
        let event = tokio::time::timeout(support::PATIENCE, events.next()).await.expect("an event in time");
        let event = event.expect("the engine is there").unwrap();
        assert_eq!(event.key.as_ref(), Some(&order.key), "{event:?}");
        seen.push(event.kind);
    }
    assert!(seen.contains(&"create".to_owned()) && seen.contains(&"start".to_owned()), "{seen:?}");
    runtime.remove(&id).await.unwrap();
}

async fn what_a_killed_agent_made_is_adopted(engine: &Engine) {
    let order = order(&engine.shell("sleep 1000", ""), slot(0, &cpus()[..1]), 1);
    let id = engine.runtime().create(&order).await.unwrap();
    // Another agent process: nothing is remembered.
    let runtime = engine.runtime();
    assert_eq!(runtime.create(&order).await.unwrap(), id);
    let mut other = order.clone();
    other.spec = support::order(&engine.shell("sleep 2000", ""), order.slot.clone(), 1).spec;
    let error = runtime.create(&other).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Conflict { .. }), "{error}");
    runtime.start(&id).await.unwrap();
    assert_eq!(runtime.create(&order).await.unwrap(), id, "running too");
    // Removes what runs, as well.
    runtime.remove(&id).await.unwrap();
    assert!(runtime.list().await.unwrap().shards.is_empty());
}
