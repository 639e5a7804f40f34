//! A new version that comes up, passes its check, and does worse than the one before: its traffic tells, and it is taken back.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::Value;
use sherd_testkit::{eventually, in_new_netns};

use crate::{
    containers::{address, cpus, is_there},
    images::{self, Engine},
    traffic::Clients,
    world::World,
};

const ENGINE: Engine = Engine::Docker;

fn specification(image: &str, path: &str, rollout: &str, environment: &str) -> String {
    format!(
        "name = \"web\"\npath = \"{path}\"\nstop_grace = \"1s\"\n[layout]\nunit = \"pu\"\nmemory = \"none\"\n\
         [container]\nimage = \"{image}\"\n[[ports]]\npublish = \"8080:80\"\n[rollout]\nmonitor = \"3s\"\nmin_connections = 30\n{rollout}\n\
         [environment]\n{environment}\n"
    )
}

/// One request; how it ends is the service's to judge.
fn ask(address: SocketAddr) -> io::Result<()> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map(drop)
}

fn rollout(world: &World) -> Value {
    serde_json::from_str(&world.sherd(&["rollout", "status", "web", "--json"])).expect("JSON")
}

fn wait_over(world: &World) -> (String, String) {
    let status = eventually("the rollout is over", Duration::from_secs(120), || {
        let status = rollout(world);
        ["completed", "rolled-back", "paused", "failed"].contains(&status["phase"].as_str()?).then_some(status)
    });
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    (text("phase"), text("reason"))
}

fn stage(test: &str) -> Option<(World, String)> {
    if !is_there(test, ENGINE) {
        return None;
    }
    let world = World::with_engine(test, &ENGINE.socket());
    let program = images::go_program("worse", include_str!("worse.go"));
    let image = images::import_program(ENGINE, &world, "worse", &program);
    Some((world, image))
}

fn check(path: &str) {
    let Some((world, image)) = stage(&format!("worse on the path {path}")) else { return };
    let apply = |rollout: &str, environment: &str| {
        world.apply("web", &specification(&image, path, rollout, environment));
    };
    apply("", "VERSION = \"1\"");
    let slots = world.wait_ready("web", cpus());
    assert!(slots.iter().all(|slot| slot["path"] == path), "{slots:?}");
    let clients = Clients::start(4, || drop(ask(address())));
    std::thread::sleep(Duration::from_secs(1));
    let shards = |world: &World| world.slots("web").iter().map(|slot| slot["shard"].clone()).collect::<Vec<_>>();
    let before = shards(&world);

    // As good as the one before: whatever is compared, it stays.
    let strict = "max_latency_percent = 1000\nmax_cpu_percent = 1000";
    apply(strict, "VERSION = \"2\"");
    assert_eq!(wait_over(&world), ("completed".to_owned(), String::new()), "{}", crate::world::tail(&world.log(), 60));
    let good = shards(&world);
    assert!(good.iter().all(|shard| !before.contains(shard)), "{good:?} {before:?}");

    let mut worse = vec![
        ("", "FAIL = \"20\"", "of its connections failed"),
        ("max_cpu_percent = 500", "CPU = \"6\"", "of CPU time for a connection"),
    ];
    if path == "direct" {
        // Of relayed connections nobody times the first answer.
        worse.push(("max_latency_percent = 1000", "DELAY = \"60\"", "its first answers took"));
    }
    for (bound, environment, expected) in worse {
        apply(bound, &format!("VERSION = \"3\"\n{environment}"));
        let (phase, reason) = wait_over(&world);
        assert_eq!(phase, "rolled-back", "{environment}: {reason}\n{}", crate::world::tail(&world.log(), 60));
        assert!(reason.contains(expected), "{environment}: {reason}");
        eprintln!("{path}, {environment}: {reason}");
        world.wait_ready("web", cpus());
    }

    // Who wants it all the same says so.
    apply("max_error_points = \"off\"", "VERSION = \"4\"\nFAIL = \"20\"");
    assert_eq!(wait_over(&world).0, "completed");
    assert!(clients.finish() > 0, "nobody asked");
    images::remove(ENGINE, &image);
}

/// What is found of a new shard isn't put off until the former one has ended, which may take its whole grace.
#[test]
fn a_version_that_crashes_while_the_former_shard_ends_is_taken_back() {
    in_new_netns(|| {
        let Some((world, image)) = stage("a_version_that_crashes_while_the_former_shard_ends_is_taken_back") else {
            return;
        };
        let apply = |environment: &str| {
            let text = specification(&image, "relay", "", environment);
            world.apply("web", &text.replace("stop_grace = \"1s\"", "stop_grace = \"8s\""));
        };
        apply("DEAF = \"1\"");
        world.wait_ready("web", cpus());
        apply("VERSION = \"2\"\nCRASH = \"1500\"");
        let (phase, reason) = wait_over(&world);
        assert_eq!(phase, "rolled-back", "{reason}\n{}", crate::world::tail(&world.log(), 60));
        assert!(reason.contains("exited with code 3"), "{reason}");
        images::remove(ENGINE, &image);
    });
}

#[test]
fn a_version_that_does_worse_is_taken_back_on_the_direct_path() {
    in_new_netns(|| check("direct"));
}

#[test]
fn a_version_that_does_worse_is_taken_back_on_the_relay_path() {
    in_new_netns(|| check("relay"));
}
