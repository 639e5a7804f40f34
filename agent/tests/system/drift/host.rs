//! What the agent itself needs of its host: room on its disk, descriptors, and a clock. When it lacks them it says so, what
//! runs goes on, and it recovers.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use super::{Case, Events, counted, run};
use crate::{
    traffic::{Connection, ask},
    world::{World, demo_spec, signal},
};

fn address() -> SocketAddr {
    "127.0.0.1:8080".parse().expect("an address")
}

/// A file system of this size, until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(directory: &Path, size: &str) -> Self {
        fs::create_dir_all(directory).expect("a directory");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", directory.to_str().expect("a path")]);
        Self(directory.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        // What the agent's own directory could not be removed with.
        let _ = self.0.parent().map(fs::remove_dir_all);
    }
}

#[test]
fn a_full_disk_refuses_what_is_new_and_nothing_else() {
    let test = "a_full_disk_refuses_what_is_new_and_nothing_else";
    if !needs(test, &[Need::Root, Need::Bpf, Need::Program("mount")]) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::prepare(test, "off");
        let state = world.dir().join("state");
        let mounted = Mounted::at(&state, "4m");
        world.start(&[]);
        world.wait_for_api();
        world.apply("web", &demo_spec("web", 2, "8080:80", ""));
        let before = world.wait_ready("web", 2);
        let (events, stored) = (Events::of(&world), fs::read(state.join("groups/web.toml")).expect("it is stored"));
        let filling = state.join("filling");
        let fill = || {
            let mut file = fs::File::create(&filling).expect("a file");
            // Until there is no room at all.
            while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|len| len > 0) {}
        };
        let refused = || {
            let path = world.dir().join("other.toml");
            fs::write(&path, demo_spec("other", 1, "8081:80", "")).expect("a specification");
            let said = world.refused(&["apply", path.to_str().expect("a path")]);
            assert!(said.contains("other") && said.contains("No space left"), "{said}");
            let changed = world.dir().join("changed.toml");
            fs::write(&changed, demo_spec("web", 1, "8080:80", "")).expect("a specification");
            world.refused(&["apply", changed.to_str().expect("a path")]);
            assert!(world.slots("other").is_empty());
            assert_eq!(fs::read(state.join("groups/web.toml")).expect("it is stored"), stored);
            // A shard that ends meanwhile is made again.
            signal(u32::try_from(before[0]["pid"].as_u64().expect("a pid")).expect("a pid"), Signal::SIGKILL);
            world.wait_ready("web", 2);
            ask(address()).expect("it serves");
            fs::remove_file(&filling).expect("its removal");
        };
        Case { repeats: 1, ..Case::of("disk") }.check(&events, fill, refused, || true);
        assert_eq!(world.slots("web")[1]["pid"], before[1]["pid"], "what runs goes on");
        world.apply("other", &demo_spec("other", 1, "8081:80", ""));
        world.wait_ready("other", 1);
        drop(events);
        drop(world);
        drop(mounted);
    });
}

fn open_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the agent's descriptors").count()
}

/// The soft limit alone: not everybody may raise the other one again.
fn limit(pid: u32, limit: &str) {
    run("prlimit", &["--pid", &pid.to_string(), &format!("--nofile={limit}:")]);
}

