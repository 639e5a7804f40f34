//! How long eBPF programs ran: kernel.bpf_stats_enabled, switched on for as long as this is held, and what bpftool(8) says
//! of programs then.
//!
//! The switch is the whole host's and outlives whoever turned it, so its former state is written into the run's directory
//! before it is turned: whoever survives the run puts it back. While it is on, each run of a program takes two more readings
//! of the clock; nothing else is measured meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// In the scratch directory: what the switch was.
const RECORD: &str = "bpf-stats";

/// Run times are counted while this is there.
#[derive(Debug)]
pub struct BpfStats {
    switch: PathBuf,
    /// Where its former state is, if this turned it.
    record: Option<PathBuf>,
}

impl BpfStats {
    /// Turns counting on; where it is on already, somebody else's will stays.
    pub fn enable(scratch: &Path) -> io::Result<Self> {
        Self::enable_at(Path::new(SWITCH), scratch)
    }

    fn enable_at(switch: &Path, scratch: &Path) -> io::Result<Self> {
        let former = fs::read_to_string(switch)?;
        if former.trim() != "0" {
            return Ok(Self { switch: switch.to_owned(), record: None });
        }
        let record = scratch.join(RECORD);
        fs::write(&record, &former)?;
        let stats = Self { switch: switch.to_owned(), record: Some(record) };
        fs::write(switch, "1\n")?;
        Ok(stats)
    }

    /// Whether it still counts: others have the same switch.
    pub fn still_counts(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(&self.switch)?.trim() != "0")
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        if let Some(record) = &self.record {
            // What fails here the keeper does.
            let _ = put_back(&self.switch, record);
        }
    }
}

/// Puts back what the run in `scratch` has turned, if it did and hasn't yet.
pub fn restore(scratch: &Path) -> io::Result<()> {
    let record = scratch.join(RECORD);
    if record.exists() { put_back(Path::new(SWITCH), &record) } else { Ok(()) }
}

fn put_back(switch: &Path, record: &Path) -> io::Result<()> {
    // An empty record was being written: nothing had been turned.
    let former = fs::read_to_string(record)?;
    if !former.trim().is_empty() {
        fs::write(switch, former)?;
    }
    fs::remove_file(record)
}

/// What a program ran since it was loaded, while it was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct BpfTime {
    /// How long, on all CPUs together.
    pub nanos: u64,
    /// How often.
    pub runs: u64,
}

/// Programs that belong together, by their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BpfPrograms(BTreeSet<u64>);

impl BpfPrograms {
    /// Those that `processes` hold descriptors of, and those that are attached to `cgroup` and below: nobody need hold them.
    pub fn of(processes: &[Pid], cgroup: Option<&Path>) -> io::Result<Self> {
        let mut ids = BTreeSet::new();
        for pid in processes {
            for descriptor in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
                // One that was closed since holds nothing any more.
                let Ok(text) = fs::read_to_string(descriptor?.path()) else { continue };
                ids.extend(program_id(&text));
            }
        }
        if let Some(cgroup) = cgroup {
            ids.extend(attached(&bpftool(&["cgroup".as_ref(), "tree".as_ref(), cgroup.as_os_str()])?));
        }
        Ok(Self(ids))
    }

    /// What they ran until now, by name; programs of one name together.
    pub fn times(&self) -> io::Result<BTreeMap<String, BpfTime>> {
        let shown = bpftool(&["prog", "show"].map(OsStr::new))?;
        let mut times: BTreeMap<String, BpfTime> = BTreeMap::new();
        for (id, name, time) in shown.as_array().into_iter().flatten().filter_map(program) {
            if self.0.contains(&id) {
                let sum = times.entry(name).or_default();
                (sum.nanos, sum.runs) = (sum.nanos + time.nanos, sum.runs + time.runs);
            }
        }
        Ok(times)
    }
}

