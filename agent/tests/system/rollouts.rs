//! Changes of a running group: its shards are replaced slot by slot, whoever connects doesn't notice, and what turns out to
//! be bad is taken back.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    traffic::{Connection, Load, Watch},
    world::{SHERD, World, scaled, tail},
};

const SLOTS: usize = 2;

fn address() -> SocketAddr {
    ([127, 0, 0, 1], 8080).into()
}

/// The demo service of a version, or what else is run in its place.
fn spec(version: &str, command: &str, rollout: &str) -> String {
    spec_of(SLOTS, version, command, rollout)
}

fn spec_of(slots: usize, version: &str, command: &str, rollout: &str) -> String {
    format!(
        "name = \"web\"\ndrain = \"20s\"\nstop_grace = \"1s\"\n[layout]\nunit = \"pu\"\nshards = {slots}\nsharing = \"shared\"\n\
         memory = \"none\"\n[process]\ncommand = {command}\n[[ports]]\npublish = \"8080:80\"\nloopback = true\n\
         [readiness]\ninterval = \"100ms\"\nstart_timeout = \"2s\"\n[rollout]\nmin_healthy = \"300ms\"\nmonitor = \"300ms\"\n\
         {rollout}\n[environment]\nVERSION = \"{version}\"\n"
    )
}

fn good(version: &str) -> String {
    spec(version, &format!("[\"{SHERD}\", \"demo\"]"), "")
}

fn rollout(world: &World) -> Value {
    serde_json::from_str(&world.sherd(&["rollout", "status", "web", "--json"])).expect("JSON")
}

/// Waits until the rollout is in one of these phases; the phase and why.
fn wait_phase(world: &World, phases: &[&str]) -> (String, String) {
    let found = eventually(&format!("the rollout is {phases:?}"), Duration::from_secs(60), || {
        let status = rollout(world);
        phases.contains(&status["phase"].as_str()?).then_some(status)
    });
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("phase"), text("reason"))
}

/// The versions that the shards run, by slot.
fn versions(world: &World) -> Vec<String> {
    let version = |slot: Value| {
        let environ = std::fs::read(format!("/proc/{}/environ", slot["pid"])).unwrap_or_default();
        let environ = String::from_utf8_lossy(&environ).into_owned();
        environ.split('\0').find_map(|entry| entry.strip_prefix("VERSION=").map(str::to_owned)).unwrap_or_default()
    };
    world.slots("web").into_iter().map(version).collect()
}

fn check_nothing_failed(world: &World, load: Load) {
    let (done, failures) = load.finish();
    assert!(done > 0, "nobody connected");
    assert!(
        failures.is_empty(),
        "{} of {done} failed: {:?}\n{}",
        failures.len(),
        failures.first(),
        tail(&world.log(), 80)
    );
}

/// A service of one slot doesn't pause either.
#[test]
fn the_only_shard_of_a_group_is_replaced_beside() {
    in_new_netns(|| check_start_first(1));
}

#[test]
fn new_shards_come_up_beside_those_that_serve() {
    in_new_netns(|| check_start_first(SLOTS));
}

fn check_start_first(slots: usize) {
    let world = World::new(&format!("start-first with {slots} slots"));
    // A machine that is busy with other things lets a program wait for seconds.
    let patient = |text: String| text.replace("start_timeout = \"2s\"", "start_timeout = \"20s\"");
    let spec = |version: &str| patient(spec_of(slots, version, &format!("[\"{SHERD}\", \"demo\"]"), ""));
    world.apply("web", &spec("1"));
    world.wait_ready("web", slots);
    let (load, kept) = (Load::start(address(), 3, usize::MAX), Load::keeping(address(), 3, Duration::from_millis(800)));
    let watch = Watch::start(&world);
    for version in 2..2 + scaled(3, 20) {
        let mut long = Connection::open(address()).expect("a connection");
        let (_, served_by) = long.who().expect("an answer");
        world.apply("web", &spec(&version.to_string()));
        assert_eq!(wait_phase(&world, &["completed", "rolled-back", "paused"]).0, "completed");
        assert_eq!(versions(&world), vec![version.to_string(); slots]);
        assert!(world.slots("web").iter().all(|slot| slot["pid"] != served_by), "it was not replaced");
        // It outlasts the promotion, and its shard waits for it.
        assert_eq!(long.who().expect("an answer from the former shard").1, served_by);
        drop(long);
        eventually("the former shards end", Duration::from_secs(20), || {
            world.slots("web").iter().all(|slot| slot["former"].is_null()).then_some(())
        });
    }
    watch.check_always_ready(slots);
    check_nothing_failed(&world, load);
    check_nothing_failed(&world, kept);
    assert!(!world.log().contains("step=Drain"), "a slot was taken out");
}

