//! The agent ends and another begins: what it relayed goes on, every byte once.

mod holder;
mod streams;

use std::{
    fs,
    net::SocketAddr,
    sync::OnceLock,
    time::{Duration, Instant},
};

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use self::streams::{Quiet, Short, Stream};
use crate::{
    containers::{cpus, is_there},
    images::{self, Engine},
    metrics,
    world::{World, scaled, signal},
};

const ENGINE: Engine = Engine::Docker;
const SOON: Duration = Duration::from_secs(20);

pub(crate) fn address() -> SocketAddr {
    "127.0.0.1:8080".parse().expect("an address")
}

/// Two relayed shards that send back what they get, behind port 8080.
fn spec() -> String {
    static SERVER: OnceLock<String> = OnceLock::new();
    let server =
        SERVER.get_or_init(|| images::go_program("echo", include_str!("echo.go")).to_str().expect("a path").to_owned());
    format!(
        "name = \"web\"\n[layout]\nunit = \"pu\"\nshards = 2\nsharing = \"shared\"\nmemory = \"none\"\n\
         [process]\ncommand = [\"{server}\"]\n[[ports]]\npublish = \"8080:80\"\nloopback = true\n"
    )
}

fn run(test: &'static str, body: impl FnOnce(&mut World) + Send + 'static) {
    run_with(test, "", body);
}