/// A program's id, of a descriptor of one (bpf_prog_show_fdinfo in kernel/bpf/syscall.c).
fn program_id(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("prog_id:"))?.trim().parse().ok()
}

/// `[{"cgroup": "/a", "programs": [{"id": 7, "attach_type": "cgroup_inet4_bind", …}, …]}, …]`.
fn attached(tree: &Value) -> Vec<u64> {
    let cgroups = tree.as_array().into_iter().flatten();
    let programs = cgroups.filter_map(|cgroup| cgroup["programs"].as_array()).flatten();
    programs.filter_map(|program| program["id"].as_u64()).collect()
}

/// `{"id": 7, "name": "steer", "run_time_ns": 29872, "run_cnt": 64, …}`; what never ran has no times.
fn program(shown: &Value) -> Option<(u64, String, BpfTime)> {
    let count = |field: &str| shown[field].as_u64().unwrap_or(0);
    let name = shown["name"].as_str().unwrap_or("without a name").to_owned();
    Some((shown["id"].as_u64()?, name, BpfTime { nanos: count("run_time_ns"), runs: count("run_cnt") }))
}

fn bpftool(words: &[&OsStr]) -> io::Result<Value> {
    let output = match Command::new("bpftool").arg("--json").args(words).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(io::Error::other("bpftool is missing; to install it: apt-get install bpftool"));
        }
        other => other?,
    };
    if !output.status.success() {
        return Err(io::Error::other(format!("bpftool: {}", String::from_utf8_lossy(&output.stdout).trim())));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn programs_are_found_by_descriptors_and_cgroups() {
        let text = "pos:\t0\nflags:\t02\nprog_type:\t21\nprog_jited:\t1\nprog_id:\t7\nrun_cnt:\t3\n";
        assert_eq!(program_id(text), Some(7));
        assert_eq!(program_id("pos:\t0\nflags:\t02\nmap_type:\t1\nmap_id:\t9\n"), None);
        let tree =
            json!([{ "cgroup": "/a", "programs": [{ "id": 8 }, { "id": 9 }] }, { "cgroup": "/a/b", "programs": [] }]);
        assert_eq!(attached(&tree), [8, 9]);
        assert_eq!(attached(&json!([])), [0; 0]);
    }

    #[test]
    fn what_never_ran_has_no_times() {
        let ran = json!({ "id": 7, "name": "steer", "run_time_ns": 1200, "run_cnt": 3 });
        assert_eq!(program(&ran), Some((7, "steer".into(), BpfTime { nanos: 1200, runs: 3 })));
        assert_eq!(program(&json!({ "id": 8, "name": "bind4" })), Some((8, "bind4".into(), BpfTime::default())));
        assert_eq!(program(&json!({ "error": "no" })), None);
    }

    fn check(former: &str, while_held: &str) {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let switch = directory.path().join("switch");
        let state = || fs::read_to_string(&switch).expect("it is there");
        fs::write(&switch, former).expect("writable");
        let stats = BpfStats::enable_at(&switch, directory.path()).expect("it can be turned");
        assert_eq!(state(), while_held);
        assert!(stats.still_counts().expect("readable"));
        drop(stats);
        assert_eq!(state(), former);
        assert!(!directory.path().join(RECORD).exists());
    }

    #[test]
    fn the_switch_is_put_back() {
        check("0\n", "1\n");
        check("1\n", "1\n");
    }

    #[test]
    fn who_survives_a_killed_run_puts_the_switch_back() {
        let directory = tempfile::tempdir().expect("a directory for the test");
        let (switch, record) = (directory.path().join("switch"), directory.path().join(RECORD));
        fs::write(&switch, "0\n").expect("writable");
        std::mem::forget(BpfStats::enable_at(&switch, directory.path()).expect("it can be turned"));
        put_back(&switch, &record).expect("it is put back");
        assert_eq!(fs::read_to_string(&switch).expect("it is there"), "0\n");
        restore(directory.path()).expect("nothing to put back");
    }
}
