//! The process runtime with real shims and processes: each test has a run directory of its own.

use std::{fs, path::Path, time::Duration};

use futures_util::{StreamExt, TryStreamExt};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sherd::{
    runtime::{
        End, LogLine, LogOutput, Runtime, RuntimeError, ShardId, ShardState,
        process::{Launch, ProcessConfig, ProcessRuntime},
        verify,
    },
    spec::ContainerPort,
};
use sherd_testkit::{Need, needs};

#[path = "runtime/support.rs"]
#[allow(dead_code, reason = "shared with the tests of containers")]
mod support;

use support::{block_on, cpus, eventually, exit_code, find, lines, order, pairs, running_pid, slot, state};

const GRACE: Duration = Duration::from_secs(5);

fn runtime(run_dir: &Path, instance: &str) -> ProcessRuntime {
    ProcessRuntime::new(ProcessConfig {
        instance: instance.to_owned(),
        run_dir: run_dir.to_owned(),
        program: env!("CARGO_BIN_EXE_sherd").into(),
        launch: Launch::Detached,
    })
}

/// A run directory and an instance of the test's own; at its end nothing of the instance may be left.
fn place() -> (Place, String) {
    let directory = tempfile::tempdir().unwrap();
    let name = directory.path().file_name().unwrap().to_string_lossy().trim_start_matches('.').to_lowercase();
    let instance = format!("test-{name}");
    (Place { directory, instance: instance.clone() }, instance)
}

struct Place {
    directory: tempfile::TempDir,
    instance: String,
}

impl Place {
    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for mount in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let left = Path::new(mount).join("sherd").join(&self.instance);
            assert!(!left.exists(), "{} is left", left.display());
        }
    }
}

fn shell(script: &str) -> String {
    format!("name = \"web\"\n[process]\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\n")
}

async fn started(runtime: &ProcessRuntime, script: &str, generation: u64) -> ShardId {
    let order = order(&shell(script), slot(0, &cpus()[..1]), generation);
    let id = runtime.create(&order).await.unwrap();
    runtime.start(&id).await.unwrap();
    id
}

fn processes_with(mark: &str) -> Vec<u32> {
    let has = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == format!("SHERD_SHARD={mark}").as_bytes())
    };
    let numbers = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(has).collect()
}

fn shim_pid(run_dir: &Path, id: &ShardId) -> u32 {
    let text = fs::read_to_string(run_dir.join("shards").join(&id.0).join("shim.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    u32::try_from(record["process"]["pid"].as_u64().unwrap()).unwrap()
}

fn sigkill(pid: u32) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
}

#[test]
fn a_shard_lives_and_is_told_what_it_is() {
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let mut order = order(
            &shell("env; cat /proc/self/status; trap 'exit 5' TERM; while :; do sleep 0.05; done"),
            slot(0, &cpus()[..1]),
            7,
        );
        order.process_ports = vec![(ContainerPort(80), 40_001), (ContainerPort(443), 40_002)];
        let progress = |_| {};
        runtime.prepare(&order.spec, &progress).await.unwrap();

        let id = runtime.create(&order).await.unwrap();
        assert_eq!(runtime.create(&order).await.unwrap(), id, "adopted");
        let created = find(&runtime, &id).await.unwrap();
        assert_eq!((created.state, created.key, created.generation), (ShardState::Created, order.key.clone(), 7));
        assert_eq!((created.spec, created.process_ports), (order.spec.hash(), order.process_ports.clone()));

        runtime.start(&id).await.unwrap();
        let pid = running_pid(&runtime, &id).await;
        runtime.start(&id).await.unwrap();
        assert_eq!(running_pid(&runtime, &id).await, pid, "started once");
        eventually("it is pinned", async || verify::pinning(pid, &order.slot).ok()).await;
        let said = eventually("it says what it was told", async || {
            let said = pairs(&lines(&runtime, &id, None).await);
            said.contains_key("Mems_allowed_list").then_some(said)
        })
        .await;
        for (name, value) in [
            ("SHERD_GROUP", "web"),
            ("SHERD_SLOT", "0"),
            ("SHERD_SHARDS", "2"),
            ("GOMAXPROCS", "1"),
            ("PORT", "40001"),
            ("PORT_80", "40001"),
            ("PORT_443", "40002"),
            ("Cpus_allowed_list", &order.slot.cpus.to_string()),
        ] {
            assert_eq!(said.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!said.contains_key("CARGO_MANIFEST_DIR"), "the agent's environment is not the shard's");

        runtime.stop(&id, GRACE).await.unwrap();
        assert_eq!(state(&runtime, &id).await, ShardState::Exited { code: Some(5), oom: false });
        runtime.stop(&id, GRACE).await.unwrap();
        runtime.remove(&id).await.unwrap();
        runtime.remove(&id).await.unwrap();
        assert_eq!(find(&runtime, &id).await, None);
        assert!(matches!(runtime.start(&id).await, Err(RuntimeError::NoSuchShard { .. })));
    });
    assert_eq!(fs::read_dir(directory.path().join("shards")).unwrap().count(), 0);
}

