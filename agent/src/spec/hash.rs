//! The hash that tells whether a running shard is still the one that is specified.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{GroupSpec, PortSpec, RuntimeSpec, SpecHash};

/// Hex digits of a hash: 128 bits, short enough for a label that people read.
const HEX_DIGITS: usize = 32;

pub(super) fn of(spec: &GroupSpec) -> SpecHash {
    let runtime = match &spec.runtime {
        RuntimeSpec::Docker(container) => json!({ "docker": without_defaults(json!(container)) }),
        RuntimeSpec::Process(process) => {
            // A process is told its ports by its environment, once.
            let mut ports: Vec<u16> = spec.ports.iter().map(|port| port.container.0).collect();
            ports.sort_unstable();
            ports.dedup();
            json!({ "process": without_defaults(json!(process)), "ports": ports })
        }
    };
    let mut hashed = json!({ "runtime": runtime, "environment": spec.environment });
    // Only where it is so: without it the hash is that of the versions that had no shim.
    if spec.is_behind_shim() {
        // A listener in a shard's hands stays at its address.
        let mut places: Vec<String> = spec.ports.iter().map(PortSpec::publish).collect();
        places.sort_unstable();
        hashed["shim"] = places.into();
    }
    let text = canonical(&hashed);
    let digest = Sha256::digest(text.as_bytes());
    let mut hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(HEX_DIGITS);
    SpecHash(hex)
}

/// Drops options at their default, so that an option added by a later version restarts no shard that doesn't use it.
fn without_defaults(value: Value) -> Value {
    let Value::Object(object) = value else { return value };
    let is_default = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(array) => array.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    };
    Value::Object(object.into_iter().filter(|(_, value)| !is_default(value)).collect())
}

/// JSON with sorted keys, whatever order the map of serde_json keeps.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(object) => {
            let mut entries: Vec<_> = object.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            let entries = entries.iter().map(|(key, value)| format!("{}:{}", json!(key), canonical(value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(","))
        }
        Value::Array(array) => format!("[{}]", array.iter().map(canonical).collect::<Vec<_>>().join(",")),
        scalar => scalar.to_string(),
    }
}
