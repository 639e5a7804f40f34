//! What somebody changes behind the agent's back is found, said and repaired: each way to do it, and how long it takes.

mod engine;
mod host;
mod proxy;
mod shards;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::Value;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    containers::{cpus, is_there},
    images::{self, Engine},
    metrics::{scrape, sum},
    world::{World, demo_spec, scaled},
};

/// What the agent tells, from the test's beginning, and when it came.
struct Events {
    stream: UnixStream,
    seen: Arc<Mutex<Vec<(Instant, Value)>>>,
}

impl Events {
    fn of(world: &World) -> Self {
        let mut stream = UnixStream::connect(world.dir().join("run/sherd.sock")).expect("the agent");
        // Not chunked: a line is an event.
        stream.write_all(b"GET /v1/events HTTP/1.0\r\nHost: sherd\r\n\r\n").expect("it reads");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        // From its head on nothing is missed.
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(reader.read_line(&mut line).expect("an answer") > 0, "it hangs up");
        }
        stream.set_read_timeout(None).expect("no time-out");
        let lines = reader.lines();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).ok().map(|event| (Instant::now(), event));
                taken.lock().expect("nobody panics").extend(event);
            }
        });
        Self { stream, seen }
    }

    /// Those of that kind whose message begins so.
    fn of_kind(&self, kind: &str, text: &str) -> Vec<(Instant, Value)> {
        let is_it = |event: &&(Instant, Value)| {
            event.1["kind"] == kind && event.1["message"].as_str().is_some_and(|message| message.starts_with(text))
        };
        self.seen.lock().expect("nobody panics").iter().filter(is_it).cloned().collect()
    }

    /// When the next one of that kind came, after so many.
    fn wait(&self, (kind, text, before): (&str, &str, usize), bound: Duration) -> Instant {
        eventually(&format!("{kind}: {text}"), bound, || Some(self.of_kind(kind, text).get(before)?.0))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

fn counted(cause: &str) -> f64 {
    let text = scrape().expect("metrics");
    sum(&text, "sherd_drift_total", &format!("cause=\"{cause}\""))
}

/// How long something took, over some repeats.
struct Times(Vec<Duration>);

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted = self.0.clone();
        sorted.sort();
        write!(f, "{:.3?} (median), {:.3?} (worst)", sorted[(sorted.len() - 1) / 2], sorted[sorted.len() - 1])
    }
}

/// A drift that is made some times; each time it is told by an event and a counter, and mended.
struct Case<'a> {
    cause: &'a str,
    repeats: usize,
    /// How long until it is told, and from then until it is mended, at most.
    bound: Duration,
}

impl<'a> Case<'a> {
    fn of(cause: &'a str) -> Self {
        Self { cause, repeats: scaled(2, 10), bound: Duration::from_secs(20) }
    }

    fn once(cause: &'a str) -> Self {
        Self { repeats: scaled(1, 5), ..Self::of(cause) }
    }

    /// `drift` makes it; `told` is done when it was told, and makes it mendable where somebody has to; `is_mended` is what
    /// holds afterwards.
    fn check(&self, events: &Events, drift: impl Fn(), told: impl Fn(), is_mended: impl Fn() -> bool) {
        let Self { cause, repeats, bound } = *self;
        let (mut until_told, mut until_mended) = (Times(Vec::new()), Times(Vec::new()));
        for _ in 0..repeats {
            let drifts = ("drift", &*format!("{cause}: "), events.of_kind("drift", &format!("{cause}: ")).len());
            let repairs =
                ("drift-repaired", &*format!("{cause} repaired"), events.of_kind("drift-repaired", cause).len());
            let (before, began) = (counted(cause), Instant::now());
            drift();
            until_told.0.push(events.wait(drifts, bound).saturating_duration_since(began));
            assert!(counted(cause) > before, "{cause} is not counted");
            told();
            until_mended.0.push(events.wait(repairs, bound).saturating_duration_since(began));
            eventually(&format!("{cause}: it is mended"), bound, || is_mended().then_some(()));
        }
        eprintln!("{cause}: told after {until_told}, mended after {until_mended}");
    }
}