#[test]
fn exit_codes_are_kept() {
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        for (generation, (script, expected)) in
            [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)].into_iter().enumerate()
        {
            let id = started(&runtime, script, generation as u64).await;
            assert_eq!(exit_code(&runtime, &id).await, Some(expected), "{script}");
            runtime.remove(&id).await.unwrap();
        }
    });
}

#[test]
fn a_program_that_ignores_sigterm_is_killed_after_its_grace() {
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let id = started(&runtime, "trap '' TERM; echo ready; while :; do sleep 0.05; done", 1).await;
        eventually("it ignores SIGTERM", async || (!lines(&runtime, &id, None).await.is_empty()).then_some(())).await;
        let begin = std::time::Instant::now();
        runtime.stop(&id, Duration::from_millis(300)).await.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(300));
        assert_eq!(exit_code(&runtime, &id).await, Some(137));
        runtime.remove(&id).await.unwrap();
    });
}

#[test]
fn daemons_of_a_shard_end_with_it() {
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        // A double fork with a session of its own, and one that ignores everything that can be ignored.
        let script = "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; (trap '' TERM HUP INT; sleep 1000 &) ; echo ready; sleep 1000";
        let id = started(&runtime, script, 1).await;
        let mark = format!("{instance}/{id}");
        eventually("its daemons run", async || (processes_with(&mark).len() >= 4).then_some(())).await;
        runtime.stop(&id, GRACE).await.unwrap();
        assert_eq!(processes_with(&mark), Vec::<u32>::new());
        runtime.remove(&id).await.unwrap();
    });
}

#[test]
fn an_agent_that_comes_back_finds_its_shards() {
    let (directory, instance) = place();
    let (running, ended) = block_on(async {
        let runtime = runtime(directory.path(), &instance);
        (started(&runtime, "sleep 1000", 1).await, started(&runtime, "echo bye; exit 3", 2).await)
    });
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let mut events = runtime.events();
        running_pid(&runtime, &running).await;
        assert_eq!(exit_code(&runtime, &ended).await, Some(3));
        assert_eq!(lines(&runtime, &ended, None).await, ["bye"]);
        runtime.stop(&running, GRACE).await.unwrap();
        let event = tokio::time::timeout(GRACE, async {
            loop {
                let event = events.next().await.unwrap().unwrap();
                if event.kind == "exit" {
                    return event;
                }
            }
        });
        assert_eq!(event.await.unwrap().key.unwrap().slot.0, 0);
        assert_eq!(exit_code(&runtime, &running).await, Some(143));
        runtime.remove(&running).await.unwrap();
        runtime.remove(&ended).await.unwrap();
        assert!(runtime.list().await.unwrap().shards.is_empty());
    });
}

