//! Trees of files as kernels of both control group versions present them, and this kernel.

use super::*;

#[test]
fn hierarchies_are_found_behind_their_roots() {
    let mounts = Mounts::parse(
        "30 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
         31 25 0:27 /docker/x /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
         32 25 0:28 / /proc rw - proc proc rw\n",
    );
    let check = |controller, path, expected: Option<&str>| {
        assert_eq!(mounts.directory(controller, Path::new(path)), expected.map(PathBuf::from), "{controller} {path}");
    };
    check("", "/a", Some("/sys/fs/cgroup/unified/a"));
    check("cpuacct", "/docker/x/y", Some("/sys/fs/cgroup/cpu,cpuacct/y"));
    check("memory", "/a", None);
}

#[test]
fn this_process_has_used_time_and_memory() {
    let usage = UsageReader::new().of_self();
    assert!(usage.cpu_seconds >= 0.0 && usage.memory_bytes.is_some_and(|bytes| bytes > 0), "{usage:?}");
}

#[test]
fn a_child_is_counted_and_a_missing_process_left_out() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let usage = UsageReader::new().of_shards([child.id(), u32::MAX]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(usage.keys().copied().collect::<Vec<_>>(), [child.id()]);
}

/// A root with these files, a shard with pid 7 and the agent in /agent.
fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, UsageReader) {
    let root = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let reader = UsageReader::below(root.path().to_owned());
    (root, reader)
}

const STAT: (&str, &str) = ("proc/7/stat", "7 (a) b) S 1 7 7 0 -1 4194560 90 0 0 0 150 50 25 25 20 0 1 0 9 0 0");
const STATM: (&str, &str) = ("proc/7/statm", "900 3 1 1 0 1 0");

fn check(what: &str, files: &[(&str, &str)], expected: &Usage) {
    let (_root, reader) = tree(&[files, &[STAT, STATM]].concat());
    assert_eq!(reader.of_shards([7]).get(&7), Some(expected), "{what}");
}

#[test]
fn a_shard_is_counted_where_its_control_group_counts() {
    let page = UsageReader::new().page_bytes;
    let tick = UsageReader::new().ticks_per_second;
    let by_process = Usage { cpu_seconds: 250.0 / tick, memory_bytes: Some(3 * page), ..Usage::default() };
    check(
        "v2 with every controller",
        &[
            ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"),
            ("proc/self/cgroup", "0::/system.slice/sherd.service/agent\n"),
            ("proc/7/cgroup", "0::/system.slice/docker-1.scope\n"),
            (
                "sys/fs/cgroup/system.slice/docker-1.scope/cpu.stat",
                "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 9\nnr_throttled 3\nthrottled_usec 125000\nnr_bursts 0\nburst_usec 0\n",
            ),
            ("sys/fs/cgroup/system.slice/docker-1.scope/memory.current", "8192\n"),
            ("sys/fs/cgroup/system.slice/docker-1.scope/memory.numa_stat", "anon N0=4096 N1=1024\nfile N0=0 N1=512\n"),
        ],
        &Usage {
            cpu_seconds: 2.5,
            throttled_seconds: Some(0.125),
            throttled_periods: Some(3),
            memory_bytes: Some(8192),
            memory_by_node: BTreeMap::from([(NodeId(0), 4096), (NodeId(1), 1536)]),
        },
    );
    check(
        "v1",
        &[
            (
                "proc/self/mountinfo",
                "31 25 0:27 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n32 25 0:28 / /cg/memory rw - cgroup cgroup rw,memory\n",
            ),
            ("proc/self/cgroup", "4:memory:/\n2:cpu,cpuacct:/\n"),
            ("proc/7/cgroup", "4:memory:/docker/1\n2:cpu,cpuacct:/docker/1\n"),
            ("cg/cpu/docker/1/cpuacct.usage", "1500000000\n"),
            ("cg/cpu/docker/1/cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 250000000\n"),
            ("cg/memory/docker/1/memory.usage_in_bytes", "4096\n"),
            ("cg/memory/docker/1/memory.numa_stat", "total=9 N0=9\nhierarchical_total=2 N0=1 N1=1\n"),
        ],
        &Usage {
            cpu_seconds: 1.5,
            throttled_seconds: Some(0.25),
            throttled_periods: Some(2),
            memory_bytes: Some(4096),
            memory_by_node: BTreeMap::from([(NodeId(0), page), (NodeId(1), page)]),
        },
    );
    let hybrid =
        "31 25 0:27 / /cg/memory rw - cgroup cgroup rw,memory\n32 25 0:28 / /cg/unified rw - cgroup2 cgroup2 rw\n";
    check(
        "hybrid: a process shard's own group has no controller, and its memory is charged to the agent's",
        &[
            ("proc/self/mountinfo", hybrid),
            ("proc/self/cgroup", "4:memory:/user\n0::/\n"),
            ("proc/7/cgroup", "4:memory:/user\n0::/sherd/default/web-0\n"),
            ("cg/unified/sherd/default/web-0/cpu.stat", "usage_usec 750000\n"),
            ("cg/memory/user/memory.usage_in_bytes", "1\n"),
        ],
        &Usage { cpu_seconds: 0.75, memory_bytes: Some(3 * page), ..Usage::default() },
    );
    check(
        "the agent's own group counts others too: only the process is left",
        &[
            ("proc/self/mountinfo", hybrid),
            ("proc/self/cgroup", "0::/same\n"),
            ("proc/7/cgroup", "0::/same\n"),
            ("cg/unified/same/cpu.stat", "usage_usec 750000\n"),
        ],
        &by_process,
    );
    check("no control groups", &[("proc/7/cgroup", "")], &by_process);
}

/// The kernel's own numbers of a real control group, where this host has version 1.
#[test]
fn a_real_group_of_version_1_counts_what_is_in_it() {
    let [cpuacct, memory] = ["cpuacct", "memory"].map(|name| {
        let directory = Path::new("/sys/fs/cgroup").join(name);
        directory.join("cgroup.procs").exists().then(|| directory.join(format!("sherd-test-{}", std::process::id())))
    });
    let (Some(cpuacct), Some(memory)) = (cpuacct, memory) else {
        println!("SKIPPED a_real_group_of_version_1_counts_what_is_in_it: no control groups of version 1");
        return;
    };
    for group in [&cpuacct, &memory] {
        if let Err(error) = std::fs::create_dir(group) {
            println!("SKIPPED a_real_group_of_version_1_counts_what_is_in_it: {}: {error}", group.display());
            return;
        }
    }
    let script = "for group; do echo $$ >$group/cgroup.procs; done; n=0; while [ $n -lt 300000 ]; do n=$((n + 1)); done; echo; read end";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", script, "sh"]).args([&cpuacct, &memory]);
    let piped = std::process::Stdio::piped;
    let mut child = command.stdin(piped()).stdout(piped()).spawn().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut String::new())
        .unwrap();
    let reader = UsageReader::new();
    let found = reader.of_shards([child.id()]).remove(&child.id()).unwrap();
    let process = reader.of_process(&child.id().to_string()).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    for group in [&cpuacct, &memory] {
        std::fs::remove_dir(group).unwrap();
    }
    assert!(found.cpu_seconds > 0.0 && (found.cpu_seconds - process.cpu_seconds).abs() < 0.1, "{found:?}, {process:?}");
    assert!(found.memory_bytes.is_some_and(|bytes| bytes > 0) && !found.memory_by_node.is_empty(), "{found:?}");
}
