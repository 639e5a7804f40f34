//! The part of Docker's create body that the operator writes (Tesson's `-c FILE`): checked for keys that the body
//! does not have and for those that sherd decides. PURE.

use bollard::models::ContainerCreateBody;
use serde_json::Value;

use super::labels;
use crate::runtime::RuntimeError;

/// Keys of the body that are not the operator's, and why.
const DECIDED: [(&str, &str); 8] = [
    ("/HostConfig/CpusetCpus", "sherd gives each shard its own CPUs"),
    ("/HostConfig/CpusetMems", "sherd gives each shard the memory nodes of its CPUs; see `memory` in the layout"),
    ("/HostConfig/RestartPolicy/Name", "the agent alone restarts shards"),
    ("/HostConfig/AutoRemove", "the agent removes shards when it has seen their exit status"),
    ("/HostConfig/PortBindings", "every shard would bind the same port; publish it with `ports`"),
    ("/HostConfig/PublishAllPorts", "every shard would bind the same ports; publish them with `ports`"),
    ("/Image", "the image is a key of the specification itself"),
    ("/NetworkDisabled", "a shard without network can't be reached; use `network = \"none\"`, which keeps loopback"),
];

/// The checked body. Absent values (null, empty, false) are as good as not written: `docker inspect` prints them all.
pub(super) fn parse(extra: &Value) -> Result<ContainerCreateBody, RuntimeError> {
    let extra = present(extra).unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    decided_by_sherd(&extra)?;
    let bad = |reason: String| RuntimeError::BadExtra { reason };
    let body: ContainerCreateBody = serde_json::from_value(extra.clone()).map_err(|error| bad(error.to_string()))?;
    let understood = serde_json::to_value(&body).map_err(|error| bad(error.to_string()))?;
    match not_understood(&extra, &understood, "") {
        Some(key) => Err(bad(format!("it has no key {key}"))),
        None => Ok(body),
    }
}

fn decided_by_sherd(extra: &Value) -> Result<(), RuntimeError> {
    for (pointer, reason) in DECIDED {
        let harmless = pointer.ends_with("/Name") && extra.pointer(pointer).is_some_and(|name| name == "no");
        if extra.pointer(pointer).is_some() && !harmless {
            return Err(RuntimeError::DecidedBySherd { key: pointer[1..].replace('/', "."), reason });
        }
    }
    if extra.pointer("/HostConfig/NetworkMode").is_some_and(|mode| mode == "host") {
        let reason = "on the host's network all shards would bind the same port";
        return Err(RuntimeError::DecidedBySherd { key: "HostConfig.NetworkMode".to_owned(), reason });
    }
    let labels = extra.get("Labels").and_then(Value::as_object);
    match labels.into_iter().flatten().find(|(label, _)| label.starts_with(labels::PREFIX)) {
        Some((label, _)) => Err(RuntimeError::DecidedBySherd {
            key: format!("Labels.{label}"),
            reason: "sherd finds its own shards by these labels",
        }),
        None => Ok(()),
    }
}

/// The value without what says nothing. Maps whose values are legitimately empty objects (ExposedPorts, Volumes)
/// keep their keys: only direct members that are null, "", false, [] or {} at the top and in HostConfig are dropped.
fn present(value: &Value) -> Option<Value> {
    let Value::Object(members) = value else { return says_something(value).then(|| value.clone()) };
    let kept: serde_json::Map<_, _> = members
        .iter()
        .filter_map(|(key, value)| match key.as_str() {
            "HostConfig" | "RestartPolicy" => Some((key.clone(), present(value)?)),
            _ => says_something(value).then(|| (key.clone(), value.clone())),
        })
        .collect();
    (!kept.is_empty()).then_some(Value::Object(kept))
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

/// The first key that went in and did not come out.
fn not_understood(given: &Value, understood: &Value, path: &str) -> Option<String> {
    match (given, understood) {
        (Value::Object(given), Value::Object(understood)) => given.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match understood.get(key) {
                Some(there) => not_understood(value, there, &path),
                None => says_something(value).then_some(path),
            }
        }),
        (Value::Array(given), Value::Array(understood)) => given
            .iter()
            .zip(understood)
            .enumerate()
            .find_map(|(index, (given, understood))| not_understood(given, understood, &format!("{path}[{index}]"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(extra: &Value, expected: Result<(), &str>) {
        let found = match parse(extra) {
            Ok(_) => Ok(()),
            Err(RuntimeError::DecidedBySherd { key, .. }) => Err(key),
            Err(RuntimeError::BadExtra { reason }) => Err(reason),
            Err(other) => panic!("{other}"),
        };
        match (found, expected) {
            (Ok(()), Ok(())) => {}
            (Err(found), Err(expected)) if found.contains(expected) => {}
            (found, expected) => panic!("{extra}: {found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn what_sherd_decides_is_refused_by_name() {
        check(&json!({"HostConfig": {"CpusetCpus": "0"}}), Err("HostConfig.CpusetCpus"));
        check(&json!({"HostConfig": {"CpusetMems": "0"}}), Err("HostConfig.CpusetMems"));
        check(&json!({"HostConfig": {"RestartPolicy": {"Name": "always"}}}), Err("HostConfig.RestartPolicy.Name"));
        check(&json!({"HostConfig": {"AutoRemove": true}}), Err("HostConfig.AutoRemove"));
        check(
            &json!({"HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "80"}]}}}),
            Err("HostConfig.PortBindings"),
        );
        check(&json!({"HostConfig": {"NetworkMode": "host"}}), Err("HostConfig.NetworkMode"));
        check(&json!({"Image": "other"}), Err("Image"));
        check(&json!({"Labels": {"sherd.slot": "0"}}), Err("Labels.sherd.slot"));
    }

    #[test]
    fn what_inspect_prints_for_unset_keys_is_no_conflict() {
        check(
            &json!({"HostConfig": {"CpusetCpus": "", "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}}}),
            Ok(()),
        );
        check(&json!({"HostConfig": {"AutoRemove": false, "PortBindings": {}}, "Image": "", "Labels": null}), Ok(()));
        check(&json!({}), Ok(()));
    }

    #[test]
    fn keys_and_types_are_docker_s() {
        check(&json!({"HostConfig": {"ShmSize": 67108864, "Sysctls": {"net.core.somaxconn": "1024"}}}), Ok(()));
        check(
            &json!({"ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "Healthcheck": {"Test": ["NONE"]}}),
            Ok(()),
        );
        check(&json!({"HostConfig": {"Mounts": [{"Type": "tmpfs", "Target": "/x"}]}}), Ok(()));
        check(&json!({"HostConfig": {"Mounts": [{"Typ": "tmpfs"}]}}), Err("HostConfig.Mounts[0].Typ"));
        check(&json!({"hostConfig": {"ShmSize": 1}}), Err("hostConfig"));
        check(&json!({"HostConfig": {"ShmSize": "64m"}}), Err("invalid type"));
        check(&json!({"Env": "A=1"}), Err("invalid type"));
        check(&json!(["Env"]), Err("invalid"));
    }
}
