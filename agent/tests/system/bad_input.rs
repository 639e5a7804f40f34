//! Whatever is asked wrongly gets an answer that says what, where and what to do; what runs keeps running.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use sherd_testkit::{Need, in_new_netns, needs};

use crate::{
    adopting::holder,
    metrics, traffic,
    world::{World, demo_spec},
};

fn address() -> SocketAddr {
    "127.0.0.1:8080".parse().expect("an address")
}

/// A world with a group that serves, which must be the same after `body`.
fn beside_a_running_group(test: &'static str, body: impl FnOnce(&World) + Send + 'static) {
    if !needs(test, &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(move || {
        let world = World::new(test);
        world.apply("web", &demo_spec("web", 2, "8080:80", ""));
        let before: Vec<_> = world.wait_ready("web", 2).iter().map(|slot| slot["pid"].clone()).collect();
        body(&world);
        let after: Vec<_> = world.slots("web").iter().map(|slot| slot["pid"].clone()).collect();
        assert_eq!(before, after, "what ran was changed");
        traffic::ask(address()).expect("it serves");
    });
}

fn refused(world: &World, text: &str, expected: &[&str]) {
    let path = world.dir().join("bad.toml");
    fs::write(&path, text).expect("a specification");
    let said = world.refused(&["apply", path.to_str().expect("a path")]);
    for part in expected {
        assert!(said.contains(part), "`{part}` is missing in:\n{said}");
    }
}

#[test]
fn faulty_specifications_are_explained() {
    beside_a_running_group("faulty_specifications_are_explained", |world| {
        let good = demo_spec("other", 1, "8081:80", "");
        let at_once = good.replace("unit = \"pu\"", "unit = \"pu\"\nshard = 3\ncpus = \"x-3\"");
        refused(world, &at_once, &["bad.toml:", "shard", "cpus"]);
        refused(world, &good.replace("shards = 1", "shards = \"many\""), &["bad.toml:", "shards"]);
        refused(world, &good.replace("shards = 1", "shards = 0"), &["bad.toml:", "shards"]);
        refused(world, &good.replace("shards = 1", "shards = 5000"), &["bad.toml:", "5000"]);
        let many = good.replace("shards = 1", "shards = 600").replace("\"shared\"", "\"exclusive\"");
        refused(world, &many, &["other", "600"]);
        refused(world, &good.replace("8081:80", "8081:80/udp"), &["bad.toml:", "udp"]);
        refused(world, &good.replace("8081:80", "8080:80"), &["8080", "web"]);
        refused(world, "name = \"other\"\n[container]\nimage = \"Not An Image\"\n", &["bad.toml:", "image"]);
        refused(
            world,
            "name = \"other\"\n[layout]\nunit = \"pu\"\nsharing = \"shared\"\nshards = 1\n[container]\nimage = \"nginx\"\n",
            &["docker"],
        );
        refused(world, "= nonsense", &["bad.toml:1"]);
        refused(
            world,
            &good.replace(&format!("\"{}\"", crate::world::SHERD), "\"/no/such/program\""),
            &["/no/such/program"],
        );
    });
}

#[test]
fn a_port_that_others_have_is_theirs() {
    beside_a_running_group("a_port_that_others_have_is_theirs", |world| {
        let taken = TcpListener::bind("127.0.0.1:8081").expect("a port");
        let said = {
            let path = world.dir().join("other.toml");
            fs::write(&path, demo_spec("other", 1, "127.0.0.1:8081:80", "")).expect("a specification");
            world.refused(&["apply", path.to_str().expect("a path")])
        };
        assert!(said.contains("8081") && said.contains(&std::process::id().to_string()), "{said}");
        drop(taken);
        world.apply("other", &demo_spec("other", 1, "8081:80", ""));
        world.wait_ready("other", 1);
    });
}

#[test]
fn shards_that_fail_are_shown_with_their_last_words() {
    beside_a_running_group("shards_that_fail_are_shown_with_their_last_words", |world| {
        let run = |name: &str, port: &str, script: &str| {
            let output = world.try_sherd(&[
                "run",
                "--process",
                "-g",
                name,
                "-u",
                "pu",
                "-n",
                "1",
                "--shared",
                "-p",
                port,
                "--timeout",
                "3s",
                "--",
                "sh",
                "-c",
                script,
            ]);
            assert!(!output.status.success(), "{name} is said to be ready");
            let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            world.sherd(&["stop", "-g", name, "--purge"]);
            said
        };
        let said = run("exits", "8082:80", "echo last words; exit 7");
        assert!(said.contains("last words") && said.contains('7'), "{said}");
        let said = run("silent", "8083:80", "echo alive; exec sleep 1000");
        assert!(said.contains("nothing listens") && said.contains("alive"), "{said}");
    });
}

#[test]
fn an_engine_that_is_not_one_is_said() {
    if !needs("an_engine_that_is_not_one_is_said", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let socket = std::env::temp_dir().join(format!("sherd-engine-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&socket).expect("a socket");
        let nonsense = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut request = [0; 1024];
                let read = stream.read(&mut request).unwrap_or(0);
                if request[..read].starts_with(b"END") {
                    return;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nnonsense");
            }
        });
        {
            let world = World::with_engine("an_engine_that_is_not_one_is_said", socket.to_str().expect("a path"));
            world.apply("web", &demo_spec("web", 1, "8080:80", ""));
            world.wait_ready("web", 1);
            let said = world.refused(&["run", "-g", "other", "-n", "1", "image"]);
            assert!(said.contains("Docker Engine API"), "{said}");
            traffic::ask(address()).expect("processes need no engine");
        }
        UnixStream::connect(&socket).and_then(|mut stream| stream.write_all(b"END")).expect("its end");
        nonsense.join().expect("its end");
        fs::remove_file(&socket).expect("its removal");
    });
}

