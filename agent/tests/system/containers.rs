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
    traffic::Connection,
    world::World,
};

pub(crate) fn address() -> SocketAddr {
    "127.0.0.1:8080".parse().expect("an address")
}

pub(crate) fn is_there(test: &str, engine: Engine) -> bool {
    let need = match engine {
        Engine::Docker => Need::Docker,
        Engine::Podman => Need::Podman,
    };
    needs(test, &[Need::Root, Need::Bpf, need, Need::Program("docker"), Need::Program("go")])
}

/// `sherd run` of an image as an operator types it; the group's slots when it returns.
fn run(world: &World, image: &str) -> Vec<Value> {
    world.sherd(&["run", "-g", "web", "-p", "8080:80", "-u", "pu", image]);
    world.slots("web")
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

/// The Go server tells where it runs: all slots are used, each is pinned as `ps` says, the client is no loopback.
fn check_go(engine: Engine) {
    let world = World::with_engine("a group of Go servers", &engine.socket());
    let image = format!("sherd-test-go-{}:latest", world.instance());
    let root = world.dir().join("go");
    fs::create_dir_all(&root).expect("a directory");
    fs::copy(images::go_server(), root.join("server")).expect("the server");
    images::import(engine, &image, &root, &["CMD [\"/server\"]", "LABEL test=sherd"]);
    let slots = run(&world, &image);
    assert_eq!(slots.len(), cpus());
    let mut answers: BTreeMap<u64, usize> = BTreeMap::new();
    for _ in 0..200 {
        let body = Connection::open(address()).and_then(|mut connection| connection.get()).expect("an answer");
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let slot = &slots[usize::try_from(answer["slot"].as_u64().expect("a slot")).expect("a slot")];
        for (said, planned) in [("cpus", "cpus"), ("told", "cpus"), ("mems", "mems")] {
            assert_eq!(answer[said], slot[planned], "{said} of {answer}");
        }
        assert_eq!(answer["gomaxprocs"], "1");
        let client: SocketAddr = answer["client"].as_str().expect("a client").parse().expect("an address");
        assert!(!client.ip().is_loopback(), "{client} is loopback");
        *answers.entry(answer["slot"].as_u64().expect("a slot")).or_default() += 1;
    }
    assert_eq!(answers.len(), slots.len(), "slots that answered: {answers:?}");
    for slot in &slots {
        check_kernel(slot);
    }
    check_ps(&world);
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
fn check_ps(world: &World) {
    let table = world.sherd(&["ps"]);
    let head = table.lines().next().unwrap_or_default();
    for column in ["GROUP", "SLOT", "CPUS", "NODE", "STATE", "PATH", "CONNS"] {
        assert!(head.contains(column), "{column} is missing:\n{table}");
    }
    assert!(table.contains("web") && table.contains("ready") && table.contains("relay"), "{table}");
}

/// Any image, told nothing about sherd: steady answers from every shard.
fn check_image(engine: Engine, name: &str, root: &Path, command: &str, path: &str, expected: &str) {
    let world = World::with_engine(&format!("a group of {name}"), &engine.socket());
    let image = format!("sherd-test-{name}-{}:latest", world.instance());
    images::import(engine, &image, root, &[command]);
    let slots = run(&world, &image);
    assert_eq!(slots.len(), cpus());
    for _ in 0..100 {
        let answer = http_get(address(), path);
        assert!(answer.contains(expected), "{name} answered {answer}");
    }
    // Every shard had its share.
    eventually("every slot has accepted", Duration::from_secs(5), || {
        world.slots("web").iter().all(|slot| slot["accepted"].as_u64() > Some(0)).then_some(())
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
    check_go(engine);
    let directory = std::env::temp_dir().join(format!("sherd-images-{}-{engine:?}", std::process::id()));
    let busybox = images::busybox_root(&directory);
    let httpd = "CMD [\"/bin/httpd\", \"-f\", \"-p\", \"80\", \"-h\", \"/www\"]";
    check_image(engine, "busybox", &busybox, httpd, "/", "busybox");
    let nginx = images::nginx_root(&directory);
    check_image(engine, "nginx", &nginx, "CMD [\"/usr/sbin/nginx\", \"-c\", \"/etc/nginx.conf\"]", "/", "nginx ");
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
    in_new_netns(|| {
        let engine = Engine::Docker;
        let mut world = World::prepare("containers_survive_a_crash_at_every_engine_call", &engine.socket());
        let image = format!("sherd-test-crash-{}:latest", world.instance());
        let root = world.dir().join("go");
        fs::create_dir_all(&root).expect("a directory");
        fs::copy(images::go_server(), root.join("server")).expect("the server");
        images::import(engine, &image, &root, &["CMD [\"/server\"]"]);
        for point in ["create.before", "create.after", "start.before", "start.after"] {
            start_with_crash(&mut world, &image, point);
            check_containers(&world, engine, cpus());
            world.sherd(&["stop", "-g", "web", "--purge"]);
            check_nothing_left(&world, engine);
            world.end_agent();
        }
        for point in ["stop.before", "stop.after", "remove.before", "remove.after"] {
            world.start(&[("SHERD_FAULT_POINT", point)]);
            world.wait_for_api();
            run(&world, &image);
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
    });
}

fn start_with_crash(world: &mut World, image: &str, point: &str) {
    world.start(&[("SHERD_FAULT_POINT", point)]);
    world.wait_for_api();
    let _ = world.try_sherd(&["run", "-g", "web", "-p", "8080:80", "-u", "pu", image]);
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
    in_new_netns(|| {
        let engine = Engine::Docker;
        let mut world = World::with_engine("containers_are_adopted", &engine.socket());
        let image = format!("sherd-test-adopt-{}:latest", world.instance());
        let root = world.dir().join("go");
        fs::create_dir_all(&root).expect("a directory");
        fs::copy(images::go_server(), root.join("server")).expect("the server");
        images::import(engine, &image, &root, &["CMD [\"/server\"]"]);
        let pids = |slots: &[Value]| slots.iter().filter_map(|slot| slot["pid"].as_u64()).collect::<BTreeSet<_>>();
        let before = pids(&run(&world, &image));
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
    });
}
