//! `sherd-bench direct` through the real binary, with containers of a real engine: what it writes, and that nothing is left
//! however it ends.

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
use sherd_testkit::{Need, docker_socket, eventually, needs};

/// Two runs at a time would share CPUs that each takes for its own.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_there(test: &str) -> bool {
    let programs = ["docker", "haproxy", "ldd", "strace"].map(Need::Program);
    needs(test, &[&[Need::Root, Need::Bpf, Need::Docker], &programs[..]].concat())
}

/// The agent beside the benchmark: a package's tests are given their own package's programs only.
fn sherd() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_sherd-bench")).with_file_name("sherd");
    assert!(program.is_file(), "cargo build -p sherd makes {}", program.display());
    program
}

fn direct(directory: &Path, arguments: &[&str]) -> Command {
    let scratch = directory.join("tmp");
    fs::create_dir_all(&scratch).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
    command
        .args(["direct", "--docker", &docker_socket(), "--output"])
        .arg(directory.join("results"))
        .arg("--sherd")
        .arg(sherd())
        .args(arguments)
        .env("TMPDIR", scratch)
        .stdin(Stdio::null());
    command
}

/// Ids of containers and images that bear the label of any run.
fn in_the_engine() -> Vec<String> {
    let list = |words: &[&str]| {
        let host = format!("unix://{}", docker_socket());
        let output = Command::new("docker").args(["--host", &host]).args(words).output().expect("docker is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let containers = list(&["ps", "--all", "--quiet", "--filter", "label=sherd-bench.run"]);
    containers.into_iter().chain(list(&["images", "--quiet", "--filter", "label=sherd-bench.run"])).collect()
}

/// The guards of agents of benchmarks, wherever cgroup v2 is mounted.
fn guards() -> Vec<PathBuf> {
    let tops = ["/sys/fs/cgroup/sherd", "/sys/fs/cgroup/unified/sherd"].map(fs::read_dir);
    let entries = tops.into_iter().flatten().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/sherd-bench-")).collect()
}

fn processes_of(directory: &Path) -> Vec<String> {
    let needle = directory.to_str().expect("the test's directory is text").as_bytes();
    let mentions = |path: &Path| {
        fs::read(path.join("environ")).is_ok_and(|text| text.windows(needle.len()).any(|found| found == needle))
    };
    let entries = fs::read_dir("/proc").expect("proc is mounted").flatten();
    entries
        .filter(|entry| mentions(&entry.path()))
        .map(|entry| fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default().replace('\0', " "))
        .collect()
}

fn check_nothing_is_left(directory: &Path, how: &str) {
    eventually(&format!("no process is left after {how}"), Duration::from_secs(90), || {
        processes_of(directory).is_empty().then_some(())
    });
    assert_eq!(in_the_engine(), Vec::<String>::new(), "in the engine after {how}");
    assert_eq!(guards(), Vec::<PathBuf>::new(), "after {how}");
    let left: Vec<_> = fs::read_dir(directory.join("tmp")).expect("readable").flatten().collect();
    assert!(left.is_empty(), "after {how}: {left:?}");
}

/// A run of two pairs; gives its report.
fn small_run(directory: &Path, contestants: &str, arguments: &[&str]) -> serde_json::Value {
    let small = ["--quick", "--pairs", "2", "--duration", "0.05", "--counted", "50", "--contestants", contestants];
    let output = direct(directory, &[&small, arguments].concat()).output().expect("it starts");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let json = text.lines().find_map(|line| line.strip_prefix("every sample: ")).expect("it names its report");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(json).expect("there")).expect("JSON");
    let names: Vec<&str> = contestants.split(',').collect();
    let told: Vec<_> = report["contestants"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    assert_eq!(told, names, "{text}");
    report
}

#[test]
fn a_small_run_reports_every_contestant() {
    if !is_there("a_small_run_reports_every_contestant") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let all = "sherd-direct,bare,bare-2,haproxy,haproxy-host,sherd-relay";
    let report = small_run(directory.path(), all, &[]);
    // Two in each block under three loads.
    assert_eq!(report["samples"].as_array().map(Vec::len), Some(2 * 2 * 3 * 6));
    let control = report["analysis"]["control"].as_array().expect("a list");
    assert!(control.iter().all(|ratio| ratio["of"] == "bare" && ratio["to"] == "bare-2") && !control.is_empty());
    let calls = report["calls"].as_array().expect("a list");
    let [ours, bare] = &calls[..] else { panic!("two are counted: {calls:?}") };
    assert!(bare["of_connections"]["accept4"].as_u64() >= Some(50), "{bare}");
    assert_eq!(ours["of_connections"]["accept4"], bare["of_connections"]["accept4"], "{calls:?}");
    assert_eq!(ours["of_requests"]["sendto"], bare["of_requests"]["sendto"], "{calls:?}");
    check_nothing_is_left(directory.path(), "a whole run");
}

#[test]
fn a_go_server_takes_part() {
    if !is_there("a_go_server_takes_part") || !needs("a_go_server_takes_part", &[Need::Program("go")]) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let report = small_run(directory.path(), "sherd-direct,bare", &["--image-server", "go"]);
    let errors: Vec<_> = report["samples"].as_array().expect("a list").iter().map(|sample| &sample["errors"]).collect();
    assert!(errors.iter().all(|errors| errors.as_object().is_some_and(serde_json::Map::is_empty)), "{errors:?}");
    assert_eq!(report["calls"].as_array().map(Vec::len), Some(0));
    check_nothing_is_left(directory.path(), "a run with Go");
}

#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    if !is_there("killed_at_any_moment_it_leaves_nothing") {
        return;
    }
    let _alone = alone();
    for (moment, signal) in
        [(300, Signal::SIGKILL), (2000, Signal::SIGINT), (3500, Signal::SIGKILL), (7000, Signal::SIGTERM)]
    {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let contestants = ["--contestants", "sherd-direct,bare", "--duration", "60"];
        let mut command = direct(directory.path(), &contestants);
        let mut guard = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        // A moment of the run, not a wait for something.
        std::thread::sleep(Duration::from_millis(moment));
        kill(Pid::from_raw(guard.id() as i32), signal).expect("it runs");
        assert!(!guard.wait().expect("it ends").success());
        check_nothing_is_left(directory.path(), &format!("{signal} at {moment} ms"));
        assert!(!directory.path().join("results").exists(), "no report of half a run");
    }
}

