//! The `[container]` and `[process]` sections: what runs in a slot.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use toml::de::DeValue;

use super::super::document::{Field, Section};
use super::super::{ContainerSpec, Logging, ProcessSpec, Ulimit, image, words};

/// Parts of Docker's create body that the agent decides; an option of the operator's would be a lie.
const OURS: &[(&str, &str)] = &[
    ("HostConfig.CpusetCpus", "the planner pins CPUs: see [layout]"),
    ("HostConfig.CpusetMems", "the planner binds memory: see layout.memory"),
    ("HostConfig.RestartPolicy", "the agent alone restarts shards: see [backoff]"),
    ("HostConfig.AutoRemove", "the agent removes its shards"),
    ("HostConfig.PortBindings", "publish ports with [[ports]]"),
    ("HostConfig.PublishAllPorts", "publish ports with [[ports]]"),
    ("Image", "set container.image"),
];
/// Docker refuses less.
const MEMORY_BYTES: std::ops::RangeInclusive<u64> = 6 << 20..=1 << 50;

pub(super) fn container(root: &Section<'_, '_>) -> Option<ContainerSpec> {
    let section = &root.section("container", words::CONTAINER)?;
    if !section.has("image") {
        section.missing("image", "name an image, for example image = \"nginx:1.27\"");
    }
    let mut spec = ContainerSpec::of_image(section.text("image").unwrap_or_default());
    if let Err(message) = image::check(&spec.image)
        && !spec.image.is_empty()
    {
        section.fault("image", message);
    }
    spec.command = section.command("command");
    spec.entrypoint = section.command("entrypoint");
    spec.volumes = section.checked_texts("volumes", volume);
    spec.memory_bytes = section.bytes("memory", MEMORY_BYTES);
    spec.user = user(section);
    spec.cap_add = section.checked_texts("cap_add", capability);
    spec.cap_drop = section.checked_texts("cap_drop", capability);
    spec.network = network(section);
    spec.logging = logging(section);
    spec.ulimits = ulimits(section);
    spec.labels = section.map("labels", label);
    spec.working_dir = absolute(section, "working_dir");
    spec.read_only = section.boolean("read_only").unwrap_or(false);
    spec.tmpfs = section.map("tmpfs", tmpfs);
    spec.security_opt = section.texts("security_opt").unwrap_or_default();
    spec.pull = section.choice("pull", words::PULLS).unwrap_or_default();
    spec.extra = extra(section);
    Some(spec)
}

pub(super) fn process(root: &Section<'_, '_>) -> Option<ProcessSpec> {
    let section = &root.section("process", words::PROCESS)?;
    if !section.has("command") {
        section.missing("command", "name a program, for example command = [\"/usr/bin/server\", \"--verbose\"]");
    }
    let command = section.command("command");
    if command.as_ref().is_some_and(|command| command[0].is_empty()) {
        section.fault("command", "the program's name must not be empty");
    }
    let (working_dir, user) = (absolute(section, "working_dir"), user(section));
    Some(ProcessSpec { command: command?, working_dir, user })
}

fn volume(text: &str) -> Result<(), String> {
    let mut parts = text.split(':');
    let (source, target) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let source_ok = source.starts_with('/')
        || (source.starts_with(|c: char| c.is_ascii_alphanumeric()) && source.chars().all(name));
    match source_ok && target.starts_with('/') && parts.count() <= 1 {
        true => Ok(()),
        false => Err(format!(
            "`{text}` is not a volume: write SOURCE:TARGET[:OPTIONS] with absolute paths or a volume's name, for example \
             \"/srv/www:/usr/share/nginx/html:ro\""
        )),
    }
}

fn capability(text: &str) -> Result<(), String> {
    match text.chars().all(|c| c.is_ascii_alphabetic() || c == '_') {
        true => Ok(()),
        false => Err(format!("`{text}` is not a capability: write for example \"NET_ADMIN\" or \"ALL\"")),
    }
}

fn label(name: &str) -> Result<(), String> {
    match name {
        "" => Err("a label must have a name".to_owned()),
        _ if name.starts_with("sherd.") => Err("labels that start with `sherd.` are the agent's own".to_owned()),
        _ => Ok(()),
    }
}

