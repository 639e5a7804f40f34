//! What the holder has of shards whose listen(2) is trapped: by which names, and how a new agent takes it up. Owns the
//! names.

use std::{collections::BTreeMap, os::fd::OwnedFd};

use sherd_topology::plan::{GroupName, SlotId};

use super::{DirectRun, Generation, Graft};
use crate::{
    reconcile::{Reconciler, keeper::Keeper},
    runtime::ShardKey,
    spec::ContainerPort,
};

impl Reconciler {
    /// Takes up what the holder has of shards whose listen(2) is trapped; what is of none, or of a slot's former shard, is
    /// let go.
    pub(in crate::reconcile) fn adopt_direct(&mut self) {
        let named = self.keeper.names().into_iter();
        let held: Vec<_> = named.filter_map(|name| parse_name(&name).map(|parsed| (name, parsed))).collect();
        let mut newest: BTreeMap<ShardKey, Generation> = BTreeMap::new();
        for (_, (key, generation, _)) in &held {
            let newest = newest.entry(key.clone()).or_default();
            *newest = (*newest).max(*generation);
        }
        for (name, (key, generation, port)) in held {
            let known = self.groups.get(&key.group).is_some_and(|group| group.slots.contains_key(&key.slot));
            let descriptor = self.keeper.take(&name).filter(|_| known && newest[&key] == generation);
            match descriptor {
                Some(descriptor) => {
                    self.keeper.note_known(&name);
                    self.adopt_descriptor(&key, generation, port, descriptor);
                }
                None => self.keeper.remove(&name),
            }
        }
    }

    fn adopt_descriptor(
        &mut self,
        key: &ShardKey,
        generation: Generation,
        port: Option<ContainerPort>,
        descriptor: OwnedFd,
    ) {
        let broker = match port {
            Some(_) => None,
            None => match self.spawn_broker(key, generation, &descriptor) {
                Ok(broker) => Some(broker),
                Err(error) => return tracing::error!(shard = %key, "its listen(2) calls can't be answered: {error}"),
            },
        };
        let Some(group) = self.groups.get_mut(&key.group) else { return };
        let inner = port.map(|container| (container, group.fronts.new_key()));
        let Some(slot) = group.slots.get_mut(&key.slot) else { return };
        let empty = || DirectRun { generation, broker: None, reason: None, grafts: Vec::new() };
        let direct = slot.direct.get_or_insert_with(empty);
        match (broker, inner) {
            (Some(broker), _) => direct.broker = Some((broker, descriptor)),
            (None, Some((container, key))) => {
                direct.grafts.push(Graft { container, key, original: descriptor, holder: None });
            }
            (None, None) => {}
        }
    }
}

/// Lets go of everything of a group's shards.
pub(in crate::reconcile) fn forget_group(keeper: &mut Keeper, group: &GroupName) {
    for kind in ["notify", "inner"] {
        keeper.remove_prefix(&format!("{kind}/{group}/"));
    }
}

pub(super) fn notify_name(key: &ShardKey, generation: Generation) -> String {
    format!("notify/{}/{}/{generation}", key.group, key.slot)
}

pub(super) fn inner_name(key: &ShardKey, generation: Generation, container: ContainerPort) -> String {
    format!("inner/{}/{}/{generation}/{}", key.group, key.slot, container.0)
}

/// The shard, and the container port of an inner door.
fn parse_name(name: &str) -> Option<(ShardKey, Generation, Option<ContainerPort>)> {
    let parts: Vec<&str> = name.split('/').collect();
    let (group, slot, generation, port) = match parts.as_slice() {
        ["notify", group, slot, generation] => (group, slot, generation, None),
        ["inner", group, slot, generation, port] => (group, slot, generation, Some(ContainerPort(port.parse().ok()?))),
        _ => return None,
    };
    let key = ShardKey { group: group.parse::<GroupName>().ok()?, slot: SlotId(slot.parse().ok()?) };
    Some((key, generation.parse().ok()?, port))
}