/// Two shards beside each other would not fit: the former one ends first, and whoever changes the group is told before.
#[test]
fn a_shard_that_does_not_fit_beside_the_one_that_serves_comes_after_it() {
    in_new_netns(|| {
        let world = World::new("a_shard_that_does_not_fit_beside_the_one_that_serves_comes_after_it");
        let spec = |version: &str, limit: &str| {
            good(version).replace("[process]", &format!("memory_limit = \"{limit}\"\n[process]"))
        };
        world.apply("web", &spec("1", "4GiB"));
        world.wait_ready("web", SLOTS);
        let path = world.dir().join("next.toml");
        let plan = |text: String| {
            std::fs::write(&path, text).expect("a specification");
            world.sherd(&["apply", "--dry-run", path.to_str().expect("a path")])
        };
        let fits = plan(spec("2", "64MiB"));
        assert!(fits.contains("start-first: a new shard takes over"), "{fits}");
        let asked = plan(spec("2", "64MiB").replace("[rollout]", "[rollout]\norder = \"stop-first\""));
        assert!(asked.contains("stop-first, as `order = \"stop-first\"` says"), "{asked}");
        // More than any machine has.
        let plan = plan(spec("2", "512TiB"));
        assert!(plan.contains("a second shard needs 268435456 MiB"), "{plan}");
        let load = Load::start(address(), 2, usize::MAX);
        world.apply("web", &spec("2", "512TiB"));
        eventually("it is told why", Duration::from_secs(20), || {
            let reason = rollout(&world)["slots"][0]["stop_first"].as_str()?.to_owned();
            assert!(reason.contains("a second shard needs"), "{reason}");
            Some(())
        });
        assert_eq!(wait_phase(&world, &["completed", "rolled-back", "paused"]).0, "completed");
        assert_eq!(versions(&world), ["2", "2"]);
        assert!(world.log().contains("web/1 is replaced stop-first"));
        check_nothing_failed(&world, load);
    });
}

#[test]
fn a_group_changes_slot_by_slot_and_back() {
    in_new_netns(|| {
        let world = World::new("a_group_changes_slot_by_slot_and_back");
        let good = |version: &str| spec(version, &format!("[\"{SHERD}\", \"demo\"]"), "order = \"stop-first\"");
        world.apply("web", &good("1"));
        world.wait_ready("web", SLOTS);
        assert!(world.refused(&["rollout", "status", "web"]).contains("never changed"));
        assert!(world.refused(&["rollout", "undo", "web"]).contains("nothing ran before"));
        assert!(world.refused(&["rollout", "pause", "web"]).contains("no rollout to pause"));

        let load = Load::start(address(), 4, usize::MAX);
        for version in 2..2 + scaled(3, 20) {
            world.apply("web", &good(&version.to_string()));
            assert_eq!(wait_phase(&world, &["completed", "rolled-back", "paused"]).0, "completed");
            assert_eq!(versions(&world), vec![version.to_string(); SLOTS]);
        }
        let last = versions(&world);
        world.sherd(&["rollout", "undo", "web"]);
        assert_eq!(wait_phase(&world, &["completed"]).0, "completed");
        assert_ne!(versions(&world), last);
        // What was undone is what ran before.
        world.sherd(&["rollout", "undo", "web"]);
        let watched = world.sherd(&["rollout", "status", "web", "--watch"]);
        assert!(watched.contains("slot 0 is being replaced") && watched.contains("completed, 2 of 2"), "{watched}");
        assert_eq!(versions(&world), last);
        check_nothing_failed(&world, load);
    });
}