fn tmpfs(target: &str) -> Result<(), String> {
    match target.starts_with('/') {
        true => Ok(()),
        false => Err("the target of a tmpfs must be an absolute path".to_owned()),
    }
}

fn user(section: &Section<'_, '_>) -> Option<String> {
    let user = section.text("user")?;
    let word = |part: &str| !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control());
    if user.split(':').count() > 2 || !user.split(':').all(word) {
        section
            .fault("user", "must be USER or USER:GROUP, names or numbers, for example \"www-data\" or \"1000:1000\"");
    }
    Some(user)
}

fn network(section: &Section<'_, '_>) -> Option<String> {
    let network = section.text("network")?;
    if network == "host" {
        section.fault(
            "network",
            "shards on the host's network would fight for its ports: leave the key out, or use \"none\"",
        );
    }
    Some(network)
}

fn absolute(section: &Section<'_, '_>, key: &str) -> Option<String> {
    let path = section.text(key)?;
    if !path.starts_with('/') {
        section.fault(key, format!("must be an absolute path, not `{path}`"));
    }
    Some(path)
}

fn logging(section: &Section<'_, '_>) -> Option<Logging> {
    let section = section.section("logging", words::LOGGING)?;
    if !section.has("driver") {
        section.missing("driver", "name a log driver, for example driver = \"journald\"");
    }
    let options = section.map("options", |_| Ok(()));
    Some(Logging { driver: section.text("driver")?, options })
}

fn ulimits(section: &Section<'_, '_>) -> Vec<Ulimit> {
    let read = |section: Section<'_, '_>| {
        for key in ["name", "soft"] {
            if !section.has(key) {
                section.missing(key, "write for example { name = \"nofile\", soft = 65536, hard = 65536 }");
            }
        }
        let (name, soft) = (section.text("name"), section.integer("soft", -1..=i64::MAX));
        let hard = section.integer("hard", -1..=i64::MAX);
        let (name, soft) = (name?, soft?);
        let hard = hard.unwrap_or(soft);
        if hard != -1 && (soft == -1 || soft > hard) {
            section.fault("hard", "must not be less than `soft`");
        }
        Some(Ulimit { name, soft, hard })
    };
    section.sections("ulimits", words::ULIMIT).into_iter().filter_map(read).collect()
}

fn extra(section: &Section<'_, '_>) -> Value {
    let mut body = Map::new();
    if let Some(extra) = section.section("extra", &[]) {
        body = extra.fields().filter_map(|(key, field)| Some((key.to_owned(), json(&field)?))).collect();
    }
    let body = Value::Object(body);
    for (path, remedy) in OURS {
        if body.pointer(&format!("/{}", path.replace('.', "/"))).is_some() {
            section.fault("extra", format!("{path} is not the operator's: {remedy}"));
        }
    }
    let labels = body.get("Labels").and_then(Value::as_object);
    if labels.is_some_and(|labels| labels.keys().any(|name| label(name).is_err())) {
        section.fault("extra", "labels that start with `sherd.` are the agent's own");
    }
    body
}

/// The JSON that a TOML value stands for.
fn json(field: &Field<'_, '_>) -> Option<Value> {
    match field.value() {
        DeValue::String(text) => Some(Value::String(text.as_ref().to_owned())),
        DeValue::Boolean(value) => Some(Value::Bool(*value)),
        DeValue::Integer(_) => field.integer(i64::MIN..=i64::MAX).map(Value::from),
        DeValue::Float(float) => {
            let number = float.as_str().parse().ok().and_then(serde_json::Number::from_f64);
            if number.is_none() {
                field.fault("must be a finite number: JSON has no others");
            }
            number.map(Value::Number)
        }
        DeValue::Datetime(_) => {
            field.fault("must not be a date: JSON has none; put it in quotes");
            None
        }
        DeValue::Array(_) => {
            let elements = field.elements("an array")?;
            elements.iter().map(json).collect::<Option<Vec<_>>>().map(Value::Array)
        }
        DeValue::Table(_) => {
            let section = field.section(&[])?;
            let fields: BTreeMap<_, _> = section.fields().collect();
            let entry = |(key, field): (&str, Field<'_, '_>)| Some((key.to_owned(), json(&field)?));
            fields.into_iter().map(entry).collect::<Option<Map<_, _>>>().map(Value::Object)
        }
    }
}
