//! How shards are, with servers that do everything wrong that a check can meet, in real containers: who is taken out, who
//! stays in, who comes back slowly, and what clients see of it.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::Value;
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{address, cpus, is_there},
    images::{self, Engine},
    metrics::{scrape, sum},
    traffic::{Load, ask},
    world::World,
};

/// For what takes a few checks.
const SOON: Duration = Duration::from_secs(20);

/// An agent, an image of the server, and the files that tell its shards what to do wrong.
struct Stage {
    engine: Engine,
    world: World,
    image: String,
}

impl Stage {
    fn new(test: &str, changes: &[&str]) -> Self {
        Self::on(Engine::Docker, test, changes)
    }

    fn on(engine: Engine, test: &str, changes: &[&str]) -> Self {
        let world = World::with_engine(test, &engine.socket());
        let image = format!("sherd-test-health-{}:latest", world.instance());
        let root = world.dir().join("health");
        fs::create_dir_all(&root).expect("a directory");
        let server = images::go_program("health", include_str!("health.go"));
        fs::copy(server, root.join("server")).expect("the server");
        images::import(engine, &image, &root, &[&["CMD [\"/server\"]"], changes].concat());
        fs::create_dir_all(world.dir().join("modes")).expect("a directory");
        Self { engine, world, image }
    }

    fn modes(&self) -> PathBuf {
        self.world.dir().join("modes")
    }

    /// Has the shard of a slot do something wrong; nothing with the empty mode.
    fn set(&self, slot: usize, mode: &str) {
        fs::write(self.modes().join(slot.to_string()), mode).expect("a file");
    }

    fn specification(&self, path: &str, more: &str) -> String {
        format!(
            "name = \"web\"\npath = \"{path}\"\n[layout]\nunit = \"pu\"\n[container]\nimage = \"{}\"\n\
             volumes = [\"{}:/modes:ro\"]\n[[ports]]\npublish = \"8080:80\"\n{more}",
            self.image,
            self.modes().display(),
        )
    }

    /// Runs the group and waits until it is ready; a former one's shards serve until then.
    fn run(&self, path: &str, more: &str) {
        self.world.apply("web", &self.specification(path, more));
        eventually(&format!("all are on the path {path}"), SOON, || {
            let slots = self.world.wait_ready("web", cpus());
            let is_done = |slot: &Value| slot["path"] == path && slot["next"].is_null() && slot["former"].is_null();
            (slots.iter().all(is_done) && self.world.ps()["groups"][0]["state"] == "ready").then_some(())
        });
    }

    fn wait_state(&self, slot: usize, state: &str) -> Value {
        eventually(&format!("slot {slot} is {state}"), SOON, || {
            let slots = self.world.slots("web");
            (slots[slot]["state"] == state).then(|| slots[slot].clone())
        })
    }

    /// One shard does this wrong until it is out for that reason, and is back when it doesn't any more.
    fn check_out_and_back(&self, mode: &str, expected: &str) {
        self.set(0, mode);
        let slot = self.wait_state(0, "unready");
        let cause = slot["cause"].as_str().expect("a cause");
        assert!(cause.contains(expected), "{mode}: {cause}");
        assert_eq!(slot["health"]["passing"], false, "{slot}");
        for _ in 0..20 {
            assert_ne!(ask(address()).expect("others serve").0, 0, "{mode}");
        }
        self.set(0, "");
        self.wait_state(0, "ready");
    }

    fn end(self) {
        self.world.sherd(&["stop", "-g", "web", "--purge"]);
        images::remove(self.engine, &self.image);
    }
}

fn metric(name: &str, label: &str) -> f64 {
    sum(&scrape().expect("metrics"), name, label)
}

fn is_here(test: &str) -> bool {
    is_there(test, Engine::Docker) && cpus() >= 2
}

/// Of so many connections, how many each slot answered.
fn shares(connections: usize) -> Vec<usize> {
    let mut answered = vec![0; cpus()];
    for _ in 0..connections {
        answered[usize::try_from(ask(address()).expect("an answer").0).expect("a slot")] += 1;
    }
    answered
}

const HTTP: &str = "[readiness]\ncheck = \"http\"\npath = \"/health\"\nstatus = \"200\"\nbody_regex = \"OK$\"\n\
                    interval = \"50ms\"\ntimeout = \"300ms\"\nfall = 2\n";

