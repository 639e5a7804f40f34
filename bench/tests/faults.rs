//! `sherd-bench chaos`, `rollout` and `balance` through the real binary: what they tell, and that what they do is undone however they end.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use sherd_bench::measure::allowed_cpus;
use sherd_testkit::{Need, docker_socket, eventually, needs};

const SOON: Duration = Duration::from_secs(60);

/// Two runs at a time would share CPUs that each takes for its own.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A shard that is stopped or killed needs another beside it.
fn is_there(test: &str, needed: &[Need]) -> bool {
    let enough = allowed_cpus().expect("readable").len() >= 2;
    if !enough {
        eprintln!("SKIPPED {test}: it needs two CPUs");
    }
    enough && needs(test, needed)
}

const CONTAINERS: [Need; 5] = [Need::Root, Need::Bpf, Need::Docker, Need::Program("docker"), Need::Program("ldd")];

fn sherd() -> PathBuf {
    let sherd = Path::new(env!("CARGO_BIN_EXE_sherd-bench")).with_file_name("sherd");
    assert!(sherd.is_file(), "cargo build -p sherd makes {}", sherd.display());
    sherd
}

fn bench(directory: &Path, arguments: &[&str]) -> Command {
    let scratch = directory.join("tmp");
    fs::create_dir_all(&scratch).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
    command
        .args(arguments)
        .args(["--quick", "--docker", &docker_socket(), "--output"])
        .arg(directory.join("results"))
        .arg("--sherd")
        .arg(sherd())
        .env("TMPDIR", scratch)
        .stdin(Stdio::null());
    command
}

/// Runs it, and gives its report and its text.
fn run(directory: &Path, arguments: &[&str]) -> (Value, String) {
    let output = bench(directory, arguments).output().expect("it starts");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let json = text.lines().find_map(|line| line.strip_prefix("every sample: ")).expect("it names its report");
    let left: Vec<_> = fs::read_dir(directory.join("tmp")).expect("readable").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    (serde_json::from_slice(&fs::read(json).expect("there")).expect("JSON"), text.into_owned())
}

fn list<'a>(value: &'a Value, what: &str) -> &'a [Value] {
    value.as_array().unwrap_or_else(|| panic!("no list of {what}: {value}"))
}

#[test]
fn the_same_options_give_the_same_schedule() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let dry = |arguments: &[&str]| {
        let output = bench(directory.path(), &[&["chaos", "--dry-run", "--cpus", "0,1"], arguments].concat()).output();
        let output: Output = output.expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    if !is_there("the_same_options_give_the_same_schedule", &[]) {
        return;
    }
    let first = dry(&["--seed", "7"]);
    assert!(first.lines().count() > 5, "{first}");
    assert_eq!(dry(&["--seed", "7"]), first);
    assert_ne!(dry(&["--seed", "8"]), first);
    // What is printed can be given back, and is the same again.
    let file = directory.path().join("faults.txt");
    fs::write(&file, &first).expect("writable");
    assert_eq!(dry(&["--schedule", file.to_str().expect("a path")]), first);
}

#[test]
fn every_connection_that_a_fault_costs_is_told_with_it() {
    if !is_there("every_connection_that_a_fault_costs_is_told_with_it", &CONTAINERS) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let file = directory.path().join("faults.txt");
    fs::write(&file, "1s kill slot=1\n3s agent-kill\n").expect("writable");
    let schedule = file.to_str().expect("a path");
    let (report, text) = run(directory.path(), &["chaos", "--path", "relay", "--schedule", schedule]);
    let episode = &list(&report["episodes"], "episodes")[0];
    let faults = list(&episode["faults"], "faults");
    assert!(faults.len() == 2 && faults.iter().all(|fault| fault["skipped"] == false), "{text}");
    let losses = list(&episode["losses"], "losses");
    let of = |fault: u64| losses.iter().filter(move |told| told["explanation"]["fault"] == fault);
    // Kept connections were at both slots: the shard takes its own, and the agent all that it relays.
    let kept = |told: &&Value| told["loss"]["kind"] == "kept";
    assert!(
        of(0).filter(kept).all(|told| told["loss"]["slot"]["told"] == 1) && of(0).filter(kept).count() > 0,
        "{text}"
    );
    assert!(of(1).filter(kept).count() >= of(0).filter(kept).count(), "{text}");
    assert_eq!(of(0).count() + of(1).count(), losses.len(), "some are not explained: {text}");
    assert!(list(&report["verdicts"], "verdicts").iter().all(|verdict| verdict["word"] == "held"), "{text}");
}

