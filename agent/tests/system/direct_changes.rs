//! Path and published ports of a running group change by replacing its shards one by one: who connects to an address that
//! stays doesn't notice.

use std::{fs, net::SocketAddr, time::Duration};

use serde_json::Value;
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{cpus, is_there},
    images::{self, Engine},
    traffic::{Connection, Load},
    world::{World, tail},
};

const ENGINE: Engine = Engine::Docker;

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn specification(image: &str, path: &str, ports: &[&str]) -> String {
    let mut text =
        format!("name = \"web\"\npath = \"{path}\"\n[layout]\nunit = \"pu\"\n[container]\nimage = \"{image}\"\n");
    for port in ports {
        text.push_str(&format!("[[ports]]\npublish = \"{port}\"\n"));
    }
    text
}

fn apply(world: &World, image: &str, path: &str, ports: &[&str]) {
    world.apply("web", &specification(image, path, ports));
}

/// Waits until every slot has another shard than before, is ready, and is on this path.
fn replaced(world: &World, former: &[Value], path: &str) -> Vec<Value> {
    eventually("every shard is replaced", Duration::from_secs(90), || {
        let slots = world.slots("web");
        let done = |(slot, former): (&Value, &Value)| {
            slot["shard"] != former["shard"] && slot["ready"] == true && slot["path"] == path
        };
        (slots.len() == former.len() && slots.iter().zip(former).all(done)).then_some(slots)
    })
}

fn check_refused(port: u16) {
    eventually("the address is given up", Duration::from_secs(20), || std::net::TcpListener::bind(at(port)).ok());
}

#[test]
fn path_and_ports_of_a_running_group_change_without_losses() {
    let test = "path_and_ports_of_a_running_group_change_without_losses";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::with_engine(test, &ENGINE.socket());
        let image = images::import_program(ENGINE, &world, "changes", images::go_server());

        apply(&world, &image, "relay", &["8080:80"]);
        let relayed = world.wait_ready("web", cpus());
        let load = Load::start(at(8080), 8, usize::MAX);
        let steps: [(&str, &[&str]); 6] = [
            ("auto", &["8080:80"]),
            ("relay", &["8080:80"]),
            ("direct", &["8080:80"]),
            ("direct", &["8080:80", "8081:80"]),
            ("auto", &["8081:80", "8080:80", "127.0.0.1:8082:80"]),
            ("auto", &["8080:80"]),
        ];
        let mut slots = relayed;
        for (number, (path, ports)) in steps.into_iter().enumerate() {
            let before = load.done();
            apply(&world, &image, path, ports);
            slots = replaced(&world, &slots, if path == "relay" { "relay" } else { "direct" });
            for port in ports {
                let port = port.rsplit(':').nth(1).and_then(|port| port.parse().ok()).expect("a port");
                let answer = Connection::open(at(port)).and_then(|mut connection| connection.get());
                assert!(answer.is_ok(), "step {number}: {port}: {answer:?}\n{}", tail(&world.log(), 40));
            }
            assert!(load.done() > before, "nobody connected during step {number}");
        }
        check_refused(8081);
        check_refused(8082);
        let (done, failures) = load.finish();
        assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), failures.first());
        check_move(&mut world, &image, &slots);
        world.sherd(&["stop", "-g", "web", "--purge"]);
        images::remove(ENGINE, &image);
    });
}

/// The group moves to another port while the agent dies: the old address is served as long as a shard listens there, also
/// by the next agent, and is given up then.
fn check_move(world: &mut World, image: &str, slots: &[Value]) {
    let load = Load::start(at(8080), 4, usize::MAX);
    apply(world, image, "auto", &["8090:80"]);
    world.kill_agent();
    world.start(&[]);
    world.wait_for_api();
    let (done, failures) = load.finish();
    assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), failures.first());
    replaced(world, slots, "direct");
    Connection::open(at(8090)).and_then(|mut connection| connection.get()).expect("it is where it is published");
    check_refused(8080);
    // Two addresses that overlap can't be there together, and running shards need theirs.
    let specification = world.dir().join("web.toml");
    let text = fs::read_to_string(&specification).expect("its specification").replace("8090:80", "127.0.0.1:8090:80");
    fs::write(&specification, text).expect("a specification");
    let refused = world.refused(&["apply", specification.to_str().expect("a path")]);
    assert!(refused.contains("overlap") && refused.contains("sherd stop -g web"), "{refused}");
    Connection::open(at(8090)).and_then(|mut connection| connection.get()).expect("nothing has changed");
}

/// The agent dies at `point` of the move to another port; `is_stored` says whether the next one has the new specification.
fn check_killed_move(point: &'static str, is_stored: bool) {
    let mut world = World::with_engine(&format!("crash at {point}"), &ENGINE.socket());
    let image = images::import_program(ENGINE, &world, "move", images::go_server());
    apply(&world, &image, "auto", &["8080:80"]);
    let slots = world.wait_ready("web", cpus());
    assert!(slots.iter().all(|slot| slot["path"] == "direct"), "{slots:?}");
    world.kill_agent();
    world.start(&[("SHERD_FAULT_POINT", point)]);
    world.wait_for_api();
    world.wait_ready("web", cpus());
    let load = Load::start(at(8080), 4, usize::MAX);
    let path = world.dir().join("web.toml");
    fs::write(&path, specification(&image, "auto", &["8090:80"])).expect("a specification");
    let path = path.to_str().expect("a path").to_owned();
    let _ = world.try_sherd(&["apply", &path]);
    assert!(world.agent_died(Duration::from_secs(20)), "{point} is not passed");
    world.start(&[]);
    world.wait_for_api();
    assert!(!world.log().contains("is of no address"), "{}", tail(&world.log(), 40));
    let (done, failures) = load.finish();
    assert!(failures.is_empty(), "{point}: {} of {done} failed: {:?}", failures.len(), failures.first());
    if !is_stored {
        // What was announced and not stored is forgotten.
        assert_eq!(world.slots("web").len(), slots.len());
        Connection::open(at(8080)).and_then(|mut connection| connection.get()).expect("it is published");
        world.sherd(&["apply", &path]);
    }
    replaced(&world, &slots, "direct");
    Connection::open(at(8090)).and_then(|mut connection| connection.get()).expect("it is where it is published");
    check_refused(8080);
    world.sherd(&["stop", "-g", "web", "--purge"]);
    images::remove(ENGINE, &image);
}

#[test]
fn an_address_that_leaves_survives_a_crash_of_its_apply() {
    let test = "an_address_that_leaves_survives_a_crash_of_its_apply";
    if !is_there(test, ENGINE) {
        return;
    }
    for (point, is_stored) in [("store.put.before", false), ("store.put.after", true), ("apply.stored", true)] {
        in_new_netns(move || check_killed_move(point, is_stored));
    }
}
