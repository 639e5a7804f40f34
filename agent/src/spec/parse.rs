//! TOML to [`GroupSpec`]: the one place where a specification's keys, defaults and bounds are decided.

use std::time::Duration;

use sherd_topology::plan::ShardCount;

use super::document::{Format, Section, inspect};
use super::fault::SpecFaults;
use super::{
    Backoff, DEFAULT_DRAIN, DEFAULT_STOP_GRACE, GroupSpec, PathChoice, RelayLimits, RolloutPolicy, RuntimeSpec,
    TrafficPolicy, Unready, words,
};

mod container;
mod health;
mod layout;
mod ports;

const MS: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn group(file: &str, text: &str) -> Result<GroupSpec, SpecFaults> {
    inspect(file, text, &Format { keys: words::GROUP, home_of: words::home_of }, read)
}

fn read(root: &Section<'_, '_>) -> Option<GroupSpec> {
    let name = root.parsed("name");
    if !root.has("name") {
        root.missing("name", "name the group, for example name = \"web\"");
    }
    let layout = layout::read(root, name.as_ref());
    let shards = layout.as_ref().map(|layout| layout.shards);
    let runtime = runtime(root);
    let ports = ports::read(root, shards);
    let memory = layout.as_ref().and_then(|layout| layout.memory_limit_bytes);
    if let (Some(RuntimeSpec::Docker(container)), Some(_)) = (&runtime, memory)
        && container.memory_bytes.is_some()
    {
        root.fault("layout", "memory_limit is the group's and container.memory each shard's: give one of them");
    }
    let path = path(root);
    if let Some(RuntimeSpec::Docker(container)) = &runtime
        && path == PathChoice::Direct
        && container.may_administer_network()
    {
        root.fault(
            "path",
            "direct is not for a container with CAP_NET_ADMIN, which could change the host's network by its listener: \
             leave the capability out, or use path = \"relay\"",
        );
    }
    let spec = GroupSpec {
        path,
        readiness: health::readiness(root, &ports),
        health: health::policy(root),
        unready: unready(root),
        drain: root.duration("drain", Duration::ZERO..=DAY).unwrap_or(DEFAULT_DRAIN),
        stop_grace: root.duration("stop_grace", Duration::ZERO..=HOUR).unwrap_or(DEFAULT_STOP_GRACE),
        backoff: backoff(root),
        rollout: rollout(root),
        relay: relay(root),
        environment: root.map("environment", environment_name),
        name: name?,
        layout: layout?,
        runtime: runtime?,
        ports,
    };
    Some(spec)
}

fn runtime(root: &Section<'_, '_>) -> Option<RuntimeSpec> {
    match (root.has("container"), root.has("process")) {
        (true, true) => {
            root.fault("process", "a group has [container] or [process], not both: remove one");
            None
        }
        (true, false) => container::container(root).map(|container| RuntimeSpec::Docker(Box::new(container))),
        (false, true) => container::process(root).map(RuntimeSpec::Process),
        (false, false) => {
            root.missing(
                "container",
                "say what runs: [container] with image = \"…\", or [process] with command = [\"…\"]",
            );
            None
        }
    }
}

fn environment_name(name: &str) -> Result<(), String> {
    match name.is_empty() || name.contains(['=', '\0']) {
        true => Err("not the name of an environment variable: it must not be empty or contain `=`".to_owned()),
        false => Ok(()),
    }
}

fn path(root: &Section<'_, '_>) -> PathChoice {
    let path = root.choice("path", words::PATHS).unwrap_or_default();
    // A file with both sections, or with neither, has a fault of its own.
    if path == PathChoice::Direct && root.has("process") && !root.has("container") {
        root.fault("path", "direct needs containers: use `docker`, or path = \"relay\"");
    }
    path
}

