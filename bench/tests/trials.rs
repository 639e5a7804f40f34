//! `sherd-bench stall` and `failover` through the real binary, with containers of a real engine: what they write, and that
//! nothing is left however they end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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

/// Two runs at a time would share CPUs that each takes for its own.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A shard that is stopped or killed needs another beside it.
fn is_there(test: &str) -> bool {
    let needed = [Need::Root, Need::Bpf, Need::Docker, Need::Program("docker"), Need::Program("ldd")];
    let enough = allowed_cpus().expect("readable").len() >= 2;
    if !enough {
        eprintln!("SKIPPED {test}: it needs two CPUs");
    }
    enough && needs(test, &needed)
}

fn trial(directory: &Path, arguments: &[&str]) -> Command {
    let sherd = Path::new(env!("CARGO_BIN_EXE_sherd-bench")).with_file_name("sherd");
    assert!(sherd.is_file(), "cargo build -p sherd makes {}", sherd.display());
    let scratch = directory.join("tmp");
    fs::create_dir_all(&scratch).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
    command
        .args(arguments)
        .args(["--quick", "--docker", &docker_socket(), "--output"])
        .arg(directory.join("results"))
        .arg("--sherd")
        .arg(sherd)
        .env("TMPDIR", scratch)
        .stdin(Stdio::null());
    command
}

/// Ids of containers and images that bear the label of any run.
fn in_the_engine() -> String {
    let list = |words: &[&str]| {
        let host = format!("unix://{}", docker_socket());
        let output = Command::new("docker").args(["--host", &host]).args(words).output().expect("docker is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let label = ["--quiet", "--filter", "label=sherd-bench.run"];
    list(&[&["ps", "--all"], &label[..]].concat()) + &list(&[&["images"], &label[..]].concat())
}

/// Processes whose environment names the test's directory: all that a run starts inherits it.
fn processes_of(directory: &Path) -> Vec<PathBuf> {
    let needle = directory.to_str().expect("the test's directory is text").as_bytes();
    let mentions = |path: &PathBuf| {
        fs::read(path.join("environ")).is_ok_and(|text| text.windows(needle.len()).any(|found| found == needle))
    };
    let entries = fs::read_dir("/proc").expect("proc is mounted").flatten();
    entries.map(|entry| entry.path()).filter(mentions).collect()
}

fn check_nothing_is_left(directory: &Path, how: &str) {
    eventually(&format!("no process is left after {how}"), Duration::from_secs(90), || {
        processes_of(directory).is_empty().then_some(())
    });
    assert_eq!(in_the_engine(), "", "in the engine after {how}");
    let left: Vec<_> = fs::read_dir(directory.join("tmp")).expect("readable").flatten().collect();
    assert!(left.is_empty(), "after {how}: {left:?}");
}

/// Runs it, and gives its report and its table.
fn run(directory: &Path, arguments: &[&str]) -> (Value, String) {
    let output = trial(directory, arguments).output().expect("it starts");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let json = text.lines().find_map(|line| line.strip_prefix("every sample: ")).expect("it names its report");
    (serde_json::from_slice(&fs::read(json).expect("there")).expect("JSON"), text.into_owned())
}

fn samples(report: &Value, title: &str) -> Vec<f64> {
    let series = report["series"].as_array().expect("a list");
    let found =
        series.iter().find(|series| series["title"] == title).unwrap_or_else(|| panic!("{title} in {series:?}"));
    found["samples"].as_array().expect("a list").iter().map(|sample| sample.as_f64().expect("a number")).collect()
}

#[test]
fn a_stopped_shard_shows_in_its_clients_figures() {
    if !is_there("a_stopped_shard_shows_in_its_clients_figures") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let (report, text) = run(directory.path(), &["stall", "--stalls", "1", "--saturate", "1"]);
    assert!(samples(&report, "connections queued there").iter().all(|queued| *queued > 0.0), "{text}");
    let out = samples(&report, "ms from the first connection queued to the last steered there");
    let served = samples(&report, "ms from the first connection queued to the last of them served");
    // A slot is out before what waits for it is moved, 2 s later.
    assert!(out.len() == 1 && served.len() == 1 && out[0] < 2000.0 && served[0] > 1000.0, "{text}");
    assert_eq!(samples(&report, "connections that failed"), [0.0], "{text}");
    assert!(text.contains("no shard is found hung in 1 s"), "{text}");
    check_nothing_is_left(directory.path(), "a whole run");
}

#[test]
fn shards_are_killed_with_and_without_their_agent() {
    if !is_there("shards_are_killed_with_and_without_their_agent") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let (report, text) = run(directory.path(), &["failover", "--kills", "1"]);
    for agent in ["agent alive", "agent stopped"] {
        assert_eq!(samples(&report, &format!("ms from the kill to the last connection that failed, {agent}")).len(), 1);
        // Somebody served after it.
        let slowest = samples(&report, &format!("ms of the slowest begun after the kill, {agent}"));
        assert!(slowest[0] > 0.0, "{text}");
    }
    assert_eq!(report["verdicts"].as_array().map(Vec::len), Some(2));
    check_nothing_is_left(directory.path(), "a whole run");
}

#[test]
fn killed_while_a_shard_or_the_agent_is_stopped_they_leave_nothing() {
    if !is_there("killed_while_a_shard_or_the_agent_is_stopped_they_leave_nothing") {
        return;
    }
    let _alone = alone();
    for (arguments, signal) in
        [(["stall", "--saturate", "0"].as_slice(), Signal::SIGKILL), (&["failover", "--kills", "1"], Signal::SIGTERM)]
    {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let mut command = trial(directory.path(), arguments);
        let mut guard = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        eventually("something of the run is stopped", Duration::from_secs(60), || {
            processes_of(directory.path()).into_iter().chain(shards()).any(|process| is_stopped(&process)).then_some(())
        });
        kill(Pid::from_raw(guard.id() as i32), signal).expect("it runs");
        assert!(!guard.wait().expect("it ends").success());
        check_nothing_is_left(directory.path(), &format!("{signal} of {arguments:?}"));
        assert!(!directory.path().join("results").exists(), "no report of half a run");
    }
}

/// Shards are the engine's children: their command is what is known of them.
fn shards() -> Vec<PathBuf> {
    let is_shard =
        |path: &PathBuf| fs::read(path.join("cmdline")).is_ok_and(|words| words.starts_with(b"/sherd-bench\0shard\0"));
    fs::read_dir("/proc").expect("proc is mounted").flatten().map(|entry| entry.path()).filter(is_shard).collect()
}

/// State `T` (proc_pid_stat(5)).
fn is_stopped(process: &Path) -> bool {
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, after)| after.starts_with(" T "))
}

#[test]
fn bad_options_are_refused_before_anything_starts() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    for (arguments, says) in [
        (["stall", "--stalls", "0"], "--stalls must be"),
        (["stall", "--saturate", "999999"], "--saturate must be"),
        (["stall", "--cpus", "0"], "shards on 2 CPUs"),
        (["failover", "--kills", "0"], "--kills must be"),
        (["failover", "--docker", "/nowhere.sock"], "no Docker Engine answers at /nowhere.sock"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
        let output = command.args(arguments).env("TMPDIR", directory.path()).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(says), "{arguments:?}: {errors}");
    }
    let left: Vec<_> = fs::read_dir(directory.path()).expect("readable").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
