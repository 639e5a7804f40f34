//! The direct path through the real binary: unmodified programs in real containers that accept their connections
//! themselves, with the agent alive, dead and back again.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;
use sherd_lb::netns::Netns;
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{address, containers, cpus, http_get, is_there},
    images::{self, Engine},
    traffic::{Connection, Load},
    world::{World, scaled},
};

/// An image of the Go server, which listens on `[::]` for both families.
pub(crate) fn go_image(world: &World, engine: Engine) -> String {
    let image = format!("sherd-test-direct-{}:latest", world.instance());
    let root = world.dir().join("go");
    fs::create_dir_all(&root).expect("a directory");
    fs::copy(images::go_server(), root.join("server")).expect("the server");
    images::import(engine, &image, &root, &["CMD [\"/server\"]", "LABEL test=sherd"]);
    image
}

pub(crate) fn run(world: &World, image: &str, more: &[&str]) {
    let mut line = vec!["run", "-g", "web", "-p", "8080:80", "-u", "pu", "--path", "direct"];
    line.extend(more);
    line.push(image);
    world.sherd(&line);
    check_direct(world);
}

/// Every slot is ready, and its shard accepts its connections itself.
pub(crate) fn check_direct(world: &World) {
    let slots = world.wait_ready("web", cpus());
    let paths: Vec<&Value> = slots.iter().map(|slot| &slot["path"]).collect();
    assert!(paths.iter().all(|path| *path == "direct"), "{paths:?}\n{}", crate::world::tail(&world.log(), 60));
}

/// Every slot answers, and sees its clients' own addresses.
fn check_answers(count: usize) {
    let mut answered = vec![0; cpus()];
    for _ in 0..count {
        let mut connection = Connection::open(address()).expect("it is published");
        let answer: Value = serde_json::from_str(&connection.get().expect("an answer")).expect("JSON");
        assert_eq!(answer["client"], connection.local_addr().to_string());
        answered[usize::try_from(answer["slot"].as_u64().expect("a slot")).expect("a slot")] += 1;
    }
    assert!(answered.iter().all(|count| *count > 0), "{answered:?}");
}

/// `sherd explain` names the slot that answers, and its path.
fn check_explained(world: &World) {
    for _ in 0..10 {
        let mut connection = Connection::open(address()).expect("it is published");
        let (slot, _) = connection.who().expect("an answer");
        let said = world.sherd(&["explain", &connection.local_addr().to_string(), "web"]);
        assert!(said.contains(&format!("goes to slot {slot}, directly")), "{said}");
    }
}

fn kill_shard(world: &World, engine: Engine, slot: usize) {
    let shard = world.slots("web")[slot]["shard"].as_str().expect("a shard").to_owned();
    kill_container(engine, &shard);
}

fn kill_container(engine: Engine, container: &str) {
    let killed = engine.docker().args(["kill", container]).output().expect("docker kill");
    assert!(killed.status.success(), "{}", String::from_utf8_lossy(&killed.stderr));
}

fn check_go(engine: Engine) {
    let mut world = World::with_engine("a direct group", &engine.socket());
    let image = go_image(&world, engine);
    run(&world, &image, &[]);
    check_answers(200);
    check_explained(&world);

    // The agent is killed and comes back, again and again: nobody notices.
    let load = Load::start(address(), 8, usize::MAX);
    for _ in 0..scaled(3, 20) {
        let before = load.done();
        world.kill_agent();
        eventually("connections go on without an agent", Duration::from_secs(30), || {
            (load.done() > before + 200).then_some(())
        });
        world.start(&[]);
        world.wait_for_api();
        check_direct(&world);
    }
    check_inner_doors(&world);
    // A changed specification replaces the shards one by one.
    run(&world, &image, &["-e", "TURN=2"]);
    let (connections, failures) = load.finish();
    assert!(failures.is_empty(), "{} of {connections} failed: {failures:?}", failures.len());

    // With the agent dead, a shard dies: the kernel finds another for every connection that comes.
    let victim = world.slots("web")[0]["shard"].as_str().expect("a shard").to_owned();
    world.kill_agent();
    kill_container(engine, &victim);
    for _ in 0..100 {
        Connection::open(address()).and_then(|mut connection| connection.get()).expect("another slot answers");
    }
    world.start(&[]);
    world.wait_for_api();
    eventually("another shard takes its place", Duration::from_secs(60), || {
        let slots = world.slots("web");
        (slots[0]["ready"] == true && slots[0]["shard"] != victim.as_str()).then_some(())
    });
    check_direct(&world);
    check_answers(200);
    // And with the agent alive.
    let killed = world.slots("web")[1 % cpus()]["shard"].clone();
    kill_shard(&world, engine, 1 % cpus());
    eventually("its slot has the next shard", Duration::from_secs(60), || {
        let slots = world.slots("web");
        let is_next = slots[1 % cpus()]["shard"] != killed;
        (is_next && slots.iter().all(|slot| slot["ready"] == true && slot["path"] == "direct")).then_some(())
    });
    check_answers(200);
    check_end(&mut world, engine, &image);
}

