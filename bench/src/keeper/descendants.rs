//! Which processes descend from one; reads /proc and ends nothing.

use std::{collections::HashMap, fs};

use nix::unistd::Pid;

/// All that descend from `ancestor` now, nearest first. Processes that end while they are looked at are left out.
pub fn descendants(ancestor: Pid) -> Vec<Pid> {
    let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for (pid, parent) in all_processes() {
        children.entry(parent).or_default().push(pid);
    }
    let mut found = children.remove(&ancestor).unwrap_or_default();
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        let further = children.remove(pid).unwrap_or_default();
        found.extend(further);
        next += 1;
    }
    found
}

fn all_processes() -> impl Iterator<Item = (Pid, Pid)> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        Some((Pid::from_raw(pid), Pid::from_raw(parent_of(&stat)?)))
    })
}

/// The fourth field of /proc/PID/stat. The second is a name in parentheses that may hold anything, also `) R 1`.
fn parent_of(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_cannot_lie() {
        assert_eq!(parent_of("12 (cat) S 7 12 12 0"), Some(7));
        assert_eq!(parent_of("12 (a) R 1 (b) S 7 12 12 0"), Some(7));
        assert_eq!(parent_of("12 (cat"), None);
    }

    #[test]
    fn grandchildren_are_found() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().expect("sh exists");
        let shell = Pid::from_raw(child.id() as i32);
        let grandchildren = sherd_testkit::eventually("the shell's child", std::time::Duration::from_secs(10), || {
            let found = descendants(shell);
            (!found.is_empty()).then_some(found)
        });
        assert!(descendants(Pid::this()).contains(&grandchildren[0]));
        for pid in grandchildren.into_iter().chain([shell]) {
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("ours");
        }
        child.wait().expect("killed");
    }
}
