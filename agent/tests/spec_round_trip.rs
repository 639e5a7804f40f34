//! Properties of specifications: printed is read back equal, nothing makes the reader panic, and the hash changes
//! exactly when a running shard must be restarted.

use std::num::NonZeroU32;
use std::time::Duration;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use sherd::spec::{
    Backoff, BodyMatch, Check, ContainerPort, ContainerSpec, FailureAction, GroupSpec, HealthPolicy, HttpCheck,
    Logging, Observe, Order, PathChoice, Policy, PortSpec, ProcessSpec, PullPolicy, Readiness, RelayLimits,
    RolloutPolicy, RuntimeSpec, TrafficPolicy, Ulimit, Unready,
};
use sherd_topology::model::{CpuId, CpuSet};
use sherd_topology::plan::{CoreKind, LayoutRequest, MemoryBinding, Placement, ShardCount, Sharing, Smt, Unit};

fn word() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_./ é\"'\\\\#=-]{1,12}".prop_map(|text| format!("x{text}"))
}

fn millis(range: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}

fn layout() -> impl Strategy<Value = LayoutRequest> {
    use {CoreKind::*, Placement::*, Smt::*};
    let shards = prop_oneof![Just(ShardCount::Auto), Just(ShardCount::Exactly(NonZeroU32::new(3).unwrap()))];
    let units = select(vec![Unit::Pu, Unit::Core, Unit::L2, Unit::L3, Unit::Die, Unit::Numa, Unit::Package]);
    let where_to =
        (select(vec![Spread, Pack]), select(vec![Share, Each, First]), select(vec![Any, Performance, Efficiency]));
    let cpus = option::of(vec(0u32..5000, 1..20).prop_map(|ids| ids.into_iter().map(CpuId).collect::<CpuSet>()));
    let sharing = select(vec![Sharing::Exclusive, Sharing::Shared]);
    let memory = select(vec![MemoryBinding::Bind, MemoryBinding::Prefer, MemoryBinding::None]);
    let near = option::of("[a-z]{3}[0-9]");
    (units, shards, where_to, near, cpus, sharing, memory).prop_map(
        |(unit, shards, place, near, cpus, sharing, memory)| {
            let (placement, smt, core_kind) = place;
            let group = "g".parse().unwrap();
            let memory_limit_bytes = None;
            LayoutRequest {
                group,
                unit,
                shards,
                placement,
                smt,
                core_kind,
                near,
                cpus,
                sharing,
                memory,
                memory_limit_bytes,
            }
        },
    )
}

fn json(depth: u32) -> BoxedStrategy<serde_json::Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        (-1e300..1e300f64).prop_map(Into::into),
        word().prop_map(Into::into),
    ];
    leaf.prop_recursive(depth, 16, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(serde_json::Value::from),
            btree_map(word(), inner, 0..3).prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
    .boxed()
}

fn container() -> impl Strategy<Value = ContainerSpec> {
    let texts = || vec(word(), 0..3);
    let commands = (option::of(vec(word(), 1..4)), option::of(vec(word(), 1..4)));
    let memory = option::of((6u64 << 20)..(1 << 40));
    let maps = (btree_map(word(), word(), 0..3), btree_map(word().prop_map(|t| format!("/{t}")), word(), 0..3));
    let ulimit = (word(), -1..1000i64).prop_map(|(name, soft)| Ulimit { name, soft, hard: soft });
    let logging = option::of((word(), btree_map(word(), word(), 0..3)));
    let logging = logging.prop_map(|logging| logging.map(|(driver, options)| Logging { driver, options }));
    let pull = select(vec![PullPolicy::Missing, PullPolicy::Always, PullPolicy::Never]);
    let extra = btree_map(word(), json(3), 0..3);
    let rest = (vec(ulimit, 0..3), logging, pull, extra, any::<bool>());
    (commands, memory, maps, texts(), option::of(word()), rest).prop_map(
        |(commands, memory, maps, texts, network, rest)| {
            let mut spec = ContainerSpec::of_image("registry.example:5000/a/b:1");
            (spec.command, spec.entrypoint) = commands;
            spec.memory_bytes = memory;
            (spec.labels, spec.tmpfs) = maps;
            spec.security_opt = texts;
            spec.network = network;
            (spec.ulimits, spec.logging, spec.pull) = (rest.0, rest.1, rest.2);
            spec.extra = serde_json::Value::Object(rest.3.into_iter().collect());
            spec.read_only = rest.4;
            spec.volumes = vec!["/a:/b:ro".to_owned()];
            spec
        },
    )
}

