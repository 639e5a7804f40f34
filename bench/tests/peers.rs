//! `sherd-bench peers` and `memory` through the real binary, with containers of a real engine: what they write, and that
//! nothing is left however they end, not even in the kernel's settings.

use std::{
    fs,
    io::{BufRead, BufReader},
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
use sherd_bench::contestant::{default_peers, envoy};
use sherd_testkit::{Need, docker_socket, eventually, needs};

const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Two runs at a time would share CPUs that each takes for its own.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_there(test: &str) -> bool {
    let programs = ["docker", "haproxy", "nginx", "ldd", "strace"].map(Need::Program);
    needs(test, &[&[Need::Root, Need::Bpf, Need::Docker], &programs[..]].concat())
}

fn bench(directory: &Path, arguments: &[&str]) -> Command {
    let sherd = Path::new(env!("CARGO_BIN_EXE_sherd-bench")).with_file_name("sherd");
    assert!(sherd.is_file(), "cargo build -p sherd makes {}", sherd.display());
    let scratch = directory.join("tmp");
    fs::create_dir_all(&scratch).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
    command
        .args(arguments)
        .args(["--docker", &docker_socket(), "--output"])
        .arg(directory.join("results"))
        .arg("--sherd")
        .arg(sherd)
        .env("TMPDIR", scratch)
        .stdin(Stdio::null());
    command
}

/// Runs it; gives its report and its table.
fn run(directory: &Path, arguments: &[&str]) -> (Value, String) {
    let output = bench(directory, arguments).output().expect("it starts");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let json = text.lines().find_map(|line| line.strip_prefix("every sample: ")).expect("it names its report");
    (serde_json::from_slice(&fs::read(json).expect("there")).expect("JSON"), text.into_owned())
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

fn names(report: &Value, list: &str) -> Vec<String> {
    let list = report[list].as_array().expect("a list");
    list.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_small_run_tells_both_paths_of_everybody() {
    if !is_there("a_small_run_tells_both_paths_of_everybody") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let all = "sherd-direct,sherd-relay,unsharded,docker-port,haproxy-splice,nginx-host";
    let small =
        ["peers", "--quick", "--pairs", "1", "--duration", "0.05", "--counted", "30", "--bulk-answer", "100000"];
    let former = fs::read_to_string(BPF_STATS).expect("readable");
    let (report, text) = run(directory.path(), &[&small[..], &["--contestants", all]].concat());
    assert_eq!(names(&report, "contestants"), all.split(',').collect::<Vec<_>>(), "{text}");
    // Two in each block under four loads, and both of sherd's under a second name.
    let samples = report["samples"].as_array().expect("a list");
    assert_eq!(samples.len(), 2 * 4 * (6 + 2));
    assert!(samples.iter().all(|sample| sample["errors"].as_object().is_some_and(serde_json::Map::is_empty)), "{text}");
    for words in ["sherd-direct ÷", "sherd-relay ÷", "(control)", "switches/request", "system calls/connection"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let verdicts = report["analysis"]["verdicts"].as_array().expect("a list");
    let targets: Vec<&str> = verdicts.iter().filter_map(|verdict| verdict["target"].as_str()).collect();
    let of = |name: &str| targets.iter().filter(|target| target.starts_with(name)).count();
    assert!(of("sherd-direct: ") >= 5 && of("sherd-relay: ") >= 4, "{verdicts:?}");
    let calls = report["calls"].as_array().expect("a list");
    assert_eq!(calls.len(), 6, "{calls:?}");
    // What the engine's proxy does is somebody's CPU time.
    let of_port = samples.iter().filter(|sample| sample["contestant"] == "docker-port");
    let proxied =
        report["contestants"][3]["configuration"].as_str().is_some_and(|told| told.contains("userland proxy ("));
    assert!(of_port.into_iter().all(|sample| sample["balancer_cpu_seconds"].is_number() == proxied), "{text}");
    if needs("the programs' run times", &[Need::Program("bpftool")]) {
        let steered = &report["bpf"][0]["of_connections"]["programs"]["steer"];
        assert!(steered["runs"].as_u64() > Some(0) && steered["nanos"].as_u64() > Some(0), "{report:?}");
    }
    assert_eq!(fs::read_to_string(BPF_STATS).expect("readable"), former);
    check_nothing_is_left(directory.path(), "a whole run");
}

/// With Envoy where it is installed; what is not there is listed with the command that installs it.
#[test]
fn envoy_takes_part_or_is_missing_and_the_others_go_on() {
    let test = "envoy_takes_part_or_is_missing_and_the_others_go_on";
    if !is_there(test) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let small = ["peers", "--quick", "--pairs", "1", "--duration", "0.05", "--counted", "0"];
    let nowhere = ["--contestants", "unsharded,envoy-host,nginx-host", "--nginx", "/nowhere"];
    let (report, text) = run(directory.path(), &[&small[..], &nowhere].concat());
    let mut missing = vec!["nginx-host"];
    let mut there = vec!["unsharded"];
    // Only what `sherd-bench install` has got.
    if envoy::is_installed(&default_peers()) {
        there.push("envoy-host");
    } else {
        eprintln!("SKIPPED that Envoy takes part: `sherd-bench install` has not been run");
        missing.insert(0, "envoy-host");
    }
    assert_eq!((names(&report, "contestants"), names(&report, "missing")), (owned(&there), owned(&missing)), "{text}");
    assert_eq!(text.matches("to install it: sherd-bench install").count(), missing.len(), "{text}");
    check_nothing_is_left(directory.path(), "a run with who is missing");
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The worker itself is killed while the kernel counts for it: its keeper puts that back, too.
#[test]
fn a_killed_worker_leaves_the_kernel_as_it_was() {
    let test = "a_killed_worker_leaves_the_kernel_as_it_was";
    if !is_there(test) || !needs(test, &[Need::Program("bpftool")]) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let former = fs::read_to_string(BPF_STATS).expect("readable");
    let long = ["peers", "--contestants", "sherd-relay", "--counted", "0", "--duration", "60"];
    let mut guard =
        bench(directory.path(), &long).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    // Open to the end: who writes there must not fail.
    let mut words = BufReader::new(guard.stderr.take().expect("piped")).lines();
    let counts = words.by_ref().map_while(Result::ok).any(|line| line == "run times of eBPF programs");
    assert!(counts, "it ended before");
    eventually("the kernel counts", Duration::from_secs(10), || {
        (fs::read_to_string(BPF_STATS).expect("readable").trim() == "1").then_some(())
    });
    let child = |pid: &str| {
        let words = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
        words.split_whitespace().next().expect("it has a child").to_owned()
    };
    let worker = child(&child(&guard.id().to_string()));
    kill(Pid::from_raw(worker.parse().expect("a number")), Signal::SIGKILL).expect("it runs");
    assert!(!guard.wait().expect("it ends").success());
    check_nothing_is_left(directory.path(), "the worker's death");
    assert_eq!(fs::read_to_string(BPF_STATS).expect("readable"), former);
}

#[test]
fn idle_connections_cost_what_their_sizes_say() {
    if !is_there("idle_connections_cost_what_their_sizes_say") {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let all = "sherd-relay,bare,nginx-host";
    let small = ["memory", "--idle", "600", "--sizes", "3", "--rounds", "1", "--contestants", all];
    let (report, text) = run(directory.path(), &small);
    assert_eq!(names(&report, "contestants"), all.split(',').collect::<Vec<_>>(), "{text}");
    assert_eq!(report["points"].as_array().map(Vec::len), Some(3 * 4), "{text}");
    let slope = |contestant: &str, whose: &str| {
        let slopes = report["slopes"].as_array().expect("a list");
        let found = slopes.iter().find(|slope| slope["contestant"] == contestant && slope["whose"] == whose);
        found.map(|slope| slope["value"].as_f64().expect("a number"))
    };
    // The kernel's is the whole host's, and whoever else ends there makes it smaller.
    assert!(slope("bare", "kernel").is_some() && slope("nginx-host", "balancer") > Some(500.0), "{text}");
    assert_eq!(slope("bare", "balancer"), None, "{text}");
    assert!(text.contains("sherd-relay: own memory per idle connection"), "{text}");
    check_nothing_is_left(directory.path(), "a whole run");
}

#[test]
fn bad_options_are_refused_before_anything_starts() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    for (arguments, says) in [
        (["peers", "--contestants", "traefik"], "choose from sherd-direct, bare"),
        (["peers", "--contestants", "bare,bare"], "names bare twice"),
        (["peers", "--bulk-answer", "99999999999"], "--bulk-answer must be"),
        (["peers", "--counted", "1000000"], "--counted must be"),
        (["peers", "--docker", "/nowhere.sock"], "no Docker Engine answers at /nowhere.sock"),
        (["memory", "--sizes", "1"], "--sizes must be"),
        (["memory", "--idle", "100001"], "--idle must be"),
        (["memory", "--rounds", "0"], "--rounds must be"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
        let output = command.args(arguments).env("TMPDIR", directory.path()).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(says), "{arguments:?}: {errors}");
    }
    let left: Vec<_> = fs::read_dir(directory.path()).expect("readable").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
