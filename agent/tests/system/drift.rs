//! What somebody changes behind the agent's back is found, said and repaired: each way to do it, and how long it takes.

use std::{
    fs,
    io::BufRead,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
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

/// The event stream of an agent, from the test's beginning.
struct Events {
    child: Child,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Events {
    fn of(world: &World) -> Self {
        let socket = world.dir().join("run/sherd.sock");
        let mut child = Command::new("curl")
            .args(["-sN", "--unix-socket", socket.to_str().expect("a path"), "http://sherd/v1/events"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl");
        let lines = std::io::BufReader::new(child.stdout.take().expect("its output")).lines();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let taken = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                taken.lock().expect("nobody panics").extend(serde_json::from_str(&line).ok());
            }
        });
        Self { child, seen }
    }

    /// How many there are of that kind whose message has this in it.
    fn count(&self, kind: &str, text: &str) -> usize {
        let is_it = |event: &&Value| {
            event["kind"] == kind && event["message"].as_str().is_some_and(|message| message.contains(text))
        };
        self.seen.lock().expect("nobody panics").iter().filter(is_it).count()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn counted(cause: &str) -> f64 {
    let text = scrape().expect("metrics");
    sum(&text, "sherd_drift_total", &format!("cause=\"{cause}\""))
}

/// Makes a drift some times; each time it is told by an event and a counter, and mended.
fn check(events: &Events, cause: &str, drift: impl Fn(), is_mended: impl Fn() -> bool) {
    let mut times = Vec::new();
    for _ in 0..scaled(2, 10) {
        let (before, told) = (counted(cause), events.count("drift", cause));
        let repaired = events.count("drift-repaired", cause);
        let began = Instant::now();
        drift();
        eventually(&format!("{cause}: it is mended"), Duration::from_secs(20), || is_mended().then_some(()));
        times.push(began.elapsed());
        eventually(&format!("{cause}: it is told"), Duration::from_secs(5), || {
            (events.count("drift", cause) > told && events.count("drift-repaired", cause) > repaired).then_some(())
        });
        assert!(counted(cause) > before, "{cause} is not counted");
    }
    times.sort();
    eprintln!("{cause}: mended after {:?} (median), {:?} (worst)", times[times.len() / 2], times[times.len() - 1]);
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
    if !needs(test, &[Need::Root, Need::Program("taskset"), Need::Program("curl")]) || !has_two_cpus(test) {
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
