//! Shards and the agent killed under load: who may notice, and who may not.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    traffic::{self, Load},
    world::{World, demo_spec, scaled, signal},
};

const ADDRESS: &str = "127.0.0.1:8080";

fn address() -> SocketAddr {
    ADDRESS.parse().expect("an address")
}

fn has_ended(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("State:"))
        .is_none_or(|state| state.trim_start().starts_with(['Z', 'X']))
}

fn shard_pids(world: &World) -> Vec<u32> {
    let slots = world.slots("web");
    slots.iter().filter_map(|slot| slot["pid"].as_u64()).map(|pid| u32::try_from(pid).expect("a pid")).collect()
}

/// Shards are killed at random: a connection fails only if it was being served by a killed shard.
#[test]
fn only_connections_of_killed_shards_fail() {
    if !needs("only_connections_of_killed_shards_fail", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("only_connections_of_killed_shards_fail");
        world.apply("web", &demo_spec("web", 2, "8080:80", "[backoff]\nfirst = \"50ms\"\nmax = \"50ms\""));
        world.wait_ready("web", 2);
        let connections = scaled(10_000, 100_000);
        let load = Load::start(address(), 8, connections);
        let mut killed: Vec<(u32, (Instant, Instant))> = Vec::new();
        let mut random = 0x9e37_79b9_u32;
        while !load.is_finished() {
            let pids = shard_pids(&world);
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Never the last one: without any shard connections wait, which is another test's.
            if pids.len() == 2 && world.slots("web").iter().all(|slot| slot["ready"] == true) {
                let pid = pids[(random >> 16) as usize % 2];
                let before = Instant::now();
                signal(pid, Signal::SIGKILL);
                // Its sockets take connections until it has ended, which is a little later than the signal.
                eventually("it has ended", Duration::from_secs(5), || has_ended(pid).then_some(()));
                killed.push((pid, (before, Instant::now())));
            }
            std::thread::sleep(Duration::from_millis(100 + u64::from(random >> 24)));
        }
        let (done, failures) = load.finish();
        assert_eq!(done, connections);
        assert!(killed.len() >= 3, "only {} kills", killed.len());
        for failure in &failures {
            match failure.served_by {
                Some(pid) => assert!(killed.iter().any(|(killed, _)| *killed == pid), "{failure:?} by a living shard"),
                // Nobody had answered yet: then it was in a shard that was killed while it was.
                None => assert!(
                    killed.iter().any(|(_, time)| failure.overlaps(*time)),
                    "{failure:?}: no shard was killed meanwhile; kills: {killed:?}"
                ),
            }
        }
        eprintln!("{done} connections, {} kills, {} failed with their shard", killed.len(), failures.len());
    });
}

/// The agent is killed under load: what it relayed ends, no new connection is refused, and all of them are served
/// when it is back.
#[test]
fn no_connection_is_refused_while_the_agent_is_away() {
    if !needs("no_connection_is_refused_while_the_agent_is_away", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let mut world = World::new("no_connection_is_refused_while_the_agent_is_away");
        world.apply("web", &demo_spec("web", 2, "8080:80", ""));
        world.wait_ready("web", 2);
        let before = shard_pids(&world);
        let mut kills = Vec::new();
        let load = Load::start(address(), 8, usize::MAX);
        for _ in 0..scaled(3, 20) {
            let reached = load.done() + 200;
            eventually("traffic flows", Duration::from_secs(30), || (load.done() >= reached).then_some(()));
            let before = Instant::now();
            world.kill_agent();
            kills.push((before, Instant::now()));
            // Somebody connects while nobody is there.
            std::thread::sleep(Duration::from_millis(200));
            world.start(&[]);
            world.wait_for_api();
            world.wait_ready("web", 2);
        }
        let (done, failures) = load.finish();
        for failure in &failures {
            assert!(!failure.error.contains("refused"), "{failure:?}");
            let in_flight = kills.iter().any(|time| failure.overlaps(*time));
            assert!(in_flight, "{failure:?} was not in flight at a kill");
        }
        assert_eq!(shard_pids(&world), before, "the shards noticed");
        traffic::ask(address()).expect("it serves");
        eprintln!(
            "{done} connections, {} kills of the agent, {} were relayed at that moment",
            kills.len(),
            failures.len()
        );
    });
}

/// A planned end and start of the agent: what is relayed finishes, what comes meanwhile waits.
#[test]
fn a_restart_of_the_agent_loses_nothing_short_lived() {
    if !needs("a_restart_of_the_agent_loses_nothing_short_lived", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let mut world = World::new("a_restart_of_the_agent_loses_nothing_short_lived");
        world.apply("web", &demo_spec("web", 2, "8080:80", ""));
        world.wait_ready("web", 2);
        let load = Load::start(address(), 8, usize::MAX);
        for _ in 0..scaled(3, 20) {
            let reached = load.done() + 200;
            eventually("traffic flows", Duration::from_secs(30), || (load.done() >= reached).then_some(()));
            world.end_agent();
            world.start(&[]);
            world.wait_for_api();
        }
        let (done, failures) = load.finish();
        assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), failures.first());
    });
}

/// While no shard is ready, connections wait; they are served when one is.
#[test]
fn connections_wait_for_the_first_shard() {
    if !needs("connections_wait_for_the_first_shard", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("connections_wait_for_the_first_shard");
        world.apply("web", &demo_spec("web", 2, "8080:80", ""));
        let load = Load::start(address(), 16, 200);
        let (done, failures) = {
            eventually("all are served", Duration::from_secs(60), || load.is_finished().then_some(()));
            load.finish()
        };
        assert_eq!((done, failures.len()), (200, 0), "{:?}", failures.first());
    });
}

/// No shard comes: what waited is ended after the bound of the specification, and not before.
#[test]
fn waiting_has_a_bound() {
    if !needs("waiting_has_a_bound", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("waiting_has_a_bound");
        let never = "name = \"web\"\nunready_timeout = \"1s\"\n[layout]\nunit = \"pu\"\nshards = 1\nsharing = \"shared\"\n\
                     memory = \"none\"\n[process]\ncommand = [\"sleep\", \"1000\"]\n[[ports]]\npublish = \"8080:80\"\n";
        world.apply("web", never);
        let began = Instant::now();
        let error = traffic::ask(address()).expect_err("nobody serves");
        let waited = began.elapsed();
        assert!(waited >= Duration::from_millis(900), "ended after {waited:?}: {error}");
        assert!(waited < Duration::from_secs(10), "still waiting after {waited:?}");
        let refusing = never.replace("unready_timeout = \"1s\"", "unready = \"refuse\"");
        world.sherd(&["stop", "-g", "web", "--purge"]);
        world.apply("web", &refusing);
        let error = traffic::ask(address()).expect_err("nobody serves");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}
