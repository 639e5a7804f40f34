//! The direct path under load while shards are replaced and killed, with the agent alive, dying all the time, and away.
//! A connection that was greeted was accepted: so it is known of each failure whether its shard had it.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{address, cpus, is_there},
    direct::check_end,
    images::{self, Engine},
    metrics::{scrape, sum},
    world::{World, scaled, signal, tail},
};

const TIMEOUT: Duration = Duration::from_secs(40);
const CLIENTS: usize = 8;
/// Every other connection is used so often.
const KEPT_FOR: usize = 10;

/// A connection that failed, and the shard that had greeted it.
#[derive(Debug, Clone)]
#[allow(dead_code, reason = "read through Debug")]
struct Failure {
    greeted_by: Option<u32>,
    kind: io::ErrorKind,
    error: String,
}

impl Failure {
    /// Whether some shard had accepted it. What only waits in a listener's queue is reset when that goes, because nobody has
    /// it; what a process has and has read to its end, is closed in order: it was killed before it could greet.
    fn was_accepted(&self) -> bool {
        self.greeted_by.is_some() || self.kind == io::ErrorKind::UnexpectedEof
    }
}

/// Clients that connect until told to stop.
struct Clients {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<Failure>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    fn start() -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let threads = (0..CLIENTS).map(|_| {
            let (stop, done, failures) = (stop.clone(), done.clone(), failures.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let requests = if done.fetch_add(1, Ordering::Relaxed) % 2 == 0 { 1 } else { KEPT_FOR };
                    if let Err(failure) = connect(address(), requests) {
                        failures.lock().expect("no client panics").push(failure);
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { stop, done, failures, threads }
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    fn finish(self) -> (usize, Vec<Failure>) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no client panics");
        }
        let failures = self.failures.lock().expect("no client panics").clone();
        (self.done.load(Ordering::Relaxed), failures)
    }
}

fn connect(address: SocketAddr, requests: usize) -> Result<(), Failure> {
    let mut greeted_by = None;
    let mut talk = || -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_nodelay(true)?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting)?;
        greeted_by = Some(u32::from_le_bytes(greeting));
        for request in 0..requests {
            let sent = (request as u64).to_le_bytes();
            let mut echo = [0; 8];
            stream.write_all(&sent)?;
            stream.read_exact(&mut echo)?;
            assert_eq!(echo, sent, "bytes of another connection");
        }
        Ok(())
    };
    let result = talk();
    result.map_err(|error| Failure { greeted_by, kind: error.kind(), error: error.to_string() })
}

struct Group {
    world: World,
    image: String,
    turn: usize,
    killed: BTreeSet<u32>,
    kills: usize,
    random: u32,
}

impl Group {
    fn start(test: &str) -> Self {
        let world = World::with_engine(test, &Engine::Docker.socket());
        let image = format!("sherd-test-greeter-{}:latest", world.instance());
        let root = world.dir().join("greeter");
        std::fs::create_dir_all(&root).expect("a directory");
        std::fs::copy(images::go_program("greeter", include_str!("greeter.go")), root.join("server")).expect("built");
        images::import(Engine::Docker, &image, &root, &["CMD [\"/server\"]", "LABEL test=sherd"]);
        let mut group = Self { world, image, turn: 0, killed: BTreeSet::new(), kills: 0, random: 0x9e37_79b9 };
        group.apply();
        group.wait();
        group
    }

    /// Each time with another environment, so that every shard is replaced.
    fn apply(&mut self) {
        self.turn += 1;
        let text = format!(
            "name = \"web\"\npath = \"direct\"\n[layout]\nunit = \"pu\"\nmemory = \"none\"\n[container]\nimage = \"{}\"\n[environment]\nTURN = \"{}\"\n\
             [[ports]]\npublish = \"8080:80\"\n[backoff]\nfirst = \"50ms\"\nmax = \"50ms\"\n",
            self.image, self.turn
        );
        self.world.apply("web", &text);
    }

    fn are_ready(&self) -> bool {
        let slots = self.world.slots("web");
        slots.len() == cpus() && slots.iter().all(|slot| slot["ready"] == true && slot["path"] == "direct")
    }

