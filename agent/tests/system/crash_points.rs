//! The agent is killed at every step of a start and of a stop; a new one brings the host to what is specified.

use std::{collections::BTreeSet, time::Duration};

use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    traffic,
    world::{World, demo_spec},
};

/// Every point that a start of a process group passes.
const START: &[&str] = &[
    "store.put.before",
    "store.put.written",
    "store.put.after",
    "apply.stored",
    "apply.published",
    "equip.before",
    "equip.prepared",
    "equip.kept",
    "equip.after",
    "create.before",
    "create.after",
    "start.before",
    "start.after",
    "take_in.before",
    "take_in.after",
];

/// Every point that a stop with `--purge` passes.
const STOP: &[&str] = &[
    "store.remove.before",
    "store.remove.half",
    "store.remove.after",
    "take_out.before",
    "take_out.after",
    "stop.before",
    "stop.after",
    "remove.before",
    "remove.after",
    "retire.before",
    "retire.after",
    "unpublish.before",
    "unpublish.after",
];

/// With the process runtime's own points of these calls.
fn with_runtime(all: &[&'static str], calls: [&str; 2]) -> Vec<&'static str> {
    let of_calls = |point: &&str| calls.iter().any(|call| point.starts_with(call));
    all.iter().copied().chain(sherd::runtime::process::FAULT_POINTS.into_iter().filter(of_calls)).collect()
}

/// Shards of the test's group, by slot; the test fails if a slot has two.
fn shards(world: &World) -> Vec<(u64, u32)> {
    let slots = world.slots("web");
    let mut found: Vec<(u64, u32)> = slots
        .iter()
        .filter_map(|slot| Some((slot["slot"].as_u64()?, u32::try_from(slot["pid"].as_u64()?).ok()?)))
        .collect();
    found.sort_unstable();
    let slots: BTreeSet<u64> = found.iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots.len(), found.len(), "a slot twice: {found:?}");
    found
}

/// The processes of the demo service, whoever knows of them.
fn demo_processes(world: &World) -> Vec<u32> {
    let is_demo = |line: &str| line.trim_end().ends_with("sherd demo") && !line.contains("shim");
    world.processes().into_iter().filter(|(_, line)| is_demo(line)).map(|(pid, _)| pid).collect()
}

/// Killed at `point` of a start: afterwards either the group runs as specified (the specification was stored), or it
/// was never there and can be applied.
fn check_start(point: &str) {
    let mut world = World::prepare(&format!("crash at {point}"), "off");
    world.start(&[("SHERD_FAULT_POINT", point)]);
    world.wait_for_api();
    let path = world.dir().join("web.toml");
    std::fs::write(&path, demo_spec("web", 2, "8080:80", "")).expect("a specification");
    let path = path.to_str().expect("a path").to_owned();
    let _ = world.try_sherd(&["apply", &path]);
    assert!(world.agent_died(Duration::from_secs(10)), "{point} is not passed by a start");
    world.start(&[]);
    world.wait_for_api();
    if world.slots("web").is_empty() {
        world.sherd(&["apply", &path]);
    }
    world.wait_ready("web", 2);
    let running = shards(&world);
    assert_eq!(running.len(), 2, "{point}: {running:?}");
    let mut known: Vec<u32> = running.iter().map(|(_, pid)| *pid).collect();
    known.sort_unstable();
    eventually("no orphan", Duration::from_secs(15), || {
        let mut found = demo_processes(&world);
        found.sort_unstable();
        (found == known).then_some(())
    });
    traffic::ask("127.0.0.1:8080".parse().expect("an address")).expect("it serves");
}

/// Killed at `point` of a stop: afterwards nothing of the group is left, or the stop can be said again.
fn check_stop(point: &str) {
    let mut world = World::new(&format!("crash at {point}"));
    world.apply("web", &demo_spec("web", 2, "8080:80", ""));
    world.wait_ready("web", 2);
    world.kill_agent();
    world.start(&[("SHERD_FAULT_POINT", point)]);
    world.wait_for_api();
    world.wait_ready("web", 2);
    let _ = world.try_sherd(&["stop", "-g", "web", "--purge"]);
    assert!(world.agent_died(Duration::from_secs(10)), "{point} is not passed by a stop");
    world.start(&[]);
    world.wait_for_api();
    if !world.slots("web").is_empty() {
        world.sherd(&["stop", "-g", "web", "--purge"]);
    }
    eventually("nothing of it is left", Duration::from_secs(15), || demo_processes(&world).is_empty().then_some(()));
    assert_eq!(world.slots("web"), Vec::<serde_json::Value>::new(), "{point}");
    let address: std::net::SocketAddr = "127.0.0.1:8080".parse().expect("an address");
    eventually("the port is free", Duration::from_secs(5), || std::net::TcpListener::bind(address).ok());
}

#[test]
fn a_start_survives_a_crash_at_every_step() {
    if !needs("a_start_survives_a_crash_at_every_step", &[Need::Root, Need::Bpf]) {
        return;
    }
    for point in with_runtime(START, ["create.", "start."]) {
        in_new_netns(move || check_start(point));
    }
}

#[test]
fn a_stop_survives_a_crash_at_every_step() {
    if !needs("a_stop_survives_a_crash_at_every_step", &[Need::Root, Need::Bpf]) {
        return;
    }
    for point in with_runtime(STOP, ["stop.", "remove."]) {
        in_new_netns(move || check_stop(point));
    }
}
