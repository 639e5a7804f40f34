//! A container whose program is hostile, and accepts from a listener of ours: what it tries is refused or contained, with the
//! agent alive, dead and back again, while its group's other shard and its own clients notice nothing.

mod expected;
mod unfiltered;

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use serde_json::Value;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use self::{
    expected::{
        Attempts, CONNECTION, DESCRIPTORS, DISCONNECTED, Expected, LISTENER, MADE_TO_LISTEN, NAMESPACE, OWNER, PINS,
        SHUT, TURNED_AWAY, UNFILTERED_OPTIONS,
    },
    unfiltered::Unfiltered,
};
use crate::{
    containers::{address, is_there},
    direct::check_end,
    images::{self, Engine},
    leaks::holdings,
    metrics,
    traffic::{Connection, Load},
    world::{World, scaled, tail},
};

const ENGINE: Engine = Engine::Docker;
/// The one whose program is asked to be hostile.
const SLOT: u64 = 0;
const CLIENTS: usize = 4;
/// Descriptors and threads that the agent may have more of than before: what it opens for a moment.
const PASSING: usize = 8;

struct Stage {
    world: World,
    image: String,
}

impl Stage {
    fn start(test: &str) -> Self {
        let stage = Self::apply(test, "path = \"direct\"", "");
        stage.wait();
        stage
    }

    /// Two shards of the program, on this path and with these options.
    fn apply(test: &str, path: &str, options: &str) -> Self {
        let world = World::with_engine(test, &ENGINE.socket());
        let image = format!("sherd-test-hostile-{}:latest", world.instance());
        images::import(ENGINE, &image, &root(world.dir()), &["CMD [\"/hostile\"]", "LABEL test=sherd"]);
        world.apply(
            "web",
            &format!(
                "name = \"web\"\n{path}\n[layout]\nunit = \"pu\"\nshards = 2\nsharing = \"shared\"\nmemory = \"none\"\n\
                 [container]\nimage = \"{image}\"\n{options}\n[[ports]]\npublish = \"8080:80\"\n[backoff]\nfirst = \"50ms\"\n\
                 max = \"50ms\"\n"
            ),
        );
        Self { world, image }
    }

    /// Both shards accept their connections themselves.
    fn wait(&self) -> Vec<Value> {
        eventually("both shards are direct", Duration::from_secs(60), || {
            let slots = self.world.slots("web");
            let is_served = |slot: &Value| slot["ready"] == true && slot["path"] == "direct";
            (slots.len() == 2 && slots.iter().all(is_served)).then_some(slots)
        })
    }

    fn container(&self, slot: u64) -> String {
        let slots = self.world.slots("web");
        slots[usize::try_from(slot).expect("a slot")]["shard"].as_str().expect("a shard").to_owned()
    }

    /// What can be tried with the agent alive and dead alike.
    fn check_without_broker(&self) {
        for attempts in [&DESCRIPTORS, &PINS, &LISTENER, &NAMESPACE, &OWNER] {
            check(attempts);
        }
        check_kept(&CONNECTION);
    }

    fn check_with_broker(&self) {
        check_kept(&DISCONNECTED);
        #[cfg(target_arch = "x86_64")]
        check(&expected::THIRTY_TWO_BIT);
        let door = format!("/door/{}", scaled(200, 2000));
        check_answers(&door, &ask(&door), &[TURNED_AWAY]);
        let storm = format!("/storm/{}", scaled(1500, 10_000));
        check_answers(&storm, &ask(&storm), &[&[("storm-refused", "0")]]);
        let processes = scaled(64, 1000);
        assert_eq!(ask(&format!("/bomb/{processes}")).trim(), format!("bomb-listened {processes}"));
        self.wait();
    }

    /// A process of `docker exec` gets a socket that we gave, and the guard refuses it what it refuses the program.
    fn check_unfiltered(&self, container: &str) {
        let mut unfiltered = Unfiltered::start(container, "options");
        check_answers("/pass-listener", &ask("/pass-listener"), &[&[("pass", "OK")]]);
        check_answers("its options", &unfiltered.until("TCP_ULP=smc"), UNFILTERED_OPTIONS);
    }