/// A server that answers wrongly, never ends its head or sends gigabytes is out on both paths, clients notice nothing, and
/// one that flaps is out as often as it is found. When all fail, some go on serving.
#[test]
fn http_checks_take_shards_out_and_never_all_of_them() {
    let test = "http_checks_take_shards_out_and_never_all_of_them";
    if !is_here(test) {
        return;
    }
    in_new_netns(move || {
        let mut stage = Stage::new(test, &[]);
        for path in ["direct", "relay"] {
            stage.run(path, HTTP);
            if path == "direct" {
                check_next_agent(&mut stage);
            }
            let load = Load::start(address(), 2, usize::MAX);
            let before = metric("sherd_slot_ejections_total", "slot=\"0\"");
            stage.check_out_and_back("body", "another body than expected: \"all is lost\"");
            stage.check_out_and_back("status", "status 500, expected 200");
            stage.check_out_and_back("head", "did not answer within 300ms");
            stage.check_out_and_back("flood", "another body than expected: \"xxx");
            assert_eq!(metric("sherd_slot_ejections_total", "slot=\"0\""), before + 4.0);
            check_panic(&stage);
            let (connections, failures) = load.finish();
            assert!(failures.is_empty(), "{} of {connections} failed: {failures:?}", failures.len());
        }
        stage.end();
    });
}

/// Who is out for its checks is out for the next agent too, from its first moment on, and comes back as it was.
fn check_next_agent(stage: &mut Stage) {
    stage.set(0, "status");
    let shard = stage.wait_state(0, "unready")["shard"].clone();
    stage.world.kill_agent();
    stage.world.start(&[]);
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert_ne!(ask(address()).expect("others serve").0, 0, "after {:?}", began.elapsed());
    }
    stage.world.wait_for_api();
    stage.wait_state(0, "unready");
    stage.set(0, "");
    assert_eq!(stage.wait_state(0, "ready")["shard"], shard);
}

fn check_panic(stage: &Stage) {
    (0..cpus()).for_each(|slot| stage.set(slot, "status"));
    let state = |state: &str| stage.world.slots("web").iter().filter(|slot| slot["state"] == state).count();
    let out = cpus() / 2;
    eventually("half of them are out", SOON, || {
        (state("unready") == out && state("unhealthy") == cpus() - out).then_some(())
    });
    assert_eq!(metric("sherd_group_panic", "group=\"web\""), 1.0);
    let slots = stage.world.slots("web");
    let held = slots.iter().find(|slot| slot["state"] == "unhealthy").expect("one that stays");
    let cause = held["cause"].as_str().expect("a cause");
    assert!(cause.contains("status 500") && cause.contains("more than 50 %"), "{cause}");
    assert!(held["ready"] == true && held["health"]["held"] == true, "{held}");
    assert_eq!(stage.world.ps()["groups"][0]["state"], "degraded");
    assert!(stage.world.sherd(&["ps"]).contains("unhealthy"), "the table tells");
    assert_eq!(shares(20).iter().sum::<usize>(), 20);
    (0..cpus()).for_each(|slot| stage.set(slot, ""));
    eventually("all are ready again", SOON, || (state("ready") == cpus()).then_some(()));
    assert_eq!(metric("sherd_group_panic", "group=\"web\""), 0.0);
}

/// A command in the container decides by its exit code; one that doesn't end is ended, also by the next agent.
#[test]
fn a_command_in_the_container_is_a_check() {
    let test = "a_command_in_the_container_is_a_check";
    for engine in [Engine::Docker, Engine::Podman] {
        if is_there(test, engine) && cpus() >= 2 {
            in_new_netns(move || check_command(engine, test));
        }
    }
}

fn check_command(engine: Engine, test: &str) {
    let mut stage = Stage::on(engine, test, &[]);
    // Tells its processes from those of others on this machine.
    let mark = stage.world.instance().to_owned();
    let check = format!(
        "[readiness]\ncheck = \"command\"\ncommand = [\"/server\", \"check\", \"{mark}\"]\ninterval = \"200ms\"\n\
         timeout = \"3s\"\nfall = 1\n"
    );
    stage.run("relay", &check);
    stage.check_out_and_back("wrong", "exit code 7: something is wrong");
    stage.set(0, "hang");
    let slot = stage.wait_state(0, "unready");
    assert!(slot["cause"].as_str().expect("a cause").contains("did not end within 3s and was killed"), "{slot}");
    eventually("the next one hangs", SOON, || (!checks(&mark).is_empty()).then_some(()));
    let hanging = checks(&mark);
    stage.world.kill_agent();
    stage.world.start(&[]);
    stage.world.wait_for_api();
    eventually("what the former agent began is ended", SOON, || {
        let now = checks(&mark);
        hanging.iter().all(|pid| !now.contains(pid)).then_some(())
    });
    stage.set(0, "");
    stage.world.wait_ready("web", cpus());
    eventually("no check runs on", SOON, || checks(&mark).is_empty().then_some(()));
    // As `docker run` has it.
    let refused = stage.world.refused(&["run", "-g", "web", "--health-cmd", "true", "--health-retries", "0", "x"]);
    assert!(refused.contains("--health-retries: must be from 1 to 1000, not 0"), "{refused}");
    stage.end();
}

