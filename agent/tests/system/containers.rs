//! Groups of real containers in real engines, with images made here from a Go server, busybox and nginx.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use serde_json::Value;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    images::{self, Engine},
    metrics,
    traffic::Connection,
    world::World,
};

pub(crate) fn address() -> SocketAddr {
    "127.0.0.1:8080".parse().expect("an address")
}

pub(crate) fn is_there(test: &str, engine: Engine) -> bool {
    let need = match engine {
        Engine::Docker | Engine::Own(_) => Need::Docker,
        Engine::Podman => Need::Podman,
    };
    needs(test, &[Need::Root, Need::Bpf, need, Need::Program("docker"), Need::Program("go")])
}

/// What an operator says of the path, and what comes of it: nothing, and it is direct.
#[derive(Debug, Clone, Copy)]
struct PathCase {
    flags: &'static [&'static str],
    path: &'static str,
}

const PATHS: [PathCase; 2] =
    [PathCase { flags: &[], path: "direct" }, PathCase { flags: &["--path", "relay"], path: "relay" }];

impl PathCase {
    /// `sherd run` of an image as an operator types it; the group's slots when it returns.
    fn run(self, world: &World, image: &str) -> Vec<Value> {
        world.sherd(&self.line(image));
        let slots = world.slots("web");
        assert!(slots.iter().all(|slot| slot["path"] == self.path), "{slots:?}");
        slots
    }

    fn line(self, image: &str) -> Vec<&str> {
        [&["run", "-g", "web", "-p", "8080:80", "-u", "pu"], self.flags, &[image]].concat()
    }
}

pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().expect("CPUs").get()
}

/// Nothing of the instance is in the engine, and nobody listens on the port.
fn check_nothing_left(world: &World, engine: Engine) {
    assert_eq!(containers(world, engine), Vec::<String>::new());
    assert_eq!(world.slots("web"), Vec::<Value>::new());
    std::net::TcpListener::bind(address()).expect("the port is free");
}

/// The Go server tells where it runs: all slots are used, each is pinned as `ps` says. It sees its client's own address, or
/// where it is relayed, one that is no loopback.
fn check_go(engine: Engine, case: PathCase) {
    let world = World::with_engine(&format!("a group of Go servers, {case:?}"), &engine.socket());
    let image = format!("sherd-test-go-{}:latest", world.instance());
    let root = world.dir().join("go");
    fs::create_dir_all(&root).expect("a directory");
    fs::copy(images::go_server(), root.join("server")).expect("the server");
    images::import(engine, &image, &root, &["CMD [\"/server\"]", "LABEL test=sherd"]);
    let slots = case.run(&world, &image);
    assert_eq!(slots.len(), cpus());
    let mut answers: BTreeMap<u64, usize> = BTreeMap::new();
    for _ in 0..200 {
        let mut connection = Connection::open(address()).expect("it is published");
        let body = connection.get().expect("an answer");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let slot = &slots[usize::try_from(answer["slot"].as_u64().expect("a slot")).expect("a slot")];
        for (said, planned) in [("cpus", "cpus"), ("told", "cpus"), ("mems", "mems")] {
            assert_eq!(answer[said], slot[planned], "{said} of {answer}");
        }
        assert_eq!(answer["gomaxprocs"], "1");
        let client: SocketAddr = answer["client"].as_str().expect("a client").parse().expect("an address");
        match case.path {
            "direct" => assert_eq!(client, connection.local_addr()),
            _ => assert!(!client.ip().is_loopback(), "{client} is loopback"),
        }
        *answers.entry(answer["slot"].as_u64().expect("a slot")).or_default() += 1;
    }
    assert_eq!(answers.len(), slots.len(), "slots that answered: {answers:?}");
    for slot in &slots {
        check_kernel(slot);
    }
    check_ps(&world, case.path);
    world.sherd(&["stop", "-g", "web", "--purge"]);
    check_nothing_left(&world, engine);
    images::remove(engine, &image);
}

/// What the kernel says of every thread of a shard is what `ps` says.
fn check_kernel(slot: &Value) {
    let pid = slot["pid"].as_u64().expect("a pid");
    for thread in fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten() {
        let status = fs::read_to_string(thread.path().join("status")).expect("its status");
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned()).expect("a value")
        };
        assert_eq!(Value::from(value("Cpus_allowed_list")), slot["cpus"]);
        assert_eq!(Value::from(value("Mems_allowed_list")), slot["mems"]);
    }
}