/// An agent with these settings more.
fn run_with(test: &'static str, settings: &'static str, body: impl FnOnce(&mut World) + Send + 'static) {
    if !needs(test, &[Need::Root, Need::Bpf, Need::Program("go")]) {
        return;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("it may be raised to that");
    in_new_netns(move || {
        let mut world = World::prepare(test, "off");
        let file = world.dir().join("sherd.toml");
        let text = fs::read_to_string(&file).expect("the agent's settings");
        fs::write(&file, format!("{settings}{text}")).expect("the agent's settings");
        body(&mut world);
    });
}

fn begin(world: &mut World, variables: &[(&str, &str)]) {
    world.start(variables);
    world.wait_for_api();
}

fn serve(world: &World) {
    world.apply("web", &spec());
    world.wait_ready("web", 2);
}

/// A metric, all its samples together.
fn metric(name: &str) -> u64 {
    let text = eventually("metrics", SOON, metrics::scrape);
    let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let samples = text.lines().filter(of).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    samples.sum::<f64>() as u64
}

/// What the loop of the agent that ended, and of the one that began, say of the hand-over.
fn say(world: &World) {
    for line in world.log().lines().filter(|line| line.contains("relayed connections")) {
        eprintln!("  {line}");
    }
}

#[test]
fn a_planned_restart_ends_no_relayed_connection() {
    run("a_planned_restart_ends_no_relayed_connection", |world| {
        begin(world, &[]);
        serve(world);
        let quiet: Vec<Quiet> = (0..scaled(400, 4_500)).map(Quiet::open).collect();
        // Half of them read slowly: their buffers are full.
        let streams: Vec<Stream> = (0..8).map(|number| Stream::start(number, number % 2 == 1)).collect();
        let short = Short::start(4);
        eventually("the streams flow", SOON, || streams.iter().all(|stream| stream.received() > 1 << 20).then_some(()));
        let restarts = scaled(3, 20);
        for round in 0..restarts {
            let established = metric("sherd_slot_connections_established_total");
            let accepted = metric("sherd_connections_accepted_total");
            let (all, began) = (quiet.len() as u64 + streams.len() as u64, Instant::now());
            world.end_agent();
            let ended = began.elapsed();
            quiet.iter().for_each(|quiet| quiet.send(round));
            begin(world, &[]);
            quiet.iter().for_each(|quiet| quiet.expect(round));
            eprintln!("  round {round}: the agent ended in {ended:?}, all answered after {:?}", began.elapsed());
            // What is open is still counted as open, and only what is new as established: some short ones.
            let handed = metric("sherd_handover_handed_total");
            assert!(
                (all..all + 8).contains(&handed),
                "{handed} were handed over, {all} and at most 4 short ones were open"
            );
            assert_eq!(metric("sherd_handover_taken_back_total"), handed);
            assert_eq!(metric("sherd_handover_lost_total"), 0);
            assert_eq!(metric("sherd_connections_resumed_total"), handed);
            let open = eventually("open connections are counted", SOON, || {
                let open = metric("sherd_slot_connections_open");
                (open >= all && open <= all + 8).then_some(open)
            });
            let counted = metric("sherd_connections_accepted_total");
            assert!(counted >= accepted && counted < accepted + 20_000, "workers count anew: {accepted} -> {counted}");
            let now = metric("sherd_slot_connections_established_total");
            assert!(now >= established && now < established + 20_000, "{established} -> {now}, {open} open");
        }
        let (done, failures) = short.finish();
        assert!(failures.is_empty(), "{} of {done} short ones failed: {:?}", failures.len(), failures.first());
        let pauses: Vec<Duration> = streams.into_iter().map(Stream::finish).collect();
        let mut fast: Vec<Duration> = pauses.iter().step_by(2).copied().collect();
        fast.sort();
        eprintln!("  {restarts} restarts, {done} short connections; longest pauses of streams: {fast:?}");
        quiet.into_iter().for_each(Quiet::finish);
        eventually("none is counted as open", SOON, || (metric("sherd_slot_connections_open") == 0).then_some(()));
        assert!(metric("sherd_relay_spliced_bytes_total") > 0, "no stream was spliced");
        say(world);
    });
}

/// What a hand-over costs where nothing else is to do.
#[test]
fn many_connections_are_handed_over_in_bounded_time() {
    run("many_connections_are_handed_over_in_bounded_time", |world| {
        begin(world, &[]);
        serve(world);
        let mut quiet = Vec::new();
        for count in [scaled(100, 1_000), scaled(500, 4_500), scaled(1_000, 9_000)] {
            quiet.extend((quiet.len()..count).map(Quiet::open));
            let began = Instant::now();
            world.end_agent();
            let ended = began.elapsed();
            quiet.iter().for_each(|quiet| quiet.send(count));
            begin(world, &[]);
            quiet.iter().for_each(|quiet| quiet.expect(count));
            assert_eq!(metric("sherd_handover_taken_back_total"), count as u64);
            eprintln!("  {count} connections: the agent ended in {ended:?}, all answered after {:?}", began.elapsed());
            assert!(ended < Duration::from_secs(10), "{count} connections held the agent up for {ended:?}");
        }
        quiet.into_iter().for_each(Quiet::finish);
        say(world);
    });
}

#[test]
fn connections_wait_for_an_agent_that_comes_later() {
    run("connections_wait_for_an_agent_that_comes_later", |world| {
        begin(world, &[]);
        serve(world);
        let quiet: Vec<Quiet> = (0..50).map(Quiet::open).collect();
        let held = metric("sherd_holder_descriptors");
        world.end_agent();
        quiet.iter().for_each(|quiet| quiet.send(0));
        // Some end while nobody is there: their shards are told afterwards.
        let (ended, quiet): (Vec<_>, Vec<_>) = quiet.into_iter().enumerate().partition(|(number, _)| number % 5 == 0);
        ended.iter().for_each(|(_, quiet)| quiet.end());
        std::thread::sleep(Duration::from_secs(scaled(3, 30) as u64));
        begin(world, &[]);
        for (_, quiet) in ended {
            quiet.expect(0);
            quiet.finish();
        }
        quiet.iter().for_each(|(_, quiet)| quiet.expect(0));
        assert_eq!(metric("sherd_holder_descriptors"), held);
        assert_eq!(metric("sherd_connections_active"), 40);
        quiet.into_iter().for_each(|(_, quiet)| quiet.finish());
    });
}

#[test]
fn connections_that_nobody_comes_for_are_reset() {
    run_with("connections_that_nobody_comes_for_are_reset", "relay_handover = \"1s\"\n", |world| {
        begin(world, &[]);
        serve(world);
        let quiet: Vec<Quiet> = (0..300).map(Quiet::open).collect();
        let held = metric("sherd_holder_descriptors");
        world.end_agent();
        quiet.iter().for_each(Quiet::expect_reset);
        // The report has the same time.
        std::thread::sleep(Duration::from_millis(1_200));
        begin(world, &[]);
        assert_eq!(metric("sherd_holder_descriptors"), held);
        assert_eq!(metric("sherd_slot_connections_open"), 0, "what the holder ended counts as open");
    });
}

/// A group that is stopped while connections wait: they end, and are counted.
#[test]
fn connections_of_a_group_that_is_gone_are_reset() {
    run("connections_of_a_group_that_is_gone_are_reset", |world| {
        begin(world, &[]);
        serve(world);
        let quiet: Vec<Quiet> = (0..10).map(Quiet::open).collect();
        world.end_agent();
        for file in fs::read_dir(world.dir().join("state/groups")).expect("its specifications").flatten() {
            fs::remove_file(file.path()).expect("it is there");
        }
        begin(world, &[]);
        quiet.iter().for_each(Quiet::expect_reset);
        let lost =
            metrics::sum(&metrics::scrape().expect("metrics"), "sherd_handover_lost_total", "cause=\"group_gone\"");
        assert_eq!(lost, 10.0);
    });
}

#[test]
fn without_a_handover_connections_may_finish() {
    run_with("without_a_handover_connections_may_finish", "relay_handover = \"0s\"\n", |world| {
        begin(world, &[]);
        serve(world);
        check_drain(world, "relay_handover is 0s", 0);
    });
}

#[test]
fn an_old_holder_is_noticed_and_connections_may_finish() {
    run("an_old_holder_is_noticed_and_connections_may_finish", |world| {
        fs::create_dir_all(world.dir().join("run")).expect("a directory");
        holder::start_old(&world.dir().join("run"));
        begin(world, &[]);
        serve(world);
        check_drain(world, "the holder is of an older version", 0);
    });
}

#[test]
fn a_full_holder_keeps_what_it_can() {
    run("a_full_holder_keeps_what_it_can", |world| {
        // Of its limit it keeps 160 for itself.
        holder::start(&world.dir().join("run/holder.sock"), 160 + ROOM);
        begin(world, &[]);
        serve(world);
        let held = metric("sherd_holder_descriptors");
        eprintln!("  the group has {held} descriptors in the holder");
        let left = ROOM - held;
        assert!((1..=2).contains(&left), "room for {left} parcels");
        check_drain(world, "the holder takes no more descriptors", left);
    });
}

/// Descriptors that a holder of the test has room for: what the group takes, and one or two parcels.
const ROOM: u64 = 25;

/// The agent ends, and what is not handed over has a while: who ends by himself in that time ends well, the others are reset.
fn check_drain(world: &mut World, reason: &str, parcels: u64) {
    let quiet: Vec<Quiet> = (0..300).map(Quiet::open).collect();
    let agent = world.agent_pid();
    signal(agent, Signal::SIGTERM);
    eventually("it says so", SOON, || world.log().contains(reason).then_some(()));
    quiet.iter().for_each(|quiet| quiet.send(0));
    // Those that wait in the holder have no answer; the others get theirs as ever.
    let answered = |quiet: &[Quiet]| quiet.iter().filter(|quiet| quiet.has_answer()).count();
    let mut last = (usize::MAX, Instant::now());
    let quiet_for = Duration::from_secs(1);
    eventually("whoever is relayed has an answer", SOON, || {
        let now = answered(&quiet);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > quiet_for).then_some(())
    });
    let (drained, kept): (Vec<Quiet>, Vec<Quiet>) = quiet.into_iter().partition(Quiet::has_answer);
    let mut drained = drained.into_iter();
    drained.by_ref().take(100).for_each(|quiet| {
        quiet.expect(0);
        quiet.finish();
    });
    world.end_agent();
    drained.for_each(|quiet| quiet.expect_reset_after(0));
    begin(world, &[]);
    assert_eq!(metric("sherd_handover_taken_back_total"), kept.len() as u64);
    assert_eq!(kept.is_empty(), parcels == 0, "{} were handed over", kept.len());
    kept.into_iter().for_each(|quiet| {
        quiet.expect(0);
        quiet.finish();
    });
}

