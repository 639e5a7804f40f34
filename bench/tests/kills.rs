//! Runs of the real binary that are killed at moments drawn from a seed: whichever of its processes it was, nothing of the run is
//! left on the host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sherd_bench::{keeper::descendants, measure::allowed_cpus, stats::Random};
use sherd_testkit::{Need, docker_socket, eventually, needs};

/// Runs that start agents, containers, balancers, servers and generators. What is missing on a host is left out by themselves.
const RUNS: [&[&str]; 8] = [
    &["relay", "--quick", "--idle", "2000"],
    &["direct", "--quick", "--counted", "100"],
    &["stall", "--quick"],
    &["failover", "--quick"],
    &["graft", "--quick", "--rounds", "5"],
    &["verify", "--quick"],
    &["plan", "--quick"],
    &["steer", "--quick"],
];
const MOMENTS: usize = 6;
const PROVING_MOMENTS: usize = 60;
/// Most runs have all of their processes by then.
const LATEST_MILLIS: usize = 4000;
const LATEST_PROVING_MILLIS: usize = 15_000;
/// A busy engine takes its time to remove containers.
const CLEAN_WITHIN: Duration = Duration::from_secs(120);

/// Whom it hits.
#[derive(Debug, Clone, Copy)]
enum Victim {
    /// What the user started.
    Guard(Signal),
    Keeper,
    Worker,
}

const VICTIMS: [Victim; 5] = [
    Victim::Guard(Signal::SIGKILL),
    Victim::Guard(Signal::SIGTERM),
    Victim::Guard(Signal::SIGINT),
    Victim::Keeper,
    Victim::Worker,
];

/// Whether all eBPF programs of the host are timed.
const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

#[test]
fn killed_at_any_moment_a_run_leaves_nothing() {
    let test = "killed_at_any_moment_a_run_leaves_nothing";
    if !needs(test, &[Need::Root, Need::Bpf, Need::Docker, Need::Program("docker"), Need::Program("ldd")]) {
        return;
    }
    if allowed_cpus().expect("readable").len() < 2 {
        return eprintln!("SKIPPED {test}: it needs two CPUs");
    }
    let proving = std::env::var_os("SHERD_PROVE").is_some();
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    let (moments, latest, seed) = if proving {
        (PROVING_MOMENTS, LATEST_PROVING_MILLIS, since.as_nanos() as u64)
    } else {
        (MOMENTS, LATEST_MILLIS, 1)
    };
    let mut random = Random::new(seed);
    let mut order: Vec<usize> = (0..RUNS.len()).collect();
    random.shuffle(&mut order);
    for moment in 0..moments {
        let run = RUNS[order[moment % RUNS.len()]];
        let after = Duration::from_millis(random.below(latest) as u64);
        let victim = VICTIMS[random.below(VICTIMS.len())];
        kill_one(
            run,
            after,
            victim,
            &format!("{victim:?} of {run:?} after {after:?} (moment {moment} of seed {seed})"),
        );
    }
}

fn kill_one(run: &[&str], after: Duration, victim: Victim, how: &str) {
    println!("{how}");
    let directory = tempfile::tempdir().expect("a directory for the test");
    let stats_before = fs::read_to_string(BPF_STATS).expect("readable");
    let mut guard = start(directory.path(), run);
    // A moment of the run, not a wait for something.
    std::thread::sleep(after);
    let pid = Pid::from_raw(guard.id() as i32);
    // The nearest first: the keeper is the guard's child, and the worker its. Killed early there may be neither.
    let family = descendants(pid);
    let runs: Vec<Pid> = family.iter().take(2).copied().collect();
    let (hit, signal) = match victim {
        Victim::Guard(signal) => (pid, signal),
        Victim::Keeper => (*family.first().unwrap_or(&pid), Signal::SIGKILL),
        Victim::Worker => (*family.get(1).unwrap_or(&pid), Signal::SIGKILL),
    };
    // It may just have ended by itself.
    let _ = kill(hit, signal);
    guard.wait().expect("it ends");
    eventually(&format!("no process is left: {how}"), CLEAN_WITHIN, || {
        processes_of(directory.path()).is_empty().then_some(())
    });
    assert_eq!(in_the_engine(&runs), "", "in the engine: {how}");
    let left: Vec<_> = fs::read_dir(directory.path().join("tmp")).expect("readable").flatten().collect();
    assert!(left.is_empty(), "{left:?}: {how}");
    assert_eq!(named_after(&runs), Vec::<PathBuf>::new(), "{how}");
    // Whoever else uses the host may have it on for a while.
    eventually(&format!("{BPF_STATS} is as before: {how}"), CLEAN_WITHIN, || {
        (fs::read_to_string(BPF_STATS).expect("readable") == stats_before).then_some(())
    });
    let mounts = fs::read_to_string("/proc/self/mounts").expect("readable");
    let own = directory.path().to_str().expect("the test's directory is text");
    assert!(!mounts.contains(own), "mounts of {own}: {how}");
}

fn start(directory: &Path, run: &[&str]) -> Child {
    let bench = Path::new(env!("CARGO_BIN_EXE_sherd-bench"));
    let sherd = bench.with_file_name("sherd");
    assert!(sherd.is_file(), "cargo build -p sherd makes {}", sherd.display());
    let scratch = directory.join("tmp");
    fs::create_dir_all(&scratch).expect("writable");
    let mut command = Command::new(bench);
    command.args(run).arg("--output").arg(directory.join("results"));
    if !["steer", "verify"].contains(&run[0]) {
        command.arg("--sherd").arg(sherd);
    }
    if ["direct", "stall", "failover", "graft"].contains(&run[0]) {
        command.args(["--docker", &docker_socket()]);
    }
    command.env("TMPDIR", scratch).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("it starts")
}

/// Processes whose environment names the test's directory: all that a run starts inherits it, but for containers.
fn processes_of(directory: &Path) -> Vec<PathBuf> {
    let needle = directory.to_str().expect("the test's directory is text").as_bytes();
    let mentions = |path: &PathBuf| {
        fs::read(path.join("environ")).is_ok_and(|text| text.windows(needle.len()).any(|found| found == needle))
    };
    let entries = fs::read_dir("/proc").expect("proc is mounted").flatten();
    entries.map(|entry| entry.path()).filter(mentions).collect()
}

/// Ids of containers and images that bear the label of a run that one of these kept.
fn in_the_engine(keepers: &[Pid]) -> String {
    let list = |words: &[&str]| {
        let host = format!("unix://{}", docker_socket());
        let output = Command::new("docker").args(["--host", &host]).args(words).output().expect("docker is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let of_one = |keeper: &Pid| {
        let label = format!("label=sherd-bench.run=sherd-bench-{keeper}");
        let filter = ["--quiet", "--filter", &label];
        list(&[&["ps", "--all"], &filter[..]].concat()) + &list(&[&["images"], &filter[..]].concat())
    };
    keepers.iter().map(of_one).collect()
}

/// Control groups, network namespaces and pins that are named after one of these processes: others may use the host meanwhile.
fn named_after(processes: &[Pid]) -> Vec<PathBuf> {
    const PLACES: [&str; 4] = ["/sys/fs/cgroup/sherd", "/sys/fs/cgroup/unified/sherd", "/run/netns", "/sys/fs/bpf"];
    let is_named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let numbers: Vec<&str> = name.split(|letter: char| !letter.is_ascii_digit()).collect();
        processes.iter().any(|pid| numbers.contains(&&*pid.to_string()))
    };
    let entries = PLACES.into_iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).filter(is_named).collect()
}
