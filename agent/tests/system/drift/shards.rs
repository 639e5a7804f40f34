//! What others do to single shards: pause, stop, kill, remove, rename them, take their image or their memory away, or make
//! containers that look like ours.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use super::{Case, Events, check, has_two_cpus, run};
use crate::{
    containers::{address, containers, cpus, is_there},
    images::{self, Engine},
    traffic::{Connection, ask},
    world::{World, demo_spec, proving, signal},
};

const ENGINE: Engine = Engine::Docker;

/// A group of Go servers of which others do something to slot 0.
struct Stage {
    world: World,
    image: String,
    spec: String,
    events: Events,
}

impl Stage {
    fn new(test: &str, path: &str) -> Self {
        let world = World::with_engine(test, &ENGINE.socket());
        let image = images::import_program(ENGINE, &world, "drift", images::go_server());
        let text = format!(
            "name = \"web\"\npath = \"{path}\"\n[layout]\nunit = \"pu\"\n[container]\nimage = \"{image}\"\nmemory = \"64m\"\n\
             [[ports]]\npublish = \"8080:80\"\n[health]\nunpause_after = \"1s\"\n[backoff]\nfirst = \"10ms\"\nmax = \"200ms\"\n"
        );
        world.apply("web", &text);
        world.wait_ready("web", cpus());
        let events = Events::of(&world);
        Self { world, image, spec: text, events }
    }

    fn slot(&self) -> Value {
        self.world.slots("web")[0].clone()
    }

    fn shard(&self) -> String {
        eventually("there is a shard", Duration::from_secs(20), || self.slot()["shard"].as_str().map(str::to_owned))
    }

    fn pid(&self) -> u32 {
        let pid = || u32::try_from(self.slot()["pid"].as_u64()?).ok();
        eventually("it runs", Duration::from_secs(20), pid)
    }

    fn is_ready(&self) -> bool {
        self.slot()["ready"] == true
    }

    /// The engine is told to do this with slot 0's container.
    fn docker(&self, words: &[&str]) {
        self.docker_id(words, &self.shard());
    }

    fn docker_id(&self, words: &[&str], id: &str) {
        images::run(ENGINE.docker().args(words).arg(id).stdout(std::process::Stdio::null()));
    }

    /// A connection to slot 0.
    fn connection(&self) -> Connection {
        eventually("slot 0 answers", Duration::from_secs(20), || {
            let mut connection = Connection::open(address()).ok()?;
            (connection.who().ok()?.0 == 0).then_some(connection)
        })
    }

    /// Others serve what would be slot 0's: nobody waits.
    fn others_serve(&self) {
        for _ in 0..20 {
            assert_ne!(ask(address()).expect("others serve").0, 0);
        }
    }

    fn end(self) {
        self.world.sherd(&["stop", "-g", "web", "--purge"]);
        assert_eq!(containers(&self.world, ENGINE), Vec::<String>::new());
        images::remove(ENGINE, &self.image);
    }
}

/// Everything that ends a shard, or keeps it from running.
fn check_ends(stage: &Stage) {
    let (events, ready) = (&stage.events, || stage.is_ready());
    let other = stage.world.slots("web")[1]["pid"].clone();
    Case::once("stopped").check(events, || stage.docker(&["stop", "-t", "5"]), || {}, ready);
    Case::once("stopped").check(events, || stage.docker(&["kill"]), || {}, ready);
    Case::once("killed").check(events, || signal(stage.pid(), Signal::SIGKILL), || {}, ready);
    Case::once("removed").check(events, || stage.docker(&["rm", "-f"]), || {}, ready);
    // Out at once; the agent lets it go on after `unpause_after`. It is the same process.
    let before = stage.pid();
    Case::of("paused").check(events, || stage.docker(&["pause"]), || stage.others_serve(), ready);
    // Whoever paused it may be quicker than the agent.
    Case::once("paused").check(events, || stage.docker(&["pause"]), || stage.docker(&["unpause"]), ready);
    assert_eq!(stage.pid(), before);
    let eat = || {
        // It ends in the middle.
        assert!(stage.connection().get_at("/eat").is_err());
    };
    Case::once("oom").check(events, eat, || {}, ready);
    assert_eq!(stage.world.slots("web")[1]["pid"], other, "other slots are left alone");
}

