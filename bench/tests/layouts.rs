//! `sherd-bench sharding` and `tune` through the real binary, with agents and containers: what they write, and that nothing is
//! left however they end.

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
use sherd_testkit::{Need, docker_socket, eventually, needs};

const PROGRAMS: [&str; 4] = ["go-computes", "go-allocates", "nginx", "jvm"];
const IMAGE: &str = "sherd-bench-test-layouts:latest";

/// Two runs at a time would share CPUs that each takes for its own.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_there(test: &str, programs: &[&'static str]) -> bool {
    let programs: Vec<Need> = ["docker", "ldd"].iter().chain(programs).map(|program| Need::Program(program)).collect();
    needs(test, &[&[Need::Root, Need::Bpf, Need::Docker], &programs[..]].concat())
}

/// The agent beside the benchmark: a package's tests are given their own package's programs only.
fn sherd() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_sherd-bench")).with_file_name("sherd");
    assert!(program.is_file(), "cargo build -p sherd makes {}", program.display());
    program
}

fn bench(directory: &Path, arguments: &[&str], words: &[&str]) -> Command {
    let scratch = directory.join("tmp");
    fs::create_dir_all(&scratch).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
    command
        .args(arguments)
        .args(["--docker", &docker_socket(), "--output"])
        .arg(directory.join("results"))
        .arg("--sherd")
        .arg(sherd())
        .args(words)
        .env("TMPDIR", scratch)
        .stdin(Stdio::null());
    command
}

