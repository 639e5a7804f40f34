//! Containers are replaced start-first: the new one comes up beside the one that serves, and nobody who connects notices, on
//! either path, also in a group of one, and with the agent killed in the middle.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use serde_json::Value;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    containers::{cpus, is_there},
    images::{self, Engine},
    traffic::{Connection, Load, Watch},
    world::{World, scaled, tail},
};

pub(crate) const ENGINE: Engine = Engine::Docker;

pub(crate) fn at(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// A group of an unmodified server in an image of its own.
pub(crate) struct Stage {
    pub(crate) world: World,
    image: String,
    pub(crate) path: &'static str,
    pub(crate) slots: usize,
}

impl Stage {
    pub(crate) fn new(test: &str, path: &'static str, slots: usize) -> Self {
        let world = World::with_engine(&format!("{test}: {slots} slots on {path}"), &ENGINE.socket());
        let image = format!("sherd-test-start-first-{}:latest", world.instance());
        let root = world.dir().join("go");
        fs::create_dir_all(&root).expect("a directory");
        fs::copy(images::go_server(), root.join("server")).expect("the server");
        images::import(ENGINE, &image, &root, &["CMD [\"/server\"]"]);
        let stage = Self { world, image, path, slots };
        stage.world.apply("web", &stage.spec("1"));
        stage.world.wait_ready("web", slots);
        stage
    }

    pub(crate) fn spec(&self, version: &str) -> String {
        self.spec_with(version, "")
    }

    /// With more variables.
    fn spec_with(&self, version: &str, variables: &str) -> String {
        let Self { image, path, slots, .. } = self;
        format!(
            "name = \"web\"\npath = \"{path}\"\ndrain = \"10s\"\nstop_grace = \"2s\"\n[layout]\nunit = \"pu\"\nshards = {slots}\n\
             [container]\nimage = \"{image}\"\n[[ports]]\npublish = \"8080:80\"\n[environment]\nVERSION = \"{version}\"\n{variables}\
             [rollout]\nmin_healthy = \"300ms\"\nmonitor = \"300ms\"\n"
        )
    }

    fn pids(&self) -> Vec<Value> {
        self.world.slots("web").into_iter().map(|slot| slot["pid"].clone()).collect()
    }

    /// Every slot has another shard than before, on its path, and no other beside it.
    fn wait_replaced(&self, before: &[Value]) {
        eventually("every shard is replaced", Duration::from_secs(90), || {
            let output = self.world.try_sherd(&["rollout", "status", "web", "--json"]);
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let phase = status["phase"].as_str()?;
            assert!(matches!(phase, "progressing" | "completed"), "{status}\n{}", tail(&self.world.log(), 60));
            let slots = self.world.slots("web");
            let done = |(slot, before): (&Value, &Value)| {
                slot["pid"] != *before && slot["ready"] == true && slot["path"] == self.path && slot["former"].is_null()
            };
            (phase == "completed" && slots.len() == before.len() && slots.iter().zip(before).all(done)).then_some(())
        });
    }

    pub(crate) fn finish(self) {
        self.world.sherd(&["stop", "-g", "web", "--purge"]);
        images::remove(ENGINE, &self.image);
    }
}

pub(crate) fn check_nothing_failed(stage: &Stage, load: Load) {
    let (done, failures) = load.finish();
    println!("{} slots on {}: {done} connections, {} failed", stage.slots, stage.path, failures.len());
    assert!(done > 0, "nobody connected");
    assert!(
        failures.is_empty(),
        "{} of {done} failed: {failures:#?}\n{}",
        failures.len(),
        tail(&stage.world.log(), 80)
    );
}

/// The version of the shard that answers.
fn version_of(connection: &mut Connection) -> String {
    version_in(&connection.get().expect("an answer"))
}

fn version_in(answer: &str) -> String {
    let answer: Value = serde_json::from_str(answer).expect("JSON");
    answer["version"].as_str().expect("a version").to_owned()
}

fn check_replaced(test: &str, path: &'static str, slots: usize) {
    let stage = Stage::new(test, path, slots);
    let (load, kept) = (Load::start(at(8080), 3, usize::MAX), Load::keeping(at(8080), 3, Duration::from_secs(1)));
    let watch = Watch::start(&stage.world);
    for version in 2..2 + scaled(3, 20) {
        let before = stage.pids();
        let mut long = Connection::open(at(8080)).expect("a connection");
        let former = version_of(&mut long);
        stage.world.apply("web", &stage.spec(&version.to_string()));
        eventually("another shard serves", Duration::from_secs(60), || {
            let slots = stage.world.slots("web");
            slots.iter().zip(&before).all(|(slot, before)| slot["pid"] != *before).then_some(())
        });
        assert_eq!(version_of(&mut long), former, "not by the shard that it began with");
        let mut new = Connection::open(at(8080)).expect("a connection");
        assert_eq!(version_of(&mut new), version.to_string());
        drop(new);
        drop(long);
        stage.wait_replaced(&before);
    }
    watch.check_always_ready(slots);
    check_nothing_failed(&stage, load);
    check_nothing_failed(&stage, kept);
    assert!(!stage.world.log().contains("step=Drain"), "a slot was taken out");
    stage.finish();
}

#[test]
fn containers_are_replaced_beside_on_the_direct_path() {
    let test = "containers_are_replaced_beside_on_the_direct_path";
    if is_there(test, ENGINE) {
        in_new_netns(move || check_replaced(test, "direct", 1));
        in_new_netns(move || check_replaced(test, "direct", cpus()));
    }
}

#[test]
fn containers_are_replaced_beside_on_the_relay_path() {
    let test = "containers_are_replaced_beside_on_the_relay_path";
    if is_there(test, ENGINE) {
        in_new_netns(move || check_replaced(test, "relay", 1));
        in_new_netns(move || check_replaced(test, "relay", cpus()));
    }
}

/// Shards that accept by themselves need no agent to take over from each other either. Killed at `graft.joined` the next agent
/// promotes the new shard on relay first, and its kill costs what is relayed then: that point is not among these.
#[test]
fn an_agent_that_is_killed_while_shards_change_costs_nothing() {
    let test = "an_agent_that_is_killed_while_shards_change_costs_nothing";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let mut stage = Stage::new(test, "direct", 1);
        let (load, kept) = (Load::start(at(8080), 3, usize::MAX), Load::keeping(at(8080), 2, Duration::from_secs(1)));
        for (number, point) in [
            "create.after",
            "start.after",
            "shim.kept",
            "promote.before",
            "promote.half",
            "promote.after",
            "stop.before",
        ]
        .into_iter()
        .enumerate()
        {
            println!("killed at {point}");
            let before = stage.pids();
            stage.world.kill_agent();
            stage.world.start(&[("SHERD_FAULT_POINT", point)]);
            stage.world.wait_for_api();
            stage.world.wait_ready("web", 1);
            let (path, text) = (stage.world.dir().join("web.toml"), stage.spec(&(number + 2).to_string()));
            fs::write(&path, text).expect("a specification");
            drop(stage.world.try_sherd(&["apply", path.to_str().expect("a path")]));
            assert!(stage.world.agent_died(Duration::from_secs(30)), "{point} was not reached");
            // Nobody is there for a while.
            let done = load.done();
            eventually("connections without an agent", Duration::from_secs(20), || {
                (load.done() > done + 50).then_some(())
            });
            stage.world.start(&[]);
            stage.world.wait_for_api();
            stage.wait_replaced(&before);
        }
        check_nothing_failed(&stage, load);
        check_nothing_failed(&stage, kept);
        stage.finish();
    });
}