#[test]
fn a_paused_change_stands_still_until_it_is_resumed() {
    in_new_netns(|| {
        let world = World::new("a_paused_change_stands_still_until_it_is_resumed");
        world.apply("web", &good("1"));
        world.wait_ready("web", SLOTS);
        let load = Load::start(address(), 2, usize::MAX);
        world.apply("web", &good("2"));
        world.sherd(&["rollout", "pause", "web"]);
        eventually("the first slot is done", Duration::from_secs(20), || {
            (versions(&world) == ["2", "1"] && rollout(&world)["slots"][0]["stage"] == "present").then_some(())
        });
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(versions(&world), ["2", "1"]);
        assert!(world.ps()["groups"][0]["message"].as_str().expect("a message").contains("paused"));
        // Another change comes instead of the rest of this one, and goes back to what ran before both.
        world.apply("web", &spec("3", "[\"/bin/sh\", \"-c\", \"exit 3\"]", ""));
        let (phase, reason) = wait_phase(&world, &["rolled-back", "completed", "paused"]);
        assert_eq!(phase, "rolled-back", "{reason}");
        assert_eq!(versions(&world), ["1", "1"]);
        world.apply("web", &good("4"));
        world.sherd(&["rollout", "pause", "web"]);
        world.sherd(&["rollout", "resume", "web"]);
        assert_eq!(wait_phase(&world, &["completed", "rolled-back"]).0, "completed");
        check_nothing_failed(&world, load);
    });
}

/// What is said of a shard that took over, and failed then.
const TOOK_OVER: &str = "slot 0: ";

fn check_rolled_back(world: &World, command: &str, expected: &str) {
    let before = world.slots("web");
    world.apply("web", &spec("bad", command, ""));
    let (phase, reason) = wait_phase(world, &["rolled-back", "completed", "paused"]);
    assert_eq!(phase, "rolled-back", "{command}: {reason}");
    assert!(reason.contains(expected), "{command}: {reason}");
    assert_eq!(versions(world), ["1", "1"], "{command}");
    // Whoever comes second was never touched; and the first one only by what came up.
    let untouched = |slot: usize| assert_eq!(world.slots("web")[slot]["pid"], before[slot]["pid"], "{command}");
    untouched(1);
    if expected != TOOK_OVER {
        untouched(0);
    }
    assert!(world.sherd(&["rollout", "status"]).contains(expected));
}

#[test]
fn what_does_not_come_up_is_taken_back() {
    in_new_netns(|| {
        let world = World::new("what_does_not_come_up_is_taken_back");
        world.apply("web", &good("1"));
        world.wait_ready("web", SLOTS);
        let load = Load::start(address(), 2, usize::MAX);
        let watch = Watch::start(&world);
        check_rolled_back(&world, "[\"/bin/sh\", \"-c\", \"exit 3\"]", "slot 0: it exited with code 3");
        check_rolled_back(&world, "[\"sleep\", \"1000\"]", "not ready within 2s");
        // SIGTERM is nothing to it.
        let deaf = "[\"/bin/sh\", \"-c\", \"trap '' TERM; while true; do sleep 0.2; done\"]";
        check_rolled_back(&world, deaf, "not ready within 2s");
        watch.check_always_ready(SLOTS);
        check_nothing_failed(&world, load);
        // It comes up, and dies while it is on trial, with whatever it serves.
        let dies = format!("[\"/bin/sh\", \"-c\", \"timeout 0.2 {SHERD} demo; exit 4\"]");
        check_rolled_back(&world, &dies, TOOK_OVER);
    });
}