#[test]
fn the_api_survives_garbage() {
    beside_a_running_group("the_api_survives_garbage", |world| {
        let socket = world.dir().join("run/sherd.sock");
        let huge = vec![b'x'; 4 << 20];
        let requests: [&[u8]; 4] =
            [b"\x00\xff garbage\r\n\r\n", b"GET /v1/status", b"PUT /v1/groups/x HTTP/1.1\r\n", b""];
        let mut half_open = Vec::new();
        for request in requests {
            let mut stream = UnixStream::connect(&socket).expect("it accepts");
            stream.write_all(request).expect("it reads");
            half_open.push(stream);
        }
        let mut stream = UnixStream::connect(&socket).expect("it accepts");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        let head = format!("PUT /v1/groups/x HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", huge.len());
        stream.write_all(head.as_bytes()).expect("it reads");
        // It may hang up in the middle.
        let _ = stream.write_all(&huge);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
        world.sherd(&["ps"]);
    });
}

/// A second agent on the same directories, a torn specification, no descriptors: each says what is wrong.
#[test]
fn an_agent_that_cannot_start_says_why() {
    beside_a_running_group("an_agent_that_cannot_start_says_why", |world| {
        let config = world.dir().join("sherd.toml");
        let second = world.command().args(["agent", "--config"]).arg(&config).output().expect("sherd runs");
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(!second.status.success() && said.contains("another"), "{said}");
    });
}

#[test]
fn a_torn_specification_is_set_aside() {
    if !needs("a_torn_specification_is_set_aside", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let mut world = World::new("a_torn_specification_is_set_aside");
        world.apply("web", &demo_spec("web", 1, "8080:80", ""));
        world.wait_ready("web", 1);
        world.kill_agent();
        fs::write(world.dir().join("state/groups/torn.toml"), b"name = \"torn\"\n[layo").expect("a torn file");
        world.start(&[]);
        world.wait_for_api();
        world.wait_ready("web", 1);
        assert!(world.dir().join("state/groups/torn.toml.broken").exists(), "it is not set aside");
        let warnings = world.ps()["warnings"].to_string();
        assert!(warnings.contains("torn.toml"), "{warnings}");
    });
}

/// A disk that changes one letter costs nobody a shard, nor what is known of it, nor a relayed connection.
#[test]
fn shards_outlive_a_damaged_specification() {
    if !needs("shards_outlive_a_damaged_specification", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let mut world = World::new("shards_outlive_a_damaged_specification");
        let text = demo_spec("web", 2, "8080:80", "");
        world.apply("web", &text);
        let pids = |world: &World| world.slots("web").iter().map(|slot| slot["pid"].clone()).collect::<Vec<_>>();
        world.wait_ready("web", 2);
        let before = pids(&world);
        let mut kept = traffic::Connection::open(address()).expect("it is published");
        let served_by = kept.who().expect("an answer");
        for _ in 0..20 {
            traffic::ask(address()).expect("an answer");
        }
        let steered = |group: &str| {
            let text = metrics::scrape().expect("metrics");
            metrics::sum(&text, "sherd_slot_connections_steered_total", &format!("group=\"{group}\""))
        };
        let counted = steered("web");
        assert!(counted >= 21.0, "{counted}");
        world.end_agent();
        let stored = world.dir().join("state/groups/web.toml");
        let damaged = fs::read_to_string(&stored).expect("it is stored").replace("shards = 2", "shards = 1");
        fs::write(&stored, damaged).expect("it is written");
        world.start(&[]);
        world.wait_for_api();
        let warnings = world.ps()["warnings"].to_string();
        assert!(warnings.contains("web.toml") && warnings.contains("checksum"), "{warnings}");
        // Nobody serves it for now: connections wait for who will.
        let waiting = std::thread::spawn(|| traffic::ask(address()));
        let holder = holder(&world).list().expect("it answers");
        assert!(holder.iter().any(|name| name == "cells"), "{holder:?}");
        // Whose connections are counted elsewhere.
        world.apply("other", &demo_spec("other", 1, "8081:80", ""));
        world.wait_ready("other", 1);
        refused(&world, &text, &["restart"]);
        world.kill_agent();
        world.start(&[]);
        world.wait_for_api();
        world.wait_ready("web", 2);
        assert_eq!(pids(&world), before);
        waiting.join().expect("no panic").expect("it is served");
        assert_eq!(kept.who().expect("it goes on"), served_by);
        assert!(steered("web") > counted, "{} after {counted}", steered("web"));
    });
}