/// The table that an operator looks at.
fn check_ps(world: &World, path: &str) {
    let table = world.sherd(&["ps"]);
    let head = table.lines().next().unwrap_or_default();
    for column in ["GROUP", "SLOT", "CPUS", "NODE", "STATE", "PATH", "CONNS"] {
        assert!(head.contains(column), "{column} is missing:\n{table}");
    }
    assert!(table.contains("web") && table.contains("ready") && table.contains(path), "{table}");
}

/// Any image, told nothing about sherd: steady answers from every shard.
fn check_image(engine: Engine, case: PathCase, (name, command, expected): (&str, &str, &str), root: &Path) {
    let world = World::with_engine(&format!("a group of {name}, {case:?}"), &engine.socket());
    let image = format!("sherd-test-{name}-{}:latest", world.instance());
    images::import(engine, &image, root, &[command]);
    let slots = case.run(&world, &image);
    assert_eq!(slots.len(), cpus());
    for _ in 0..100 {
        let answer = http_get(address(), "/");
        assert!(answer.contains(expected), "{name} answered {answer}");
    }
    // Every shard had its share.
    eventually("every slot was picked", Duration::from_secs(5), || {
        let text = metrics::scrape()?;
        let picked = |slot: usize| metrics::sum(&text, "sherd_steering_picks_total", &format!("slot=\"{slot}\"")) > 0.0;
        (0..cpus()).all(picked).then_some(())
    });
    world.slots("web").iter().for_each(check_kernel);
    world.sherd(&["stop", "-g", "web", "--purge"]);
    check_nothing_left(&world, engine);
    images::remove(engine, &image);
}

/// A whole answer of a server that closes after it.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a time-out");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer
}

fn check_engine(engine: Engine) {
    let directory = std::env::temp_dir().join(format!("sherd-images-{}-{engine:?}", std::process::id()));
    let httpd = "CMD [\"/bin/httpd\", \"-f\", \"-p\", \"80\", \"-h\", \"/www\"]";
    let nginx = "CMD [\"/usr/sbin/nginx\", \"-c\", \"/etc/nginx.conf\"]";
    let (busybox_root, nginx_root) = (images::busybox_root(&directory), images::nginx_root(&directory));
    for case in PATHS {
        check_go(engine, case);
        check_image(engine, case, ("busybox", httpd, "busybox"), &busybox_root);
        check_image(engine, case, ("nginx", nginx, "nginx "), &nginx_root);
    }
    fs::remove_dir_all(&directory).expect("its removal");
}

#[test]
fn groups_of_docker_containers() {
    if is_there("groups_of_docker_containers", Engine::Docker) {
        in_new_netns(|| check_engine(Engine::Docker));
    }
}

#[test]
fn groups_of_podman_containers() {
    if is_there("groups_of_podman_containers", Engine::Podman) {
        in_new_netns(|| check_engine(Engine::Podman));
    }
}

/// The agent is killed around every engine call of a start and of a stop: a new one brings the engine to what is
/// specified, no shard twice, none orphaned.
#[test]
fn containers_survive_a_crash_at_every_engine_call() {
    if !is_there("containers_survive_a_crash_at_every_engine_call", Engine::Docker) {
        return;
    }
    for case in PATHS {
        in_new_netns(move || check_crashes(Engine::Docker, case));
    }
}

fn check_crashes(engine: Engine, case: PathCase) {
    let mut world = World::prepare(&format!("crashes at engine calls, {case:?}"), &engine.socket());
    let image = format!("sherd-test-crash-{}:latest", world.instance());
    let root = world.dir().join("go");
    fs::create_dir_all(&root).expect("a directory");
    fs::copy(images::go_server(), root.join("server")).expect("the server");
    images::import(engine, &image, &root, &["CMD [\"/server\"]"]);
    for point in ["create.before", "create.after", "start.before", "start.after"] {
        start_with_crash(&mut world, case, &image, point);
        check_containers(&world, engine, cpus());
        world.sherd(&["stop", "-g", "web", "--purge"]);
        check_nothing_left(&world, engine);
        world.end_agent();
    }
    for point in ["stop.before", "stop.after", "remove.before", "remove.after"] {
        world.start(&[("SHERD_FAULT_POINT", point)]);
        world.wait_for_api();
        case.run(&world, &image);
        let _ = world.try_sherd(&["stop", "-g", "web", "--purge"]);
        assert!(world.agent_died(Duration::from_secs(20)), "{point} is not passed");
        world.start(&[]);
        world.wait_for_api();
        eventually("nothing of it is left", Duration::from_secs(40), || {
            (containers(&world, engine).is_empty()).then_some(())
        });
        world.end_agent();
    }
    world.start(&[]);
    world.wait_for_api();
    images::remove(engine, &image);
}

