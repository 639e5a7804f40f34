//! A container whose program calls listen(2) all the time: the other groups don't notice.

use std::time::{Duration, Instant};

use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{address, is_there},
    images::{self, Engine},
    traffic::Connection,
    world::World,
};

const ENGINE: Engine = Engine::Docker;

#[test]
fn a_storm_of_listen_calls_holds_up_nobody_else() {
    let test = "a_storm_of_listen_calls_holds_up_nobody_else";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let world = World::with_engine(test, &ENGINE.socket());
        let storm = images::go_program("storm", include_str!("listen_storm.go"));
        let storming = images::import_program(ENGINE, &world, "storm", &storm);
        let image = images::import_program(ENGINE, &world, "go", images::go_server());
        let run = |group, publish: &[&str], image| {
            world.sherd(&[&["run", "-d", "-g", group, "-u", "pu", "-n", "1", "--shared"], publish, &[image]].concat());
        };
        run("storm", &["-p", "8088:80", "-p", "8099:81"], &storming);
        eventually("the storm is felt", Duration::from_secs(60), || {
            world.log().contains("call listen(2) all the time").then_some(())
        });
        let began = Instant::now();
        run("web", &["-p", "8080:80"], &image);
        let slots = world.wait_ready("web", 1);
        assert_eq!(slots[0]["path"], "direct", "{slots:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
        for _ in 0..100 {
            let began = Instant::now();
            Connection::open(address()).and_then(|mut connection| connection.get()).expect("an answer");
            world.slots("web");
            assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
        }
        for group in ["storm", "web"] {
            world.sherd(&["stop", "-g", group, "--purge"]);
        }
        images::remove(ENGINE, &storming);
        images::remove(ENGINE, &image);
    });
}
