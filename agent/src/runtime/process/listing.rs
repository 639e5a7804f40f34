//! What the shards' directory says: which shards there are and what they do. Blocks on small files only.

use std::{fs, io, path::Path, time::Duration, time::SystemTime};

use sherd_topology::plan::{MemoryBinding, SlotId};

use super::record::{self, Exit, Order, Running, Shim};
use crate::{
    runtime::{Foreign, Listing, ObservedShard, ShardId, ShardKey, ShardState, procfs},
    spec::SpecHash,
};

/// Directories that begin so are being made or removed.
pub(super) const HIDDEN: char = '.';

/// The directory's name, which is also the shard's.
pub(super) fn name(key: &ShardKey, generation: u64) -> String {
    format!("{}-{}-{generation}", key.group, key.slot)
}

/// All shards of the instance.
pub(super) fn read(shards: &Path, instance: &str) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let entries = match fs::read_dir(shards) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(HIDDEN) {
            sweep(&shards.join(&name), &name);
            continue;
        }
        match observe(&shards.join(&name), &name, instance)? {
            Seen::Ours(shard) => listing.shards.push(*shard),
            Seen::Foreign(reason) => {
                listing.foreign.push(Foreign { id: ShardId(name.clone()), name, reason: reason.to_owned() });
            }
            Seen::OtherInstance => {}
        }
    }
    listing.shards.sort_by(|a, b| (&a.key, a.generation).cmp(&(&b.key, b.generation)));
    listing.foreign.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(listing)
}

enum Seen {
    Ours(Box<ObservedShard>),
    Foreign(&'static str),
    OtherInstance,
}

fn observe(directory: &Path, name: &str, instance: &str) -> io::Result<Seen> {
    let Some((key, generation)) = parse(name) else {
        return Ok(Seen::Foreign("its name is not GROUP-SLOT-GENERATION"));
    };
    let Some(order) = record::read::<Order>(directory)? else {
        // Its processes are still found by their mark and cgroup.
        return Ok(Seen::Ours(Box::new(lost(ShardId(name.to_owned()), key, generation))));
    };
    if order.instance != instance {
        return Ok(Seen::OtherInstance);
    }
    if order.key != key || order.generation != generation {
        return Ok(Seen::Foreign("its order is of another shard"));
    }
    let bound = order.slot.memory != MemoryBinding::None;
    Ok(Seen::Ours(Box::new(ObservedShard {
        id: ShardId(name.to_owned()),
        key,
        spec: order.spec,
        cpus: order.slot.cpus,
        mems: if bound { order.slot.mems } else { Default::default() },
        state: state(directory)?,
        generation,
        process_ports: order.process_ports,
        image: None,
        behind_shim: false,
    })))
}

/// What it does, by what its shim has recorded and whether that still runs.
pub(super) fn state(directory: &Path) -> io::Result<ShardState> {
    let Some(shim) = record::read::<Shim>(directory)? else { return Ok(ShardState::Created) };
    // In this order: a shim that isn't alive has written all it will write.
    let shim_lives = shim.process.is_alive();
    if let Some(exit) = record::read::<Exit>(directory)? {
        return Ok(ShardState::Exited { code: exit.code, oom: exit.oom });
    }
    if !shim_lives {
        return Ok(ShardState::Dead);
    }
    Ok(match record::read::<Running>(directory)? {
        Some(running) if procfs::is_stopped(running.process.pid) => ShardState::Paused { pid: running.process.pid },
        Some(running) => ShardState::Running {
            pid: running.process.pid,
            started: SystemTime::UNIX_EPOCH + Duration::from_millis(running.started_unix_ms),
        },
        None => ShardState::Created,
    })
}

fn lost(id: ShardId, key: ShardKey, generation: u64) -> ObservedShard {
    ObservedShard {
        id,
        key,
        spec: SpecHash(String::new()),
        cpus: Default::default(),
        mems: Default::default(),
        state: ShardState::Dead,
        generation,
        process_ports: Vec::new(),
        image: None,
        behind_shim: false,
    }
}

fn parse(name: &str) -> Option<(ShardKey, u64)> {
    let (rest, generation) = name.rsplit_once('-')?;
    let (group, slot) = rest.rsplit_once('-')?;
    let key = ShardKey { group: group.parse().ok()?, slot: SlotId(slot.parse().ok()?) };
    let generation = generation.parse().ok()?;
    // "+1" and "01" are numbers too, but not ours.
    (self::name(&key, generation) == name).then_some((key, generation))
}

/// Removes what a killed agent was making or removing; what this agent is making right now bears its pid.
fn sweep(path: &Path, name: &str) {
    let maker = name.trim_start_matches(HIDDEN).split('-').next().and_then(|pid| pid.parse().ok());
    if maker.is_some_and(|pid: u32| pid != std::process::id()) {
        let _ = fs::remove_dir_all(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_from_their_end() {
        let check = |name: &str, expected: Option<(&str, u32, u64)>| {
            let found = parse(name).map(|(key, generation)| (key.group.to_string(), key.slot.0, generation));
            assert_eq!(found, expected.map(|(group, slot, generation)| (group.to_owned(), slot, generation)), "{name}");
        };
        check("web-0-1", Some(("web", 0, 1)));
        check("a-1-2-3-4", Some(("a-1-2", 3, 4)));
        check("web-0", None);
        check("web-0-x", None);
        check("web-01-1", None);
        check("-0-1", None);
    }
}
