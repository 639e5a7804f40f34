//! Unmodified programs of many kinds, in images of their own and told nothing of sherd, on the direct path: they answer
//! with what they see of their clients, their images' health checks pass, and they end by themselves.

mod kinds;
mod roots;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use self::kinds::{EPOLL, GO, GUNICORN, JAVA, NETTY, NGINX, NODE, PYTHON, Program, REDIS, URING};
use crate::{
    containers::{cpus, is_there},
    direct::check_direct,
    images::{self, Engine},
    world::{World, signal},
};

const ENGINE: Engine = Engine::Docker;

/// An agent, and the image that a group of it runs.
struct Stage {
    world: World,
    image: String,
}

impl Stage {
    fn new(test: &str, root: fn(&Path) -> PathBuf, program: &Program) -> Self {
        let world = World::with_engine(test, &ENGINE.socket());
        let root = root(world.dir());
        Self::run(world, &root, program)
    }

    fn run(world: World, root: &Path, program: &Program) -> Self {
        let image = format!("sherd-test-program-{}:latest", world.instance());
        let health = format!("HEALTHCHECK --interval=500ms --timeout=5s CMD {}", program.health);
        images::import(ENGINE, &image, root, &[&format!("CMD {}", program.command), &health]);
        world.sherd(&["run", "-g", "web", "-p", "8080:80", "-u", "pu", "--path", "direct", &image]);
        world.wait_ready("web", cpus());
        Self { world, image }
    }

    /// Every slot is healthy as its image sees it, from inside.
    fn check_health(&self) {
        for slot in self.world.slots("web") {
            let shard = slot["shard"].as_str().expect("a shard").to_owned();
            eventually("its HEALTHCHECK passes", Duration::from_secs(30), || {
                (docker(&["inspect", "-f", "{{.State.Health.Status}}", &shard]) == "healthy").then_some(())
            });
        }
    }

    /// All that holds for a program on the direct path.
    fn check_all(self, program: &Program) -> World {
        check_direct(&self.world);
        let moved = self.world.log().matches(" epoll=1").count();
        assert!(!program.registers_first || moved >= cpus(), "{moved} registrations were moved");
        check_answers(program, true);
        self.check_health();
        self.check_stop(program.exit_code)
    }

    /// Ended by `stop`, each container has ended by itself: 137 is that of one which was killed after its grace.
    fn check_stop(self, exit_code: &str) -> World {
        let ends = Ends::of(&self.world);
        self.world.sherd(&["stop", "-g", "web", "--purge"]);
        assert_eq!(ends.exit_codes(cpus()), vec![exit_code; cpus()]);
        assert_eq!(self.world.slots("web"), Vec::<Value>::new());
        images::remove(ENGINE, &self.image);
        self.world
    }
}

/// The ends of an agent's containers as the engine tells them, from now on. It keeps few events, so they are read as they
/// come.
struct Ends(Child);

