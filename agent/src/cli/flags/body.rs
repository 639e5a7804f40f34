//! Docker's create body from a JSON file, as the TOML table that a specification has for it.

use std::path::Path;

use serde_json::Value as Json;
use toml::{Table, Value};

use super::Failure;

/// Longest file that is read.
const MAX_BYTES: u64 = 256 * 1024;

pub(super) fn read(path: &Path) -> Result<Table, Failure> {
    let name = path.display().to_string();
    let unreadable = |source| Failure::File { path: name.clone(), action: "read", source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_BYTES {
        return Err(Failure::new(format!("-c {name}: the file is longer than {} KiB", MAX_BYTES / 1024)));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let body: Json = serde_json::from_str(&text)
        .map_err(|error| Failure::new(format!("{name}:{}: not JSON: {error}", error.line())))?;
    match toml_of(&body, "") {
        Ok(Some(Value::Table(table))) => Ok(table),
        Ok(_) => Err(Failure::new(format!("-c {name}: write a JSON object, Docker's body of `create a container`"))),
        Err(key) => Err(Failure::new(format!(
            "-c {name}: {key}: TOML has no such value (null in an array, or a number beyond 64 bits): leave it out"
        ))),
    }
}

/// None for null, which means the same to Docker as a key that isn't there.
fn toml_of(json: &Json, path: &str) -> Result<Option<Value>, String> {
    Ok(Some(match json {
        Json::Null => return Ok(None),
        Json::Bool(value) => Value::Boolean(*value),
        Json::String(text) => Value::String(text.clone()),
        Json::Number(number) => match (number.as_i64(), number.is_f64()) {
            (Some(integer), _) => Value::Integer(integer),
            (None, true) => Value::Float(number.as_f64().unwrap_or_default()),
            (None, false) => return Err(path.to_owned()),
        },
        Json::Array(elements) => {
            let mut array = Vec::with_capacity(elements.len());
            for element in elements {
                array.push(toml_of(element, path)?.ok_or_else(|| path.to_owned())?);
            }
            Value::Array(array)
        }
        Json::Object(object) => {
            let mut table = Table::new();
            for (key, json) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                if let Some(value) = toml_of(json, &path)? {
                    table.insert(key.clone(), value);
                }
            }
            Value::Table(table)
        }
    }))
}