    /// Ended, or replaced, the shard of a slot is followed by another.
    fn wait_for_next(&self, slot: usize, former: &str) {
        eventually("another shard takes its place", Duration::from_secs(30), || {
            (self.world.slots("web")[slot]["shard"] != former).then_some(())
        });
        self.wait();
    }

    /// The agent holds no more than before: nothing that a shard does makes it grow.
    fn check_holdings(&self, before: &Holdings) {
        eventually("the agent lets go of what was for a moment", Duration::from_secs(20), || {
            let now = holdings(self.world.agent_pid());
            now.iter().all(|(kind, count)| *count <= before[kind] + PASSING).then_some(())
        });
    }
}

type Holdings = std::collections::BTreeMap<&'static str, usize>;

/// What a process of `docker exec` made listen: where, and that nobody gets there.
fn make_listen(container: &str) -> (Unfiltered, u16) {
    let mut unfiltered = Unfiltered::start(container, "make-listen");
    let kept = keep();
    check_answers("/pass-connection", &ask("/pass-connection"), &[&[("pass", "OK")]]);
    let said = unfiltered.until("port");
    drop(kept);
    let (said, port) = said.split_once("port ").expect("its port");
    check_answers("made to listen", said, MADE_TO_LISTEN);
    (unfiltered, port.trim().parse().expect("a port"))
}

fn check_out_of_reach(port: u16) {
    assert_ne!(port, 0, "it listens");
    for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
        let reached = TcpStream::connect_timeout(&address, Duration::from_secs(1));
        let refused = reached.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        assert!(refused, "{address}: {reached:?}");
    }
}

fn contained() -> f64 {
    let text = metrics::scrape().expect("metrics");
    let sample = text.lines().find_map(|line| line.strip_prefix("sherd_contained_listeners_total "));
    sample.expect("the metric is there").parse().expect("a number")
}

/// The hostile shard tries, and is answered as the table says.
fn check(attempts: &Attempts) {
    check_answers(attempts.request, &ask(attempts.request), attempts.expected);
}

/// The same on a connection that it has accepted.
fn check_kept(attempts: &Attempts) {
    let _kept = keep();
    check(attempts);
}

/// A static program alone.
fn root(directory: &Path) -> PathBuf {
    let (root, sources) = (directory.join("hostile"), directory.join("sources"));
    for part in [&root.join("tmp"), &sources] {
        fs::create_dir_all(part).expect("a directory");
    }
    let files = [
        ("attempts.h", include_str!("hostile/attempts.h")),
        ("program.c", include_str!("hostile/program.c")),
        ("sockets.c", include_str!("hostile/sockets.c")),
        ("surroundings.c", include_str!("hostile/surroundings.c")),
        ("unfiltered.c", include_str!("hostile/unfiltered.c")),
    ];
    let mut compile = Command::new("gcc");
    compile.current_dir(&sources).args(["-O2", "-static", "-pthread", "-o"]).arg(root.join("hostile"));
    for (name, text) in files {
        fs::write(sources.join(name), text).expect("its source");
        compile.args(Path::new(name).extension().is_some_and(|kind| kind == "c").then_some(name));
    }
    images::run(&mut compile);
    root
}

/// A connection that the hostile shard has accepted.
fn hostile() -> Connection {
    eventually("the hostile shard accepts", Duration::from_secs(30), || {
        let mut connection = Connection::open(address()).expect("it is published");
        (connection.who().expect("an answer").0 == SLOT).then_some(connection)
    })
}

fn ask(request: &str) -> String {
    hostile().get_at(request).expect("the program answers")
}

/// One that the program tries things with.
fn keep() -> Connection {
    let mut connection = hostile();
    assert_eq!(connection.get_at("/keep").expect("the program answers"), "kept OK\n");
    connection
}

fn check_answers(request: &str, answers: &str, expected: &[&[Expected]]) {
    let expected: Vec<String> = expected.concat().iter().map(|(name, answer)| format!("{name} {answer}")).collect();
    let found: Vec<&str> = answers.lines().collect();
    assert_eq!(found, expected, "{request}");
}

