//! The real binary against an agent with a fake reconcile loop: what is printed, where, and with which exit code.

#[allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#[path = "fake/agent.rs"]
mod fake_agent;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use fake_agent::{FakeAgent, group};

fn sherd(run_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sherd"));
    command.args(args).env("SHERD_RUN_DIR", run_dir).env_remove("NO_COLOR").env_remove("COLUMNS").stdin(Stdio::null());
    command
}

fn agent() -> FakeAgent {
    FakeAgent::start(vec![group("web", ["ready", "ready"]), group("bad", ["ready", "failed"])])
}

/// Exit code, standard output and standard error.
fn said(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn check(run_dir: &Path, args: &[&str], code: i32, out: &[&str], err: &[&str]) {
    let (found, stdout, stderr) = said(sherd(run_dir, args).output().unwrap());
    assert_eq!(found, Some(code), "{args:?}\n{stdout}\n{stderr}");
    for part in out {
        assert!(stdout.contains(part), "{args:?}: {part:?} is not in\n{stdout}");
    }
    for part in err {
        assert!(stderr.contains(part), "{args:?}: {part:?} is not in\n{stderr}");
    }
    assert!(!err.is_empty() || stderr.is_empty(), "{args:?}: {stderr}");
}

fn spec(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn ps_is_one_line_per_slot_in_every_column() {
    let agent = agent();
    let (code, out, err) = said(sherd(agent.run_dir(), &["ps"]).output().unwrap());
    assert_eq!(code, Some(0));
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    let heading = ["GROUP", "SLOT", "CPUS", "NODE", "STATE", "PATH", "CONNS", "SHARD", "UPTIME", "RESTARTS", "PORTS"];
    assert_eq!(lines[0], heading);
    assert_eq!(lines.len(), 5, "{out}");
    assert!(lines.iter().all(|line| line.len() == 11), "{out}");
    assert_eq!(lines[2][..8], ["web", "1", "1", "0", "ready", "relay", "3", "111111111111"]);
    assert_eq!(lines[2][10], ":8080->80");
    assert!(err.contains("bad/1 is failed: exited with code 1"), "{err}");
    let (_, json, _) = said(sherd(agent.run_dir(), &["ps", "--json"]).output().unwrap());
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["groups"][1]["slots"][1]["state"], "failed");
}

#[test]
fn top_is_one_line_per_slot_in_every_column() {
    let agent = agent();
    let (code, out, err) = said(sherd(agent.run_dir(), &["top", "web", "--no-stream"]).output().unwrap());
    assert_eq!((code, &*err), (Some(0), ""));
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 3, "{out}");
    assert!(lines.iter().all(|line| line.len() == 13), "{out}");
    assert_eq!(lines[0][..6], ["GROUP", "SLOT", "CPUS", "STATE", "CPU", "OTHERS"]);
    assert_eq!(lines[2][..4], ["web", "1", "1", "ready"]);
    // Of a real process, this one: it has used some CPU time and memory.
    assert!(lines[1][4].parse::<f64>().is_ok_and(|percent| percent >= 0.0), "{out}");
    assert!(lines[1][9].ends_with("iB"), "{out}");
    check(agent.run_dir(), &["top", "nobody"], 1, &[], &["there is no group nobody with a slot", "`sherd ps`"]);
}