#[test]
fn a_shard_dies_with_its_shim_and_what_is_left_is_removed() {
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let mut events = runtime.events();
        let id = started(&runtime, "(setsid sleep 1000 &) ; exec sleep 1000", 1).await;
        let mark = format!("{instance}/{id}");
        eventually("its daemon runs", async || (processes_with(&mark).len() == 2).then_some(())).await;
        let pid = running_pid(&runtime, &id).await;
        sigkill(shim_pid(directory.path(), &id));
        eventually("it is found dead", async || (state(&runtime, &id).await == ShardState::Dead).then_some(())).await;
        eventually("its program is dead", async || (!processes_with(&mark).contains(&pid)).then_some(())).await;
        let told = events.by_ref().try_filter(|event| std::future::ready(event.kind == "exit"));
        tokio::time::timeout(GRACE, std::pin::pin!(told).next()).await.unwrap().unwrap().unwrap();
        runtime.remove(&id).await.unwrap();
        assert_eq!(processes_with(&mark), Vec::<u32>::new());
        assert_eq!(find(&runtime, &id).await, None);
    });
}

#[test]
fn two_starts_make_one_shard() {
    let (directory, instance) = place();
    block_on(async {
        let (one, two) = (runtime(directory.path(), &instance), runtime(directory.path(), &instance));
        let order = order(&shell("echo started; sleep 1000"), slot(0, &cpus()[..1]), 1);
        let id = one.create(&order).await.unwrap();
        let (first, second) = tokio::join!(one.start(&id), two.start(&id));
        first.unwrap();
        second.unwrap();
        eventually("it says so", async || (!lines(&one, &id, None).await.is_empty()).then_some(())).await;
        assert_eq!(lines(&one, &id, None).await, ["started"]);
        one.remove(&id).await.unwrap();
    });
}

#[test]
fn logs_follow_until_the_end() {
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let id =
            started(&runtime, "for i in 1 2 3 4 5; do echo out $i; sleep 0.05; done; echo oops >&2; printf last", 1)
                .await;
        let all: Vec<LogLine> = runtime.logs(&id, None, true).try_collect().await.unwrap();
        let (errors, lines): (Vec<_>, Vec<_>) = all.into_iter().partition(|line| line.output == LogOutput::Stderr);
        let texts = |lines: Vec<LogLine>| lines.into_iter().map(|line| line.text).collect::<Vec<_>>();
        assert_eq!(texts(lines), ["out 1", "out 2", "out 3", "out 4", "out 5", "last"]);
        assert_eq!(texts(errors), ["oops"]);
        assert_eq!(support::lines(&runtime, &id, Some(1)).await, ["last"]);
        runtime.remove(&id).await.unwrap();
    });
}

#[test]
fn a_shard_that_writes_without_end_is_bounded_and_stops() {
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let id = started(&runtime, "while :; do echo 0123456789012345678901234567890123456789; done", 1).await;
        let shards = directory.path().join("shards").join(&id.0);
        eventually("its log is rotated", async || shards.join("output.1").exists().then_some(())).await;
        runtime.stop(&id, GRACE).await.unwrap();
        for name in ["output", "output.1"] {
            assert!(fs::metadata(shards.join(name)).unwrap().len() <= 1024 * 1024, "{name}");
        }
        runtime.remove(&id).await.unwrap();
    });
}

#[test]
fn a_running_shard_is_moved() {
    let cpus = cpus();
    let [first, second, ..] = cpus[..] else {
        eprintln!("SKIPPED a_running_shard_is_moved: lacks a second CPU");
        return;
    };
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let order = order(&shell("sleep 1000 & sleep 1000"), slot(0, &[first]), 1);
        let id = runtime.create(&order).await.unwrap();
        runtime.start(&id).await.unwrap();
        let pid = running_pid(&runtime, &id).await;
        eventually("it is pinned", async || verify::pinning(pid, &order.slot).ok()).await;
        let there = slot(0, &[second]);
        assert!(matches!(verify::pinning(pid, &there), Err(verify::PinningFault::ThreadCpus { .. })));
        runtime.update_cpus(&id, &there).await.unwrap();
        verify::pinning(pid, &there).unwrap();
        assert_eq!(find(&runtime, &id).await.unwrap().cpus, there.cpus);
        runtime.remove(&id).await.unwrap();
        assert!(matches!(verify::pinning(pid, &there), Err(verify::PinningFault::Gone { .. })));
    });
}

