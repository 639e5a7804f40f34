//! `sherd explain` against the kernel: the slot that it names is the slot that answers.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    traffic::Connection,
    world::{World, demo_spec},
};

/// What the agent says of a connection that is there, or is about to be.
fn explain(world: &World, client: SocketAddr, to: IpAddr, port: u16) -> Value {
    let (client, to, port) = (client.to_string(), to.to_string(), port.to_string());
    let said = world.sherd(&["explain", &client, "web", "-p", &port, "--to", &to, "--json"]);
    serde_json::from_str(&said).expect("JSON")
}

/// Opens connections and asks about each: the slot is the one that answers.
fn check(world: &World, address: &str, count: usize) {
    let address: SocketAddr = address.parse().expect("an address");
    let mut slots = std::collections::BTreeSet::new();
    for _ in 0..count {
        let mut connection = Connection::open(address).expect("it is published");
        let (answered, _) = connection.who().expect("an answer");
        let said = explain(world, connection.local_addr(), address.ip(), address.port());
        assert_eq!(said["goes"]["slot"], answered, "{said}");
        assert_eq!((&said["goes"]["level"], &said["server_guessed"]), (&Value::from("first"), &Value::from(false)));
        slots.insert(answered);
        let otherwise = &said["otherwise"]["slot"];
        assert!(otherwise.is_u64() && *otherwise != answered, "{said}");
    }
    assert!(said_policy(world, address) == "client" || slots.len() > 1, "only {slots:?} answered");
}

fn said_policy(world: &World, address: SocketAddr) -> String {
    let client = SocketAddr::new(address.ip(), 1);
    explain(world, client, address.ip(), address.port())["policy"].as_str().expect("a policy").to_owned()
}

#[test]
fn explain_names_the_slot_that_answers() {
    if !needs("explain_names_the_slot_that_answers", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("explain_names_the_slot_that_answers");
        let ports = "[[ports]]\npublish = \"8081:81\"\npolicy = \"client\"\nloopback = true\n\
                     [[ports]]\npublish = \"127.0.0.1:8082:82\"\npolicy = \"local\"\nloopback = true\n";
        // The demo listens on one port: all are the same one inside.
        let ports = ports.replace(":81\"", ":80\"").replace(":82\"", ":80\"");
        world.apply("web", &format!("{}{ports}", demo_spec("web", 2, "8080:80", "")));
        world.wait_ready("web", 2);
        for address in ["127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8081", "[::1]:8081"] {
            check(&world, address, 12);
        }
        // By the CPU that receives it: each CPU's slot is said, and one of them answers.
        let local: SocketAddr = "127.0.0.1:8082".parse().expect("an address");
        let mut connection = Connection::open(local).expect("it is published");
        let (answered, _) = connection.who().expect("an answer");
        let said = explain(&world, connection.local_addr(), local.ip(), local.port());
        assert_eq!((&said["goes"], &said["entry"]), (&Value::Null, &Value::Null), "{said}");
        let by_cpu = said["by_cpu"].as_array().expect("a list");
        assert!(by_cpu.iter().any(|cpu| cpu["goes"]["slot"] == answered), "{said}");
        assert!(world.sherd(&["explain", "127.0.0.1:9", "web", "-p", "8082"]).contains("by the CPU that receives"));

        // The port can be left out where there is no choice, and an address that nobody publishes is said.
        let which = world.refused(&["explain", "127.0.0.1:9", "web"]);
        assert!(which.contains("8080, 8081, 8082"), "{which}");
        let nobody = world.refused(&["explain", "[::1]:9", "web", "-p", "8082"]);
        assert!(nobody.contains("publishes nothing that takes a connection from [::1]:9"), "{nobody}");
        check_fail_over(&world);
    });
}

/// A slot that is out keeps its entries, and others get them: explain says so, and so it is.
fn check_fail_over(world: &World) {
    let pid = world.slots("web")[0]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a pid");
    let stopped = nix::sys::signal::Signal::SIGSTOP;
    world.apply("web", &demo_spec("web", 2, "8080:80", "[backoff]\nfirst = \"60s\"\nmax = \"60s\""));
    world.wait_ready("web", 2);
    crate::world::signal(pid, stopped);
    crate::world::signal(pid, nix::sys::signal::Signal::SIGKILL);
    eventually("the slot is out", Duration::from_secs(10), || (world.slots("web")[0]["ready"] == false).then_some(()));
    let address: SocketAddr = "127.0.0.1:8080".parse().expect("an address");
    let mut failed_over = 0;
    for _ in 0..12 {
        let stream = TcpStream::connect(address).expect("another slot accepts");
        let said = explain(world, stream.local_addr().expect("a socket"), address.ip(), address.port());
        assert_eq!((&said["goes"]["slot"], &said["in_service"]), (&Value::from(1), &Value::from(vec![1])), "{said}");
        assert_eq!(said["otherwise"]["outcome"], "waits", "{said}");
        failed_over += usize::from(said["first_choice"] == 0 && said["goes"]["level"] != "first");
    }
    assert!(failed_over > 0, "no connection was to go to the slot that is out");
}