/// One that the agent mends by itself.
fn check(events: &Events, cause: &str, drift: impl Fn(), is_mended: impl Fn() -> bool) {
    Case::of(cause).check(events, drift, || {}, is_mended);
}

fn affinity(pid: u64) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap_or_default().trim().to_owned()
}

/// Elsewhere than on its CPUs is nowhere without another.
fn has_two_cpus(test: &str) -> bool {
    let enough = cpus() >= 2;
    if !enough {
        eprintln!("SKIPPED {test}: lacks a second CPU");
    }
    enough
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect(program);
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_process_that_is_moved_is_moved_back() {
    let test = "a_process_that_is_moved_is_moved_back";
    if !needs(test, &[Need::Root, Need::Program("taskset")]) || !has_two_cpus(test) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("a_process_that_is_moved_is_moved_back");
        world.apply("web", &demo_spec("web", 2, "8080:80", ""));
        let slots = world.wait_ready("web", 2);
        let events = Events::of(&world);
        let (pid, wanted) = (slots[0]["pid"].as_u64().expect("a pid"), slots[0]["cpus"].as_str().expect("CPUs"));
        let other = slots[1]["cpus"].as_str().expect("CPUs");
        let move_away = || run("taskset", &["-a", "-c", "-p", other, &pid.to_string()]);
        check(&events, "affinity", move_away, || affinity(pid) == wanted);
        assert_eq!(world.slots("web")[0]["pid"], pid, "nobody was restarted for it");
    });
}

/// The v1 cpuset cgroup of a process.
fn cpuset_of(pid: u64) -> Option<PathBuf> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = cgroups.lines().find_map(|line| line.split_once(":cpuset:").map(|(_, path)| path.to_owned()))?;
    let directory = Path::new("/sys/fs/cgroup/cpuset").join(path.trim_start_matches('/'));
    (path != "/" && directory.is_dir()).then_some(directory)
}

#[test]
fn a_container_whose_cpuset_is_changed_gets_its_own_again() {
    let test = "a_container_whose_cpuset_is_changed_gets_its_own_again";
    if !is_there(test, Engine::Docker) || !has_two_cpus(test) {
        return;
    }
    in_new_netns(move || {
        let world = World::with_engine(test, &Engine::Docker.socket());
        let image = format!("sherd-test-drift-{}:latest", world.instance());
        let root = world.dir().join("go");
        fs::create_dir_all(&root).expect("a directory");
        fs::copy(images::go_server(), root.join("server")).expect("the server");
        images::import(Engine::Docker, &image, &root, &["CMD [\"/server\"]"]);
        let spec = format!(
            "name = \"web\"\n[layout]\nunit = \"pu\"\n[container]\nimage = \"{image}\"\n[[ports]]\npublish = \"8080:80\"\n"
        );
        world.apply("web", &spec);
        let slots = world.wait_ready("web", cpus());
        let events = Events::of(&world);
        let (pid, wanted) = (slots[0]["pid"].as_u64().expect("a pid"), slots[0]["cpus"].as_str().expect("CPUs"));
        let other = slots[1]["cpus"].as_str().expect("CPUs");
        let id = slots[0]["shard"].as_str().expect("a container").to_owned();
        let socket = format!("unix://{}", Engine::Docker.socket());
        let update = || run("docker", &["-H", &socket, "update", "--cpuset-cpus", other, &id]);
        check(&events, "cpuset", update, || affinity(pid) == wanted);
        if let Some(cpuset) = cpuset_of(pid) {
            let by_hand = || fs::write(cpuset.join("cpuset.cpus"), other).expect("its cpuset");
            check(&events, "cpuset", by_hand, || affinity(pid) == wanted);
        }
        assert_eq!(world.slots("web")[0]["pid"], pid, "nobody was restarted for it");
        world.sherd(&["stop", "-g", "web", "--purge"]);
        images::remove(Engine::Docker, &image);
    });
}
