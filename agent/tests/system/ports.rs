//! Groups with several ports on the direct path: what becomes of one is nothing to the other.

use std::{collections::BTreeSet, fs, net::SocketAddr, time::Duration};

use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{cpus, is_there},
    hung::{is_hung, metric},
    images::{self, Engine},
    traffic::{Connection, Load, ask},
    world::World,
};

const ENGINE: Engine = Engine::Docker;

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Slots that answer, of 60 connections.
fn answering(port: u16) -> BTreeSet<u64> {
    (0..60).map(|_| ask(at(port)).expect("an answer").0).collect()
}

fn all() -> BTreeSet<u64> {
    (0..cpus() as u64).collect()
}

/// A group of the two-port server, all of it direct.
fn start(test: &str) -> (World, String) {
    let world = World::with_engine(test, &ENGINE.socket());
    let image = images::import_program(ENGINE, &world, "ports", &images::go_program("ports", include_str!("ports.go")));
    world.sherd(&["run", "-g", "web", "-p", "8080:80", "-p", "8081:81", "-u", "pu", "--path", "direct", &image]);
    let slots = world.wait_ready("web", cpus());
    assert!(slots.iter().all(|slot| slot["path"] == "direct"), "{slots:?}");
    (world, image)
}

fn end(world: &World, image: &str) {
    world.sherd(&["stop", "-g", "web", "--purge"]);
    images::remove(ENGINE, image);
}

#[test]
fn a_port_that_is_not_accepted_from_is_out_and_the_others_stay() {
    let test = "a_port_that_is_not_accepted_from_is_out_and_the_others_stay";
    if !is_there(test, ENGINE) || cpus() < 2 {
        return;
    }
    in_new_netns(move || {
        let (world, image) = start(test);
        assert_eq!((answering(8080), answering(8081)), (all(), all()));
        let mut control = Connection::open(at(8080)).expect("it listens");
        let slot = control.who().expect("an answer").0;
        control.get_at("/hold").expect("an answer");
        let load = Load::start(at(8081), 8, usize::MAX);
        let number = u32::try_from(slot).expect("a slot");
        eventually("its slot is out", Duration::from_secs(10), || is_hung(number).then_some(()));
        let cause = world.slots("web")[number as usize]["cause"].as_str().expect("a cause").to_owned();
        assert!(cause.contains("at [::]:8081") && !cause.contains("8080"), "{cause}");
        assert!(!answering(8081).contains(&slot), "it gets connections that it doesn't accept");
        assert_eq!(answering(8080), all(), "it is out where it accepts");
        control.get_at("/go").expect("an answer");
        eventually("it is back", Duration::from_secs(10), || (!is_hung(number)).then_some(()));
        let (done, failures) = load.finish();
        assert!(failures.is_empty(), "{} of {done} failed: {failures:?}", failures.len());
        assert_eq!((answering(8080), answering(8081)), (all(), all()));
        let others = (0..cpus() as u32).filter(|other| *other != number);
        assert!(others.into_iter().all(|other| metric("sherd_slot_hung_total", other) == 0.0));
        end(&world, &image);
    });
}

#[test]
fn a_port_whose_listener_is_closed_is_out_and_the_others_stay() {
    let test = "a_port_whose_listener_is_closed_is_out_and_the_others_stay";
    if !is_there(test, ENGINE) || cpus() < 2 {
        return;
    }
    in_new_netns(move || {
        let (world, image) = start(test);
        let mut control = Connection::open(at(8080)).expect("it listens");
        let slot = control.who().expect("an answer").0;
        let load = Load::start(at(8080), 4, usize::MAX);
        let closed = Load::start(at(8081), 4, usize::MAX);
        control.get_at("/close").expect("an answer");
        eventually("it is noticed", Duration::from_secs(10), || {
            world.log().contains(&format!("web/{slot} has closed its listener")).then_some(())
        });
        eventually("its slot is out where it doesn't listen", Duration::from_secs(10), || {
            (!answering(8081).contains(&slot)).then_some(())
        });
        for (load, port) in [(load, 8080), (closed, 8081)] {
            let (done, failures) = load.finish();
            assert!(failures.is_empty(), "{port}: {} of {done} failed: {failures:?}", failures.len());
        }
        end(&world, &image);
    });
}

#[test]
fn two_host_ports_of_one_container_port_both_serve() {
    let test = "two_host_ports_of_one_container_port_both_serve";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let world = World::with_engine(test, &ENGINE.socket());
        let image = images::import_program(ENGINE, &world, "twice", images::go_server());
        world.sherd(&["run", "-g", "web", "-p", "8080:80", "-p", "9090:80", "-u", "pu", &image]);
        world.wait_ready("web", cpus());
        let ports = world.ps()["groups"][0]["ports"].as_array().cloned().expect("its ports");
        let paths: Vec<_> = ports.iter().map(|port| port["path"].as_str().unwrap_or_default()).collect();
        assert_eq!(paths, ["direct", "relay"], "{ports:?}");
        let reason = ports[1]["path_reason"].as_str().unwrap_or_default();
        assert!(reason.contains("8080"), "{ports:?}");
        assert_eq!((answering(8080), answering(9090)), (all(), all()));
        end(&world, &image);
    });
}

#[test]
fn a_program_on_one_address_of_its_namespace_is_direct() {
    let test = "a_program_on_one_address_of_its_namespace_is_direct";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let world = World::with_engine(test, &ENGINE.socket());
        let program = images::go_program("own-address", include_str!("own_address.go"));
        let image = images::import_program(ENGINE, &world, "own", &program);
        world.sherd(&["run", "-g", "web", "-p", "8080:80", "-u", "pu", &image]);
        let slots = world.wait_ready("web", cpus());
        assert!(slots.iter().all(|slot| slot["path"] == "direct"), "{slots:?}");
        assert_eq!(answering(8080), all());
        // Its neighbours still find it where it listens, and nowhere else.
        let inside = fs::read_to_string(format!("/proc/{}/net/tcp", slots[0]["pid"])).expect("its namespace");
        let listening: Vec<&str> = inside.lines().filter(|line| line.contains(":0050 00000000:0000 0A")).collect();
        assert!(listening.len() == 1 && !listening[0].contains(" 00000000:0050 "), "{inside}");
        end(&world, &image);
    });
}
