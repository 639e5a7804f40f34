//! From the engine's description of a container to an observed shard, or to what makes it foreign. PURE.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use super::{
    labels::Identity,
    shim,
    wire::{Inspected, State},
};
use crate::runtime::{Foreign, ImageId, ObservedShard, Renamed, ShardId, ShardState};

/// A container of ours.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) shard: ObservedShard,
    /// It is called otherwise than it was.
    pub(super) renamed: Option<Renamed>,
}

/// Reads one container. One that `is_known` to be ours by its id stays so under any name.
pub(super) fn container(
    inspected: &Inspected,
    instance: &str,
    is_known: impl Fn(&ShardId) -> bool,
) -> Result<Seen, Foreign> {
    let id = ShardId(inspected.id.clone());
    // Engines put a slash before it.
    let name = inspected.name.trim_start_matches('/').to_owned();
    let none = HashMap::new();
    let labels = inspected.config.labels.as_ref().unwrap_or(&none);
    let identity = match is_known(&id) {
        true => Identity::claimed(labels, instance),
        false => Identity::read(labels, &name, instance),
    };
    let identity = match identity {
        Ok(identity) => identity,
        Err(reason) => return Err(Foreign { id, name, reason }),
    };
    let own_name = identity.name(instance);
    let renamed = (name != own_name).then(|| {
        let (id, key, name) = (id.clone(), identity.key.clone(), name.clone());
        Renamed { id, key, name, own_name }
    });
    let host = &inspected.host_config;
    let (Ok(cpus), Ok(mems)) = (host.cpuset_cpus.parse(), host.cpuset_mems.parse()) else {
        return Err(Foreign { id, name, reason: "its cpuset is no list of numbers".to_owned() });
    };
    let state = state(&inspected.state);
    let Identity { key, spec, generation } = identity;
    let image = (!inspected.image.is_empty()).then(|| ImageId::new(&inspected.image));
    let behind_shim = shim::is_in_front(&inspected.config.entrypoint);
    let process_ports = Vec::new();
    let shard = ObservedShard { id, key, spec, cpus, mems, state, generation, process_ports, image, behind_shim };
    Ok(Seen { shard, renamed })
}

fn state(state: &State) -> ShardState {
    let pid = u32::try_from(state.pid).ok().filter(|pid| *pid > 0);
    match (state.status.as_str(), pid) {
        ("paused", Some(pid)) => ShardState::Paused { pid },
        // An engine leaves a container whose program couldn't be run as "created", with an exit code.
        ("created" | "configured" | "initialized", _) if state.exit_code == 0 => ShardState::Created,
        ("removing", _) => ShardState::Removing,
        ("dead", _) => ShardState::Dead,
        ("exited" | "stopped", _) | (_, None) => {
            ShardState::Exited { code: i32::try_from(state.exit_code).ok(), oom: state.oom_killed }
        }
        // "running", "restarting", "stopping", and what engines to come may say of something that has a process.
        (_, Some(pid)) => {
            ShardState::Running { pid, started: timestamp(&state.started_at).unwrap_or(SystemTime::UNIX_EPOCH) }
        }
    }
}

/// RFC 3339, as engines write it: `2026-01-02T03:04:05.678901234Z`, or with an offset.
fn timestamp(text: &str) -> Option<SystemTime> {
    let (date, time) = text.split_once('T')?;
    let mut date = date.splitn(3, '-').map(str::parse::<i64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, offset_s) = match time.find(['Z', '+', '-']) {
        Some(at) => (&time[..at], offset_s(&time[at..])?),
        None => return None,
    };
    let mut clock = clock.splitn(3, ':');
    let (hour, minute) = (clock.next()?.parse::<i64>().ok()?, clock.next()?.parse::<i64>().ok()?);
    let second = clock.next()?.parse::<f64>().ok().filter(|second| (0.0..61.0).contains(second))?;
    let valid = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
    let whole_s = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 - offset_s;
    // Docker says 0001-01-01T00:00:00Z for "never".
    let whole = Duration::from_secs(u64::try_from(whole_s).ok().filter(|_| valid)?);
    SystemTime::UNIX_EPOCH.checked_add(whole + Duration::from_secs_f64(second))
}

fn offset_s(zone: &str) -> Option<i64> {
    let sign = match zone.as_bytes().first()? {
        b'Z' => return Some(0),
        b'-' => -1,
        _ => 1,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    Some(sign * (hours.parse::<i64>().ok()? * 3600 + minutes.parse::<i64>().ok()? * 60))
}

/// Howard Hinnant's `days_from_civil`: years begin in March, so that the leap day is the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_the_engines_words() {
        let check = |status: &str, pid: i64, exit_code: i64, expected: ShardState| {
            let found = state(&State { status: status.to_owned(), pid, exit_code, ..State::default() });
            assert_eq!(found, expected, "{status} {pid} {exit_code}");
        };
        let running = ShardState::Running { pid: 7, started: SystemTime::UNIX_EPOCH };
        let exited = |code| ShardState::Exited { code: Some(code), oom: false };
        check("created", 0, 0, ShardState::Created);
        check("created", 0, 127, exited(127));
        check("initialized", 7, 0, ShardState::Created);
        check("running", 7, 0, running);
        check("stopping", 7, 0, running);
        check("a word to come", 7, 0, running);
        check("running", 0, 0, exited(0));
        check("paused", 7, 0, ShardState::Paused { pid: 7 });
        check("exited", 0, 3, exited(3));
        check("stopped", 0, 3, exited(3));
        check("removing", 0, 0, ShardState::Removing);
        check("dead", 0, 0, ShardState::Dead);
        check("", 0, 0, exited(0));
    }

    #[test]
    fn timestamps_are_rfc_3339() {
        let check = |text: &str, expected: Option<u64>| {
            let found = timestamp(text).and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
            assert_eq!(found.map(|time| time.as_secs()), expected, "{text}");
        };
        check("1970-01-01T00:00:00Z", Some(0));
        check("2000-02-29T12:00:01.5Z", Some(951_825_601));
        check("2026-11-22T12:30:00.123456789+02:00", Some(1_795_343_400));
        check("0001-01-01T00:00:00Z", None);
        for bad in ["", "2026-11-22", "2026-13-01T00:00:00Z", "2026-11-22T25:00:00Z", "2026-11-22T12:00:00", "x"] {
            check(bad, None);
        }
    }
}
