//! [`GroupSpec`] to TOML, in the order a person would write it and without what is at its default.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value as Json;
use sherd_topology::plan::{CoreKind, LayoutRequest, MemoryBinding, Placement, ShardCount, Sharing, Smt};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value, value};

use super::units::{format_bytes, format_duration};
use super::{
    ContainerSpec, DEFAULT_DRAIN, DEFAULT_STOP_GRACE, GroupSpec, PathChoice, Policy, PortSpec, ProcessSpec,
    RelayLimits, RolloutPolicy, RuntimeSpec, Unready, words,
};

mod health;

pub(super) fn group(spec: &GroupSpec) -> String {
    let mut document = DocumentMut::new();
    let root = document.as_table_mut();
    put(root, "name", spec.name.to_string());
    put_word(root, "path", words::PATHS, &spec.path, &PathChoice::default());
    match spec.unready {
        Unready::Refuse => put(root, "unready", "refuse"),
        Unready::Wait(wait) if spec.unready != Unready::default() => {
            put(root, "unready_timeout", format_duration(wait));
        }
        Unready::Wait(_) => {}
    }
    put_duration(root, "drain", spec.drain, DEFAULT_DRAIN);
    put_duration(root, "stop_grace", spec.stop_grace, DEFAULT_STOP_GRACE);
    put_table(root, "layout", layout(&spec.layout));
    match &spec.runtime {
        RuntimeSpec::Docker(container) => put_table(root, "container", self::container(container)),
        RuntimeSpec::Process(process) => put_table(root, "process", self::process(process)),
    }
    let ports: ArrayOfTables = spec.ports.iter().map(port).collect();
    if !ports.is_empty() {
        root.insert("ports", Item::ArrayOfTables(ports));
    }
    put_table(root, "readiness", health::readiness(&spec.readiness));
    put_table(root, "health", health::policy(&spec.health));
    put_table(root, "backoff", backoff(&spec.backoff));
    put_table(root, "rollout", rollout(&spec.rollout));
    put_table(root, "relay", relay(&spec.relay));
    put_map(root, "environment", &spec.environment);
    document.to_string()
}

fn layout(request: &LayoutRequest) -> Table {
    let mut table = Table::new();
    put(&mut table, "unit", words::word(words::UNITS, &request.unit));
    match request.shards {
        ShardCount::Auto => put(&mut table, "shards", "auto"),
        ShardCount::Exactly(count) => put(&mut table, "shards", i64::from(count.get())),
    }
    put_word(&mut table, "placement", words::PLACEMENTS, &request.placement, &Placement::Spread);
    put_word(&mut table, "smt", words::SMTS, &request.smt, &Smt::Share);
    put_word(&mut table, "core_kind", words::CORE_KINDS, &request.core_kind, &CoreKind::Any);
    put_option(&mut table, "near", request.near.as_ref());
    put_option(&mut table, "cpus", request.cpus.as_ref().map(ToString::to_string).as_ref());
    put_word(&mut table, "sharing", words::SHARINGS, &request.sharing, &Sharing::Exclusive);
    put_word(&mut table, "memory", words::MEMORIES, &request.memory, &MemoryBinding::Bind);
    put_option(&mut table, "memory_limit", request.memory_limit_bytes.map(format_bytes).as_ref());
    table
}

fn container(spec: &ContainerSpec) -> Table {
    let mut table = Table::new();
    put(&mut table, "image", spec.image.as_str());
    put_texts(&mut table, "command", spec.command.as_deref().unwrap_or_default());
    put_texts(&mut table, "entrypoint", spec.entrypoint.as_deref().unwrap_or_default());
    put_texts(&mut table, "volumes", &spec.volumes);
    put_option(&mut table, "memory", spec.memory_bytes.map(format_bytes).as_ref());
    put_option(&mut table, "user", spec.user.as_ref());
    put_texts(&mut table, "cap_add", &spec.cap_add);
    put_texts(&mut table, "cap_drop", &spec.cap_drop);
    put_option(&mut table, "network", spec.network.as_ref());
    put_option(&mut table, "working_dir", spec.working_dir.as_ref());
    if spec.read_only {
        put(&mut table, "read_only", true);
    }
    put_texts(&mut table, "security_opt", &spec.security_opt);
    put_word(&mut table, "pull", words::PULLS, &spec.pull, &super::PullPolicy::default());
    let ulimit = |limit: &super::Ulimit| {
        let fields =
            [("name", Value::from(limit.name.as_str())), ("soft", limit.soft.into()), ("hard", limit.hard.into())];
        Value::InlineTable(fields.into_iter().collect())
    };
    let ulimits: Array = spec.ulimits.iter().map(ulimit).collect();
    if !ulimits.is_empty() {
        table.insert("ulimits", value(ulimits));
    }
    if let Some(logging) = &spec.logging {
        let mut section = Table::new();
        put(&mut section, "driver", logging.driver.as_str());
        put_map(&mut section, "options", &logging.options);
        put_table(&mut table, "logging", section);
    }
    put_map(&mut table, "labels", &spec.labels);
    put_map(&mut table, "tmpfs", &spec.tmpfs);
    if spec.extra.as_object().is_some_and(|extra| !extra.is_empty()) {
        table.insert("extra", item(&spec.extra));
    }
    table
}