    /// Every slot has a shard that accepts itself, and none that was killed: the agent may not know that yet.
    fn wait(&self) {
        let dead = |slot: &Value| slot["pid"].as_u64().is_none_or(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        eventually("every shard accepts itself", Duration::from_secs(60), || {
            (self.are_ready() && !self.world.slots("web").iter().any(dead)).then_some(())
        });
    }

    /// Their containers and processes.
    fn shards(&self) -> Vec<(String, u32)> {
        let shard =
            |slot: &Value| Some((slot["shard"].as_str()?.to_owned(), u32::try_from(slot["pid"].as_u64()?).ok()?));
        self.world.slots("web").iter().filter_map(shard).collect()
    }

    /// Ends one of the shards, without a word to anybody.
    fn kill_one(&mut self, shards: &[(String, u32)]) {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (container, pid) = &shards[(self.random >> 16) as usize % shards.len()];
        let id = Engine::Docker.docker().args(["inspect", "-f", "{{.Id}}", container]).output().expect("docker runs");
        let id = String::from_utf8_lossy(&id.stdout);
        // It has been replaced since it was asked for.
        if id.len() < 8 {
            return;
        }
        self.killed.insert(u32::from_str_radix(&id[..8], 16).expect("hexadecimal"));
        self.kills += 1;
        signal(*pid, Signal::SIGKILL);
    }

    /// Whoever a killed shard had accepted may fail, and of the others at most one in 100 kills: the kernel's race between
    /// the last packet of a handshake and the end of its listener.
    fn check(mut self, clients: Clients) {
        let (done, failures) = clients.finish();
        let others: Vec<&Failure> = failures.iter().filter(|failure| !failure.was_accepted()).collect();
        let alive = |failure: &&Failure| failure.greeted_by.is_some_and(|shard| !self.killed.contains(&shard));
        eprintln!(
            "{done} connections, {} kills, {} failed with the shard that had accepted them, {} others: {others:?}",
            self.kills,
            failures.len() - others.len(),
            others.len()
        );
        eprintln!(
            "{}; relayed: {}",
            kernel_counters(),
            sum(&scrape().expect("metrics"), "sherd_connections_accepted_total", "")
        );
        assert_eq!(failures.iter().filter(alive).count(), 0, "{failures:?}\n{}", tail(&self.world.log(), 60));
        assert!(others.len() <= self.kills.div_ceil(100), "{others:?}\n{}", tail(&self.world.log(), 60));
        assert!(self.kills > 0 || failures.is_empty(), "{failures:?}");
        check_end(&mut self.world, Engine::Docker, &self.image);
    }
}

/// What the kernel says of listeners that closed, in this network namespace.
fn kernel_counters() -> String {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").expect("/proc");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let wanted = ["TCPMigrateReqSuccess", "TCPMigrateReqFailure", "ListenOverflows", "ListenDrops", "TCPAbortOnClose"];
    let found = names.split(' ').zip(values.split(' ')).filter(|(name, _)| wanted.contains(name));
    found.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

/// Until so many connections have been made, and `least` turns.
fn under_load(group: &mut Group, connections: usize, least: usize, mut turn: impl FnMut(&mut Group)) -> Clients {
    let clients = Clients::start();
    let mut turns = 0;
    while clients.done() < connections || turns < least {
        turn(group);
        turns += 1;
    }
    clients
}

fn alone(test: &'static str, body: impl FnOnce(Group) + Send + 'static) {
    if is_there(test, Engine::Docker) {
        in_new_netns(move || body(Group::start(test)));
    }
}

#[test]
fn planned_replacements_lose_nothing() {
    alone("planned_replacements_lose_nothing", |mut group| {
        let clients = under_load(&mut group, scaled(10_000, 1_000_000), 3, |group| {
            group.apply();
            group.wait();
        });
        group.check(clients);
    });
}

#[test]
fn killed_shards_take_only_what_they_had_accepted() {
    alone("killed_shards_take_only_what_they_had_accepted", |mut group| {
        let clients = under_load(&mut group, scaled(10_000, 1_000_000), 5, |group| {
            let shards = group.shards();
            group.kill_one(&shards);
            group.wait();
        });
        group.check(clients);
    });
}

#[test]
fn shards_are_killed_while_the_agent_is_killed_all_the_time() {
    alone("shards_are_killed_while_the_agent_is_killed_all_the_time", |mut group| {
        let clients = under_load(&mut group, scaled(10_000, 1_000_000), 4, |group| {
            let shards = group.shards();
            // Sometimes the shard dies first, sometimes the agent.
            if group.kills % 2 == 0 {
                group.kill_one(&shards);
                group.world.kill_agent();
            } else {
                group.world.kill_agent();
                group.kill_one(&shards);
            }
            group.world.start(&[]);
            group.world.wait_for_api();
            group.wait();
        });
        group.check(clients);
    });
}

/// Without an agent nobody starts shards again: one of them dies each time, then the agent comes for a new one.
#[test]
fn shards_are_killed_while_there_is_no_agent() {
    alone("shards_are_killed_while_there_is_no_agent", |mut group| {
        let clients = Clients::start();
        for _ in 0..scaled(3, 50) {
            let shards = group.shards();
            group.world.kill_agent();
            let before = clients.done();
            group.kill_one(&shards);
            let reached = before + scaled(1_000, 20_000);
            eventually("the others serve", Duration::from_secs(120), || (clients.done() > reached).then_some(()));
            group.world.start(&[]);
            group.world.wait_for_api();
            group.wait();
        }
        group.check(clients);
    });
}