#[test]
fn what_cannot_run_says_why_and_leaves_nothing() {
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let progress = |_| {};
        let check = async |toml: &str, expected: fn(&RuntimeError) -> bool| {
            let order = order(toml, slot(0, &cpus()[..1]), 1);
            let error = runtime.prepare(&order.spec, &progress).await.unwrap_err();
            assert!(expected(&error), "{error}");
            assert!(expected(&runtime.create(&order).await.unwrap_err()), "{toml}");
        };
        let no_program: fn(&RuntimeError) -> bool = |error| matches!(error, RuntimeError::NoSuchProgram { .. });
        check("name = \"web\"\n[process]\ncommand = [\"/no/such/program\"]\n", no_program).await;
        check("name = \"web\"\n[process]\ncommand = [\"no-such-program\"]\n", no_program).await;
        check("name = \"web\"\n[process]\ncommand = [\"/etc/passwd\"]\n", no_program).await;
        check("name = \"web\"\n[process]\ncommand = [\"sh\"]\nuser = \"no-such-user\"\n", |error| {
            matches!(error, RuntimeError::NoSuchUser { .. })
        })
        .await;
        check("name = \"web\"\n[process]\ncommand = [\"sh\"]\nworking_dir = \"/no/such\"\n", |error| {
            matches!(error, RuntimeError::BadWorkingDirectory { .. })
        })
        .await;
        check("name = \"web\"\n[container]\nimage = \"x\"\n", |error| {
            matches!(error, RuntimeError::WrongRuntime { .. })
        })
        .await;
        assert!(runtime.list().await.unwrap().shards.is_empty());

        // Executable by its mode, and yet it can't be run.
        let broken = directory.path().join("broken");
        fs::write(&broken, "#!/no/such/interpreter\n").unwrap();
        fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let toml = format!("name = \"web\"\n[process]\ncommand = [\"{}\"]\n", broken.display());
        let id = runtime.create(&order(&toml, slot(0, &cpus()[..1]), 1)).await.unwrap();
        let error = runtime.start(&id).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::NotStarted { reason, .. } if reason.contains("broken")), "{error}");
        assert_eq!(state(&runtime, &id).await, ShardState::Exited { code: Some(127), oom: false });
        runtime.remove(&id).await.unwrap();

        // A CPU that is not there.
        let id = runtime.create(&order(&shell("exit 0"), slot(0, &[4000]), 2)).await.unwrap();
        let error = runtime.start(&id).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::NotStarted { reason, .. } if reason.contains("4000")), "{error}");
        runtime.remove(&id).await.unwrap();
    });
}

#[test]
fn a_shard_runs_as_its_user() {
    if !needs("a_shard_runs_as_its_user", &[Need::Root]) {
        return;
    }
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let toml = format!(
            "{}user = \"nobody\"\n",
            shell("id -u; echo $HOME; grep Groups /proc/self/status; exec sleep 1000")
        );
        let order = order(&toml, slot(0, &cpus()[..1]), 1);
        let id = runtime.create(&order).await.unwrap();
        runtime.start(&id).await.unwrap();
        let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
        let said = eventually("it says who it is", async || {
            let said = lines(&runtime, &id, None).await;
            (said.len() == 3).then_some(said)
        })
        .await;
        assert_eq!(said[..2], [nobody.uid.to_string(), nobody.dir.display().to_string()]);
        assert_eq!(said[2].trim_start_matches("Groups:").trim(), nobody.gid.to_string());
        // The parent-death signal is lost by a change of the user, unless it is set after it.
        let pid = running_pid(&runtime, &id).await;
        sigkill(shim_pid(directory.path(), &id));
        eventually("it dies with its shim", async || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
            .await;
        runtime.remove(&id).await.unwrap();
    });
}