/// `stop --purge` and the agent's end leave nothing.
pub(crate) fn check_end(world: &mut World, engine: Engine, image: &str) {
    let _ = world.try_sherd(&["stop", "-g", "web", "--purge"]);
    assert_eq!(world.slots("web"), Vec::<Value>::new());
    std::net::TcpListener::bind(address()).expect("the port is free");
    let doors = fs::read_dir(world.dir().join("run/doors")).map_or(0, Iterator::count);
    assert_eq!(doors, 0, "doors are left");
    images::remove(engine, image);
    world.end_agent();
    let guard = sherd_lb::guard::cgroup2_mount().expect("cgroup v2").join("sherd").join(world.instance());
    assert!(!guard.exists(), "{} is left", guard.display());
}

/// Programs that take IPv4 only are reached directly by IPv4 clients, and through their worker by others.
fn check_v4(engine: Engine, name: &str, root: &Path, command: &str, expected: &str) {
    let mut world = World::with_engine(&format!("a direct group of {name}"), &engine.socket());
    let image = format!("sherd-test-direct-{name}-{}:latest", world.instance());
    images::import(engine, &image, root, &[command]);
    run(&world, &image, &[]);
    for _ in 0..50 {
        for address in ["127.0.0.1:8080", "[::1]:8080"] {
            let answer = http_get(address.parse().expect("an address"), "/");
            assert!(answer.contains(expected), "{name} answered {answer:?} at {address}");
        }
    }
    check_end(&mut world, engine, &image);
}

fn check_engine(engine: Engine) {
    check_go(engine);
    let directory = std::env::temp_dir().join(format!("sherd-direct-{}-{engine:?}", std::process::id()));
    let busybox = images::busybox_root(&directory);
    let httpd = "CMD [\"/bin/httpd\", \"-f\", \"-p\", \"0.0.0.0:80\", \"-h\", \"/www\"]";
    check_v4(engine, "busybox", &busybox, httpd, "busybox");
    let nginx = images::nginx_root(&directory);
    check_v4(engine, "nginx", &nginx, "CMD [\"/usr/sbin/nginx\", \"-c\", \"/etc/nginx.conf\"]", "nginx ");
    fs::remove_dir_all(&directory).expect("its removal");
}

#[test]
fn direct_groups_of_docker_containers() {
    if is_there("direct_groups_of_docker_containers", Engine::Docker) {
        in_new_netns(|| check_engine(Engine::Docker));
    }
}

#[test]
fn direct_groups_of_podman_containers() {
    if is_there("direct_groups_of_podman_containers", Engine::Podman) {
        in_new_netns(|| check_engine(Engine::Podman));
    }
}

/// The agent is killed at every step of a shard's way to its listener: a new one brings it there, and the shard that runs
/// is not started anew, also if it waits for the answer to a listen(2) that the former agent received.
#[test]
fn direct_groups_survive_a_crash_at_every_step() {
    let engine = Engine::Docker;
    if !is_there("direct_groups_survive_a_crash_at_every_step", engine) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::prepare("direct_groups_survive_a_crash_at_every_step", &engine.socket());
        let image = go_image(&world, engine);
        let points = [
            "create.after",
            "start.after",
            "shim.came",
            "shim.kept",
            "listen.called",
            "graft.joined",
            "graft.placed",
            "graft.done",
            "graft.kept",
            "take_in.before",
            "take_in.after",
        ];
        for point in points {
            eprintln!("crash at {point}");
            world.start(&[("SHERD_FAULT_POINT", point)]);
            world.wait_for_api();
            let specification = format!(
                "name = \"web\"\npath = \"direct\"\n[layout]\nunit = \"pu\"\n[container]\nimage = \"{image}\"\n\
                 [[ports]]\npublish = \"8080:80\"\n[readiness]\nstart_timeout = \"60s\"\n"
            );
            let path = world.dir().join("web.toml");
            fs::write(&path, specification).expect("a specification");
            let _ = world.try_sherd(&["apply", path.to_str().expect("a path")]);
            assert!(world.agent_died(Duration::from_secs(20)), "{point} is not passed");
            let running = containers(&world, engine);
            world.start(&[]);
            world.wait_for_api();
            check_direct(&world);
            check_answers(50);
            let shards = containers(&world, engine);
            assert!(running.iter().all(|shard| shards.contains(shard)), "{point}: {running:?} became {shards:?}");
            check_inner_doors(&world);
            world.sherd(&["stop", "-g", "web", "--purge"]);
            world.end_agent();
        }
        world.start(&[]);
        world.wait_for_api();
        check_end(&mut world, engine, &image);
    });
}