/// Every point that a hand-over passes, with how often.
const GIVE: &[&str] = &[
    "handover.before",
    "handover.released",
    "handover.released:2",
    "handover.packed",
    "handover.packed:2",
    "handover.kept",
    "handover.kept:2",
    "handover.after",
];

const TAKE: &[&str] =
    &["takeback.before", "takeback.opened", "takeback.opened:2", "takeback.after", "takeback.after:2"];

/// The agent is killed at `point`: each connection goes on whole, or is reset, and nothing stays behind.
fn check_kill(world: &mut World, point: &str) {
    let is_taking = TAKE.contains(&point);
    let armed = [(sherd::fault::VARIABLE, point)];
    begin(world, if is_taking { &[] } else { &armed });
    serve(world);
    let held = metric("sherd_holder_descriptors");
    let quiet: Vec<Quiet> = (0..300).map(Quiet::open).collect();
    signal(world.agent_pid(), Signal::SIGTERM);
    if is_taking {
        world.end_agent();
        world.start(&armed);
    }
    assert!(world.agent_died(SOON), "{point} is not passed");
    quiet.iter().for_each(|quiet| quiet.send(0));
    begin(world, &[]);
    world.wait_ready("web", 2);
    let (alive, lost): (Vec<Quiet>, Vec<Quiet>) = quiet.into_iter().partition(Quiet::goes_on);
    eprintln!("  {point}: {} go on, {} are lost", alive.len(), lost.len());
    let expected = match point {
        "handover.before" | "handover.released" | "handover.packed" => 0..=0,
        "handover.after" | "takeback.before" => 300..=300,
        _ => 1..=299,
    };
    assert!(expected.contains(&alive.len()), "{point}: {} go on", alive.len());
    assert_eq!(metric("sherd_slot_connections_open"), alive.len() as u64, "{point}");
    assert_eq!(metric("sherd_holder_descriptors"), held, "{point}: left in the holder");
    alive.into_iter().for_each(Quiet::finish);
}

