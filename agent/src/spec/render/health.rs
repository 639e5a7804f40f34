//! The sections [readiness] and [health] as TOML.

use toml_edit::Table;

use super::{put, put_duration, put_integer, put_option, put_texts, put_word};
use crate::spec::{BodyMatch, Check, HealthPolicy, HttpCheck, Observe, Readiness, health::METHODS, words};

pub(super) fn readiness(spec: &Readiness) -> Table {
    let default = Readiness::of(spec.check.clone());
    let mut table = Table::new();
    if spec.check != Check::Tcp {
        put(&mut table, "check", spec.check.name());
    }
    match &spec.check {
        Check::Tcp | Check::Image => {}
        Check::Http(http) => put_http(&mut table, http),
        Check::Command(command) => put_texts(&mut table, "command", command),
    }
    if let Some(port) = spec.port {
        put(&mut table, "port", i64::from(port.0));
    }
    put_duration(&mut table, "interval", spec.interval, default.interval);
    put_duration(&mut table, "timeout", spec.timeout, default.timeout);
    put_integer(&mut table, "rise", spec.rise, default.rise);
    put_integer(&mut table, "fall", spec.fall, default.fall);
    put_duration(&mut table, "start_period", spec.start_period, default.start_period);
    put_duration(&mut table, "start_timeout", spec.start_timeout, default.start_timeout);
    table
}

fn put_http(table: &mut Table, http: &HttpCheck) {
    if http.method != METHODS[0] {
        put(table, "method", http.method);
    }
    put(table, "path", http.path.as_str());
    put_option(table, "host", http.host.as_ref());
    let range = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    put(table, "status", http.status.iter().map(range).collect::<Vec<_>>().join(","));
    match &http.body {
        None => {}
        Some(BodyMatch::Contains(text)) => put(table, "body", text.as_str()),
        Some(BodyMatch::Matches(pattern)) => put(table, "body_regex", pattern.to_string()),
    }
}

pub(super) fn policy(spec: &HealthPolicy) -> Table {
    let default = HealthPolicy::default();
    let mut table = Table::new();
    put_word(&mut table, "observe", words::OBSERVES, &spec.observe, &Observe::Off);
    put_integer(&mut table, "eject_after", spec.eject_after, default.eject_after);
    put_integer(&mut table, "eject_rate", spec.eject_rate, default.eject_rate);
    put_integer(&mut table, "eject_min", spec.eject_min, default.eject_min);
    // Each is checked against the other.
    if (spec.eject_time, spec.eject_time_max) != (default.eject_time, default.eject_time_max) {
        put(&mut table, "eject_time", super::format_duration(spec.eject_time));
        put(&mut table, "eject_time_max", super::format_duration(spec.eject_time_max));
    }
    put_integer(&mut table, "max_ejected_percent", spec.max_ejected_percent, default.max_ejected_percent);
    put_duration(&mut table, "slow_start", spec.slow_start, default.slow_start);
    if spec.unpause_after != default.unpause_after {
        put(&mut table, "unpause_after", spec.unpause_after.map_or_else(|| "off".to_owned(), super::format_duration));
    }
    table
}
