//! What an operator can write wrongly in a specification: every fault is found at its line, all of them at once.

use sherd::spec::{GroupSpec, PathChoice, RuntimeSpec};

/// Each expected entry is `line: key: part of the message`.
fn check(text: &str, expected: &[&str]) {
    let faults = match GroupSpec::parse("web.toml", text) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.faults,
    };
    let found: Vec<String> = faults.iter().map(|f| format!("{}: {}: {}", f.line, f.key, f.message)).collect();
    assert_eq!(found.len(), expected.len(), "in\n{text}\nfound {found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        let (place, part) = expected.rsplit_once(": ").unwrap();
        assert!(found.starts_with(&format!("{place}: ")) && found.contains(part), "{found} is not {expected}");
    }
}

/// One faulty line below a sound beginning of three lines.
fn check_line(line: &str, expected: &[&str]) {
    check(&format!("name = \"web\"\n[container]\nimage = \"nginx\"\n{line}"), expected);
}

#[test]
fn a_specification_of_three_lines_is_enough() {
    check("name = \"web\"\n[container]\nimage = \"nginx\"\n", &[]);
    check("name = \"web\"\n[process]\ncommand = [\"/bin/true\"]\n", &[]);
}

#[test]
fn all_faults_of_a_file_come_together() {
    let text = r#"name = "Web"
drain = 10
shards = 2
replicas = 3

[layout]
unit = "cor"
shards = 0
cpus = "0-"
colour = "red"

[container]
imgae = "nginx"
memory = "512MB"

[[ports]]
publish = "8080:80"

[[ports]]
publish = "127.0.0.1:8080:81"
weights = [1, "2"]

[[ports]]
publish = "53:53/udp"
"#;
    check(
        text,
        &[
            "1: name: ",
            "2: drain: must be a duration",
            "3: shards: belongs in [layout]",
            "4: replicas: unknown key",
            "7: layout.unit: did you mean \"core\"",
            "8: layout.shards: must be from 1 to 1024, not 0",
            "9: layout.cpus: is not a CPU list",
            "10: layout.colour: unknown key",
            "12: container.image: missing in [container]",
            "13: container.imgae: did you mean `image`",
            "14: container.memory: is not a size",
            "20: ports[1].publish: overlaps 8080:80",
            "21: ports[1].weights[1]: must be an integer",
            "24: ports[2].publish: not supported yet",
        ],
    );
}

#[test]
fn what_is_missing_is_said_at_its_table() {
    check("", &["1: name: name the group", "1: container: [process]"]);
    check("name = \"web\"\n\n[process]\n", &["3: process.command: name a program"]);
    check("name = \"web\"\n[container]\nimage=\"a\"\n[process]\ncommand=[\"a\"]", &["4: process: not both"]);
}

#[test]
fn broken_toml_is_reported_with_the_faults_of_sound_lines() {
    check(
        "name = \nshards = 3\n[container]\nimage = \"Nginx\"\n",
        &["1: : not TOML", "2: shards: belongs in [layout]", "4: container.image: must be lower case"],
    );
    let faults = GroupSpec::parse("web.toml", "name = \"web\"\nname = \"web\"\n").unwrap_err();
    assert!(faults.faults.iter().any(|fault| fault.message.contains("duplicate")), "{faults}");
}

#[test]
fn containers() {
    check_line("image2 = \"x\"", &["4: container.image2: did you mean `image`"]);
    check_line("network = \"host\"", &["4: container.network: fight for its ports"]);
    check_line("volumes = [\"/a:b\", \"/a:/b:ro\", \"data:/b\"]", &["4: container.volumes[0]: is not a volume"]);
    check_line("command = []", &["4: container.command: must not be empty"]);
    check_line("command = \"nginx\"", &["4: container.command: must be an array of strings"]);
    check_line("user = \"a:b:c\"", &["4: container.user: USER:GROUP"]);
    check_line("cap_add = [\"NET-ADMIN\"]", &["4: container.cap_add[0]: is not a capability"]);
    check_line("labels = { \"sherd.group\" = \"x\" }", &["4: container.labels.sherd.group: the agent's own"]);
    check_line("ulimits = [{ name = \"nofile\", soft = 2, hard = 1 }]", &["4: container.ulimits[0].hard: less than"]);
    check_line("ulimits = [{ name = \"nofile\" }]", &["4: container.ulimits[0].soft: missing"]);
    check_line("read_only = \"yes\"", &["4: container.read_only: true or false, not a string"]);
    check_line("pull = \"allways\"", &["4: container.pull: did you mean \"always\""]);
    check_line("working_dir = \"srv\"", &["4: container.working_dir: absolute"]);
    check_line("extra.HostConfig.CpusetCpus = \"0\"", &["4: container.extra: HostConfig.CpusetCpus is not"]);
    check_line("extra.HostConfig.Since = 2020-01-01", &["4: container.extra.HostConfig.Since: must not be a date"]);
    check_line("memory = \"1GiB\"\n[layout]\nmemory_limit = \"8GiB\"", &["5: layout: give one of them"]);
}