#[test]
fn rollouts_are_timed_and_their_losses_counted() {
    if !is_there("rollouts_are_timed_and_their_losses_counted", &CONTAINERS) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let arguments = ["rollout", "--path", "direct", "--what", "rollouts", "--times", "1"];
    let (report, text) = run(directory.path(), &arguments);
    let titles: Vec<&str> =
        list(&report["series"], "series").iter().filter_map(|series| series["title"].as_str()).collect();
    for order in ["start-first", "stop-first"] {
        assert!(titles.contains(&&*format!("failed requests of one rollout {order}, direct")), "{titles:?}");
    }
    assert!(list(&report["verdicts"], "verdicts").iter().all(|verdict| verdict["word"] == "held"), "{text}");
    let marks = list(&report["timelines"][0]["marks"], "marks");
    assert!(!marks.is_empty(), "nothing was seen to take over: {text}");
}

#[test]
fn slots_are_counted_by_their_answers() {
    if !is_there("slots_are_counted_by_their_answers", &CONTAINERS) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let arguments = ["balance", "--path", "direct", "--policies", "balanced,client", "--slots", "2", "--rounds", "2"];
    let (report, text) = run(directory.path(), &arguments);
    let series = list(&report["series"], "series");
    assert_eq!(series.len(), 6, "{text}");
    assert!(series.iter().all(|series| list(&series["samples"], "samples").len() == 2), "{text}");
    let verdicts = list(&report["verdicts"], "verdicts");
    assert!(verdicts.len() == 2 && verdicts.iter().all(|verdict| verdict["word"] == "held"), "{text}");
}

/// An agent with a group of two processes; ends with the test.
struct Running {
    agent: Child,
    run_dir: PathBuf,
}

impl Running {
    fn start(directory: &Path) -> Self {
        let (run_dir, shards) = (directory.join("run"), directory.join("shards"));
        fs::create_dir(&shards).expect("writable");
        let log = fs::File::create(directory.join("agent.log")).expect("writable");
        let agent = Command::new(sherd())
            .arg("--run-dir")
            .arg(&run_dir)
            .args(["agent", "--docker", "off", "--metrics", "off", "--reserved-cpus", "none", "--log-format", "text"])
            .args(["--instance", &format!("chaos{}", std::process::id()), "--state-dir"])
            .arg(directory.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the agent starts");
        let running = Self { agent, run_dir };
        eventually("the agent answers", SOON, || running.sherd(&["ps"]).status.success().then_some(()));
        let free = TcpListener::bind("127.0.0.1:0").expect("loopback has a port").local_addr().expect("bound").port();
        let specification = format!(
            "name = \"web\"\n[layout]\nunit = \"pu\"\nshards = 2\nsharing = \"shared\"\nmemory = \"none\"\n\
             [process]\ncommand = [{:?}, \"shard\", \"--announce\", {shards:?}]\n\
             [[ports]]\npublish = \"127.0.0.1:{free}:80\"\nloopback = true\n",
            env!("CARGO_BIN_EXE_sherd-bench")
        );
        let file = directory.join("web.toml");
        fs::write(&file, specification).expect("writable");
        let applied = running.sherd(&["apply", "--wait", file.to_str().expect("a path")]);
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        running
    }

    fn sherd(&self, arguments: &[&str]) -> Output {
        Command::new(sherd()).arg("--run-dir").arg(&self.run_dir).args(arguments).output().expect("sherd runs")
    }

    /// As the agent tells; of one that it takes for stopped it tells none, until it has seen that it goes on.
    fn shards(&self) -> Vec<i32> {
        let pid = |slot: &Value| slot["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        eventually("each slot has a shard", SOON, || {
            let status: Value = serde_json::from_slice(&self.sherd(&["ps", "--json"]).stdout).expect("JSON");
            list(&status["groups"][0]["slots"], "slots").iter().map(pid).collect()
        })
    }

