//! An engine that is restarted, hangs, or answers nonsense. Shards go on wherever the engine lets them, the loop goes on
//! whatever the engine does, and what was missed is found when it is back.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use super::{
    Case, Events, check, has_two_cpus,
    proxy::{Mode, Proxy},
};
use crate::{
    containers::{address, containers, cpus, is_there},
    images::{self, Engine},
    traffic::{Load, ask},
    world::{World, scaled, signal},
};

const SOON: Duration = Duration::from_secs(60);

/// A Docker Engine of the test's own; all it writes is in a directory of its own. In the test's network namespace, and without
/// a bridge: nothing of it is the host's.
struct OwnEngine {
    directory: PathBuf,
    parent: String,
    socket: &'static str,
    daemon: Option<Child>,
}

impl OwnEngine {
    fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("sherd-own-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(directory.join("daemon.json"), "{}").expect("its settings");
        let socket = format!("{}/docker.sock", directory.display());
        let parent = format!("sherd-own-{}", std::process::id());
        Self { directory, parent, socket: Box::leak(socket.into_boxed_str()), daemon: None }
    }

    fn engine(&self) -> Engine {
        Engine::Own(self.socket)
    }

    /// Starts it, and waits until it answers. It ends with the test, however that ends.
    fn start(&mut self, more: &[&str]) {
        let at = |name: &str| self.directory.join(name).display().to_string();
        let log = fs::OpenOptions::new().create(true).append(true).open(at("log")).expect("a log");
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "TERM",
            "dockerd",
            "--config-file",
            &at("daemon.json"),
            "--data-root",
            &at("data"),
        ]);
        command.args([
            "--exec-root",
            &at("exec"),
            "--pidfile",
            &at("pid"),
            "--host",
            &format!("unix://{}", self.socket),
        ]);
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]).args(more);
        if !std::path::Path::new("/run/systemd/system").is_dir() {
            let parent = format!("/{}", self.parent);
            command.args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", &parent]);
        }
        let output = log.try_clone().expect("a log");
        self.daemon = Some(command.stdin(Stdio::null()).stdout(output).stderr(log).spawn().expect("dockerd"));
        eventually("the engine answers", SOON, || self.answers().then_some(()));
    }

    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<bool> {
            let mut stream = UnixStream::connect(self.socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.contains("200 OK"))
        };
        ask().unwrap_or(false)
    }

    fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("it runs").id()
    }

    /// As a service manager ends it.
    fn stop(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        signal(daemon.id(), Signal::SIGCONT);
        signal(daemon.id(), Signal::SIGTERM);
        let deadline = Instant::now() + SOON;
        while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        self.stop();
        // What it leaves mounted, deepest first, and the cgroups of its containers.
        let directory = format!("{}/", self.directory.display());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        points.sort_unstable();
        for point in points.iter().rev().filter(|point| point.starts_with(&directory)) {
            let _ = Command::new("umount").args(["-l", point]).status();
        }
        let _ = Command::new("find")
            .args(["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &format!("*/{}*", self.parent)])
            .args(["-exec", "rmdir", "{}", "+"])
            .stderr(Stdio::null())
            .status();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A group of Go servers in that engine, without a network of their own.
fn start_group(world: &World, engine: Engine) -> String {
    let image = images::import_program(engine, world, "own", images::go_server());
    let text = format!(
        "name = \"web\"\n[layout]\nunit = \"pu\"\n[container]\nimage = \"{image}\"\nnetwork = \"none\"\n\
         [[ports]]\npublish = \"8080:80\"\n[backoff]\nfirst = \"10ms\"\nmax = \"200ms\"\n"
    );
    world.apply("web", &text);
    world.wait_ready("web", cpus());
    image
}

fn pids(world: &World) -> Vec<Value> {
    world.slots("web").iter().map(|slot| slot["pid"].clone()).collect()
}

fn all_ready(world: &World) -> bool {
    let slots = world.slots("web");
    slots.len() == cpus() && slots.iter().all(|slot| slot["ready"] == true)
}

/// The longest of some answers of the agent.
fn slowest_answer(world: &World, count: usize) -> Duration {
    let ask = |_| {
        let began = Instant::now();
        world.sherd(&["ps", "--json"]);
        began.elapsed()
    };
    (0..count).map(ask).max().unwrap_or_default()
}

/// Shards live on while the engine is away, and serve.
fn check_live_restore(world: &World, own: &Mutex<OwnEngine>, events: &Events) {
    let before = pids(world);
    let load = Load::start(address(), 2, usize::MAX);
    let stop = || own.lock().expect("nobody panics").stop();
    let start = || own.lock().expect("nobody panics").start(&["--live-restore"]);
    Case { bound: SOON, ..Case::once("engine") }.check(events, stop, start, || all_ready(world));
    let (connections, failures) = load.finish();
    assert!(failures.is_empty(), "{} of {connections} failed: {failures:?}", failures.len());
    assert_eq!(pids(world), before, "nobody was restarted for it");
}

/// The engine hangs, and meanwhile a shard dies: the agent answers as ever, others serve, and the shard is made again when the
/// engine goes on.
fn check_hang(world: &World, own: &Mutex<OwnEngine>, events: &Events) {
    let engine = own.lock().expect("nobody panics").pid();
    let victim = u32::try_from(pids(world)[0].as_u64().expect("a pid")).expect("a pid");
    let hang = || {
        signal(engine, Signal::SIGSTOP);
        signal(victim, Signal::SIGKILL);
        let slowest = slowest_answer(world, 50);
        assert!(slowest < Duration::from_secs(2), "the agent took {slowest:?} for an answer");
        for _ in 0..20 {
            assert_ne!(ask(address()).expect("others serve").0, 0);
        }
        eprintln!("engine hangs: the slowest of 50 answers of the agent took {slowest:.3?}");
    };
    let go_on = || signal(engine, Signal::SIGCONT);
    let hung = Case { repeats: 1, bound: SOON, ..Case::of("engine") };
    hung.check(events, hang, go_on, || all_ready(world));
}

/// Without `--live-restore` the engine takes its containers with it, and the agent brings them back.
fn check_restart(world: &World, own: &Mutex<OwnEngine>, events: &Events) {
    let stop = || own.lock().expect("nobody panics").stop();
    // From here on it leaves them; an engine does as it was started.
    let start = || own.lock().expect("nobody panics").start(&["--live-restore"]);
    let before = pids(world);
    Case { repeats: 1, bound: SOON, ..Case::of("engine") }.check(events, stop, start, || all_ready(world));
    assert!(pids(world).iter().all(|pid| !before.contains(pid)), "it took nobody with it");
}

#[test]
fn an_engine_that_goes_away_or_hangs_takes_the_agent_nowhere() {
    let test = "an_engine_that_goes_away_or_hangs_takes_the_agent_nowhere";
    let needed = [Need::Program("dockerd"), Need::Program("setpriv")];
    if !is_there(test, Engine::Docker) || !needs(test, &needed) || !has_two_cpus(test) {
        return;
    }
    in_new_netns(move || {
        let mut own = OwnEngine::new();
        own.start(&[]);
        let (engine, own) = (own.engine(), Mutex::new(own));
        let world = World::with_engine(test, &engine.socket());
        let image = start_group(&world, engine);
        let events = Events::of(&world);
        check_restart(&world, &own, &events);
        check_live_restore(&world, &own, &events);
        check_hang(&world, &own, &events);
        drop(events);
        world.sherd(&["stop", "-g", "web", "--purge"]);
        assert_eq!(containers(&world, engine), Vec::<String>::new());
        images::remove(engine, &image);
        drop(world);
        drop(own);
    });
}

/// Thousands of events at once: the agent answers as ever, keeps its memory, and has nothing left to work off afterwards.
fn check_many_events(world: &World, proxy: &Proxy, events: &Events) {
    let resident_kib = || {
        let status = fs::read_to_string(format!("/proc/{}/status", world.agent_pid())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory").to_owned();
        line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number")
    };
    let before_kib = resident_kib();
    let count = scaled(5_000, 100_000);
    let began = Instant::now();
    proxy.tell_of_events(count, world.instance());
    let slowest = slowest_answer(world, 20);
    let taken = began.elapsed();
    // What happens among them is found as soon as ever: not by its event, which waits behind the others.
    let killed = || {
        let pid = pids(world)[0].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
        proxy.tell_of_events(count, world.instance());
        signal(pid, Signal::SIGKILL);
    };
    check(events, "killed", killed, || all_ready(world));
    let after_kib = resident_kib();
    eprintln!(
        "{count} events at once: the slowest of 20 answers of the agent took {slowest:.3?}, all {taken:.3?}; \
         {before_kib} KiB before, {after_kib} KiB after"
    );
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    assert!(after_kib < before_kib + 16 * 1024, "{before_kib} KiB before, {after_kib} KiB after");
}

fn kill_shard(world: &World) {
    let shard = world.slots("web")[0]["shard"].as_str().expect("a shard").to_owned();
    images::run(Engine::Docker.docker().args(["kill", &shard]).stdout(Stdio::null()));
}

#[test]
fn an_engine_that_answers_wrongly_or_too_much_changes_nothing() {
    let test = "an_engine_that_answers_wrongly_or_too_much_changes_nothing";
    let engine = Engine::Docker;
    if !is_there(test, engine) || !has_two_cpus(test) {
        return;
    }
    in_new_netns(move || {
        let proxy = Proxy::of(engine);
        let world = World::with_engine(test, proxy.socket());
        let image = start_group(&world, engine);
        let (events, before) = (Events::of(&world), pids(&world));
        let load = Load::start(address(), 2, usize::MAX);
        for mode in [Mode::Nonsense, Mode::Refuse] {
            let case = Case::once("engine");
            case.check(&events, || proxy.set(mode), || proxy.set(Mode::Pass), || all_ready(&world));
        }
        // Slow: nobody waits for it but whoever asks for something of it.
        proxy.set(Mode::Hang);
        let slowest = slowest_answer(&world, 20);
        assert!(slowest < Duration::from_secs(2), "the agent took {slowest:?} for an answer");
        proxy.set(Mode::Pass);
        let (connections, failures) = load.finish();
        assert!(failures.is_empty(), "{} of {connections} failed: {failures:?}", failures.len());
        eventually("it listens again", SOON, || proxy.is_listened_to().then_some(()));
        check(&events, "stopped", || kill_shard(&world), || all_ready(&world));
        check_many_events(&world, &proxy, &events);
        assert_eq!(pids(&world)[1], before[1], "nobody was restarted for it");
        drop(events);
        world.sherd(&["stop", "-g", "web", "--purge"]);
        images::remove(engine, &image);
    });
}