#[test]
fn deadlines_and_bounds() {
    check_line("[readiness]\ninterval = \"0s\"", &["5: readiness.interval: must be from 10ms to 1h"]);
    check_line("[readiness]\npath = \"/x\"", &["5: readiness.path: only with check"]);
    check_line("[readiness]\ncheck = \"http\"\npath = \"x\"", &["6: readiness.path: must start with"]);
    check_line("[readiness]\ncheck = \"http\"\nstatus = \"399-200\"", &["6: readiness.status: must be statuses"]);
    check_line("[readiness]\nport = 80", &["5: readiness.port: published port"]);
    check_line("[backoff]\nfirst = \"10s\"\nmax = \"1s\"", &["6: backoff.max: less than `first`"]);
    check_line("[relay]\nretries = 99", &["5: relay.retries: must be from 0 to 16, not 99"]);
    check_line("[relay]\nmax_connections = 0x1_0000_0000_0000_0000", &["5: relay.max_connections: must be from 1"]);
    check(
        "unready = \"refuse\"\nunready_timeout = \"1s\"\nname=\"w\"\n[process]\ncommand=[\"a\"]",
        &["2: unready_timeout: only with"],
    );
    check_line(
        "[environment]\nA = 1\n\"B=C\" = \"x\"\nD = \"a\\u0000\"",
        &["5: environment.A: put it in quotes", "6: environment.B=C: not the name", "7: environment.D: NUL"],
    );
}

#[test]
fn checks() {
    let check_readiness = |lines: &str, expected: &[&str]| check_line(&format!("[readiness]\n{lines}"), expected);
    check_readiness("check = \"http\"\nstatus = \"200, 204,300-399\"\nbody_regex = \"^ok\"", &[]);
    check_readiness("check = \"http\"\nstatus = \"200,\"", &["6: readiness.status: must be statuses"]);
    check_readiness("check = \"http\"\nbody_regex = \"(\"", &["6: readiness.body_regex: unclosed group"]);
    check_readiness("check = \"http\"\nbody = \"\"", &["6: readiness.body: must not be empty"]);
    check_readiness("check = \"http\"\nmethod = \"get\"", &["6: readiness.method: must be one of \"GET\""]);
    check_readiness(
        "check = \"http\"\nmethod = \"HEAD\"\nbody = \"a\"\nbody_regex = \"b\"",
        &["6: readiness.method: no body to match", "8: readiness.body_regex: remove one of them"],
    );
    check_readiness("check = \"command\"", &["4: readiness.command: name the program"]);
    check_readiness("check = \"command\"\ncommand = \"true\"", &["6: readiness.command: must be an array"]);
    check_readiness("command = [\"true\"]", &["5: readiness.command: only with check"]);
    check_readiness("check = \"image\"\nfall = 2", &["6: readiness.fall: set it in its HEALTHCHECK"]);
    check_readiness("check = \"htp\"\npath = \"/x\"", &["5: readiness.check: did you mean \"http\""]);
    check(
        "name = \"web\"\n[process]\ncommand = [\"a\"]\n[readiness]\ncheck = \"image\"",
        &["5: readiness.check: image needs containers"],
    );
}

#[test]
fn health() {
    let check_health = |lines: &str, expected: &[&str]| check_line(&format!("[health]\n{lines}"), expected);
    check_health("observe = \"answer\"\neject_after = 3\nmax_ejected_percent = 0\nslow_start = \"30s\"", &[]);
    check_health("observe = \"layer4\"", &["5: health.observe: must be one of \"off\", \"connect\", \"answer\""]);
    check_health("eject_time = \"9s\"\neject_time_max = \"1s\"", &["6: health.eject_time_max: less than"]);
    check_health("max_ejected_percent = 101", &["5: health.max_ejected_percent: must be from 0 to 100, not 101"]);
    check_health("unpause_after = \"off\"", &[]);
    check_health("unpause_after = \"48h\"", &["5: health.unpause_after: must be from 0s to 24h, not 48h"]);
    check_health("slow_start = 30", &["5: health.slow_start: must be a duration"]);
    check("slow_start = \"1s\"\nname = \"w\"\n[process]\ncommand = [\"a\"]", &["1: slow_start: belongs in [health]"]);
}