fn process(spec: &ProcessSpec) -> Table {
    let mut table = Table::new();
    put_texts(&mut table, "command", &spec.command);
    put_option(&mut table, "working_dir", spec.working_dir.as_ref());
    put_option(&mut table, "user", spec.user.as_ref());
    table
}

fn port(spec: &PortSpec) -> Table {
    let mut table = Table::new();
    put(&mut table, "publish", spec.publish());
    put_word(&mut table, "policy", words::POLICIES, &spec.policy, &Policy::Connection);
    if let Some(weights) = &spec.weights {
        let weights: Array = weights.iter().map(|&weight| i64::from(weight)).collect();
        table.insert("weights", value(weights));
    }
    if spec.loopback {
        put(&mut table, "loopback", true);
    }
    if let Some(len) = spec.table_len {
        put(&mut table, "table_len", i64::from(len));
    }
    table
}

fn backoff(spec: &super::Backoff) -> Table {
    let default = super::Backoff::default();
    let mut table = Table::new();
    if *spec != default {
        put(&mut table, "first", format_duration(spec.first));
        put(&mut table, "max", format_duration(spec.max));
    }
    put_duration(&mut table, "reset_after", spec.reset_after, default.reset_after);
    table
}

fn rollout(spec: &RolloutPolicy) -> Table {
    let default = RolloutPolicy::default();
    let mut table = Table::new();
    put_word(&mut table, "order", words::ORDERS, &spec.order, &default.order);
    put_integer(&mut table, "parallelism", spec.parallelism, default.parallelism);
    put_duration(&mut table, "delay", spec.delay, default.delay);
    put_duration(&mut table, "min_healthy", spec.min_healthy, default.min_healthy);
    put_duration(&mut table, "monitor", spec.monitor, default.monitor);
    put_duration(&mut table, "deadline", spec.deadline, default.deadline);
    put_word(&mut table, "failure_action", words::FAILURE_ACTIONS, &spec.failure_action, &default.failure_action);
    let (traffic, default) = (&spec.traffic, default.traffic);
    put_integer(&mut table, "min_connections", traffic.min_connections, default.min_connections);
    for (key, given, default) in [
        ("max_error_points", traffic.max_error_points, default.max_error_points),
        ("max_latency_percent", traffic.max_latency_percent, default.max_latency_percent),
        ("max_cpu_percent", traffic.max_cpu_percent, default.max_cpu_percent),
    ] {
        if given != default {
            put(&mut table, key, given.map_or_else(|| Value::from("off"), |given| i64::from(given).into()));
        }
    }
    table
}

fn relay(spec: &RelayLimits) -> Table {
    let default = RelayLimits::default();
    let mut table = Table::new();
    put_integer(&mut table, "max_connections", spec.max_connections, default.max_connections);
    put_integer(&mut table, "max_pending", spec.max_pending, default.max_pending);
    put_duration(&mut table, "connect_timeout", spec.connect_timeout, default.connect_timeout);
    for (key, given, default) in
        [("idle_timeout", spec.idle_timeout, default.idle_timeout), ("keepalive", spec.keepalive, default.keepalive)]
    {
        if given != default {
            put(&mut table, key, given.map_or_else(|| "off".to_owned(), format_duration));
        }
    }
    put_integer(&mut table, "retries", spec.retries, default.retries);
    put_integer(&mut table, "backlog", spec.backlog, default.backlog);
    table
}

fn put(table: &mut Table, key: &str, given: impl Into<Value>) {
    table.insert(key, value(given));
}

fn put_option(table: &mut Table, key: &str, given: Option<&String>) {
    if let Some(given) = given {
        put(table, key, given.as_str());
    }
}

fn put_duration(table: &mut Table, key: &str, given: Duration, default: Duration) {
    if given != default {
        put(table, key, format_duration(given));
    }
}

fn put_integer<T: Into<i64> + Copy + PartialEq>(table: &mut Table, key: &str, given: T, default: T) {
    if given != default {
        put(table, key, given.into());
    }
}

fn put_word<T: PartialEq>(table: &mut Table, key: &str, words: &[(&'static str, T)], given: &T, default: &T) {
    if given != default {
        put(table, key, words::word(words, given));
    }
}

fn put_texts(table: &mut Table, key: &str, texts: &[String]) {
    if !texts.is_empty() {
        table.insert(key, value(texts.iter().map(String::as_str).collect::<Array>()));
    }
}

fn put_map(table: &mut Table, key: &str, map: &BTreeMap<String, String>) {
    let entries = map.iter().map(|(key, text)| (key.as_str(), value(text.as_str())));
    put_table(table, key, entries.collect());
}

/// A section; none when it would be empty.
fn put_table(table: &mut Table, key: &str, section: Table) {
    if !section.is_empty() {
        table.insert(key, Item::Table(section));
    }
}

fn item(json: &Json) -> Item {
    match json {
        Json::Object(object) => Item::Table(object.iter().map(|(key, json)| (key.as_str(), item(json))).collect()),
        other => inline(other).map_or(Item::None, Item::Value),
    }
}

/// A JSON value as one line of TOML; none for null, which TOML doesn't have.
fn inline(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => return None,
        Json::Bool(given) => Value::from(*given),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Value::from(integer),
            None => Value::from(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(array) => Value::Array(array.iter().filter_map(inline).collect()),
        Json::Object(object) => {
            let entries = object.iter().filter_map(|(key, json)| Some((key.as_str(), inline(json)?)));
            Value::InlineTable(entries.collect::<InlineTable>())
        }
    })
}