fn runtime() -> impl Strategy<Value = RuntimeSpec> {
    let process = (vec(word(), 1..4), option::of(word())).prop_map(|(command, dir)| {
        let working_dir = dir.map(|dir| format!("/{dir}"));
        RuntimeSpec::Process(ProcessSpec { command, working_dir, user: Some("nobody:nogroup".to_owned()) })
    });
    prop_oneof![process, container().prop_map(|container| RuntimeSpec::Docker(Box::new(container)))]
}

fn ports() -> impl Strategy<Value = Vec<PortSpec>> {
    let texts = select(vec!["{}:80", "127.0.0.1:{}:80", "[::1]:{}:443", "[::]:{}:1"]);
    let policy = select(vec![Policy::Connection, Policy::Client, Policy::Local]);
    let port = (texts, policy, any::<bool>(), select(vec![None, Some(65_537u32), Some(1009)]));
    vec(port, 0..4).prop_map(|ports| {
        let port = |(index, (text, policy, loopback, table_len)): (usize, (&str, _, _, _))| {
            let port: PortSpec = text.replace("{}", &(8000 + index).to_string()).parse().unwrap();
            PortSpec { policy, loopback, table_len, ..port }
        };
        ports.into_iter().enumerate().map(port).collect()
    })
}

fn check() -> impl Strategy<Value = Check> {
    let body = prop_oneof![
        Just(None),
        word().prop_map(|text| Some(BodyMatch::Contains(text))),
        select(vec!["^up", "a|b", "\\d+ \"é\""]).prop_map(|text| Some(BodyMatch::Matches(text.parse().unwrap()))),
    ];
    let statuses = vec((100..400u16, 400..599u16), 1..4);
    let method = select(vec!["GET", "POST", "OPTIONS"]);
    let http = (method, word(), option::of("[a-z.]{1,9}"), statuses, body).prop_map(|parts| {
        let (method, path, host, status, body) = parts;
        let path = format!("/{}", path.replace(char::is_whitespace, ""));
        Check::Http(HttpCheck { method, path, host, status, body })
    });
    prop_oneof![Just(Check::Tcp), http, vec(word(), 1..4).prop_map(Check::Command)]
}

fn readiness() -> impl Strategy<Value = Readiness> {
    let times = (millis(10..=3_600_000), millis(1..=60_000), millis(0..=86_400_000), millis(100..=86_400_000));
    (check(), times, 1..1000u32, 1..1000u32).prop_map(|(check, times, rise, fall)| {
        let (interval, timeout, start_period, start_timeout) = times;
        Readiness { check, port: None, interval, timeout, rise, fall, start_period, start_timeout }
    })
}

fn health() -> impl Strategy<Value = HealthPolicy> {
    let observe = select(vec![Observe::Off, Observe::Connect, Observe::Answer]);
    let counts = (1..1000u32, 1..=100u32, 1..1000u32, 0..=100u32);
    let unpause_after = option::of(millis(0..=86_400_000));
    let times = (millis(100..=60_000), millis(60_000..=86_400_000), millis(0..=3_600_000), unpause_after);
    (observe, counts, times).prop_map(|(observe, counts, (eject_time, eject_time_max, slow_start, unpause_after))| {
        let (eject_after, eject_rate, eject_min, max_ejected_percent) = counts;
        HealthPolicy {
            observe,
            eject_after,
            eject_rate,
            eject_min,
            eject_time,
            eject_time_max,
            max_ejected_percent,
            slow_start,
            unpause_after,
        }
    })
}

fn relay() -> impl Strategy<Value = RelayLimits> {
    let counts = (1..1_000_000u32, 0..1_000_000u32, 0..=16u8, 1..65_535u32);
    let idle = option::of(millis(1..=1_000_000));
    let keepalive = option::of(millis(1000..=1_000_000));
    (counts, millis(1..=60_000), idle, keepalive).prop_map(|(counts, connect_timeout, idle_timeout, keepalive)| {
        let (max_connections, max_pending, retries, backlog) = counts;
        RelayLimits { max_connections, max_pending, connect_timeout, idle_timeout, keepalive, retries, backlog }
    })
}

