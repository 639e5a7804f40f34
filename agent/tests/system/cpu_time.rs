//! Whose CPU time it was: a busy neighbour beside a shard is seen, and the shard's own work is not taken for it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    metrics::{scrape, sum},
    traffic,
    world::{World, demo_spec, signal},
};

const FOREIGN: &str = "sherd_slot_foreign_cpu_seconds_total";

/// How long somebody is busy.
const BUSY: Duration = Duration::from_secs(2);

/// What a thread has used, in seconds; of a process's directory: its main thread.
fn used(thread: &Path) -> f64 {
    let text = fs::read_to_string(thread.join("schedstat")).expect("schedstat");
    let nanos: f64 = text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("a number");
    nanos / 1e9
}

/// The counter of slot 0 of a group.
fn of_slot(text: &str, metric: &str, labels: &str) -> f64 {
    sum(text, metric, &format!("group=\"web\",slot=\"0\"{labels}"))
}

fn spec(program: &str) -> String {
    format!(
        "name = \"web\"\n[layout]\nunit = \"pu\"\nshards = 1\n[process]\ncommand = [\"sh\", \"-c\", \"{program}\"]\n"
    )
}

/// The first look is where counting begins.
fn first_look() -> String {
    eventually("the first look", Duration::from_secs(20), || scrape().filter(|text| text.contains(FOREIGN)))
}

#[test]
fn a_busy_neighbour_is_seen() {
    if !needs("a_busy_neighbour_is_seen", &[Need::Root, Need::Program("taskset"), Need::Program("chrt")]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("a_busy_neighbour_is_seen");
        world.apply("web", &spec("exec sleep 600"));
        let cpus = world.wait_ready("web", 1)[0]["cpus"].as_str().expect("CPUs").to_owned();
        let looked = Instant::now();
        let before = first_look();
        // By a real-time policy, because whoever else is busy on this machine is seen too: the kernel leaves them 5 %.
        let mut busy = Command::new("chrt")
            .args(["-f", "1", "taskset", "-c", &cpus, "sh", "-c", "while :; do :; done"])
            .stdin(Stdio::null())
            .spawn()
            .expect("a neighbour");
        let start = Instant::now();
        eventually("it was busy long enough", 3 * BUSY, || (start.elapsed() >= BUSY).then_some(()));
        let seconds = used(&Path::new("/proc").join(busy.id().to_string()));
        let after = scrape();
        let whole = looked.elapsed().as_secs_f64();
        busy.kill().expect("SIGKILL");
        busy.wait().expect("its end");
        let after = after.expect("metrics");
        let others = ",kind=\"others\"";
        let seen = of_slot(&after, FOREIGN, others) - of_slot(&before, FOREIGN, others);
        println!("a neighbour used {seconds:.3} s of CPU {cpus}, seen as others: {seen:.3} s");
        assert!(seconds > 0.5 * BUSY.as_secs_f64(), "it got {seconds} s only");
        // Whoever came before it on a busy machine is in there too, but there is no more than one CPU.
        assert!(seen >= 0.9 * seconds, "it used {seconds} s, and {seen} s were seen");
        assert!(seen <= 1.1 * whole, "{seen} s were seen within {whole} s");
    });
}

#[test]
fn a_shards_own_work_is_not_others() {
    if !needs("a_shards_own_work_is_not_others", &[Need::Root]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("a_shards_own_work_is_not_others");
        world.apply("web", &spec("while :; do :; done"));
        let shard = world.wait_ready("web", 1)[0]["pid"].as_u64().expect("a pid");
        let before = first_look();
        let start = Instant::now();
        eventually("it was busy long enough", 3 * BUSY, || (start.elapsed() >= BUSY).then_some(()));
        let middle = scrape().expect("metrics");
        let gained = |after: &str, before: &str, metric: &str, labels: &str| {
            of_slot(after, metric, labels) - of_slot(before, metric, labels)
        };
        let own = gained(&middle, &before, "sherd_shard_cpu_seconds_total", "");
        // Its CPU is never idle, and each moment was somebody's: what others on this machine used is in there.
        let whole = start.elapsed().as_secs_f64();
        let foreign = gained(&middle, &before, FOREIGN, "");
        println!("a shard used {own:.3} s of its CPU, others {foreign:.3} s, of {whole:.3} s");
        assert!(own > 0.1 * whole, "it used {own} s only");
        assert!((own + foreign - whole).abs() <= 0.1 * whole, "{own} s and {foreign} s are not {whole} s");

        // Another shard in the slot: the counters go on.
        signal(u32::try_from(shard).expect("a pid"), Signal::SIGKILL);
        eventually("it has another shard", Duration::from_secs(20), || {
            let slots = world.slots("web");
            (slots[0]["ready"] == true && slots[0]["pid"].as_u64() != Some(shard)).then_some(())
        });
        let after = eventually("a later look", Duration::from_secs(5), || scrape().filter(|text| *text != middle));
        for kind in ["irq", "softirq", "steal", "relay", "others"] {
            let labels = format!(",kind=\"{kind}\"");
            assert!(gained(&after, &middle, FOREIGN, &labels) >= 0.0, "{kind} fell");
        }
    });
}

#[test]
fn the_relay_workers_time_is_its_own() {
    if !needs("the_relay_workers_time_is_its_own", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("the_relay_workers_time_is_its_own");
        world.apply("web", &demo_spec("web", 1, "8080:80", ""));
        world.wait_ready("web", 1);
        let before = first_look();
        let threads = fs::read_dir(format!("/proc/{}/task", world.agent_pid())).expect("threads").flatten();
        let worker = threads
            .map(|thread| thread.path())
            .find(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|name| name.trim_end() == "0/web"));
        let worker = worker.expect("the slot's worker");
        let worked = || used(&worker);
        let start = worked();
        for _ in 0..500 {
            traffic::ask("127.0.0.1:8080".parse().expect("an address")).expect("an answer");
        }
        let worked = worked() - start;
        // Two looks within half a second are one.
        let relay = eventually("a later look", Duration::from_secs(5), || {
            let after = scrape().expect("metrics");
            let labels = ",kind=\"relay\"";
            let gained = of_slot(&after, FOREIGN, labels) - of_slot(&before, FOREIGN, labels);
            (gained > 0.0).then_some(gained)
        });
        println!("a worker used {worked:.4} s for 500 connections, seen as relay: {relay:.4} s");
        assert!((relay - worked).abs() <= 0.1 * worked + 0.005, "it used {worked} s, and {relay} s were seen");
    });
}