#[test]
fn doctor_works_with_an_agent_and_without() {
    let ends_as_it_says = |run_dir: &Path| {
        let (code, json, err) = said(sherd(run_dir, &["doctor", "--json"]).output().unwrap());
        assert_eq!(err, "");
        let diagnosis: sherd::doctor::Diagnosis = serde_json::from_str(&json).unwrap();
        let errors = diagnosis.count(sherd::doctor::Severity::Error);
        assert_eq!(code, Some(i32::from(errors > 0)), "{json}");
        diagnosis
    };
    let directory = tempfile::tempdir().unwrap();
    let alone = ends_as_it_says(directory.path());
    let agent = agent();
    let with_agent = ends_as_it_says(agent.run_dir());
    let about_agent = |diagnosis: &sherd::doctor::Diagnosis| {
        let mut found = diagnosis.findings.iter();
        found.any(|finding| finding.check == "agent" && finding.what.contains("nobody listens there"))
    };
    assert!(about_agent(&alone) && !about_agent(&with_agent));
    // The fake one has none.
    assert!(with_agent.findings.iter().any(|finding| finding.check == "holder"), "{with_agent:#?}");
    let (_, text, _) = said(sherd(directory.path(), &["doctor"]).output().unwrap());
    assert!(text.contains("        do:   systemctl start sherd") || text.contains("journalctl -u sherd"), "{text}");
    assert!(text.trim_end().ends_with(&format!("from {} checks", alone.checks)), "{text}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let agent = agent();
    let mut child = sherd(agent.run_dir(), &["ps"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let (code, _, err) = said(child.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{err}");
    assert!(!err.contains("panic"), "{err}");
}

#[test]
fn without_an_agent_the_error_says_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    for args in [&["ps"][..], &["top"], &["stop", "-g", "web"], &["logs", "web"], &["run", "nginx"]] {
        check(directory.path(), args, 1, &[], &["sherd: no sherd agent answers on", "systemctl start sherd"]);
    }
}

#[test]
fn run_waits_until_every_shard_is_ready() {
    let agent = agent();
    check(
        agent.run_dir(),
        &["run", "-g", "web", "-p", "8080:80", "nginx"],
        0,
        &["web: 2 shards ready on 0.0.0.0:8080 and [::]:8080"],
        &["web/0 is ready on CPUs 0"],
    );
    assert!(agent.asked()[0].starts_with("apply web dry_run=false"), "{:?}", agent.asked());
    check(agent.run_dir(), &["run", "-d", "-g", "web", "nginx"], 0, &["web applied"], &[]);
}

#[test]
fn run_says_which_shards_are_not_ready_and_what_they_wrote() {
    let agent = agent();
    check(
        agent.run_dir(),
        &["run", "-g", "bad", "nginx"],
        1,
        &[],
        &[
            "bad: 1 of 2 shards are not ready, they fail again and again",
            "bad/1 is failed: exited with code 1",
            "last lines of bad/1:\n  out of 1\n  err of 1",
        ],
    );
    let slow = FakeAgent::start(vec![group("web", ["ready", "starting"])]);
    check(slow.run_dir(), &["run", "--timeout", "300ms", "-g", "web", "nginx"], 1, &[], &["not ready, after 300ms"]);
}

#[test]
fn run_reports_every_wrong_flag_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let args = [
        "run",
        "-g",
        "Web",
        "-p",
        "53:53/udp",
        "-u",
        "cor",
        "-n",
        "0",
        "--cpus",
        "x",
        "-m",
        "1",
        "-e",
        "=x",
        "--path",
        "x",
        "Nginx",
    ];
    check(
        directory.path(),
        &args,
        1,
        &[],
        &[
            "sherd: -g: ",
            "sherd: -p 53:53/udp: `/udp` is not supported yet",
            "sherd: -u: must be one of",
            "sherd: -n: must be from 1 to 1024, not 0",
            "sherd: --cpus: `x` is not a CPU list",
            "sherd: -m: `1` is not a size",
            "sherd: -e : not the name",
            "sherd: --path: must be one of",
            "sherd: IMAGE: `Nginx` is not an image reference",
        ],
    );
    check(directory.path(), &["run", "--process", "-m", "1GiB", "x"], 1, &[], &["sherd: -m is for containers"]);
    let direct = ["run", "--process", "--path", "direct", "x"];
    check(directory.path(), &direct, 1, &[], &["sherd: --path: direct needs containers"]);
    check(directory.path(), &["run", "-e", "SHERD_NOT_SET", "x"], 1, &[], &["-e SHERD_NOT_SET: it is not set here"]);
    check(directory.path(), &["run"], 2, &[], &["required arguments were not provided"]);
}

#[test]
fn what_run_prints_can_be_applied() {
    let agent = agent();
    let body =
        spec(agent.run_dir(), "body.json", "{\"HostConfig\": {\"Init\": true, \"Dns\": null}, \"Hostname\": \"h\"}");
    let args = [
        "run",
        "--print",
        "-g",
        "web",
        "-p",
        "[::1]:8080:80",
        "-u",
        "l3",
        "-n",
        "2",
        "-c",
        &body,
        "-e",
        "A=b=c",
        "-v",
        "/a:/b:ro",
        "-m",
        "1g",
        "--ulimit",
        "nofile=1:2",
        "--log-driver",
        "json-file",
        "--log-opt",
        "max-size=1m",
        "--tmpfs",
        "/t:size=1m",
        "--label",
        "x=y",
        "nginx:1",
        "-g",
        "daemon off;",
    ];
    let (code, text, err) = said(sherd(agent.run_dir(), &args).output().unwrap());
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for line in [
        "unit = \"l3\"",
        "shards = 2",
        "image = \"nginx:1\"",
        "command = [\"-g\", \"daemon off;\"]",
        "memory = \"1GiB\"",
        "publish = \"[::1]:8080:80\"",
        "A = \"b=c\"",
        "Init = true",
        "Hostname = \"h\"",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let file = spec(agent.run_dir(), "web.toml", &text);
    check(agent.run_dir(), &["apply", "--dry-run", &file], 0, &["web would change"], &[]);
    check(agent.run_dir(), &["apply", "--wait", &file], 0, &["web applied", "2 shards ready"], &["web/0 is ready"]);
}

#[test]
fn apply_does_nothing_if_any_file_has_a_fault() {
    let agent = agent();
    let directory = agent.run_dir();
    let good = spec(directory, "good.toml", "name = \"web\"\n[container]\nimage = \"nginx\"\n");
    let again = spec(directory, "again.toml", "name = \"web\"\n[container]\nimage = \"nginx\"\n");
    let bad = spec(directory, "bad.toml", "name = \"x\"\nimage = \"nginx\"\n[layout]\nshards = 0\n");
    check(
        directory,
        &["apply", &good, &bad, &again],
        1,
        &[],
        &[
            "bad.toml:2: image: unknown key at the top: it belongs in [container]",
            "bad.toml:4: layout.shards: must be from 1 to 1024, not 0",
            "again.toml:1: name: group web is in",
        ],
    );
    assert_eq!(agent.asked(), [""; 0]);
    check(directory, &["apply", "/nonexistent.toml"], 1, &[], &["sherd: /nonexistent.toml can't be read"]);
    let taken = spec(directory, "taken.toml", "name = \"taken\"\n[container]\nimage = \"nginx\"\n");
    check(directory, &["apply", &taken], 1, &[], &["sherd: 0.0.0.0:80 is taken by nginx, pid 7"]);
}

#[test]
fn logs_and_stop() {
    let agent = agent();
    check(agent.run_dir(), &["logs", "web"], 0, &["web/0 | out of 0\n", "web/1 | out of 1\n"], &["web/1 | err of 1"]);
    check(agent.run_dir(), &["logs", "--slot", "1", "--tail", "3", "web"], 0, &["out of 1\n"], &["err of 1"]);
    check(agent.run_dir(), &["stop", "-g", "web", "--purge"], 0, &["web stopped and purged"], &[]);
    check(agent.run_dir(), &["stop", "-g", "nope"], 1, &[], &["sherd: no group nope"]);
    assert!(agent.asked().contains(&"logs web Some(SlotId(1)) Some(3) false".to_owned()), "{:?}", agent.asked());
}

#[test]
fn explain_says_where_a_connection_goes_and_why() {
    let agent = agent();
    let check = |args: &[&str], code, out: &[&str], err: &[&str]| check(agent.run_dir(), args, code, out, err);
    let line = ["explain", "[2001:db8::1]:51234", "web"];
    check(
        &[&line[..], &["-p", "8080"]].concat(),
        0,
        &[
            "web: a connection from [2001:db8::1]:51234 to [2001:db8::1]:8080 goes to slot 0, directly, the fail-over in the same L3",
            "2001:db8::1 is a guess: --to says",
            "[::]:8080, policy connection, steered by eBPF",
            "entry 7 of 65537: slot 1, which is out of service",
        ],
        &[],
    );
    check(&[&line[..], &["-p", "8080", "--to", "::2", "--json"]].concat(), 0, &["\"first_choice\": 1"], &[]);
    check(&line, 1, &[], &["publishes the ports 8080, 9090: name one with --port"]);
    check(&["explain", "2001:db8::1", "web"], 2, &[], &["invalid value '2001:db8::1' for '<CLIENT:PORT>'"]);
    assert!(agent.asked()[1].contains("to: Some(::2)"), "{:?}", agent.asked());
}

#[test]
fn plan_works_without_an_agent_and_asks_one_that_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = spec(directory.path(), "web.toml", "name = \"web\"\n[container]\nimage = \"nginx\"\n");
    let many =
        spec(directory.path(), "many.toml", "name = \"many\"\n[layout]\nshards = 9\n[container]\nimage = \"nginx\"\n");
    let machine = ["--synthetic", "package:1 core:4 pu:2"];
    check(directory.path(), &[&["plan", &file], &machine[..]].concat(), 0, &["web/3: added on CPUs 6-7"], &[]);
    check(directory.path(), &[&["plan", &many], &machine[..]].concat(), 1, &[], &["many"]);
    check(directory.path(), &[&["plan", "--json", &file], &machine[..]].concat(), 0, &["\"layouts\"", "\"6-7\""], &[]);
    let svg = directory.path().join("plan.svg");
    check(directory.path(), &[&["plan", "--svg", svg.to_str().unwrap(), &file], &machine[..]].concat(), 0, &[], &[]);
    assert!(std::fs::read_to_string(svg).unwrap().starts_with("<svg"));
    check(directory.path(), &["plan", &file], 0, &["web/0"], &[]);
    let agent = agent();
    check(agent.run_dir(), &["plan", &file], 0, &["4 CPUs"], &[]);
    assert_eq!(agent.asked(), ["plan 1"]);
}

#[test]
fn topology_draws_and_refuses_nonsense() {
    let directory = tempfile::tempdir().unwrap();
    check(directory.path(), &["topology"], 0, &["CPU"], &[]);
    check(directory.path(), &["topology", "--json"], 0, &["\"cores\""], &[]);
    check(
        directory.path(),
        &["topology", "--synthetic", "nonsense"],
        1,
        &[],
        &["sherd: \"nonsense\" is not a synthetic"],
    );
    check(directory.path(), &["topology", "--xml", "/nonexistent"], 1, &[], &["sherd: can't read /nonexistent"]);
}

#[test]
fn wrong_settings_of_the_agent_are_all_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = spec(directory.path(), "sherd.toml", "instance = \"A\"\nmetric = \"off\"\n");
    check(
        directory.path(),
        &["agent", "--config", &file],
        1,
        &[],
        &["sherd.toml:1: instance:", "sherd.toml:2: metric: unknown key: did you mean `metrics`?"],
    );
    check(directory.path(), &["agent", "--metrics", "x"], 2, &[], &["write 127.0.0.1:9478, or off"]);
}