#[test]
fn torn_and_strange_directories_hurt_nobody() {
    let (directory, instance) = place();
    block_on(async {
        let runtime = runtime(directory.path(), &instance);
        let good = started(&runtime, "sleep 1000", 1).await;
        let torn = started(&runtime, "sleep 1000", 2).await;
        let shards = directory.path().join("shards");
        fs::write(shards.join(&torn.0).join("order.json"), "{\"instance\": \"te").unwrap();
        fs::create_dir(shards.join("strange")).unwrap();
        fs::create_dir(shards.join(".1-new-web-0-9")).unwrap();
        let listing = runtime.list().await.unwrap();
        assert_eq!(listing.foreign.iter().map(|foreign| foreign.name.as_str()).collect::<Vec<_>>(), ["strange"]);
        assert!(!shards.join(".1-new-web-0-9").exists(), "what a killed agent was making is swept");
        running_pid(&runtime, &good).await;
        assert_eq!(state(&runtime, &torn).await, ShardState::Dead);
        runtime.remove(&torn).await.unwrap();
        assert_eq!(processes_with(&format!("{instance}/{torn}")), Vec::<u32>::new());
        assert!(shards.join("strange").exists());
        runtime.remove(&good).await.unwrap();
    });
}

/// A command beside a shard runs in its cgroup, with its environment, in its directory; it ends with its time, and so does
/// what it started.
#[test]
fn a_command_runs_beside_a_shard() {
    let (directory, instance) = place();
    if !needs("a_command_runs_beside_a_shard", &[Need::Root]) {
        return;
    }
    let runtime = runtime(directory.path(), &instance);
    block_on(async {
        let id = started(&runtime, "while :; do sleep 0.05; done", 1).await;
        let pid = running_pid(&runtime, &id).await;
        let words = |script: &str| ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let bound = Duration::from_secs(20);
        let told = words("echo $SHERD_GROUP/$SHERD_SLOT; cat /proc/self/cgroup >&2; exit 3");
        let ran = runtime.exec(&id, pid, &told, bound).await.unwrap();
        assert_eq!(ran.end, End::Exited(3), "{ran:?}");
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert_eq!(ran.output, format!("web/0; {}", cgroups.trim().replace('\n', "; ")));

        let missing = runtime.exec(&id, pid, &["/no/such/program".to_owned()], bound).await.unwrap();
        assert!(missing.end == End::Exited(127) && missing.output.contains("/no/such/program"), "{missing:?}");
        // What lives on has the pipe, and nobody waits for it.
        let short = Duration::from_millis(500);
        let left = runtime.exec(&id, pid, &words("sleep 59 & echo left"), bound).await.unwrap();
        assert_eq!((left.end, &*left.output), (End::Exited(0), "left"));
        let endless = runtime.exec(&id, pid, &words("echo begun; sleep 58 & sleep 58"), short).await.unwrap();
        assert_eq!((endless.end, &*endless.output), (End::TimedOut(short), "begun"));
        let sleeps = || processes_with(&format!("{instance}/{}", id.0)).into_iter().filter(|pid| is_sleep(*pid, "58"));
        eventually("its processes are gone", async || (sleeps().count() == 0).then_some(())).await;

        runtime.stop(&id, GRACE).await.unwrap();
        runtime.remove(&id).await.unwrap();
        let gone = runtime.exec(&id, pid, &words("true"), bound).await;
        assert!(matches!(gone, Err(RuntimeError::NoSuchShard { .. })), "{gone:?}");
    });
}

fn is_sleep(pid: u32, seconds: &str) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line == format!("sleep\0{seconds}\0").as_bytes()
}