/// The engine starts the same container again, in another namespace, and the agent hears of it when that is done. If its shim
/// comes before the agent knows that the former process has ended, it is refused, and there is another container.
fn check_restart(stage: &Stage) {
    let restart = || {
        let (agent, shard) = (stage.world.agent_pid(), stage.shard());
        signal(agent, Signal::SIGSTOP);
        stage.docker_id(&["restart", "-t", "5"], &shard);
        signal(agent, Signal::SIGCONT);
    };
    let before = stage.shard();
    Case::once("stopped").check(&stage.events, restart, || {}, || stage.is_ready());
    drop(stage.connection());
    println!("  the same container: {}", stage.shard() == before);
}

/// Nobody waits for a paused shard, however long it may stay so: what was in its queue goes to others too.
fn check_queue(stage: &Stage) {
    let text = stage.spec.replace("unpause_after = \"1s\"", "unpause_after = \"off\"");
    stage.world.apply("web", &text);
    stage.world.wait_ready("web", cpus());
    let shard = stage.shard();
    // The agent hears of it late: what comes meanwhile waits in the paused shard's queue.
    let agent = stage.world.agent_pid();
    signal(agent, Signal::SIGSTOP);
    stage.docker_id(&["pause"], &shard);
    let mut waiting: Vec<Connection> = (0..40).map(|_| Connection::open(address()).expect("it listens")).collect();
    let began = Instant::now();
    signal(agent, Signal::SIGCONT);
    for connection in &mut waiting {
        assert_ne!(connection.who().expect("others serve").0, 0);
    }
    let took = began.elapsed();
    eprintln!("paused for good: the last of {} connections was served after {took:.3?}", waiting.len());
    assert!(took < Duration::from_secs(15), "{took:?}");
    let slot = stage.slot();
    assert!(slot["ready"] == false && slot["state"] == "unready", "{slot}");
    assert!(slot["cause"].as_str().is_some_and(|cause| cause.contains("somebody paused it")), "{slot}");
    stage.docker(&["unpause"]);
    stage.world.wait_ready("web", cpus());
}

#[test]
fn what_others_do_to_a_shard_is_named_and_mended() {
    let test = "what_others_do_to_a_shard_is_named_and_mended";
    if !is_there(test, ENGINE) || !has_two_cpus(test) {
        return;
    }
    for path in ["direct", "relay"] {
        in_new_netns(move || {
            let stage = Stage::new(test, path);
            check_restart(&stage);
            if path == "direct" || proving() {
                check_ends(&stage);
            }
            // On relay a worker has accepted what comes, and what it gave to the shard is the shard's.
            if path == "direct" {
                check_queue(&stage);
            }
            stage.end();
        });
    }
}

/// The name of slot 0's container, as the engine has it.
fn name_of(id: &str) -> String {
    let output = ENGINE.docker().args(["inspect", "--format", "{{.Name}}", id]).output().expect("docker inspect");
    String::from_utf8_lossy(&output.stdout).trim().trim_start_matches('/').to_owned()
}

/// A name matters to nobody, also if it is changed while no agent is there to see it.
fn check_renamed(stage: &mut Stage) {
    let who = |stage: &Stage| (stage.shard(), stage.pid(), stage.is_ready());
    let before = who(stage);
    let (own, other) = (name_of(&before.0), format!("other-{}", stage.world.instance()));
    let rename = || images::run(ENGINE.docker().args(["rename", &before.0, &other]));
    check(&stage.events, "renamed", rename, || name_of(&before.0) == own);
    assert_eq!(who(stage), before);
    stage.world.kill_agent();
    rename();
    stage.world.start(&[]);
    stage.world.wait_for_api();
    eventually("it has its name back", Duration::from_secs(20), || (name_of(&before.0) == own).then_some(()));
    stage.world.wait_ready("web", cpus());
    assert_eq!(who(stage), before);
    stage.events = Events::of(&stage.world);
}