#[test]
fn a_failure_can_pause_or_be_passed_over() {
    in_new_netns(|| {
        let world = World::new("a_failure_can_pause_or_be_passed_over");
        world.apply("web", &good("1"));
        world.wait_ready("web", SLOTS);
        let bad = |action: &str, order: &str| {
            let rollout = format!("failure_action = \"{action}\"\norder = \"{order}\"");
            spec("bad", "[\"/bin/sh\", \"-c\", \"exit 3\"]", &rollout)
        };
        for order in ["start-first", "stop-first"] {
            world.apply("web", &bad("pause", order));
            let (_, reason) = wait_phase(&world, &["paused"]);
            assert!(reason.contains("exited with code 3"), "{reason}");
            assert_eq!(versions(&world)[1], "1");
            assert_eq!(versions(&world)[0] == "1", order == "start-first");
            world.sherd(&["rollout", "undo", "web"]);
            assert_eq!(wait_phase(&world, &["completed"]).0, "completed");
            assert_eq!(versions(&world), ["1", "1"]);
        }
        // Nobody has to give up anything for what doesn't come up.
        world.apply("web", &bad("continue", "start-first"));
        assert_eq!(wait_phase(&world, &["failed"]).0, "failed");
        assert_eq!(versions(&world), ["1", "1"]);
        world.sherd(&["rollout", "undo", "web"]);
        world.apply("web", &bad("continue", "stop-first"));
        let (_, reason) = wait_phase(&world, &["failed"]);
        assert!(reason.contains("code 3"), "{reason}");
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(versions(&world)[1], "1", "the last slot that serves was taken");
        assert_eq!(rollout(&world)["phase"], "failed");
    });
}

/// What a change of a specification passes.
const FAULT_POINTS: [&str; 11] = [
    "rollout.put.before",
    "rollout.put.after",
    "apply.stored",
    "store.put.written",
    "create.after",
    "start.after",
    "promote.before",
    "promote.half",
    "promote.after",
    "stop.before",
    "stop.after",
];

#[test]
fn a_change_survives_the_agent() {
    in_new_netns(|| {
        let mut world = World::new("a_change_survives_the_agent");
        world.apply("web", &good("1"));
        world.wait_ready("web", SLOTS);
        for (number, point) in FAULT_POINTS.into_iter().enumerate() {
            let version = (number + 2).to_string();
            let before = versions(&world);
            world.kill_agent();
            world.start(&[("SHERD_FAULT_POINT", point)]);
            world.wait_for_api();
            world.wait_ready("web", SLOTS);
            let path = world.dir().join("web.toml");
            std::fs::write(&path, good(&version)).expect("a specification");
            drop(world.try_sherd(&["apply", path.to_str().expect("a path")]));
            assert!(world.agent_died(Duration::from_secs(20)), "{point} was not reached");
            world.start(&[]);
            world.wait_for_api();
            world.wait_ready("web", SLOTS);
            let settled = eventually("all shards are of one version", Duration::from_secs(30), || {
                let found = versions(&world);
                let over = rollout_is_over(&world);
                (found.len() == SLOTS && found[0] == found[1] && !found[0].is_empty() && over).then_some(found)
            });
            assert!(settled == before || settled == vec![version; SLOTS], "{point}: {settled:?} after {before:?}");
        }
        check_killed_halfway(&mut world);
    });
}

/// The agent dies with one slot replaced: the next one goes on, and knows what to go back to.
fn check_killed_halfway(world: &mut World) {
    let before = versions(world);
    let bad_later = format!("[\"/bin/sh\", \"-c\", \"test $SHERD_SLOT = 0 && exec {SHERD} demo; exit 5\"]");
    world.apply("web", &spec("half", &bad_later, ""));
    eventually("the first slot is done", Duration::from_secs(20), || (versions(world)[0] == "half").then_some(()));
    world.kill_agent();
    world.start(&[]);
    world.wait_for_api();
    let (phase, reason) = wait_phase(world, &["rolled-back", "completed", "paused"]);
    assert_eq!(phase, "rolled-back", "{reason}");
    assert!(reason.contains("slot 1: it exited with code 5"), "{reason}");
    assert_eq!(versions(world), before);
}

fn rollout_is_over(world: &World) -> bool {
    let output = world.try_sherd(&["rollout", "status", "web", "--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    !matches!(status["phase"].as_str(), Some("progressing" | "rolling-back"))
}