/// What does not come up costs nobody anything: the shards that serve are the same ones before, meanwhile and after.
#[test]
fn containers_that_do_not_come_up_beside_are_taken_back() {
    let test = "containers_that_do_not_come_up_beside_are_taken_back";
    if is_there(test, ENGINE) {
        in_new_netns(move || check_taken_back(test, "direct", 1));
        in_new_netns(move || check_taken_back(test, "relay", cpus()));
    }
}

fn check_taken_back(test: &str, path: &'static str, slots: usize) {
    let stage = Stage::new(test, path, slots);
    let before = stage.pids();
    let load = Load::start(at(8080), 3, usize::MAX);
    let watch = Watch::start(&stage.world);
    for (fails, expected) in [("exit", "it exited with code 3"), ("mute", "not ready within 3s")] {
        let text = stage.spec_with("2", &format!("FAIL = \"{fails}\"\n[readiness]\nstart_timeout = \"3s\"\n"));
        stage.world.apply("web", &text);
        let status = eventually("it is rolled back", Duration::from_secs(60), || {
            let status: Value =
                serde_json::from_str(&stage.world.sherd(&["rollout", "status", "web", "--json"])).ok()?;
            (status["phase"] == "rolled-back").then_some(status)
        });
        assert!(status["reason"].as_str().is_some_and(|reason| reason.contains(expected)), "{status}");
        assert_eq!(stage.pids(), before, "{fails}");
    }
    watch.check_always_ready(slots);
    check_nothing_failed(&stage, load);
    stage.finish();
}

/// What asks a shard from inside its container, as a HEALTHCHECK does, is answered by that shard: before it takes over, and
/// while it finishes its connections.
#[test]
fn containers_are_answered_from_inside_while_they_change() {
    let test = "containers_are_answered_from_inside_while_they_change";
    if !is_there(test, ENGINE) || !needs(test, &[Need::Program("nsenter"), Need::Program("curl")]) {
        return;
    }
    in_new_netns(move || {
        let stage = Stage::new(test, "direct", 1);
        let mut long = Connection::open(at(8080)).expect("a connection");
        assert_eq!(version_of(&mut long), "1");
        // Long enough on its way to be asked.
        stage.world.apply("web", &stage.spec_with("2", "[readiness]\nrise = 12\ninterval = \"500ms\"\n"));
        let inside = |part: &str| {
            let pid = stage.world.slots("web")[0][part]["pid"].as_u64()?;
            let output = Command::new("nsenter")
                .args(["-t", &pid.to_string(), "-n", "curl", "-sf", "--max-time", "2", "http://127.0.0.1:80/"])
                .output()
                .expect("nsenter");
            output.status.success().then(|| version_in(&String::from_utf8_lossy(&output.stdout)))
        };
        let next = eventually("the shard that comes up is answered", Duration::from_secs(30), || inside("next"));
        assert_eq!(next, "2");
        assert_eq!(
            version_of(&mut Connection::open(at(8080)).expect("a connection")),
            "1",
            "it has taken over already"
        );
        let former = eventually("the former shard is answered", Duration::from_secs(30), || inside("former"));
        assert_eq!(former, "1");
        assert_eq!(version_of(&mut long), "1");
        drop(long);
        stage.finish();
    });
}