/// The worker itself is killed, which can clean up nothing: its keeper does.
#[test]
fn a_killed_worker_leaves_nothing() {
    if !is_there("a_killed_worker_leaves_nothing") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let mut command = direct(directory.path(), &["--contestants", "sherd-direct,bare", "--duration", "60"]);
    let mut guard = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    eventually("containers of both run", Duration::from_secs(60), || (in_the_engine().len() >= 4).then_some(()));
    let words = fs::read_to_string(format!("/proc/{0}/task/{0}/children", guard.id())).expect("it has a keeper");
    let keeper = words.split_whitespace().next().expect("it has a keeper").to_owned();
    let words = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).expect("it has a worker");
    let worker: i32 = words.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("it has a worker");
    kill(Pid::from_raw(worker), Signal::SIGKILL).expect("it runs");
    assert!(!guard.wait().expect("it ends").success());
    check_nothing_is_left(directory.path(), "the worker's death");
}

#[test]
fn what_is_missing_or_wrong_is_told_with_the_remedy() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    for (arguments, says) in [
        (["--docker", "/nowhere.sock"], "no Docker Engine answers at /nowhere.sock"),
        (["--contestants", "envoy"], "choose from sherd-direct, bare"),
        (["--contestants", "bare,bare"], "names bare twice"),
        (["--image-server", "node"], "choose shard or go"),
        (["--counted", "1000000"], "--counted must be"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
        let output = command.arg("direct").args(arguments).env("TMPDIR", directory.path()).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(says), "{arguments:?}: {errors}");
    }
    let left: Vec<_> = fs::read_dir(directory.path()).expect("readable").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
