//! A shard that stops accepting: its slot is out soon, what waited for it is served by others, and it comes back.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{address, cpus, is_there},
    direct::{check_end, go_image, run},
    images::Engine,
    metrics::{scrape, sum},
    traffic::{Connection, Load, ask},
    world::World,
};

/// A shard's process, stopped until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn shard(world: &World, slot: usize) -> Self {
        let pid = world.slots("web")[slot]["pid"].as_i64().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(pid).expect("a pid"));
        kill(pid, Signal::SIGSTOP).expect("it is ours");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

pub(crate) fn metric(name: &str, slot: u32) -> f64 {
    sum(&scrape().expect("metrics"), name, &format!("slot=\"{slot}\""))
}

pub(crate) fn is_hung(slot: u32) -> bool {
    metric("sherd_slot_hung", slot) == 1.0
}

#[test]
fn a_shard_that_stops_accepting_is_out_until_it_accepts_again() {
    let engine = Engine::Docker;
    if !is_there("a_shard_that_stops_accepting_is_out_until_it_accepts_again", engine) || cpus() < 2 {
        return;
    }
    in_new_netns(move || {
        let mut world =
            World::with_engine("a_shard_that_stops_accepting_is_out_until_it_accepts_again", &engine.socket());
        let image = go_image(&world, engine);
        run(&world, &image, &[]);
        let before = metric("sherd_slot_connections_steered_total", 0);
        let stopped = Stopped::shard(&world, 0);
        // Whoever comes to the stopped shard waits in its queue, until that moves: nobody's answer takes much longer.
        let (load, began) = (Load::start(address(), 8, 400), Instant::now());
        eventually("its slot is out", Duration::from_secs(10), || is_hung(0).then_some(()));
        let cause = world.slots("web")[0]["cause"].as_str().expect("a cause").to_owned();
        assert!(cause.contains("has not accepted for"), "{cause}");
        let (connections, failures) = load.finish();
        assert!(failures.is_empty(), "{} of {connections} failed: {failures:?}", failures.len());
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        assert!(metric("sherd_slot_connections_steered_total", 0) > before, "nobody came to it");
        for _ in 0..50 {
            assert_ne!(ask(address()).expect("others serve").0, 0);
        }
        // The next agent doesn't take it for one that never worked: its shard goes on when it goes on.
        let shards: Vec<_> = world.slots("web").iter().map(|slot| slot["shard"].clone()).collect();
        world.kill_agent();
        world.start(&[]);
        world.wait_for_api();
        eventually("the next agent finds it too", Duration::from_secs(20), || {
            let _ = std::net::TcpStream::connect(address());
            (scrape().is_some() && is_hung(0)).then_some(())
        });
        // Its worker is connected anew, because it is asked otherwise from now on. It stays out: it still doesn't accept.
        let path = world.dir().join("state/groups/web.toml");
        let specification = std::fs::read_to_string(path).expect("its specification");
        world.apply("web", &format!("{specification}\n[readiness]\ninterval = \"500ms\"\n"));
        for _ in 0..200 {
            assert_ne!(ask(address()).expect("others serve").0, 0);
        }
        assert!(is_hung(0));
        drop(stopped);
        eventually("it is back", Duration::from_secs(10), || (!is_hung(0)).then_some(()));
        eventually("it serves", Duration::from_secs(10), || (ask(address()).ok()?.0 == 0).then_some(()));
        assert_eq!(world.slots("web").iter().map(|slot| slot["shard"].clone()).collect::<Vec<_>>(), shards);
        assert_eq!(metric("sherd_slot_hung_total", 0), 1.0);
        assert_eq!(metric("sherd_slot_hung_total", 1), 0.0);

        // With all of them stopped nobody is out: who waits is served when they go on.
        let all: Vec<Stopped> = (0..cpus()).map(|slot| Stopped::shard(&world, slot)).collect();
        let waiting: Vec<Connection> = (0..20).map(|_| Connection::open(address()).expect("it listens")).collect();
        eventually("both are found", Duration::from_secs(10), || (is_hung(0) && is_hung(1)).then_some(()));
        drop(all);
        for mut connection in waiting {
            connection.get().expect("an answer");
        }
        eventually("both are back", Duration::from_secs(10), || (!is_hung(0) && !is_hung(1)).then_some(()));
        check_end(&mut world, engine, &image);
    });
}