/// The agent is left with a few descriptors: it says which limit it is, what is connected stays so, what comes waits, and is
/// served when there are more.
#[test]
fn without_descriptors_nobody_is_cut_off() {
    let test = "without_descriptors_nobody_is_cut_off";
    if !needs(test, &[Need::Root, Need::Bpf, Need::Program("prlimit")]) {
        return;
    }
    in_new_netns(move || {
        let world = World::new(test);
        world.apply("web", &demo_spec("web", 2, "8080:80", ""));
        let before = world.wait_ready("web", 2);
        let (events, agent) = (Events::of(&world), world.agent_pid());
        let mut there: Vec<Connection> = (0..20).map(|_| Connection::open(address()).expect("it listens")).collect();
        there.iter_mut().for_each(|connection| drop(connection.get().expect("an answer")));
        let former = fs::read_to_string(format!("/proc/{agent}/limits")).expect("its limits");
        let former = former.lines().find(|line| line.starts_with("Max open files")).expect("a limit").to_owned();
        let hard = former.split_whitespace().nth(4).expect("the hard limit").to_owned();
        let few = open_descriptors(agent) + 4;
        limit(agent, &few.to_string());
        let come = Instant::now();
        let mut waiting: Vec<Connection> = (0..40).map(|_| Connection::open(address()).expect("it listens")).collect();
        let told = events.wait(("drift", "descriptors: ", 0), Duration::from_secs(30));
        let message = events.of_kind("drift", "descriptors: ")[0].1["message"].to_string();
        assert!(message.contains("RLIMIT_NOFILE") && message.contains(&few.to_string()), "{message}");
        there.iter_mut().for_each(|connection| drop(connection.get().expect("it stays connected")));
        limit(agent, &hard);
        let mended = events.wait(("drift-repaired", "descriptors", 0), Duration::from_secs(40));
        assert!(counted("descriptors") >= 1.0);
        there.iter_mut().for_each(|connection| drop(connection.get().expect("it stays connected")));
        waiting.iter_mut().for_each(|connection| drop(connection.get().expect("whoever waited is served")));
        eprintln!("descriptors: told after {:.3?}, mended after {:.3?}", told - come, mended - come);
        let pids = |slots: &[serde_json::Value]| slots.iter().map(|slot| slot["pid"].clone()).collect::<Vec<_>>();
        assert_eq!(pids(&world.wait_ready("web", 2)), pids(&before), "what runs goes on");
    });
}

/// A library that puts a clock of the test's own in the place of the wall clock, for one process and what it starts.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long long *ahead_s;
__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SHERD_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) ahead_s = map;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    long result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_REALTIME && ahead_s) time->tv_sec += *ahead_s;
    return (int)result;
}
"#;

/// The agent's wall clock is a year ahead, and then two years behind: it is said, and nothing else happens. The host's
/// clock is not touched.
#[test]
fn a_clock_that_jumps_decides_nothing() {
    let test = "a_clock_that_jumps_decides_nothing";
    if !needs(test, &[Need::Root, Need::Bpf, Need::Program("cc")]) {
        return;
    }
    in_new_netns(move || {
        let mut world = World::prepare(test, "off");
        let (source, library) = (world.dir().join("clock.c"), world.dir().join("clock.so"));
        fs::write(&source, CLOCK).expect("its source");
        run(
            "cc",
            &["-shared", "-fPIC", "-O1", "-o", library.to_str().expect("a path"), source.to_str().expect("a path")],
        );
        let clock = world.dir().join("ahead");
        // Never shorter than it is mapped.
        let file = fs::File::create(&clock).expect("a file");
        let set = |ahead_s: i64| file.write_all_at(&ahead_s.to_ne_bytes(), 0).expect("the clock");
        set(0);
        let path = |path: &Path| path.to_str().expect("a path").to_owned();
        world.start(&[("LD_PRELOAD", &path(&library)), ("SHERD_TEST_CLOCK", &path(&clock))]);
        world.wait_for_api();
        let more = "[backoff]\nfirst = \"100ms\"\nmax = \"1s\"\n[readiness]\nstart_period = \"5s\"\n";
        world.apply("web", &demo_spec("web", 2, "8080:80", "").replace("[layout]", &format!("{more}[layout]")));
        let before = world.wait_ready("web", 2);
        let events = Events::of(&world);
        let (year_s, mut times) = (365 * 86_400, Vec::new());
        for ahead_s in [year_s, -2 * year_s] {
            let told = events.of_kind("drift", "clock: ").len();
            let began = Instant::now();
            set(ahead_s);
            times.push(events.wait(("drift", "clock: ", told), Duration::from_secs(20)) - began);
            // A shard that ends now is back as soon as ever.
            let pid = || u32::try_from(world.slots("web")[0]["pid"].as_u64()?).ok();
            let kill = || signal(eventually("it runs", Duration::from_secs(20), pid), Signal::SIGKILL);
            let bound = Duration::from_secs(10);
            let ready = || world.slots("web")[0]["ready"] == true;
            Case { repeats: 1, bound, ..Case::of("killed") }.check(&events, kill, || {}, ready);
        }
        times.sort();
        eprintln!("clock: told after {:.3?} (median), {:.3?} (worst)", times[0], times[1]);
        assert!(counted("clock") >= 2.0);
        let after = world.wait_ready("web", 2);
        assert_eq!((&after[1]["pid"], &after[1]["restarts"]), (&before[1]["pid"], &before[1]["restarts"]));
        ask(address()).expect("it serves");
        world.sherd(&["ps"]);
    });
}
