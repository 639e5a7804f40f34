//! Processes and units: the agent, its holder, and who else matters.

use std::{fs, path::Path};

use super::{Tree, unread};
use crate::doctor::facts::{Fact, ProcessFacts, ProcessesFacts, UnitFacts};

/// Files of a process that are counted.
const MAX_FILES: usize = 10_000_000;
/// Where units are looked for (systemd.unit(5)).
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

pub(super) fn facts(tree: &Tree, agent: Option<u32>, run_dir: &Path) -> ProcessesFacts {
    let of = |pid: Option<u32>| pid.map(|pid| process(tree, pid));
    // It was started with the directory's name as its agent was given it, which may lead over a link.
    let direct = fs::canonicalize(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let sockets = [run_dir, &direct].map(|directory| directory.join("holder.sock").display().to_string());
    let holder = holder(tree, &sockets);
    ProcessesFacts { agent: Ok(of(agent)), holder: holder.map(of) }
}

/// The first process with this name.
pub(super) fn named(tree: &Tree, name: &str) -> Fact<u32> {
    find(tree, |pid| Ok(tree.text(&format!("/proc/{pid}/comm"))?.is_some_and(|comm| comm.trim_end() == name)))
}

/// `sherd holder … --socket SOCKET`.
fn holder(tree: &Tree, sockets: &[String]) -> Fact<u32> {
    find(tree, |pid| {
        let line = tree.text(&format!("/proc/{pid}/cmdline"))?.unwrap_or_default();
        let words: Vec<&str> = line.split('\0').collect();
        Ok(words.get(1) == Some(&"holder") && sockets.iter().any(|socket| words.contains(&socket.as_str())))
    })
}

fn find(tree: &Tree, is_it: impl Fn(u32) -> Result<bool, super::Unread>) -> Fact<u32> {
    let mut pids: Vec<u32> = match tree.names("/proc")? {
        Some(names) => names.iter().filter_map(|name| name.parse().ok()).collect(),
        None => return Err(unread("/proc", &"it is not mounted")),
    };
    pids.sort_unstable();
    for pid in pids {
        if is_it(pid)? {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

fn process(tree: &Tree, pid: u32) -> ProcessFacts {
    let file = |name: &str| format!("/proc/{pid}/{name}");
    ProcessFacts {
        pid,
        capabilities: tree.parsed(&file("status"), |text| {
            let mask = text.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        }),
        max_files: tree.parsed(&file("limits"), |text| {
            let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
            match line.split_whitespace().next()? {
                "unlimited" => Some(u64::MAX),
                soft => soft.parse().ok(),
            }
        }),
        open_files: open_files(tree, &file("fd")),
        // The kernel says so in the link (proc_pid_exe(5)).
        is_replaced: tree.link(&file("exe")).map(|exe| exe.map(|exe| exe.ends_with(" (deleted)"))),
    }
}

/// Without a list of them: there may be millions.
fn open_files(tree: &Tree, directory: &str) -> Fact<u64> {
    let count = fs::read_dir(tree.path(directory)).map(|entries| entries.take(MAX_FILES).count() as u64);
    super::found(directory, count)
}

pub(super) fn units(tree: &Tree) -> Fact<UnitFacts> {
    // sd_booted(3).
    if !tree.exists("/run/systemd/system") {
        return Ok(None);
    }
    let installed = UNIT_DIRECTORIES.iter().any(|directory| tree.exists(&format!("{directory}/sherd.service")));
    Ok(Some(UnitFacts {
        installed,
        agent_enabled: is_enabled(tree, "sherd.service")?,
        holder_enabled: is_enabled(tree, "sherd-holder.service")?,
    }))
}

/// Whether some target wants it.
fn is_enabled(tree: &Tree, unit: &str) -> Result<bool, super::Unread> {
    let directory = "/etc/systemd/system";
    let names = tree.names(directory)?.unwrap_or_default();
    Ok(names
        .iter()
        .filter(|name| name.ends_with(".wants"))
        .any(|target| tree.exists(&format!("{directory}/{target}/{unit}"))))
}