/// Processes of the check that hang.
fn checks(mark: &str) -> Vec<u32> {
    let hangs = |entry: &fs::DirEntry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"/server\0check\0") && String::from_utf8_lossy(&line).contains(mark)
    };
    let entries = fs::read_dir("/proc").expect("/proc").flatten().filter(hangs);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The image's own HEALTHCHECK turns unhealthy and back; an image without one is refused.
#[test]
fn an_images_own_check_is_followed() {
    let test = "an_images_own_check_is_followed";
    if !is_here(test) {
        return;
    }
    const IMAGE: &str = "[readiness]\ncheck = \"image\"\n";
    in_new_netns(move || {
        let without = Stage::new(test, &[]);
        let path = without.world.dir().join("web.toml");
        fs::write(&path, without.specification("relay", IMAGE)).expect("a specification");
        let refused = without.world.refused(&["apply", path.to_str().expect("a path")]);
        assert!(refused.contains("has no HEALTHCHECK"), "{refused}");
        images::remove(without.engine, &without.image);
        drop(without);

        let check = "HEALTHCHECK --interval=300ms --retries=2 CMD [\"/server\", \"check\"]";
        let stage = Stage::new(test, &[check]);
        stage.run("relay", IMAGE);
        stage.check_out_and_back("wrong", "its HEALTHCHECK fails: something is wrong");
        assert_eq!(stage.world.slots("web")[0]["health"]["check"], "image");
        stage.end();
    });
}

/// What comes back begins with a part of its share, which grows.
#[test]
fn a_shard_that_comes_back_starts_slowly() {
    let test = "a_shard_that_comes_back_starts_slowly";
    if !is_here(test) {
        return;
    }
    in_new_netns(move || {
        let stage = Stage::new(test, &[]);
        stage.run("direct", &format!("{HTTP}[health]\nslow_start = \"8s\"\n"));
        // All of them are in it: that is no difference.
        let all = shares(200);
        assert!(all.iter().all(|count| *count > 200 / cpus() / 2), "{all:?}");
        eventually("the group has started", SOON, || {
            stage.world.slots("web").iter().all(|slot| slot["health"]["share_percent"] == 100).then_some(())
        });
        stage.set(0, "status");
        stage.wait_state(0, "unready");
        stage.set(0, "");
        let slot = stage.wait_state(0, "ready");
        assert_eq!(slot["health"]["share_percent"], 10, "{slot}");
        // A tenth of an equal share, within the first step of 1.6 s.
        let begin = shares(150)[0];
        assert!(begin * cpus() < 150 / 2, "{begin} of 150");
        eventually("it has its share", SOON, || {
            (stage.world.slots("web")[0]["health"]["share_percent"] == 100).then_some(())
        });
        let whole = shares(200)[0];
        assert!(whole * cpus() > 200 / 2, "{whole} of 200");
        stage.end();
    });
}

/// A shard that passes its checks and drops its clients is out after a few, and comes back after a time.
#[test]
fn a_shard_that_answers_nobody_is_ejected() {
    let test = "a_shard_that_answers_nobody_is_ejected";
    if !is_here(test) {
        return;
    }
    in_new_netns(move || {
        let stage = Stage::new(test, &[]);
        let policy = "[health]\nobserve = \"answer\"\neject_after = 3\neject_time = \"2s\"\n";
        stage.run("relay", &format!("{HTTP}{policy}"));
        stage.set(0, "drop");
        eventually("it is ejected", SOON, || {
            // Whoever comes to it is reset.
            (0..8).for_each(|_| drop(ask(address())));
            (stage.world.slots("web")[0]["state"] == "unready").then_some(())
        });
        let slot = stage.world.slots("web")[0].clone();
        let cause = slot["cause"].as_str().expect("a cause");
        assert!(cause.contains("connections failed") && cause.contains("out for"), "{cause}");
        assert_eq!(slot["health"]["passing"], true, "{slot}");
        stage.set(0, "");
        stage.wait_state(0, "ready");
        assert_eq!(shares(20).iter().sum::<usize>(), 20);
        let ejections = |reason: &str| metric("sherd_slot_ejections_total", &format!("slot=\"0\",reason=\"{reason}\""));
        assert!(ejections("consecutive_failures") + ejections("failure_rate") >= 1.0);
        assert_eq!(ejections("check"), 0.0);
        assert!(metric("sherd_connections_unanswered_total", "slot=\"0\"") >= 3.0);
        stage.end();
    });
}
