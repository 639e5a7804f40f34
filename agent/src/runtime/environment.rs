//! What a shard is told about itself by its environment. PURE: the order and the image's environment in, variables out.

use std::collections::BTreeMap;

use super::ShardOrder;

/// Share of a memory limit that Go's collector may aim for, in percent: the rest is for what it doesn't count
/// (cgo, mapped files, the program itself).
const GO_MEMORY_PERCENT: u64 = 90;

/// Variables by which runtimes and libraries learn how many CPUs they have.
const CPU_COUNT_VARIABLES: [&str; 7] = [
    "GOMAXPROCS",
    "UV_THREADPOOL_SIZE",
    "TOKIO_WORKER_THREADS",
    "OMP_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "DOTNET_PROCESSOR_COUNT",
    "PYTHON_CPU_COUNT",
];

const JAVA: &str = "JAVA_TOOL_OPTIONS";
const JAVA_CPU_COUNT: &str = "-XX:ActiveProcessorCount=";

/// The variables to start a shard with. What the operator sets (`user`) stays, and so does what the image says to the
/// runtimes (`image`: its own environment; empty for processes); `memory_limit_bytes` is the shard's.
pub fn variables(
    order: &ShardOrder,
    user: &BTreeMap<String, String>,
    image: &BTreeMap<String, String>,
    memory_limit_bytes: Option<u64>,
) -> BTreeMap<String, String> {
    let cpus = order.slot.cpus.len();
    let mut variables = identity(order);
    let mut hints: Vec<(&str, String)> = CPU_COUNT_VARIABLES.iter().map(|name| (*name, cpus.to_string())).collect();
    if let Some(limit) = memory_limit_bytes {
        hints.push(("GOMEMLIMIT", (limit / 100 * GO_MEMORY_PERCENT).to_string()));
    }
    // A hint that the image brings was somebody's decision too.
    variables.extend(hints.into_iter().filter(|(name, _)| !image.contains_key(*name)).map(|(k, v)| (k.to_owned(), v)));
    variables.extend(user.clone());
    let java = user.get(JAVA).or_else(|| image.get(JAVA)).map_or("", String::as_str);
    variables.insert(JAVA.to_owned(), java_options(java, cpus));
    variables
}

fn identity(order: &ShardOrder) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = [
        ("SHERD_GROUP", order.key.group.to_string()),
        ("SHERD_SLOT", order.key.slot.to_string()),
        ("SHERD_SHARDS", order.shards.to_string()),
        ("SHERD_CPUS", order.slot.cpus.to_string()),
        ("SHERD_MEMS", order.slot.mems.to_string()),
        ("TESSON_UID", order.key.slot.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    if let Some((_, port)) = order.process_ports.first() {
        variables.insert("PORT".to_owned(), port.to_string());
    }
    variables.extend(order.process_ports.iter().map(|(key, port)| (format!("PORT_{key}"), port.to_string())));
    variables
}

/// The JVM takes the last of two equal flags, so one that is there must be left alone rather than overruled.
fn java_options(present: &str, cpus: usize) -> String {
    match present {
        "" => format!("{JAVA_CPU_COUNT}{cpus}"),
        set if set.contains(JAVA_CPU_COUNT) => set.to_owned(),
        other => format!("{other} {JAVA_CPU_COUNT}{cpus}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sherd_topology::{
        model::{CpuId, CpuSet, NodeId},
        plan::{MemoryBinding, Slot, SlotId},
    };

    use super::*;
    use crate::{
        runtime::ShardKey,
        spec::{ContainerPort, GroupSpec},
    };

    fn order(cpus: &[u32], process_ports: &[(u16, u16)]) -> ShardOrder {
        let spec = GroupSpec::parse("test", "name = \"web\"\n[process]\ncommand = [\"x\"]\n").unwrap();
        ShardOrder {
            key: ShardKey { group: spec.name.clone(), slot: SlotId(3) },
            spec: Arc::new(spec),
            slot: Slot {
                id: SlotId(3),
                cpus: cpus.iter().map(|cpu| CpuId(*cpu)).collect::<CpuSet>(),
                mems: [NodeId(1)].into_iter().collect(),
                memory: MemoryBinding::Bind,
                memory_limit_bytes: None,
            },
            shards: 4,
            generation: 1,
            process_ports: process_ports.iter().map(|(container, own)| (ContainerPort(*container), *own)).collect(),
            shim: None,
        }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn everything_is_told() {
        let found = variables(&order(&[2, 3, 9], &[(80, 4001), (443, 4002)]), &map(&[]), &map(&[]), Some(1_000_000));
        let expected = map(&[
            ("DOTNET_PROCESSOR_COUNT", "3"),
            ("GOMAXPROCS", "3"),
            ("GOMEMLIMIT", "900000"),
            ("JAVA_TOOL_OPTIONS", "-XX:ActiveProcessorCount=3"),
            ("OMP_NUM_THREADS", "3"),
            ("PORT", "4001"),
            ("PORT_443", "4002"),
            ("PORT_80", "4001"),
            ("PYTHON_CPU_COUNT", "3"),
            ("RAYON_NUM_THREADS", "3"),
            ("SHERD_CPUS", "2-3,9"),
            ("SHERD_GROUP", "web"),
            ("SHERD_MEMS", "1"),
            ("SHERD_SHARDS", "4"),
            ("SHERD_SLOT", "3"),
            ("TESSON_UID", "3"),
            ("TOKIO_WORKER_THREADS", "3"),
            ("UV_THREADPOOL_SIZE", "3"),
        ]);
        assert_eq!(found, expected);
    }

    #[test]
    fn what_was_set_stays() {
        let check = |user: &[(&str, &str)], image: &[(&str, &str)], name: &str, expected: Option<&str>| {
            let found = variables(&order(&[0, 1], &[]), &map(user), &map(image), None);
            assert_eq!(found.get(name).map(String::as_str), expected, "{user:?} {image:?}");
        };
        check(&[], &[], "GOMAXPROCS", Some("2"));
        check(&[], &[], "GOMEMLIMIT", None);
        check(&[], &[], "PORT", None);
        check(&[("GOMAXPROCS", "7")], &[], "GOMAXPROCS", Some("7"));
        check(&[("GOMAXPROCS", "7")], &[("GOMAXPROCS", "8")], "GOMAXPROCS", Some("7"));
        // The container has it from the image: nothing to set.
        check(&[], &[("GOMAXPROCS", "8")], "GOMAXPROCS", None);
        check(&[("OTHER", "x")], &[], "OTHER", Some("x"));
        const JAVA: &str = "JAVA_TOOL_OPTIONS";
        const OURS: &str = "-XX:ActiveProcessorCount=2";
        check(&[], &[], JAVA, Some(OURS));
        check(&[(JAVA, "-Xmx1g")], &[], JAVA, Some(&format!("-Xmx1g {OURS}")));
        check(&[], &[(JAVA, "-javaagent:a.jar")], JAVA, Some(&format!("-javaagent:a.jar {OURS}")));
        check(&[(JAVA, "-Xmx1g")], &[(JAVA, "-Xss1m")], JAVA, Some(&format!("-Xmx1g {OURS}")));
        check(&[(JAVA, "-XX:ActiveProcessorCount=9")], &[], JAVA, Some("-XX:ActiveProcessorCount=9"));
    }
}
