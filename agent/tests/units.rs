//! What `make install` puts into /etc and systemd's directories, held against systemd and against the agent itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sherd::config::AgentConfig;
use sherd_testkit::{Need, needs};

const UNITS: [&str; 2] = ["sherd.service", "sherd-holder.service"];

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    if !needs("systemd_has_nothing_to_say_about_the_units", &[Need::Program("systemd-analyze")]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary directory");
    for unit in UNITS {
        // The program must exist for systemd to be content, and nothing is installed here.
        let text = read(unit).replace("/usr/local/bin/sherd", env!("CARGO_BIN_EXE_sherd"));
        fs::write(folder.path().join(unit), text).expect("a temporary file");
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(UNITS.map(|unit| folder.path().join(unit)))
        .output()
        .expect("systemd-analyze runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// The figure of `systemd-analyze security` for the agent, in tenths; a line that goes away shows here.
#[test]
fn exposure_does_not_grow() {
    if !needs("exposure_does_not_grow", &[Need::Program("systemd-analyze")]) {
        return;
    }
    // One of the agent's is for fsopen, fsconfig and fsmount: systemd counts any call of @mount as all of it. mount and
    // move_mount, which could change what anybody sees, stay out.
    for (unit, bound) in [("sherd.service", "41"), ("sherd-holder.service", "15")] {
        let output = Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=yes", "--threshold", bound])
            .arg(folder().join(unit))
            .output()
            .expect("systemd-analyze runs");
        let text = String::from_utf8_lossy(&output.stdout);
        println!("{unit}: {}", text.lines().last().unwrap_or_default());
        assert!(output.status.success(), "{unit}: more than {bound}\n{text}");
    }
}

#[test]
fn every_capability_says_why() {
    let text = read("sherd.service");
    let set = text.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
    let reasons = text.lines().filter_map(|line| line.strip_prefix("#   "));
    let mut explained: Vec<_> = reasons.filter_map(|line| line.split("  ").next()).collect();
    let mut listed: Vec<_> = set.split(' ').map(|capability| capability.strip_prefix("CAP_").expect("CAP_…")).collect();
    explained.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, explained);
}

#[test]
fn commands_of_the_units_exist() {
    for unit in UNITS {
        let text = read(unit);
        let command =
            text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/sherd ")).expect("ExecStart");
        let words = command.split(' ').take_while(|word| !word.starts_with('-'));
        let help = Command::new(env!("CARGO_BIN_EXE_sherd")).args(words).arg("--help").output().expect("sherd runs");
        assert!(help.status.success(), "{unit}: {help:?}");
        for flag in command.split(' ').filter(|word| word.starts_with("--")) {
            assert!(String::from_utf8_lossy(&help.stdout).contains(flag), "{unit}: {flag}");
        }
    }
}

/// The example shows every key with its default, commented out; with the comments gone it must mean the same as nothing.
#[test]
fn the_example_settings_are_the_defaults() {
    let text = read("sherd.toml");
    let is_setting = |line: &&str| {
        line.strip_prefix('#').is_some_and(|line| line.starts_with(|c: char| c.is_ascii_lowercase() || c == '['))
    };
    let settings: Vec<_> = text.lines().filter(is_setting).map(|line| &line[1..]).collect();
    let given = AgentConfig::parse("sherd.toml", &settings.join("\n")).expect("the example is right");
    let nothing = AgentConfig::parse("sherd.toml", &text).expect("an empty file is right");
    assert_eq!(given.docker.socket(), nothing.docker.socket());
    assert_eq!(AgentConfig { docker: nothing.docker.clone(), ..given }, nothing);
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd")
}

fn read(file: &str) -> String {
    fs::read_to_string(folder().join(file)).expect("it is in systemd/")
}
