//! `sherd-bench graft`, `plan` and `steer` through the real binary, in their smallest forms: what they tell, and that it is of
//! what they say.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use sherd_bench::measure::allowed_cpus;
use sherd_testkit::{Need, docker_socket, needs};

/// What cargo makes beside this package's own program.
fn beside(name: &str, made_by: &str) -> String {
    let path = Path::new(env!("CARGO_BIN_EXE_sherd-bench")).with_file_name(name);
    assert!(path.exists(), "{made_by} makes {}", path.display());
    path.to_string_lossy().into_owned()
}

/// Runs it, and gives its report and its table.
fn run(arguments: &[&str]) -> (Value, String) {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let scratch = directory.path().join("tmp");
    fs::create_dir_all(&scratch).expect("writable");
    let output = Command::new(env!("CARGO_BIN_EXE_sherd-bench"))
        .args(arguments)
        .args(["--quick", "--output"])
        .arg(directory.path().join("results"))
        .env("TMPDIR", &scratch)
        .stdin(Stdio::null())
        .output()
        .expect("it starts");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let left: Vec<_> = fs::read_dir(&scratch).expect("readable").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    let json = text.lines().find_map(|line| line.strip_prefix("every sample: ")).expect("it names its report");
    (serde_json::from_slice(&fs::read(json).expect("there")).expect("JSON"), text.into_owned())
}

fn samples(report: &Value, title: &str) -> Vec<f64> {
    let series = report["series"].as_array().expect("a list");
    let of_it = |series: &&Value| series["title"].as_str().is_some_and(|found| found.starts_with(title));
    let found = series.iter().find(of_it).unwrap_or_else(|| panic!("{title} in {series:?}"));
    found["samples"].as_array().expect("a list").iter().map(|sample| sample.as_f64().expect("a number")).collect()
}

#[test]
fn planning_is_timed_for_every_machine() {
    let sherd = beside("sherd", "cargo build -p sherd");
    let (report, text) = run(&["plan", "--times", "1", "--sherd", &sherd]);
    let series = report["series"].as_array().expect("a list");
    // Two figures of seven machines with one group, and of six with several.
    assert_eq!(series.len(), 2 * (7 + 6), "{text}");
    let (small, large) =
        (samples(&report, "1 cores, 1 × 1 slots: ms,"), samples(&report, "4096 cores, 64 × 64 slots: ms,"));
    assert!(0.0 < small[0] && small[0] < large[0], "{text}");
    assert!(text.contains("cores to the power of"), "{text}");
}

#[test]
fn programs_tell_how_long_they_waited_for_listen() {
    let test = "programs_tell_how_long_they_waited_for_listen";
    if !needs(test, &[Need::Root, Need::Bpf, Need::Docker, Need::Program("docker"), Need::Program("ldd")]) {
        return;
    }
    let sherd = beside("sherd", "cargo build -p sherd");
    let (report, text) = run(&["graft", "--listens", "20", "--sherd", &sherd, "--docker", &docker_socket()]);
    let shards = allowed_cpus().expect("readable").len();
    let shards = if shards < 4 { shards } else { shards / 2 };
    let paced = samples(&report, "ms of listen(2), one each 5 ms");
    assert!(paced.len() == 20 * shards && paced.iter().all(|millis| *millis > 0.0), "{text}");
    assert_eq!(samples(&report, "ms of listen(2), one after the other").len(), 20 * shards, "{text}");
    assert!(samples(&report, "grafts a second")[0] > 1.0, "{text}");
    let all = format!("held       every listen(2) gets a listener of the published port: {0} of {0}", 40 * shards);
    assert!(text.contains(&all), "{text}");
}

#[test]
fn steering_is_timed_by_probes() {
    if !needs("steering_is_timed_by_probes", &[Need::Root, Need::Bpf]) {
        return;
    }
    let probes = beside("examples", "cargo build -p sherd-lb --examples");
    let (report, text) = run(&["steer", "--blocks", "1", "--updates", "10", "--slots", "1,3", "--probes", &probes]);
    assert_eq!(samples(&report, "3 slots: µs until the next SYN obeys that").len(), 10, "{text}");
    assert!(samples(&report, "balanced, 3 slots: ns of steering")[0] > 10.0, "{text}");
    assert!(text.contains("1 blocks are too few"), "{text}");
}

#[test]
fn what_is_missing_is_named_with_its_remedy() {
    let missing = |arguments: &[&str], says: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
        let output = command.args(arguments).stdin(Stdio::null()).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(says), "{arguments:?}: {errors}");
    };
    missing(&["steer", "--probes", "/nowhere"], "cargo build --release -p sherd-lb --examples");
    missing(&["steer", "--slots", "4,1"], "--slots must be");
    missing(&["graft", "--docker", "/nowhere.sock"], "no Docker Engine answers at /nowhere.sock");
    missing(&["graft", "--listens", "0"], "--listens must be");
    missing(&["plan", "--times", "0"], "--times must be");
}
