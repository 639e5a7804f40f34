//! `sherd-bench relay` through the real binary: what it writes, and that nothing is left however it ends.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sherd_testkit::eventually;

const ALL_BUT_SHERD: &str = "haproxy,haproxy-splice,nginx,direct";

fn relay(directory: &Path, contestants: &str, arguments: &[&str]) -> Command {
    let scratch = directory.join("tmp");
    fs::create_dir_all(&scratch).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
    command
        .args(["relay", "--output"])
        .arg(directory.join("results"))
        .args(["--contestants", contestants])
        .args(arguments)
        .env("TMPDIR", scratch)
        .stdin(Stdio::null());
    command
}

/// Processes whose environment names the test's directory: all that a run starts inherits it.
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
    eventually(&format!("no process is left after {how}"), Duration::from_secs(40), || {
        processes_of(directory).is_empty().then_some(())
    });
    let left: Vec<_> = fs::read_dir(directory.join("tmp")).expect("readable").flatten().collect();
    assert!(left.is_empty(), "after {how}: {left:?}");
}

#[test]
fn a_small_run_reports_every_sample() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let small = ["--pairs", "2", "--duration", "0.05", "--idle", "20", "--bulk-answer", "100000", "--loads"];
    let loads = ["keep-alive,connections,bulk,open,echo,streams"];
    let output = relay(directory.path(), ALL_BUT_SHERD, &[&small[..], &loads].concat()).output().expect("it starts");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    for words in ["requests/s", "CPU µs/request", "p99 µs at rate", "(control)", "noise:"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let json = text.lines().find_map(|line| line.strip_prefix("every sample: ")).expect("it names its report");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(json).expect("there")).expect("JSON");
    let contestants = report["contestants"].as_array().expect("a list").len();
    // Two in each block under six loads, and the control.
    let samples = report["samples"].as_array().expect("a list");
    assert_eq!(samples.len(), 2 * 2 * 6 * (contestants + 1));
    // How much of them goes through in 50 ms is the host's business, and that it is right is not.
    let streams = || samples.iter().filter(|sample| sample["load"] == "streams");
    assert!(streams().any(|sample| sample["requests"].as_u64() > Some(0)), "{text}");
    assert!(streams().all(|sample| sample["errors"]["a stream has a wrong byte"].is_null()), "{text}");
    assert_eq!(report["idle"].as_array().map(Vec::len), Some(contestants));
    assert!(report["host"]["kernel"].is_string() && report["command_line"].is_string());
    check_nothing_is_left(directory.path(), "a whole run");
}

fn start_endless(directory: &Path) -> Child {
    relay(directory, ALL_BUT_SHERD, &["--duration", "60"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts")
}

#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    for (moment, signal) in [
        (0, Signal::SIGKILL),
        (5, Signal::SIGTERM),
        (40, Signal::SIGKILL),
        (150, Signal::SIGINT),
        (400, Signal::SIGKILL),
        (1500, Signal::SIGTERM),
        (1500, Signal::SIGKILL),
    ] {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let mut guard = start_endless(directory.path());
        // A moment of the run, not a wait for something.
        std::thread::sleep(Duration::from_millis(moment));
        kill(Pid::from_raw(guard.id() as i32), signal).expect("it runs");
        let status = guard.wait().expect("it ends");
        assert!(!status.success());
        check_nothing_is_left(directory.path(), &format!("{signal} at {moment} ms"));
        assert!(!directory.path().join("results").exists(), "no report of half a run");
    }
}

#[test]
fn who_is_missing_is_listed_with_the_command_that_installs_it() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let nowhere = ["--haproxy", "/nowhere", "--nginx", "/nowhere", "--sherd", "/nowhere"];
    let mut with_direct =
        relay(directory.path(), ALL_BUT_SHERD, &["--pairs", "1", "--duration", "0.05", "--idle", "0"]);
    let output = with_direct.args(nowhere).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches("to install it: sherd-bench install").count(), 3, "{text}");
    let alone = relay(directory.path(), "nginx", &nowhere).output().expect("it starts");
    assert!(!alone.status.success() && String::from_utf8_lossy(&alone.stderr).contains("nobody takes part"));
}

#[test]
fn bad_options_are_refused_before_anything_starts() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    for (arguments, says) in [
        (["--cpus", "4000"], "write it as 0-3,8"),
        (["--cpus", "1000"], "not one that this process may use"),
        (["--pairs", "0"], "--pairs must be"),
        (["--rate", "7"], "--rate must be"),
        (["--connections", "0"], "--connections must be"),
        (["--bulk-answer", "99999999999"], "--bulk-answer must be"),
        (["--duration", "NaN"], "--duration must be"),
        (["--seed", "x"], "invalid digit"),
        (["--loads", "much"], "there is no load \"much\""),
    ] {
        let output = relay(directory.path(), ALL_BUT_SHERD, &arguments).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(says), "{arguments:?}: {errors}");
    }
}