fn unready(root: &Section<'_, '_>) -> Unready {
    let timeout = root.duration("unready_timeout", MS..=HOUR);
    let refuse = root.choice("unready", &[("wait", false), ("refuse", true)]).unwrap_or(false);
    match (refuse, timeout) {
        (true, _) => {
            if root.has("unready_timeout") {
                root.fault("unready_timeout", "only with unready = \"wait\": remove one of them");
            }
            Unready::Refuse
        }
        (false, Some(timeout)) => Unready::Wait(timeout),
        (false, None) => Unready::default(),
    }
}

fn backoff(root: &Section<'_, '_>) -> Backoff {
    let default = Backoff::default();
    let Some(section) = root.section("backoff", words::BACKOFF) else { return default };
    let first = section.duration("first", MS..=HOUR).unwrap_or(default.first);
    let max = section.duration("max", MS..=HOUR).unwrap_or(default.max.max(first));
    if max < first {
        section.fault("max", "must not be less than `first`");
    }
    let reset_after = section.duration("reset_after", MS..=DAY).unwrap_or(default.reset_after);
    Backoff { first, max, reset_after }
}

fn rollout(root: &Section<'_, '_>) -> RolloutPolicy {
    let default = RolloutPolicy::default();
    let Some(section) = root.section("rollout", words::ROLLOUT) else { return default };
    let duration = |key, max, default| section.duration(key, Duration::ZERO..=max).unwrap_or(default);
    let policy = RolloutPolicy {
        order: section.choice("order", words::ORDERS).unwrap_or(default.order),
        parallelism: section.integer("parallelism", 1..=1024).unwrap_or(default.parallelism),
        delay: duration("delay", DAY, default.delay),
        min_healthy: duration("min_healthy", HOUR, default.min_healthy),
        monitor: duration("monitor", HOUR, default.monitor),
        deadline: section.duration("deadline", 1000 * MS..=DAY).unwrap_or(default.deadline),
        failure_action: section.choice("failure_action", words::FAILURE_ACTIONS).unwrap_or(default.failure_action),
        traffic: traffic(&section),
    };
    if policy.deadline <= policy.trial() {
        section.fault("deadline", "must be longer than `min_healthy` and `monitor`, which are part of it");
    }
    policy
}

fn traffic(section: &Section<'_, '_>) -> TrafficPolicy {
    let default = TrafficPolicy::default();
    let bound = |key, range, default| section.integer_or_off(key, range).unwrap_or(default);
    TrafficPolicy {
        min_connections: section.integer("min_connections", 1..=1_000_000).unwrap_or(default.min_connections),
        max_error_points: bound("max_error_points", 0..=100, default.max_error_points),
        max_latency_percent: bound("max_latency_percent", 100..=100_000, default.max_latency_percent),
        max_cpu_percent: bound("max_cpu_percent", 100..=100_000, default.max_cpu_percent),
    }
}

fn relay(root: &Section<'_, '_>) -> RelayLimits {
    let default = RelayLimits::default();
    let Some(section) = root.section("relay", words::RELAY) else { return default };
    RelayLimits {
        max_connections: section.integer("max_connections", 1..=1_000_000).unwrap_or(default.max_connections),
        max_pending: section.integer("max_pending", 0..=1_000_000).unwrap_or(default.max_pending),
        connect_timeout: section.duration("connect_timeout", MS..=MINUTE).unwrap_or(default.connect_timeout),
        idle_timeout: section.duration_or_off("idle_timeout", MS..=30 * DAY).unwrap_or(default.idle_timeout),
        keepalive: section.duration_or_off("keepalive", 1000 * MS..=9 * HOUR).unwrap_or(default.keepalive),
        retries: section.integer("retries", 0..=16).unwrap_or(default.retries),
        backlog: section.integer("backlog", 1..=65_535).unwrap_or(default.backlog),
    }
}

/// Number of slots, where the specification fixes it.
fn fixed(shards: Option<ShardCount>) -> Option<u32> {
    match shards {
        Some(ShardCount::Exactly(count)) => Some(count.get()),
        _ => None,
    }
}