fn docker(words: &[&str]) -> String {
    let host = format!("unix://{}", docker_socket());
    let output = Command::new("docker").args(["--host", &host]).args(words).output().expect("docker is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An image of somebody's, in the engine until this is dropped: busybox' server, which forks for each connection and closes it
/// after an answer.
struct Served;

impl Served {
    fn new(directory: &Path) -> Self {
        let root = directory.join("root");
        fs::create_dir_all(root.join("www")).expect("writable");
        fs::copy("/bin/busybox", root.join("busybox")).expect("busybox-static is installed");
        fs::write(root.join("www/index.html"), "busybox\n").expect("writable");
        let archive = directory.join("root.tar");
        let tar = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status();
        assert!(tar.expect("tar is there").success());
        let command = r#"CMD ["/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]"#;
        docker(&["import", "--change", command, archive.to_str().expect("text"), IMAGE]);
        Self
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let host = format!("unix://{}", docker_socket());
        let _ = Command::new("docker").args(["--host", &host, "rmi", "--force", IMAGE]).output();
    }
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
    eventually(&format!("no process is left after {how}"), Duration::from_secs(90), || {
        processes_of(directory).is_empty().then_some(())
    });
    let label = ["--quiet", "--filter", "label=sherd-bench.run"];
    let in_the_engine = docker(&[&["ps", "--all"], &label[..]].concat()) + &docker(&[&["images"], &label[..]].concat());
    assert_eq!(in_the_engine, "", "in the engine after {how}");
    assert_eq!(guards_of_the_dead(), Vec::<String>::new(), "after {how}");
    let left: Vec<_> = fs::read_dir(directory.join("tmp")).expect("readable").flatten().collect();
    assert!(left.is_empty(), "after {how}: {left:?}");
}

/// Guards of agents of benchmarks, wherever cgroup v2 is mounted, whose run, named after its keeper, is over. Other scenarios'
/// agents are named after their path, and those may be of somebody else's run.
fn guards_of_the_dead() -> Vec<String> {
    let tops = ["/sys/fs/cgroup/sherd", "/sys/fs/cgroup/unified/sherd"].map(fs::read_dir);
    let names =
        tops.into_iter().flatten().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_dead = |name: &String| {
        let keeper = name.strip_prefix("sherd-bench-").and_then(|rest| rest.split('-').next());
        let of_a_layout = !name.ends_with("-direct") && !name.ends_with("-relay");
        of_a_layout && keeper.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    names.filter(is_dead).collect()
}

/// Runs it; gives its reports, and what it printed.
fn run(command: &mut Command) -> (Vec<Value>, String) {
    let output = command.output().expect("it starts");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}{errors}");
    let paths = text.lines().filter_map(|line| line.strip_prefix("every sample: "));
    let reports = paths.map(|path| serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON"));
    (reports.collect(), text.into_owned())
}

fn names(list: &Value, of: &str) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|one| one[of].as_str().expect("a text").to_owned()).collect()
}

#[test]
fn each_program_is_measured_in_every_layout() {
    // The others take the time to make their images: `make prove` has them.
    let long = std::env::var_os("SHERD_PROVE").is_some();
    let (programs, duration) = if long { (&PROGRAMS[..], "0.5") } else { (&PROGRAMS[..1], "0.05") };
    if !is_there("each_program_is_measured_in_every_layout", &["go", "nginx", "jlink"]) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let small = ["sharding", "--quick", "--pairs", "1", "--duration", duration, "--programs", &programs.join(",")];
    let (reports, text) = run(&mut bench(directory.path(), &small, &[]));
    let scenarios: Vec<_> = reports.iter().map(|report| report["scenario"].as_str().expect("a text")).collect();
    assert_eq!(scenarios, programs.iter().map(|program| format!("sharding-{program}")).collect::<Vec<_>>());
    for report in reports {
        let contestants = names(&report["contestants"], "name");
        for layout in ["core", "unsharded", "unpinned"] {
            assert!(contestants.iter().any(|name| name == layout), "{layout} in {contestants:?}\n{text}");
        }
        // Each unit was measured, or is one that was.
        let told = report["remarks"].to_string();
        assert!(["core: ", "pu", "l3", "numa"].iter().all(|unit| told.contains(unit)), "{told}");
        // Two in each block under two loads, and the control.
        assert_eq!(report["samples"].as_array().map(Vec::len), Some(2 * 2 * (contestants.len() + 1)));
        let failed = report["samples"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|sample| sample["errors"] != serde_json::json!({}));
        assert_eq!(failed.count(), 0, "{text}");
    }
    check_nothing_is_left(directory.path(), "a whole run");
}

#[test]
fn a_program_of_somebodys_is_tuned() {
    if !is_there("a_program_of_somebodys_is_tuned", &["busybox"]) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let _served = Served::new(directory.path());
    let written = directory.path().join("tuned.toml");
    let file = written.to_str().expect("text");
    let tuned = |budget: &str| {
        let small = ["tune", "--duration", "0.05", "--warm-up", "0.2", "--policies", "balanced", "--write", file];
        let arguments = [&small[..], &["--budget", budget]].concat();
        let (mut reports, text) = run(&mut bench(directory.path(), &arguments, &["--", IMAGE]));
        (reports.pop().expect("a report"), text)
    };
    let (mut report, mut text) = tuned("8s");
    if report["samples"] == serde_json::json!([]) {
        // On a busy host the containers' start takes that long.
        fs::remove_file(file).expect("it was written");
        (report, text) = tuned("60s");
    }
    let candidates = names(&report["contestants"], "name");
    assert_eq!(candidates[0], "core/connection", "{text}");
    let verdicts = report["analysis"]["verdicts"].as_array().expect("a list");
    assert!(verdicts.len() == 1 && text.contains("the best layout by requests/s"), "{text}");
    assert!(
        report["samples"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|sample| sample["contestant"] == "core/connection again")
    );
    assert!(text.contains("is the specification of "), "{text}");
    // What was written is what `sherd` takes.
    let plan = Command::new(sherd()).args(["plan", "--reserved-cpus", "none", "--run-dir", "/nowhere", file]).output();
    let plan = plan.expect("it starts");
    assert!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr));
    assert!(fs::read_to_string(&written).expect("it is there").contains(&format!("image = \"{IMAGE}\"")));
    check_nothing_is_left(directory.path(), "a whole run");
}