/// The agent dies and comes back under attack. What needs its answer waits for it.
fn check_without_agent(stage: &mut Stage) {
    let container = stage.container(SLOT);
    stage.world.kill_agent();
    stage.check_without_broker();
    stage.check_unfiltered(&container);
    let (mut listening, port) = make_listen(&container);
    check_out_of_reach(port);
    let kept = keep();
    let waiting = thread::spawn(|| ask(DISCONNECTED.request));
    stage.world.start(&[]);
    stage.world.wait_for_api();
    check_answers("with the agent dead", &waiting.join().expect("an answer"), DISCONNECTED.expected);
    drop(kept);
    // The next agent ends what it finds.
    assert_eq!(listening.until("accept"), "accept EINVAL\n");
    stage.wait();
}

#[test]
fn a_hostile_shard_is_refused_and_contained() {
    let test = "a_hostile_shard_is_refused_and_contained";
    if !is_there(test, ENGINE) || !needs(test, &[Need::Program("gcc")]) {
        return;
    }
    in_new_netns(move || {
        let mut stage = Stage::start(test);
        let load = Load::start(address(), CLIENTS, usize::MAX);
        stage.check_without_broker();
        stage.check_with_broker();
        stage.check_unfiltered(&stage.container(SLOT));
        let before = holdings(stage.world.agent_pid());
        let contained_before = contained();
        let (mut listening, port) = make_listen(&stage.container(SLOT));
        assert_eq!(listening.until("accept"), "accept EINVAL\n");
        check_out_of_reach(port);
        assert!(contained() >= contained_before + 1.0, "{contained_before} and then {}", contained());
        stage.check_with_broker();
        stage.check_holdings(&before);

        check_without_agent(&mut stage);
        stage.check_without_broker();
        stage.check_with_broker();

        // Without its listener it is of no use, and ends when it has served its clients.
        let former = stage.container(SLOT);
        check(&SHUT);
        stage.wait_for_next(0, &former);
        let (connections, failures) = load.finish();
        eprintln!("{connections} connections of others meanwhile");
        assert!(connections > 100, "{connections} connections");
        assert!(
            failures.is_empty(),
            "{} of {connections} failed: {failures:?}\n{}",
            failures.len(),
            tail(&stage.world.log(), 40)
        );

        // A listener whose owner was changed is in nobody's way.
        check(&OWNER);
        let other = stage.container(1);
        images::run(ENGINE.docker().args(["kill", &other]));
        stage.wait_for_next(1, &other);
        check_end(&mut stage.world, ENGINE, &stage.image);
    });
}

/// It changes the interfaces of its own namespace, and would change the host's by a listener of ours.
#[test]
fn who_administers_networks_gets_no_listener() {
    let test = "who_administers_networks_gets_no_listener";
    if !is_there(test, ENGINE) || !needs(test, &[Need::Program("gcc")]) {
        return;
    }
    in_new_netns(move || {
        let mut stage = Stage::apply(test, "", "cap_add = [\"NET_ADMIN\"]");
        for slot in stage.world.wait_ready("web", 2) {
            assert_eq!(slot["path"], "relay", "{slot}");
            assert!(slot["path_reason"].to_string().contains("CAP_NET_ADMIN"), "{slot}");
        }
        let before = mtu_of_loopback();
        check_answers("/namespace", &ask("/namespace"), &[&[("SIOCSIFMTU", "OK"), ("SIOCGSKNS", "OK")]]);
        assert_eq!(mtu_of_loopback(), before, "the host's interface was changed");
        check_end(&mut stage.world, ENGINE, &stage.image);
    });
}

/// In the calling thread's network namespace; sysfs would show that of whoever mounted it.
fn mtu_of_loopback() -> String {
    let shown = Command::new("ip").args(["-o", "link", "show", "lo"]).output().expect("iproute2 is installed");
    let text = String::from_utf8(shown.stdout).expect("text");
    text.split_whitespace().skip_while(|word| *word != "mtu").nth(1).expect("its MTU").to_owned()
}