#[test]
fn a_kill_at_every_step_of_a_handover_loses_connections_whole() {
    for point in GIVE {
        run("a_kill_at_every_step_of_a_handover_loses_connections_whole", |world| check_kill(world, point));
    }
}

#[test]
fn a_kill_at_every_step_of_taking_back_loses_connections_whole() {
    for point in TAKE {
        run("a_kill_at_every_step_of_taking_back_loses_connections_whole", |world| check_kill(world, point));
    }
}

/// The sockets of a container's side are in its network namespace, which no agent has to enter for them.
#[test]
fn connections_into_containers_cross_a_restart() {
    let test = "connections_into_containers_cross_a_restart";
    if !is_there(test, ENGINE) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::with_engine(test, &ENGINE.socket());
        let root = world.dir().join("echo");
        fs::create_dir_all(&root).expect("a directory");
        fs::copy(images::go_program("echo", include_str!("echo.go")), root.join("echo")).expect("built");
        let image = format!("sherd-test-echo-{}:latest", world.instance());
        images::import(ENGINE, &image, &root, &["CMD [\"/echo\"]"]);
        world.sherd(&["run", "-g", "web", "-p", "8080:80", "-u", "pu", "--path", "relay", "--drain", "60s", &image]);
        let slots = world.wait_ready("web", cpus());
        assert!(slots.iter().all(|slot| slot["path"] == "relay"), "{slots:?}");
        let quiet: Vec<Quiet> = (0..200).map(Quiet::open).collect();
        let streams: Vec<Stream> = (0..4).map(|number| Stream::start(number, number % 2 == 1)).collect();
        eventually("the streams flow", SOON, || streams.iter().all(|stream| stream.received() > 1 << 20).then_some(()));
        for round in 0..2 {
            world.end_agent();
            quiet.iter().for_each(|quiet| quiet.send(round));
            begin(&mut world, &[]);
            quiet.iter().for_each(|quiet| quiet.expect(round));
        }
        let pauses: Vec<Duration> = streams.into_iter().map(Stream::finish).collect();
        eprintln!("  longest pauses of streams: {pauses:?}");
        assert_eq!(metric("sherd_connections_resumed_total"), 204);
        // A drain knows of the connections that went on: they may finish, and are waited for.
        let mut stop = world.command().args(["stop", "-g", "web", "--purge"]).spawn().expect("sherd runs");
        let draining = |slot: &serde_json::Value| slot["state"] == "draining";
        eventually("it drains", SOON, || world.slots("web").iter().all(draining).then_some(()));
        quiet.iter().for_each(|quiet| quiet.send(2));
        quiet.iter().for_each(|quiet| quiet.expect(2));
        assert!(stop.try_wait().expect("its state").is_none(), "nobody was waited for");
        quiet.into_iter().for_each(Quiet::finish);
        assert!(stop.wait().expect("its state").success());
        say(&world);
        images::remove(ENGINE, &image);
    });
}