/// The agent is killed while it opens `0.0.0.0` beside `[::]` for a program that takes IPv4 only: the kernel would give a
/// listener there that nobody serves all of IPv4.
#[test]
fn ipv4_is_served_after_a_kill_while_it_is_opened() {
    let engine = Engine::Docker;
    if !is_there("ipv4_is_served_after_a_kill_while_it_is_opened", engine) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::prepare("ipv4_is_served_after_a_kill_while_it_is_opened", &engine.socket());
        let image = format!("sherd-test-direct-v4-{}:latest", world.instance());
        let root = images::busybox_root(world.dir());
        let httpd = "CMD [\"/bin/httpd\", \"-f\", \"-p\", \"0.0.0.0:80\", \"-h\", \"/www\"]";
        images::import(engine, &image, &root, &[httpd]);
        for point in ["beside.opened", "beside.kept:4"] {
            world.start(&[("SHERD_FAULT_POINT", point)]);
            world.wait_for_api();
            let line = ["run", "-g", "web", "-p", "8080:80", "-u", "pu", "--path", "direct", &image];
            let _ = world.try_sherd(&line);
            assert!(world.agent_died(Duration::from_secs(20)), "{point} is not passed");
            world.start(&[]);
            world.wait_for_api();
            check_direct(&world);
            for address in ["127.0.0.1:8080", "[::1]:8080"] {
                let answer = http_get(address.parse().expect("an address"), "/");
                assert!(answer.contains("busybox"), "{point}: {answer:?} at {address}");
            }
            world.sherd(&["stop", "-g", "web", "--purge"]);
            world.end_agent();
        }
        world.start(&[]);
        world.wait_for_api();
        check_end(&mut world, engine, &image);
    });
}

/// Each slot answers inside its own network namespace too, where its image's HEALTHCHECK would ask.
fn check_inner_doors(world: &World) {
    for slot in world.slots("web") {
        let pid = slot["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
        let inside = Netns::of_pid(pid).expect("its namespace");
        let inner = "127.0.0.1:80".parse().expect("an address");
        let asked = inside.with(|| Connection::open(inner).and_then(|mut connection| connection.get()));
        let answer: Value = serde_json::from_str(&asked.expect("it is entered").expect("an answer")).expect("JSON");
        assert_eq!(answer["slot"], slot["slot"]);
    }
}

/// A listener takes the place of one socket only: where that can't be, the worker serves the slot, and `ps` says why.
#[test]
fn what_can_not_be_direct_is_relayed_and_says_why() {
    let engine = Engine::Docker;
    if !is_there("what_can_not_be_direct_is_relayed_and_says_why", engine) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::with_engine("what_can_not_be_direct_is_relayed_and_says_why", &engine.socket());
        let image = go_image(&world, engine);
        world.sherd(&["run", "-g", "web", "-p", "127.0.0.1:8080:80", "-u", "pu", "--path", "auto", &image]);
        for slot in world.wait_ready("web", cpus()) {
            assert_eq!(slot["path"], "relay");
            let reason = slot["path_reason"].as_str().expect("a reason");
            assert!(reason.contains("another address family"), "{reason}");
        }
        let said = world.try_sherd(&["ps"]);
        assert!(String::from_utf8_lossy(&said.stderr).contains("web/0 is relayed: "), "{said:?}");
        for _ in 0..20 {
            Connection::open(address()).and_then(|mut connection| connection.get()).expect("an answer");
        }
        check_end(&mut world, engine, &image);
    });
}