fn rollout() -> impl Strategy<Value = RolloutPolicy> {
    let words = (
        select(vec![Order::StartFirst, Order::StopFirst]),
        select(vec![FailureAction::Rollback, FailureAction::Pause, FailureAction::Continue]),
    );
    let times = (millis(0..=86_400_000), millis(0..=3_600_000), millis(0..=3_600_000), millis(3_600_001..=86_400_000));
    let traffic =
        (1..=1_000_000u32, option::of(0..=100u32), option::of(100..=100_000u32), option::of(100..=100_000u32))
            .prop_map(|(min_connections, max_error_points, max_latency_percent, max_cpu_percent)| TrafficPolicy {
                min_connections,
                max_error_points,
                max_latency_percent,
                max_cpu_percent,
            });
    (words, times, 1..=1024u32, traffic).prop_map(|((order, failure_action), times, parallelism, traffic)| {
        let (delay, min_healthy, monitor, deadline) = times;
        RolloutPolicy { order, parallelism, delay, min_healthy, monitor, deadline, failure_action, traffic }
    })
}

fn group() -> impl Strategy<Value = GroupSpec> {
    let unready = prop_oneof![Just(Unready::Refuse), millis(1..=3_600_000).prop_map(Unready::Wait)];
    let backoff = (millis(1..=1000), millis(1000..=3_600_000), millis(1..=86_400_000))
        .prop_map(|(first, max, reset_after)| Backoff { first, max, reset_after });
    let environment = btree_map("[A-Z_]{1,9}", word(), 0..4);
    let times = (millis(0..=86_400_000), millis(0..=3_600_000), unready);
    let path = select(vec![PathChoice::Auto, PathChoice::Direct, PathChoice::Relay]);
    let (restarts, judged) = ((backoff, rollout()), (readiness(), health()));
    let parts = (layout(), runtime(), ports(), path, judged, times, restarts, relay(), environment);
    parts.prop_map(|(layout, runtime, ports, path, judged, times, restarts, relay, environment)| {
        let ((readiness, health), (backoff, rollout)) = (judged, restarts);
        let (drain, stop_grace, unready) = times;
        let name = layout.group.clone();
        let path = match (&runtime, path) {
            (RuntimeSpec::Process(_), PathChoice::Direct) => PathChoice::Relay,
            (_, path) => path,
        };
        GroupSpec {
            name,
            layout,
            runtime,
            ports,
            path,
            readiness,
            health,
            unready,
            drain,
            stop_grace,
            backoff,
            rollout,
            relay,
            environment,
        }
    })
}

/// TOML-like noise out of a specification's own words, which gets further into the reader than random bytes.
fn noise() -> impl Strategy<Value = String> {
    let words = vec![
        "name",
        "=",
        "\"web\"",
        "[layout]",
        "shards",
        "[[ports]]",
        "publish",
        "\"80:80\"",
        "[container]",
        "image",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\n",
        "weights",
        "-1",
        "1e999",
        "0x10",
        "2020-01-01",
        "extra",
        ".",
        "HostConfig",
        "true",
        "\"",
        "'''",
        "ulimits",
        "environment",
        "\"\\u0000\"",
        "9999999999999999999999",
        "readiness",
        "check",
        "\"http\"",
        "nan",
        "é",
        "\r",
    ];
    vec(select(words), 0..60).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn printed_is_read_back(spec in group()) {
        let text = spec.to_toml();
        let again = GroupSpec::parse("printed.toml", &text).unwrap_or_else(|faults| panic!("{faults}\nin\n{text}"));
        prop_assert_eq!(&again, &spec, "in\n{}", text);
        prop_assert_eq!(again.to_toml(), text);
        prop_assert_eq!(again.hash(), spec.hash());
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in prop_oneof![any::<String>(), noise()]) {
        let lines = text.split('\n').count();
        if let Err(faults) = GroupSpec::parse("noise.toml", &text) {
            prop_assert!(!faults.faults.is_empty());
            prop_assert!(faults.faults.iter().all(|fault| (1..=lines).contains(&fault.line)), "{}", faults);
        }
    }
}

const SAMPLE: &str = "name = \"web\"\n[container]\nimage = \"nginx:1\"\nextra = { A = 1, HostConfig = { B = 2 } }\n\
                      [[ports]]\npublish = \"8080:80\"\n[environment]\nK = \"v\"\n";

