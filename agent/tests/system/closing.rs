//! A shard that closes its listener and lives on: the agent knows soon, and nobody is refused.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{address, cpus, is_there},
    images::{self, Engine},
    traffic::Load,
    world::World,
};

const ENGINE: Engine = Engine::Docker;
/// A tick would be a second; a busy machine takes its own time.
const SOON: Duration = Duration::from_millis(400);

fn image(world: &World) -> String {
    let server = images::go_program("closing", include_str!("closing.go"));
    images::import_program(ENGINE, world, "closing", &server)
}

/// Tells one shard to close its listener; when it answers, that is done.
fn close_one() {
    let mut stream = TcpStream::connect(address()).expect("it accepts");
    stream.write_all(b"GET / HTTP/1.0\r\nHost: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.contains("slot"), "{answer}");
}

#[test]
fn a_closed_listener_is_noticed_soon() {
    let test = "a_closed_listener_is_noticed_soon";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let world = World::with_engine(test, &ENGINE.socket());
        let image = image(&world);
        world.sherd(&["run", "-g", "web", "-p", "8080:80", "-u", "pu", &image]);
        let noticed = |world: &World| world.log().matches("has closed its listener").count();
        let load = Load::start(address(), 4, usize::MAX);
        for round in 1..=4 {
            let slots = world.wait_ready("web", cpus());
            assert!(slots.iter().all(|slot| slot["path"] == "direct"), "{slots:?}");
            close_one();
            let began = Instant::now();
            eventually("it is noticed", Duration::from_secs(5), || (noticed(&world) == round).then_some(()));
            assert!(began.elapsed() < SOON, "round {round}: noticed after {:?}", began.elapsed());
            eventually("every slot is direct again", Duration::from_secs(20), || {
                let slots = world.slots("web");
                slots.iter().all(|slot| slot["ready"] == true && slot["path"] == "direct").then_some(())
            });
        }
        let (done, failures) = load.finish();
        assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), failures.first());
        world.sherd(&["stop", "-g", "web", "--purge"]);
        images::remove(ENGINE, &image);
    });
}
