//! Whose CPU time it was: a busy neighbour beside a shard is seen, and the shard's own work is not taken for it.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::{
    metrics::{scrape, sum},
    world::{World, signal},
};

const FOREIGN: &str = "sherd_slot_foreign_cpu_seconds_total";

/// How long somebody is busy.
const BUSY: Duration = Duration::from_secs(2);

/// What a process has used, in seconds (its main thread's schedstat; it has no other).
fn used(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("schedstat");
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
        let before = first_look();
        // By a real-time policy, because whoever else is busy on this machine would be seen too: the kernel leaves them 5 %.
        let mut busy = Command::new("chrt")
            .args(["-f", "1", "taskset", "-c", &cpus, "sh", "-c", "while :; do :; done"])
            .stdin(Stdio::null())
            .spawn()
            .expect("a neighbour");
        let start = Instant::now();
        eventually("it was busy long enough", 3 * BUSY, || (start.elapsed() >= BUSY).then_some(()));
        let seconds = used(busy.id());
        let after = scrape();
        busy.kill().expect("SIGKILL");
        busy.wait().expect("its end");
        let after = after.expect("metrics");
        let others = ",kind=\"others\"";
        let seen = of_slot(&after, FOREIGN, others) - of_slot(&before, FOREIGN, others);
        println!("a neighbour used {seconds:.3} s of CPU {cpus}, seen as others: {seen:.3} s");
        assert!(seconds > 0.5 * BUSY.as_secs_f64(), "it got {seconds} s only");
        assert!((seen - seconds).abs() <= 0.1 * seconds, "it used {seconds} s, and {seen} s were seen");
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
