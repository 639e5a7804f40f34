//! What is left after many shards have come and gone: nothing.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use nix::sys::signal::Signal;
use sherd_testkit::{Need, eventually, in_new_netns, needs};

use crate::world::{World, demo_spec, scaled, signal};

/// What the agent holds, by kind.
pub(crate) fn holdings(pid: u32) -> BTreeMap<&'static str, usize> {
    let count = |directory: &str| fs::read_dir(format!("/proc/{pid}/{directory}")).map_or(0, Iterator::count);
    BTreeMap::from([("threads", count("task")), ("descriptors", count("fd"))])
}

/// Network namespaces that any process or descriptor keeps, and cgroups of the instance.
fn outside(instance: &str) -> BTreeMap<&'static str, usize> {
    let mut namespaces = std::collections::BTreeSet::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        for link in ["ns/net"] {
            if let Ok(target) = fs::read_link(entry.path().join(link)) {
                namespaces.insert(target);
            }
        }
    }
    BTreeMap::from([("namespaces", namespaces.len()), ("cgroups", cgroups(Path::new("/sys/fs/cgroup"), instance))])
}

fn cgroups(directory: &Path, instance: &str) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .map(|entry| {
            let ours = entry.path().display().to_string().contains(instance);
            usize::from(ours) + cgroups(&entry.path(), instance)
        })
        .sum()
}

#[test]
fn many_restarts_leave_nothing() {
    if !needs("many_restarts_leave_nothing", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let world = World::new("many_restarts_leave_nothing");
        world.apply("web", &demo_spec("web", 2, "8080:80", "[backoff]\nfirst = \"1ms\"\nmax = \"1ms\""));
        world.wait_ready("web", 2);
        let restarts = scaled(20, 100);
        let restart = |times: usize| {
            for _ in 0..times {
                let slots = world.slots("web");
                let slot = &slots[0];
                let (pid, count) = (slot["pid"].as_u64().expect("a pid"), slot["restarts"].as_u64().expect("a count"));
                signal(u32::try_from(pid).expect("a pid"), Signal::SIGKILL);
                eventually("it is restarted", Duration::from_secs(20), || {
                    let slots = world.slots("web");
                    (slots[0]["ready"] == true && slots[0]["restarts"].as_u64() > Some(count)).then_some(())
                });
            }
        };
        // The first ones fill caches and pools.
        restart(3);
        let pid = world.agent_pid();
        let (before, before_outside) = (holdings(pid), outside(world.instance()));
        restart(restarts);
        eventually("nothing is left over", Duration::from_secs(20), || {
            let (after, after_outside) = (holdings(pid), outside(world.instance()));
            // Blocking threads of the runtime come and go: fewer is no leak.
            let grown: Vec<_> = after.iter().filter(|(kind, count)| **count > before[*kind]).collect();
            let grown_outside: Vec<_> =
                after_outside.iter().filter(|(kind, count)| **count > before_outside[*kind]).collect();
            eprintln!("{restarts} restarts: {before:?} -> {after:?}; {before_outside:?} -> {after_outside:?}");
            (grown.is_empty() && grown_outside.is_empty()).then_some(())
        });
    });
}
