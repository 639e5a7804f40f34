//! What an agent finds in the holder that is not all of one piece: of another version, half replaced, or partly gone.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use sherd_lb::holder::HolderClient;
use sherd_testkit::{Need, in_new_netns, needs};

use crate::{
    containers::{cpus, is_there},
    images::{self, Engine},
    metrics::{scrape, sum},
    traffic::{Load, ask},
    world::{World, demo_spec},
};

const ENGINE: Engine = Engine::Docker;

fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

pub(crate) fn holder(world: &World) -> HolderClient {
    HolderClient::connect(&world.dir().join("run/holder.sock")).expect("it outlives the agent")
}

/// Slots that answer, of 60 connections.
fn answering(port: u16) -> BTreeSet<u64> {
    (0..60).map(|_| ask(at(port)).expect("an answer").0).collect()
}

/// Without the cells that its steering counts in, the next agent takes an address over as it does another version's.
#[test]
fn taking_another_versions_steering_over_survives_a_crash_between_two_puts() {
    let test = "taking_another_versions_steering_over_survives_a_crash_between_two_puts";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::with_engine(test, &ENGINE.socket());
        let image = images::import_program(ENGINE, &world, "over", images::go_server());
        world.sherd(&["run", "-g", "web", "-p", "8080:80", "-u", "pu", "--path", "direct", &image]);
        let slots = world.wait_ready("web", cpus());
        let load = Load::start(at(8080), 4, usize::MAX);
        world.kill_agent();
        holder(&world).remove("cells").expect("it has them");
        // The program, the anchor, seven maps and the slots' listeners, of which the state comes last.
        let puts = 9 + cpus();
        for put in [1, 2, puts / 2, puts - 1, puts] {
            let before = load.done();
            world.start(&[("SHERD_FAULT_POINT", &format!("adopt.kept:{put}"))]);
            assert!(world.agent_died(Duration::from_secs(20)), "there is no put {put}");
            while load.done() < before + 50 {
                std::thread::yield_now();
            }
        }
        world.start(&[]);
        world.wait_for_api();
        let next = world.wait_ready("web", cpus());
        for (slot, former) in next.iter().zip(&slots) {
            assert!(slot["path"] == "direct" && slot["shard"] == former["shard"], "{slot}");
        }
        let (done, failures) = load.finish();
        assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), failures.first());
        assert_eq!(answering(8080), (0..cpus() as u64).collect());
        world.sherd(&["stop", "-g", "web", "--purge"]);
        images::remove(ENGINE, &image);
    });
}

#[test]
fn an_address_that_the_holder_lost_is_opened_anew_beside_the_others() {
    let test = "an_address_that_the_holder_lost_is_opened_anew_beside_the_others";
    if !needs(test, &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::new(test);
        for (group, publish) in [("lost", "8080:80"), ("kept", "8081:80")] {
            world.apply(group, &demo_spec(group, 2, publish, ""));
            world.wait_ready(group, 2);
        }
        let steered = |port: u16| {
            let labels = format!("address=\"0.0.0.0:{port}\"");
            sum(&scrape().expect("metrics"), "sherd_slot_connections_steered_total", &labels)
        };
        assert_eq!((answering(8080).len(), answering(8081).len()), (2, 2));
        let before = steered(8081);
        world.kill_agent();
        holder(&world).remove_prefix("front/lost/0.0.0.0:8080/").expect("it has it");
        world.start(&[]);
        world.wait_for_api();
        for group in ["lost", "kept"] {
            world.wait_ready(group, 2);
        }
        assert_eq!((steered(8080), steered(8081)), (0.0, before), "they count in each other's cells");
        assert_eq!((answering(8080).len(), answering(8081).len()), (2, 2));
        assert_eq!((steered(8080), steered(8081)), (60.0, before + 60.0));
        for group in ["lost", "kept"] {
            world.sherd(&["stop", "-g", group, "--purge"]);
        }
    });
}
