//! The sections [readiness] and [health].

use std::time::Duration;

use super::{DAY, HOUR, MINUTE, MS};
use crate::spec::{
    BodyMatch, Check, ContainerPort, HealthPolicy, HttpCheck, PortSpec, Readiness,
    document::Section,
    health::{DEFAULT_STATUS, METHODS},
    words,
};

/// Keys that only one check has.
const HTTP_KEYS: [&str; 6] = ["method", "path", "host", "status", "body", "body_regex"];
/// What an image's HEALTHCHECK says itself.
const ENGINE_KEYS: [&str; 4] = ["rise", "fall", "timeout", "start_period"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp,
    Http,
    Command,
    Image,
}

const KINDS: &[(&str, Kind)] =
    &[("tcp", Kind::Tcp), ("http", Kind::Http), ("command", Kind::Command), ("image", Kind::Image)];

pub(super) fn readiness(root: &Section<'_, '_>, ports: &[PortSpec]) -> Readiness {
    let Some(section) = root.section("readiness", words::READINESS) else { return Readiness::default() };
    let kind = section.choice("check", KINDS);
    // After a word that is none, whose the other keys are is guesswork.
    if kind.is_some() || !section.has("check") {
        report_strangers(&section, kind.unwrap_or(Kind::Tcp));
    }
    let check = match kind.unwrap_or(Kind::Tcp) {
        Kind::Tcp => Check::Tcp,
        Kind::Http => Check::Http(http(&section)),
        Kind::Command => Check::Command(command(&section)),
        Kind::Image => image(root, &section),
    };
    let default = Readiness::of(check.clone());
    let port = section.integer("port", 1..=u16::MAX).map(ContainerPort);
    if port.is_some_and(|port| !ports.iter().any(|published| published.container == port)) {
        section.fault("port", "must be the container's side of a published port");
    }
    Readiness {
        check,
        port,
        interval: section.duration("interval", 10 * MS..=HOUR).unwrap_or(default.interval),
        timeout: section.duration("timeout", MS..=MINUTE).unwrap_or(default.timeout),
        rise: section.integer("rise", 1..=1000).unwrap_or(default.rise),
        fall: section.integer("fall", 1..=1000).unwrap_or(default.fall),
        start_period: section.duration("start_period", Duration::ZERO..=DAY).unwrap_or(default.start_period),
        start_timeout: section.duration("start_timeout", 100 * MS..=DAY).unwrap_or(default.start_timeout),
    }
}

/// Keys of another check than the one that is asked for.
fn report_strangers(section: &Section<'_, '_>, kind: Kind) {
    let fault = |keys: &[&str], message: &str| {
        keys.iter().filter(|key| section.has(key)).for_each(|key| section.fault(key, message));
    };
    if kind != Kind::Http {
        fault(&HTTP_KEYS, "only with check = \"http\": set it, or remove this");
    }
    if kind != Kind::Command {
        fault(&["command"], "only with check = \"command\": set it, or remove this");
    }
    if kind == Kind::Image {
        fault(&ENGINE_KEYS, "the engine counts and times the image's own check: set it in its HEALTHCHECK");
        fault(&["port"], "the image's own check knows its port: remove this");
    }
}

fn http(section: &Section<'_, '_>) -> HttpCheck {
    let methods = METHODS.map(|method| (method, method));
    let path = section.text("path").unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        section.fault("path", "must start with `/` and contain no spaces: write for example \"/healthz\"");
    }
    let host = section.text("host");
    if host.as_ref().is_some_and(|host| host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')) {
        section.fault("host", "must be a host name, for example \"www.example.org\"");
    }
    let status = section.text("status").map_or_else(|| Some(vec![DEFAULT_STATUS]), |text| statuses(&text));
    if status.is_none() {
        section.fault("status", "must be statuses and ranges from 100 to 599, for example \"200\" or \"200-299,404\"");
    }
    let (text, pattern) = (section.text("body"), section.parsed("body_regex"));
    if section.has("body") && section.has("body_regex") {
        section.fault("body_regex", "a body is matched by `body` or by `body_regex`: remove one of them");
    }
    let method = section.choice("method", &methods).unwrap_or(METHODS[0]);
    if method == "HEAD" && (section.has("body") || section.has("body_regex")) {
        section.fault("method", "the answer to HEAD has no body to match: use GET");
    }
    let body = text.map(BodyMatch::Contains).or(pattern.map(BodyMatch::Matches));
    HttpCheck { method, path, host, status: status.unwrap_or_else(|| vec![DEFAULT_STATUS]), body }
}

fn statuses(text: &str) -> Option<Vec<(u16, u16)>> {
    text.split(',').map(status_range).collect()
}

fn status_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| text.trim().parse().ok().filter(|status| (100..=599).contains(status));
    let (first, last) = (status(first)?, status(last)?);
    (first <= last).then_some((first, last))
}

fn command(section: &Section<'_, '_>) -> Vec<String> {
    if !section.has("command") {
        section.fault("command", "missing: name the program and its arguments, for example [\"pg_isready\", \"-q\"]");
    }
    let command = section.command("command").unwrap_or_default();
    if command.first().is_some_and(String::is_empty) {
        section.fault("command", "its first word is the program: it must not be empty");
    }
    command
}

fn image(root: &Section<'_, '_>, section: &Section<'_, '_>) -> Check {
    if root.has("process") && !root.has("container") {
        section.fault("check", "image needs containers: use check = \"command\", \"http\" or \"tcp\"");
    }
    Check::Image
}

pub(super) fn policy(root: &Section<'_, '_>) -> HealthPolicy {
    let default = HealthPolicy::default();
    let Some(section) = root.section("health", words::HEALTH) else { return default };
    let eject_time = section.duration("eject_time", 100 * MS..=HOUR).unwrap_or(default.eject_time);
    let eject_time_max =
        section.duration("eject_time_max", 100 * MS..=DAY).unwrap_or(default.eject_time_max.max(eject_time));
    if eject_time_max < eject_time {
        section.fault("eject_time_max", "must not be less than `eject_time`");
    }
    HealthPolicy {
        observe: section.choice("observe", words::OBSERVES).unwrap_or(default.observe),
        eject_after: section.integer("eject_after", 1..=1_000_000).unwrap_or(default.eject_after),
        eject_rate: section.integer("eject_rate", 1..=100).unwrap_or(default.eject_rate),
        eject_min: section.integer("eject_min", 1..=1_000_000).unwrap_or(default.eject_min),
        eject_time,
        eject_time_max,
        max_ejected_percent: section.integer("max_ejected_percent", 0..=100).unwrap_or(default.max_ejected_percent),
        slow_start: section.duration("slow_start", Duration::ZERO..=HOUR).unwrap_or(default.slow_start),
        unpause_after: section.duration_or_off("unpause_after", Duration::ZERO..=DAY).unwrap_or(default.unpause_after),
    }
}