impl Ends {
    fn of(world: &World) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let (since, until) = (now.to_string(), (now + 60).to_string());
        let label = format!("label=sherd.instance={}", world.instance());
        let mut events = ENGINE.docker();
        events.args(["events", "--since", &since, "--until", &until, "--filter", "event=die", "--filter", &label]);
        events.args(["--format", "{{.Actor.Attributes.exitCode}}"]);
        Self(events.stdout(Stdio::piped()).spawn().expect("docker events"))
    }

    /// What the next `count` end with.
    fn exit_codes(mut self, count: usize) -> Vec<String> {
        let lines = BufReader::new(self.0.stdout.take().expect("a pipe")).lines();
        lines.take(count).map(|line| line.expect("text")).collect()
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every slot answers, and says whose clients they are.
fn check_answers(program: &Program, sees_clients: bool) {
    let mut who = BTreeSet::new();
    eventually("every slot has answered", Duration::from_secs(30), || {
        let (answer, own) = program.ask();
        assert!(!sees_clients || answer.client == own, "{answer:?} to {own}");
        who.insert(answer.who);
        (who.len() == cpus()).then_some(())
    });
}

fn check(test: &'static str, root: fn(&Path) -> PathBuf, program: &'static Program, needed: &'static str) {
    if is_here(test, needed) {
        in_new_netns(move || drop(Stage::new(test, root, program).check_all(program)));
    }
}

fn is_here(test: &str, program: &'static str) -> bool {
    is_there(test, ENGINE) && needs(test, &[Need::Program(program)])
}

fn docker(words: &[&str]) -> String {
    let output = ENGINE.docker().args(words).output().expect("docker");
    assert!(output.status.success(), "docker {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
fn node_is_direct() {
    check("node_is_direct", roots::node, &NODE, "node");
}

#[test]
fn python_is_direct() {
    check("python_is_direct", roots::python, &PYTHON, "python3");
}

#[test]
fn nginx_is_direct() {
    check("nginx_is_direct", images::nginx_root, &NGINX, "nginx");
}

#[test]
fn redis_is_direct() {
    check("redis_is_direct", roots::redis, &REDIS, "redis-server");
}

/// The JDK's own server, and Netty's native transport, which registers its socket with epoll before it listens.
#[test]
fn java_is_direct() {
    let test = "java_is_direct";
    if !is_here(test, "jlink") {
        return;
    }
    in_new_netns(move || {
        let world = World::with_engine(test, &ENGINE.socket());
        let root = roots::java(world.dir());
        let has_netty = roots::add_netty(&root, world.dir());
        let world = Stage::run(world, &root, &JAVA).check_all(&JAVA);
        if has_netty {
            Stage::run(world, &root, &NETTY).check_all(&NETTY);
        } else {
            println!("SKIPPED {test} with Netty: its native half is not there and could not be made");
        }
    });
}

/// As Netty's native transport does it.
#[test]
fn an_event_loop_that_registers_first_is_direct() {
    check("an_event_loop_that_registers_first_is_direct", roots::native, &EPOLL, "gcc");
}

/// Workers that were forked after the listen(2) accept from one listener, all of them.
#[test]
fn gunicorn_is_direct() {
    let test = "gunicorn_is_direct";
    if !is_here(test, "gunicorn") {
        return;
    }
    in_new_netns(move || {
        let stage = Stage::new(test, roots::python, &GUNICORN);
        check_direct(&stage.world);
        let mut workers = BTreeSet::new();
        eventually("two workers of each shard have answered", Duration::from_secs(30), || {
            let asking: Vec<_> = (0..8).map(|_| thread::spawn(|| GUNICORN.ask())).collect();
            for (answer, own) in asking.into_iter().map(|asked| asked.join().expect("an answer")) {
                assert_eq!(answer.client, own);
                workers.insert(answer.who);
            }
            let shards: BTreeSet<_> =
                workers.iter().filter_map(|who| who.split_once(" pid=")).map(|(who, _)| who).collect();
            (shards.len() == cpus() && workers.len() >= 2 * cpus()).then_some(())
        });
        stage.check_health();
        stage.check_stop(GUNICORN.exit_code);
    });
}

/// No seccomp filter sees what a ring does: the program is served by its worker, and `ps` says why.
#[test]
fn a_program_that_listens_by_io_uring_is_relayed() {
    let test = "a_program_that_listens_by_io_uring_is_relayed";
    if !is_here(test, "gcc") || !can_listen_by_uring(test) {
        return;
    }
    in_new_netns(move || {
        let stage = Stage::new(test, roots::native, &URING);
        for slot in stage.world.slots("web") {
            assert_eq!(slot["path"], "relay", "{slot}");
            let reason = slot["path_reason"].as_str().expect("a reason");
            assert!(reason.contains("io_uring"), "{reason}");
        }
        check_answers(&URING, false);
        stage.check_health();
        stage.check_stop(URING.exit_code);
    });
}

/// IORING_OP_LISTEN is there since Linux 6.11.
fn can_listen_by_uring(test: &str) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let allowed = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() == "0");
    if version < (6, 11) || !allowed {
        println!("SKIPPED {test}: Linux {} has no IORING_OP_LISTEN, or it is forbidden", release.trim());
    }
    version >= (6, 11) && allowed
}

/// A shard that is stopped for a while, as by a freezer, keeps its listener and its clients.
fn check_pause(test: &'static str, root: fn(&Path) -> PathBuf, program: &'static Program) {
    in_new_netns(move || {
        let stage = Stage::new(test, root, program);
        check_direct(&stage.world);
        let before = pids(&stage.world);
        let all: Vec<u32> = before.iter().flat_map(|pid| family(*pid)).collect();
        all.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
        // They are steered and established, and wait in the listeners of programs that do nothing.
        let waiting: Vec<_> = (0..20).map(|_| program.open()).collect();
        all.iter().for_each(|pid| signal(*pid, Signal::SIGCONT));
        for stream in waiting {
            let (answer, own) = program.read(stream);
            assert_eq!(answer.client, own);
        }
        stage.world.wait_ready("web", cpus());
        check_direct(&stage.world);
        check_answers(program, true);
        assert_eq!(pids(&stage.world), before, "no shard was started anew");
        stage.check_stop(program.exit_code);
    });
}

fn pids(world: &World) -> Vec<u32> {
    let pid = |slot: &Value| slot["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
    world.slots("web").iter().map(pid).collect()
}

/// A process and its children.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("it runs");
    children.split_whitespace().map(|child| child.parse().expect("a pid")).chain([pid]).collect()
}

#[test]
fn a_paused_go_server_goes_on() {
    let test = "a_paused_go_server_goes_on";
    if is_here(test, "go") {
        check_pause(test, roots::go, &GO);
    }
}

#[test]
fn a_paused_nginx_goes_on() {
    let test = "a_paused_nginx_goes_on";
    if is_here(test, "nginx") {
        check_pause(test, images::nginx_root, &NGINX);
    }
}