/// A process, a specification of its own, and a load that is a command and finds no difference.
#[test]
fn a_command_is_the_load() {
    if !needs("a_command_is_the_load", &[Need::Root, Need::Bpf, Need::Program("bash")]) {
        return;
    }
    let _alone = alone();
    let directory = tempfile::tempdir().expect("a directory for the test");
    let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    fs::create_dir(path("announced")).expect("writable");
    let command = [env!("CARGO_BIN_EXE_sherd-bench"), "shard", "--announce", &path("announced")];
    let text = format!(
        "# kept\nname = \"web\"\nstop_grace = \"1s\"\n\n[process]\ncommand = {command:?}\n\n\
         [[ports]]\npublish = \"8080:80\"\nloopback = true\npolicy = \"balanced\"\n"
    );
    fs::write(path("web.toml"), text).expect("writable");
    let script = "#!/bin/bash\nexec 3<>\"/dev/tcp/${SHERD_BENCH_ADDRESS%:*}/${SHERD_BENCH_ADDRESS#*:}\" || exit 1\n\
                  printf 'GET /3 HTTP/1.0\\r\\n\\r\\n' >&3; read -r -u 3 line; [[ $line == *200* ]] || exit 1\n\
                  echo answered; echo $((1000 + RANDOM % 3))\n";
    fs::write(path("load.sh"), script).expect("writable");
    let load = format!("bash {}", path("load.sh"));
    let tune = ["tune", "--spec", &path("web.toml"), "--write", &path("tuned.toml"), "--load", &load];
    let more = ["--budget", "20s", "--warm-up", "0", "--policies", "balanced", "--margin", "5"];
    let (reports, text) = run(&mut bench(directory.path(), &[&tune[..], &more].concat(), &[]));
    let samples = reports[0]["samples"].as_array().expect("a list");
    let scores = samples.iter().map(|sample| sample["score"].as_f64().expect("a score"));
    assert!(samples.len() >= 2 && scores.into_iter().all(|score| (1000.0..1003.0).contains(&score)), "{text}");
    let written = fs::read_to_string(path("tuned.toml")).expect("it is there");
    assert!(written.starts_with("# kept\n") && written.contains("policy = \"balanced\""), "{written}");
    check_nothing_is_left(directory.path(), "a whole run");
}

#[test]
fn killed_at_any_moment_they_leave_nothing() {
    if !is_there("killed_at_any_moment_they_leave_nothing", &["go", "busybox"]) {
        return;
    }
    let _alone = alone();
    let served = tempfile::tempdir().expect("a directory for the test");
    let _served = Served::new(served.path());
    let sharding: (&[&str], &[&str]) =
        (&["sharding", "--quick", "--duration", "60", "--programs", "go-allocates"], &[]);
    let tune: (&[&str], &[&str]) = (&["tune", "--duration", "60"], &["--", IMAGE]);
    for ((arguments, words), moment, signal) in [(sharding, 3000, Signal::SIGKILL), (tune, 3000, Signal::SIGTERM)] {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let mut command = bench(directory.path(), arguments, words);
        let mut guard = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        // A moment of the run, not a wait for something.
        std::thread::sleep(Duration::from_millis(moment));
        kill(Pid::from_raw(guard.id() as i32), signal).expect("it runs");
        assert!(!guard.wait().expect("it ends").success());
        check_nothing_is_left(directory.path(), &format!("{signal} of {arguments:?} at {moment} ms"));
        assert!(!directory.path().join("results").exists(), "no report of half a run");
    }
}

#[test]
fn what_is_wrong_is_told_with_the_remedy() {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let nothing = directory.path().join("nothing.toml");
    fs::write(&nothing, "name = \"a\"\n").expect("writable");
    let nothing = nothing.to_str().expect("text");
    let sherd = sherd();
    let sherd = sherd.to_str().expect("text");
    for (arguments, says) in [
        (&["sharding", "--programs", "perl"][..], "choose from go-allocates, go-computes, nginx, jvm"),
        (&["sharding", "--programs", "jvm,jvm"], "names jvm twice"),
        (&["sharding", "--warm-up", "601"], "--warm-up must be"),
        (&["tune"], "required arguments were not provided"),
        (&["tune", "--sherd", sherd, "--spec", nothing], "nothing.toml:1: container"),
        (&["tune", "--spec", nothing, "--write", nothing], "is there already"),
        (&["tune", "--spec", "/nowhere.toml"], "/nowhere.toml cannot be read"),
        (&["tune", "--units", "rack", "--", "a"], "--units knows no \"rack\""),
        (&["tune", "--budget", "soon", "--", "a"], "write it as 90s, 5m or 1h"),
        (&["tune", "--path", "x", "--", "a"], "--path must start with /"),
        (&["tune", "--load", "true", "--rate", "5", "--", "a"], "cannot be used with"),
        (&["tune", "--sherd", "/nowhere", "--", "a"], "/nowhere cannot be run"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sherd-bench"));
        let output = command.args(arguments).env("TMPDIR", directory.path().join("tmp")).output().expect("it starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains(says), "{arguments:?}: {errors}");
    }
    assert!(!directory.path().join("tmp").exists());
}