fn start_with_crash(world: &mut World, case: PathCase, image: &str, point: &str) {
    world.start(&[("SHERD_FAULT_POINT", point)]);
    world.wait_for_api();
    // An agent that dies between receiving a listen(2) and answering it leaves the program waiting: it is started anew.
    let text = format!(
        "name = \"web\"\npath = \"{}\"\n[layout]\nunit = \"pu\"\n[container]\nimage = \"{image}\"\n[[ports]]\n\
         publish = \"8080:80\"\n[readiness]\nstart_timeout = \"3s\"\n",
        case.path
    );
    let path = world.dir().join("web.toml");
    fs::write(&path, text).expect("a specification");
    let _ = world.try_sherd(&["apply", path.to_str().expect("a path")]);
    assert!(world.agent_died(Duration::from_secs(20)), "{point} is not passed");
    world.start(&[]);
    world.wait_for_api();
    world.wait_ready("web", cpus());
}

/// Ids of the instance's containers, also those that ended.
pub(crate) fn containers(world: &World, engine: Engine) -> Vec<String> {
    let filter = format!("label=sherd.instance={}", world.instance());
    let output = engine.docker().args(["ps", "-aq", "--filter", &filter]).output().expect("docker ps");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

fn check_containers(world: &World, engine: Engine, expected: usize) {
    eventually("one container for each slot", Duration::from_secs(20), || {
        (containers(world, engine).len() == expected).then_some(())
    });
}

/// Containers outlive the agent and are adopted: the same pids before and after, none twice.
#[test]
fn containers_are_adopted() {
    if !is_there("containers_are_adopted", Engine::Docker) {
        return;
    }
    for case in PATHS {
        in_new_netns(move || check_adoption(Engine::Docker, case));
    }
}

fn check_adoption(engine: Engine, case: PathCase) {
    let mut world = World::with_engine(&format!("containers_are_adopted, {case:?}"), &engine.socket());
    let image = format!("sherd-test-adopt-{}:latest", world.instance());
    let root = world.dir().join("go");
    fs::create_dir_all(&root).expect("a directory");
    fs::copy(images::go_server(), root.join("server")).expect("the server");
    images::import(engine, &image, &root, &["CMD [\"/server\"]"]);
    let pids = |slots: &[Value]| slots.iter().filter_map(|slot| slot["pid"].as_u64()).collect::<BTreeSet<_>>();
    let before = pids(&case.run(&world, &image));
    world.kill_agent();
    world.start(&[]);
    world.wait_for_api();
    let after = pids(&world.wait_ready("web", cpus()));
    assert_eq!(before, after);
    // One removed behind the agent's back is made again; a stranger is left alone.
    let stranger = format!("stranger-{}", world.instance());
    let made = engine.docker().args(["create", "--name", &stranger, &image]).output().expect("docker create");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let victim = world.slots("web")[0]["shard"].as_str().expect("a shard").to_owned();
    let removed = engine.docker().args(["rm", "-f", &victim]).output().expect("docker rm");
    assert!(removed.status.success());
    eventually("another takes its place", Duration::from_secs(30), || {
        let slots = world.slots("web");
        (slots[0]["ready"] == true && slots[0]["shard"] != victim.as_str()).then_some(())
    });
    world.sherd(&["stop", "-g", "web", "--purge"]);
    let left = engine.docker().args(["rm", &stranger]).output().expect("docker rm");
    assert!(left.status.success(), "the stranger was touched: {}", String::from_utf8_lossy(&left.stderr));
    images::remove(engine, &image);
}