    fn socket(&self) -> String {
        self.run_dir.join("sherd.sock").display().to_string()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.sherd(&["stop", "-g", "web", "--purge"]);
        let _ = kill(Pid::from_raw(self.agent.id() as i32), Signal::SIGTERM);
        let _ = self.agent.wait();
    }
}

/// State `T` (proc_pid_stat(5)).
fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, after)| after.starts_with(" T "))
}

/// What is done to somebody's service is undone by whoever survives, and nothing else of it is touched.
#[test]
fn killed_amid_a_fault_it_leaves_a_running_group_as_it_was() {
    let test = "killed_amid_a_fault_it_leaves_a_running_group_as_it_was";
    if !is_there(test, &[Need::Root, Need::Bpf]) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let running = Running::start(directory.path());
    let before = running.shards();
    let file = directory.path().join("faults.txt");
    fs::write(&file, "100ms stop slot=1 for=50s\n").expect("writable");
    let socket = running.socket();
    let of_it = ["chaos", "--group", "web", "--socket", &socket, "--schedule", file.to_str().expect("a path")];
    let refused = bench(directory.path(), &of_it).output().expect("it starts");
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && errors.contains("--accept-losses"), "{errors}");
    let nothing = bench(directory.path(), &[&of_it[..], &["--get", "/nothing", "--accept-losses"]].concat()).output();
    let errors = String::from_utf8_lossy(&nothing.expect("it starts").stderr).into_owned();
    assert!(errors.contains("--get says what its clients ask for"), "{errors}");
    let mut command = bench(directory.path(), &[&of_it[..], &["--get", "/16", "--accept-losses"]].concat());
    let mut guard = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    eventually("the shard is stopped", SOON, || is_stopped(before[1]).then_some(()));
    assert!(!is_stopped(before[0]), "the wrong one is stopped");
    kill(Pid::from_raw(guard.id() as i32), Signal::SIGKILL).expect("it runs");
    guard.wait().expect("it ends");
    eventually("the shard goes on", SOON, || (!is_stopped(before[1])).then_some(()));
    let scratch = directory.path().join("tmp");
    let is_empty = || fs::read_dir(&scratch).expect("readable").next().is_none().then_some(());
    eventually("the keeper has cleaned up", SOON, is_empty);
    assert_eq!(running.shards(), before, "somebody was restarted");
}

#[test]
fn bad_options_are_refused_before_anything_starts() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let file = directory.path().join("faults.txt");
    fs::write(&file, "1s kill slot=5\n2s explode\n").expect("writable");
    let file = file.to_str().expect("a path");
    let two = ["--cpus", "0,1"];
    for (arguments, says) in [
        (&["chaos", "--faults", "flood"][..], "choose from kill, stop"),
        (&["chaos", "--every", "5"], "is no time: write 250ms"),
        (&["chaos", "--path", "middle"], "choose direct, relay"),
        (&["chaos", "--dry-run", "--schedule", file], "faults.txt:2: there is no fault \"explode\""),
        (&["chaos", "--dry-run", "--schedule", file], "faults.txt:1: slot=5: the group has slots 0 to 1"),
        (&["chaos", "--visits-per-second", "90000"], "lower one of them"),
        (&["chaos", "--group", "web", "--faults", "engine-restart"], "--restart-engine"),
        (&["chaos", "--group", "web", "--socket", "/nowhere.sock", "--dry-run"], "cannot be asked"),
        (&["rollout", "--what", "upgrades"], "choose from rollouts, scale"),
        (&["rollout", "--times", "0"], "--times must be"),
        (&["balance", "--slots", "1"], "choose from 2 to"),
        (&["balance", "--policies", "local"], "choose from balanced"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
        let output = command.args(arguments).args(two).env("TMPDIR", directory.path().join("none")).output();
        let output = output.expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(says), "{arguments:?}: {errors}");
    }
}