#[test]
fn rollouts() {
    let check_rollout = |lines: &str, expected: &[&str]| check_line(&format!("[rollout]\n{lines}"), expected);
    check_rollout("max_error_points = \"off\"\nmax_latency_percent = 200\nmax_cpu_percent = \"off\"", &[]);
    check_rollout("max_error_points = 101", &["5: rollout.max_error_points: must be from 0 to 100, not 101"]);
    check_rollout("max_latency_percent = 50", &["5: rollout.max_latency_percent: must be from 100 to 100000"]);
    check_rollout("max_cpu_percent = \"no\"", &["5: rollout.max_cpu_percent: must be an integer from 100"]);
    check_rollout("min_connections = 0", &["5: rollout.min_connections: must be from 1"]);
}

#[test]
fn paths() {
    let check = |path: &str, runtime: &str, expected: &[&str]| {
        check(&format!("name = \"web\"\npath = {path}\n{runtime}"), expected);
    };
    const CONTAINER: &str = "[container]\nimage = \"nginx\"\n";
    const PROCESS: &str = "[process]\ncommand = [\"/bin/true\"]\n";
    for path in ["\"auto\"", "\"direct\"", "\"relay\""] {
        check(path, CONTAINER, &[]);
    }
    for path in ["\"auto\"", "\"relay\""] {
        check(path, PROCESS, &[]);
    }
    check("\"direct\"", PROCESS, &["2: path: direct needs containers: use `docker`, or path = \"relay\""]);
    check("\"dirct\"", CONTAINER, &["2: path: did you mean \"direct\""]);
    check("true", CONTAINER, &["2: path: must be one of \"auto\", \"direct\", \"relay\""]);
    check_line("path = \"direct\"", &["4: container.path: unknown key"]);
    check("\"direct\"", "[process]\n", &["2: path: direct needs", "3: process.command: missing"]);
}

#[test]
fn weights_and_tables() {
    let ports = |layout: &str, port: &str| format!("[layout]\n{layout}\n[[ports]]\npublish = \"80:80\"\n{port}");
    check_line(&ports("shards = 2", "weights = [1, 3]"), &[]);
    check_line(&ports("shards = 2", "weights = [1]"), &["8: ports[0].weights: has 1 weights for 2 shards"]);
    check_line(&ports("shards = 2", "weights = [0, 0]"), &["8: ports[0].weights: above 0"]);
    check_line(&ports("shards = \"auto\"", "weights = [1]"), &["8: ports[0].weights: fixed number"]);
    check_line(&ports("shards = 1000", ""), &[]);
    check_line(&ports("shards = 1000", "table_len = 65537"), &["8: ports[0].table_len: 100003 is"]);
    check_line(&ports("shards = 2", "table_len = 1000"), &["8: ports[0].table_len: 1009 is"]);
}

#[test]
fn a_full_specification_is_read() {
    let text = include_str!("full.toml");
    let spec = GroupSpec::parse("full.toml", text).unwrap_or_else(|faults| panic!("{faults}"));
    let RuntimeSpec::Docker(container) = &spec.runtime else { panic!("a container") };
    assert_eq!(container.memory_bytes, Some(512 << 20));
    assert_eq!(container.extra["HostConfig"]["Init"], true);
    assert_eq!(spec.ports.len(), 2);
    assert_eq!(spec.path, PathChoice::Auto);
    assert_eq!(GroupSpec::parse("again.toml", &spec.to_toml()), Ok(spec));
}

#[test]
fn a_file_that_is_too_long_is_not_read() {
    let text = "#".repeat(sherd::spec::document::MAX_TEXT_BYTES + 1);
    check(&text, &["1: : the file is longer than 256 KiB"]);
}

/// Its listener's network namespace is the host's.
#[test]
fn who_administers_networks_is_not_direct() {
    let spec = |path: &str, options: &str| {
        let text = format!(
            "name = \"web\"\npath = \"{path}\"\n[container]\nimage = \"a\"\n{options}\n[[ports]]\npublish = \"8080:80\"\n"
        );
        GroupSpec::parse("web.toml", &text)
    };
    for options in [
        "cap_add = [\"NET_ADMIN\"]",
        "cap_add = [\"SYS_TIME\", \"cap_net_admin\"]",
        "cap_add = [\"ALL\"]",
        "extra = { HostConfig = { Privileged = true } }",
        "extra = { HostConfig = { CapAdd = [\"NET_ADMIN\"] } }",
    ] {
        let faults = spec("direct", options).expect_err(options).faults;
        assert!(
            faults.len() == 1 && faults[0].key == "path" && faults[0].message.contains("CAP_NET_ADMIN"),
            "{faults:?}"
        );
        let auto = spec("auto", options).expect("it is relayed");
        assert!(!auto.is_behind_shim() && auto.is_too_capable(), "{options}");
        assert!(!spec("relay", options).expect("it is relayed").is_too_capable(), "{options}");
    }
    assert!(spec("direct", "cap_add = [\"SYS_TIME\"]").expect("no fault").is_behind_shim());
}
