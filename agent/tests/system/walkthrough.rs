//! What a newcomer and an operator type, in the order of the README.

use std::{fs, net::SocketAddr, process::Command};

use sherd_testkit::{Need, in_new_netns, needs};

use crate::{
    traffic,
    world::{SHERD, World, demo_spec},
};

fn address() -> SocketAddr {
    "127.0.0.1:8080".parse().expect("an address")
}

#[test]
fn run_ps_logs_stop() {
    if !needs("run_ps_logs_stop", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("run_ps_logs_stop");
        let cpus = std::thread::available_parallelism().expect("CPUs").get();
        let said = world.sherd(&[
            "run",
            "--process",
            "-g",
            "app",
            "-u",
            "pu",
            "-p",
            "8080:80",
            "--loopback",
            "--",
            SHERD,
            "demo",
        ]);
        assert!(said.contains("ready"), "{said}");
        let slots = world.slots("app");
        assert_eq!(slots.len(), cpus);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            seen.insert(traffic::ask(address()).expect("an answer").0);
        }
        assert_eq!(seen.len(), cpus, "slots that answered: {seen:?}");
        // Both families, as `docker run -p` has it.
        traffic::ask("[::1]:8080".parse().expect("an address")).expect("an answer by IPv6");
        let table = world.sherd(&["ps"]);
        assert!(table.contains("app") && table.contains("relay"), "{table}");
        world.sherd(&["logs", "app"]);
        world.sherd(&["stop", "-g", "app"]);
        assert!(traffic::ask(address()).is_err(), "a stopped group serves");
        let groups = world.ps()["groups"].to_string();
        assert!(groups.contains("stopped"), "{groups}");
        let said = world.refused(&["stop", "-g", "nobody"]);
        assert!(said.contains("nobody") && said.contains("sherd ps"), "{said}");
        world.sherd(&["stop", "-g", "app", "--purge"]);
        assert!(world.ps()["groups"].as_array().expect("groups").is_empty());
    });
}

/// A changed specification replaces shard by shard: somebody always serves.
#[test]
fn apply_replaces_shard_by_shard() {
    if !needs("apply_replaces_shard_by_shard", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("apply_replaces_shard_by_shard");
        let spec = demo_spec("web", 2, "8080:80", "");
        world.apply("web", &spec);
        let before: Vec<_> = world.wait_ready("web", 2).iter().map(|slot| slot["pid"].clone()).collect();
        let load = traffic::Load::start(address(), 4, usize::MAX);
        world.apply("web", &format!("{spec}\n[environment]\nCHANGED = \"1\"\n"));
        sherd_testkit::eventually("both are new", std::time::Duration::from_secs(60), || {
            let slots = world.slots("web");
            let new = |slot: &serde_json::Value| slot["ready"] == true && !before.contains(&slot["pid"]);
            (slots.len() == 2 && slots.iter().all(new)).then_some(())
        });
        let (done, failures) = load.finish();
        assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), failures.first());
        // More of them, fewer of them, another port: nobody notices either.
        let load = traffic::Load::start(address(), 4, usize::MAX);
        world.apply("web", &demo_spec("web", 1, "8080:80", ""));
        sherd_testkit::eventually("one is left", std::time::Duration::from_secs(60), || {
            (world.slots("web").len() == 1).then_some(())
        });
        world.apply("web", &demo_spec("web", 2, "8080:80", ""));
        world.wait_ready("web", 2);
        let (done, failures) = load.finish();
        assert!(failures.is_empty(), "{} of {done} failed: {:?}", failures.len(), failures.first());
    });
}

#[test]
fn pictures_need_no_agent() {
    let directory = std::env::temp_dir().join(format!("sherd-pictures-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let svg = directory.join("plan.svg");
    let machine = ["--synthetic", "package:2 numa:2 l3:1 core:4 pu:2"];
    let run = |args: &[&str]| {
        let output = Command::new(SHERD).args(args).args(machine).output().expect("sherd runs");
        assert!(output.status.success(), "sherd {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    assert!(run(&["topology"]).contains("L3"));
    let machine_json: serde_json::Value = serde_json::from_str(&run(&["topology", "--json"])).expect("JSON");
    assert!(machine_json.is_object());
    let spec = directory.join("web.toml");
    fs::write(&spec, "name = \"web\"\n[layout]\nunit = \"core\"\n[process]\ncommand = [\"true\"]\n")
        .expect("a specification");
    let plan = run(&["plan", spec.to_str().expect("a path")]);
    assert!(plan.contains("web"), "{plan}");
    run(&["plan", spec.to_str().expect("a path"), "--svg", svg.to_str().expect("a path")]);
    assert!(fs::read_to_string(&svg).expect("a picture").contains("<svg"));
    fs::remove_dir_all(&directory).expect("its removal");
}