/// Applies one replacement to the sample and says whether the hash stays.
fn check_hash(from: &str, to: &str, stays: bool) {
    let hash = |text: &str| GroupSpec::parse("f", text).unwrap_or_else(|faults| panic!("{faults}\n{text}")).hash();
    assert!(SAMPLE.contains(from), "{from}");
    assert_eq!(hash(SAMPLE) == hash(&SAMPLE.replace(from, to)), stays, "{from} -> {to}");
}

#[test]
fn the_hash_is_of_what_needs_a_restart() {
    check_hash("nginx:1", "nginx:2", false);
    check_hash("K = \"v\"", "K = \"w\"", false);
    check_hash("B = 2", "B = 3", false);
    check_hash("[[ports]]", "memory = \"1GiB\"\n[[ports]]", false);
    check_hash("A = 1, HostConfig = { B = 2 }", "HostConfig = { B = 2 }, A = 1", true);
    // A listener in a shard's hands stays where it is; a worker's doesn't.
    check_hash("8080:80", "8081:80", false);
    check_hash("8080:80", "8080:81", false);
    check_hash("8080:80", "8080:80\"\npolicy = \"client", true);
    check_hash("name = \"web\"", "path = \"relay\"\nname = \"web\"", false);
    let relayed = SAMPLE.replace("name = \"web\"", "path = \"relay\"\nname = \"web\"");
    let hash = |text: &str| GroupSpec::parse("f", text).unwrap_or_else(|faults| panic!("{faults}\n{text}")).hash();
    assert_eq!(hash(&relayed), hash(&relayed.replace("8080:80", "8081:81")));
    check_hash("[environment]", "policy = \"local\"\n[environment]", true);
    check_hash("[[ports]]", "pull = \"always\"\nread_only = false\n[[ports]]", true);
    check_hash(
        "[environment]",
        "[readiness]\nrise = 3\n[health]\nslow_start = \"9s\"\n[backoff]\nfirst = \"5s\"\n[environment]",
        true,
    );
    check_hash("name = \"web\"", "name = \"web\"\ndrain = \"3s\"", true);
}

/// The shim is in front of the program or it isn't; who accepts in the end can change while the shard runs.
#[test]
fn the_hash_knows_of_a_path_whether_the_shim_is_there() {
    let spec = |path: &str, runtime: &str| {
        let text = format!("name = \"p\"\n{path}\n{runtime}\n");
        GroupSpec::parse("f", &text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
    };
    let check = |runtime: &str, path: &str, behind_shim: bool| {
        let (plain, chosen) = (spec("path = \"relay\"", runtime), spec(path, runtime));
        assert_eq!(chosen.is_behind_shim(), behind_shim, "{path} {runtime}");
        assert_eq!(chosen.hash() != plain.hash(), behind_shim, "{path} {runtime}");
    };
    const CONTAINER: &str = "[container]\nimage = \"nginx\"\n[[ports]]\npublish = \"80:80\"";
    const WITHOUT_PORTS: &str = "[container]\nimage = \"nginx\"";
    const PROCESS: &str = "[process]\ncommand = [\"a\"]\n[[ports]]\npublish = \"80:80\"";
    check(WITHOUT_PORTS, "path = \"direct\"", false);
    check(CONTAINER, "path = \"relay\"", false);
    check(CONTAINER, "", true);
    check(CONTAINER, "path = \"auto\"", true);
    check(CONTAINER, "path = \"direct\"", true);
    check(PROCESS, "path = \"relay\"", false);
    check(PROCESS, "path = \"auto\"", false);
    check(PROCESS, "", false);
    let hash = |path| spec(path, CONTAINER).hash();
    assert_eq!(hash("path = \"auto\""), hash("path = \"direct\""));
}

#[test]
fn the_hash_of_a_process_knows_its_ports() {
    let hash = |port: u16| {
        let text = format!("name = \"p\"\n[process]\ncommand = [\"a\"]\n[[ports]]\npublish = \"80:{port}\"\n");
        GroupSpec::parse("f", &text).unwrap().hash()
    };
    assert_ne!(hash(80), hash(81));
}

/// A new version must give old specifications their old hash, or its installation restarts every shard.
#[test]
fn the_hash_stays_across_versions() {
    let hash = |text: &str| GroupSpec::parse("f", text).unwrap().hash().0;
    assert_eq!(hash(&format!("path = \"relay\"\n{SAMPLE}")), "cc7cd2aaf9eca6b41a0c223abdc4d824");
    assert_eq!(ContainerPort(80).to_string(), "80");
}
