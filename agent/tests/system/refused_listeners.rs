//! Programs that do not accept from a listener of ours: served on relay instead, and remembered by their image.

use std::{fs, process::Output, time::Duration};

use serde_json::Value;
use sha2::{Digest, Sha256};
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{address, cpus, is_there},
    images::{self, Engine},
    traffic::Connection,
    world::{World, tail},
};

const ENGINE: Engine = Engine::Docker;

/// Of a static Go server that breaks when its socket is exchanged at listen(2).
fn deaf_image(world: &World) -> String {
    let server = images::go_program("deaf", include_str!("deaf.go"));
    images::import_program(ENGINE, world, "deaf", &server)
}

fn docker(args: &[&str]) -> Output {
    let output = ENGINE.docker().args(args).output().expect("docker runs");
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn id(image: &str) -> String {
    let output = docker(&["image", "inspect", "--format", "{{.Id}}", image]);
    String::from_utf8(output.stdout).expect("an id").trim().trim_start_matches("sha256:").to_owned()
}

/// What the agent remembers.
fn remembered(world: &World) -> Value {
    let text = fs::read_to_string(world.dir().join("state/relayed-images.json")).unwrap_or_default();
    // Its head is the first line.
    text.split_once('\n').map_or(Value::Null, |(_, images)| serde_json::from_str(images).expect("JSON"))
}

fn apply(world: &World, image: &str, path: &str) {
    let text = format!(
        "name = \"web\"\n{path}\n[layout]\nunit = \"pu\"\n[container]\nimage = \"{image}\"\n[[ports]]\npublish = \"8080:80\"\n\
         [readiness]\nstart_timeout = \"2s\"\ntimeout = \"500ms\"\n[backoff]\nfirst = \"100ms\"\nmax = \"100ms\"\n"
    );
    world.apply("web", &text);
}

fn check_relayed(world: &World, said: &str) -> Vec<Value> {
    let slots = world.wait_ready("web", cpus());
    for slot in &slots {
        assert_eq!(slot["path"], "relay", "{slot}");
        let reason = slot["path_reason"].as_str().unwrap_or_default();
        assert!(reason.contains(said), "{reason} lacks {said}");
    }
    for _ in 0..20 {
        Connection::open(address()).and_then(|mut connection| connection.get()).expect("an answer");
    }
    slots
}

/// How often a shard was given a listener.
fn grafts(world: &World) -> usize {
    world.log().matches("accepts its connections itself").count()
}

#[test]
fn a_program_that_does_not_accept_is_relayed_and_its_image_remembered() {
    let test = "a_program_that_does_not_accept_is_relayed_and_its_image_remembered";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::with_engine(test, &ENGINE.socket());
        let image = deaf_image(&world);
        apply(&world, &image, "");
        let slots = check_relayed(&world, "no program accepted");
        assert!(slots.iter().all(|slot| slot["restarts"] == 1), "{slots:?}");
        let said = remembered(&world)[&id(&image)]["reason"].to_string();
        assert!(said.contains("no program accepted"), "{said}");
        assert_eq!(grafts(&world), cpus());

        // Another agent, another tag, another shard: on relay at once.
        world.kill_agent();
        world.start(&[]);
        world.wait_for_api();
        check_relayed(&world, "did not work on a listener of ours at 20");
        let other = format!("sherd-test-deaf-other-{}:latest", world.instance());
        docker(&["tag", &image, &other]);
        apply(&world, &other, "");
        eventually("the shards are those of the other tag", Duration::from_secs(60), || {
            let next = world.slots("web");
            let is_next = |(slot, former): (&Value, &Value)| slot["shard"] != former["shard"] && slot["ready"] == true;
            next.iter().zip(&slots).all(is_next).then_some(())
        });
        check_relayed(&world, "did not work on a listener of ours at 20");
        assert_eq!(grafts(&world), cpus(), "an image that is remembered was given listeners");

        // Who insists learns what the program makes of it, by one shard beside those that serve, and has those again.
        apply(&world, &other, "path = \"direct\"");
        eventually("the change is taken back, and says why", Duration::from_secs(60), || {
            assert!(world.slots("web").iter().all(|slot| slot["ready"] == true));
            let rollout = world.ps()["groups"][0]["rollout"].clone();
            let reason = rollout["reason"].as_str().unwrap_or_default();
            (rollout["phase"] == "rolled-back"
                && reason.contains("not ready within 2s")
                && reason.contains("no program accepted"))
            .then_some(())
        });
        check_relayed(&world, "did not work on a listener of ours at 20");
        world.sherd(&["stop", "-g", "web", "--purge"]);
        images::remove(ENGINE, &image);
        images::remove(ENGINE, &other);
    });
}

/// What is remembered of an image that works now: obeyed with `auto`, tried again and forgotten with `direct`. A file that
/// is no agent's is set aside, and says so.
#[test]
fn a_remembered_image_is_tried_again_and_forgotten() {
    let test = "a_remembered_image_is_tried_again_and_forgotten";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::prepare(test, &ENGINE.socket());
        let image = images::import_program(ENGINE, &world, "go", images::go_server());
        let file = world.dir().join("state/relayed-images.json");
        fs::create_dir_all(world.dir().join("state")).expect("the state directory");
        fs::write(&file, "{\"version\": 1, \"images\": {").expect("a torn file");
        world.start(&[]);
        world.wait_for_api();
        assert!(world.ps()["warnings"].to_string().contains("relayed-images.json.broken"), "{}", tail(&world.log(), 9));
        apply(&world, &image, "");
        let is_direct = |slots: &[Value]| slots.iter().all(|slot| slot["path"] == "direct");
        assert!(is_direct(&world.wait_ready("web", cpus())));
        world.sherd(&["stop", "-g", "web", "--purge"]);
        world.end_agent();

        let known = format!("{{\"{}\":{{\"reason\":\"old\",\"at_unix_s\":0}}}}", id(&image));
        let sum = Sha256::digest(&known).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        fs::write(&file, format!("{{\"version\":2,\"sha256\":\"{sum}\"}}\n{known}")).expect("a file");
        world.start(&[]);
        world.wait_for_api();
        apply(&world, &image, "");
        check_relayed(&world, "at 1970-01-01T00:00:00Z: old");
        apply(&world, &image, "path = \"direct\"");
        eventually("every slot is direct", Duration::from_secs(60), || {
            let slots = world.slots("web");
            (is_direct(&slots) && slots.iter().all(|slot| slot["ready"] == true)).then_some(())
        });
        assert_eq!(remembered(&world), serde_json::json!({}));
        world.sherd(&["stop", "-g", "web", "--purge"]);
        images::remove(ENGINE, &image);
    });
}
