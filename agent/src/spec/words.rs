//! The words of a specification: section keys, and each enum with its spelling, for reading and for printing alike.

use sherd_lb::table::Policy;
use sherd_topology::plan::{CoreKind, MemoryBinding, Placement, Sharing, Smt, Unit};

use super::{FailureAction, Observe, Order, PathChoice, PullPolicy};

pub(super) const GROUP: &[&str] = &[
    "name",
    "path",
    "unready",
    "unready_timeout",
    "drain",
    "stop_grace",
    "layout",
    "container",
    "process",
    "ports",
    "readiness",
    "health",
    "backoff",
    "rollout",
    "relay",
    "environment",
];
pub(super) const LAYOUT: &[&str] =
    &["unit", "shards", "placement", "smt", "core_kind", "near", "cpus", "sharing", "memory", "memory_limit"];
pub(super) const CONTAINER: &[&str] = &[
    "image",
    "command",
    "entrypoint",
    "volumes",
    "memory",
    "user",
    "cap_add",
    "cap_drop",
    "network",
    "logging",
    "ulimits",
    "labels",
    "working_dir",
    "read_only",
    "tmpfs",
    "security_opt",
    "pull",
    "extra",
];
pub(super) const LOGGING: &[&str] = &["driver", "options"];
pub(super) const ULIMIT: &[&str] = &["name", "soft", "hard"];
pub(super) const PROCESS: &[&str] = &["command", "working_dir", "user"];
pub(super) const PORT: &[&str] = &["publish", "policy", "weights", "loopback", "table_len"];
pub(super) const READINESS: &[&str] = &[
    "check",
    "method",
    "path",
    "host",
    "status",
    "body",
    "body_regex",
    "command",
    "port",
    "interval",
    "timeout",
    "rise",
    "fall",
    "start_period",
    "start_timeout",
];
pub(super) const HEALTH: &[&str] = &[
    "observe",
    "eject_after",
    "eject_rate",
    "eject_min",
    "eject_time",
    "eject_time_max",
    "max_ejected_percent",
    "slow_start",
    "unpause_after",
];
pub(super) const BACKOFF: &[&str] = &["first", "max", "reset_after"];
pub(super) const ROLLOUT: &[&str] = &[
    "order",
    "parallelism",
    "delay",
    "min_healthy",
    "monitor",
    "deadline",
    "failure_action",
    "min_connections",
    "max_error_points",
    "max_latency_percent",
    "max_cpu_percent",
];
pub(super) const RELAY: &[&str] =
    &["max_connections", "max_pending", "connect_timeout", "idle_timeout", "keepalive", "retries", "backlog"];

/// The section that a key of the top level most likely was meant for.
pub(super) fn home_of(key: &str) -> Option<&'static str> {
    let sections = [
        ("layout", LAYOUT),
        ("container", CONTAINER),
        ("ports", PORT),
        ("readiness", READINESS),
        ("health", HEALTH),
        ("backoff", BACKOFF),
        ("rollout", ROLLOUT),
        ("relay", RELAY),
    ];
    sections.into_iter().find(|(_, keys)| keys.contains(&key)).map(|(section, _)| section)
}

pub(super) const UNITS: &[(&str, Unit)] = &[
    ("pu", Unit::Pu),
    ("core", Unit::Core),
    ("l2", Unit::L2),
    ("l3", Unit::L3),
    ("die", Unit::Die),
    ("numa", Unit::Numa),
    ("package", Unit::Package),
];
pub(super) const PLACEMENTS: &[(&str, Placement)] = &[("spread", Placement::Spread), ("pack", Placement::Pack)];
pub(super) const SMTS: &[(&str, Smt)] = &[("share", Smt::Share), ("each", Smt::Each), ("first", Smt::First)];
pub(super) const CORE_KINDS: &[(&str, CoreKind)] =
    &[("any", CoreKind::Any), ("performance", CoreKind::Performance), ("efficiency", CoreKind::Efficiency)];
pub(super) const SHARINGS: &[(&str, Sharing)] = &[("exclusive", Sharing::Exclusive), ("shared", Sharing::Shared)];
pub(super) const MEMORIES: &[(&str, MemoryBinding)] =
    &[("bind", MemoryBinding::Bind), ("prefer", MemoryBinding::Prefer), ("none", MemoryBinding::None)];
pub(super) const POLICIES: &[(&str, Policy)] = &[
    ("connection", Policy::Connection),
    ("client", Policy::Client),
    ("local", Policy::Local),
    ("balanced", Policy::Balanced),
];
pub(super) const PATHS: &[(&str, PathChoice)] =
    &[("auto", PathChoice::Auto), ("direct", PathChoice::Direct), ("relay", PathChoice::Relay)];
pub(super) const ORDERS: &[(&str, Order)] = &[("start-first", Order::StartFirst), ("stop-first", Order::StopFirst)];
pub(super) const FAILURE_ACTIONS: &[(&str, FailureAction)] =
    &[("rollback", FailureAction::Rollback), ("pause", FailureAction::Pause), ("continue", FailureAction::Continue)];
pub(super) const OBSERVES: &[(&str, Observe)] =
    &[("off", Observe::Off), ("connect", Observe::Connect), ("answer", Observe::Answer)];
pub(super) const PULLS: &[(&str, PullPolicy)] =
    &[("missing", PullPolicy::Missing), ("always", PullPolicy::Always), ("never", PullPolicy::Never)];

/// The spelling of a value.
pub(super) fn word<T: PartialEq>(words: &[(&'static str, T)], value: &T) -> &'static str {
    words.iter().find(|(_, known)| known == value).map_or("", |&(name, _)| name)
}