/// `docker commit` copies a shard's labels into an image, and everything made of that has them.
fn check_foreign(stage: &Stage) {
    let (shard, instance) = (stage.shard(), stage.world.instance());
    let (image, name) = (format!("sherd-test-copy-{instance}:latest"), format!("copy-{instance}"));
    images::run(ENGINE.docker().args(["commit", "--pause=false", &shard, &image]).stdout(std::process::Stdio::null()));
    let make =
        || images::run(ENGINE.docker().args(["create", "--name", &name, &image]).stdout(std::process::Stdio::null()));
    let remove = || images::run(ENGINE.docker().args(["rm", &name]).stdout(std::process::Stdio::null()));
    let is_alone = || stage.shard() == shard;
    Case::of("foreign").check(&stage.events, make, remove, is_alone);
    images::remove(ENGINE, &image);
}

/// The image goes, and then the shard: its slot waits, and goes on when the image is back.
fn check_image(stage: &Stage) {
    let other = stage.world.slots("web")[1]["pid"].clone();
    let take = || {
        images::run(ENGINE.docker().args(["rmi", "-f", &stage.image]).stdout(std::process::Stdio::null()));
        stage.docker(&["kill"]);
    };
    let give_back = || {
        stage.others_serve();
        let slot = stage.slot();
        assert!(slot["cause"].as_str().is_some_and(|cause| cause.contains(&stage.image)), "{slot}");
        images::import_program(ENGINE, &stage.world, "drift", images::go_server());
    };
    Case::once("image").check(&stage.events, take, give_back, || stage.is_ready());
    assert_eq!(stage.world.slots("web")[1]["pid"], other, "other slots are left alone");
}

#[test]
fn names_labels_and_images_of_others_are_told_from_ours() {
    let test = "names_labels_and_images_of_others_are_told_from_ours";
    if !is_there(test, ENGINE) || !has_two_cpus(test) {
        return;
    }
    in_new_netns(move || {
        let mut stage = Stage::new(test, "auto");
        check_renamed(&mut stage);
        check_foreign(&stage);
        check_image(&stage);
        stage.end();
    });
}

/// Processes have no engine that tells: a stopped one is found by looking.
#[test]
fn processes_that_are_stopped_or_killed_go_on() {
    let test = "processes_that_are_stopped_or_killed_go_on";
    if !needs(test, &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(move || {
        let world = World::new(test);
        let more = "[health]\nunpause_after = \"500ms\"\n[backoff]\nfirst = \"10ms\"\nmax = \"200ms\"\n";
        world.apply("web", &demo_spec("web", 2, "8080:80", "").replace("[layout]", &format!("{more}[layout]")));
        let pid = || {
            let pid = || u32::try_from(world.slots("web")[0]["pid"].as_u64()?).ok();
            eventually("it runs", Duration::from_secs(20), pid)
        };
        let is_ready = || world.slots("web")[0]["ready"] == true;
        world.wait_ready("web", 2);
        let (events, before) = (Events::of(&world), pid());
        Case::once("paused").check(&events, || signal(pid(), Signal::SIGSTOP), || {}, is_ready);
        let go_on = || run("kill", &["-CONT", &before.to_string()]);
        let stop = || signal(before, Signal::SIGSTOP);
        Case::once("paused").check(&events, stop, go_on, is_ready);
        assert_eq!(pid(), before);
        check(&events, "killed", || signal(pid(), Signal::SIGKILL), is_ready);
        // Whoever asks it to end is not told from one that ends by itself, unless it doesn't mind the signal.
        let ended = Command::new("kill").args(["-0", &before.to_string()]).output().expect("kill");
        assert!(!ended.status.success());
    });
}
