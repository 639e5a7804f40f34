//! What the holder has of shards whose listen(2) is trapped: by which names, and how a new agent takes it up. Owns the
//! names.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use sherd_lb::graft::Journal;
use sherd_topology::plan::{GroupName, SlotId};

use socket2::SockRef;

use super::{DirectRun, Generation, Graft};
use crate::{
    reconcile::{Reconciler, keeper::Keeper},
    runtime::ShardKey,
    spec::ContainerPort,
};

/// What a descriptor is to its shard.
#[derive(Clone, Copy)]
enum Part {
    /// Where its calls come from.
    Notify,
    /// The journal of the broker that answers them.
    Call,
    /// The program's socket of the call that was answered last, or was about to be.
    Original,
    Inner(ContainerPort),
}

/// All that is held of one shard.
#[derive(Default)]
struct Held {
    notify: Option<OwnedFd>,
    call: Option<OwnedFd>,
    original: Option<OwnedFd>,
    inner: Vec<(ContainerPort, OwnedFd)>,
}

impl Reconciler {
    /// Takes up what the holder has of shards whose listen(2) is trapped, of each that may still run: a slot may have two.
    /// What is of no slot is let go.
    pub(in crate::reconcile) fn adopt_direct(&mut self) {
        let named = self.keeper.names().into_iter();
        let parsed = named.filter_map(|name| parse_name(&name).map(|parsed| (name, parsed)));
        let names: Vec<_> = parsed.filter(|(_, (key, ..))| !self.unread.contains(&key.group)).collect();
        let mut shards: BTreeMap<(ShardKey, Generation), Held> = BTreeMap::new();
        for (name, (key, generation, part)) in names {
            let known = self.groups.get(&key.group).is_some_and(|group| group.slots.contains_key(&key.slot));
            match self.keeper.take(&name).filter(|_| known) {
                Some(descriptor) => {
                    self.keeper.note_known(&name);
                    shards.entry((key, generation)).or_default().take(part, descriptor);
                }
                None => self.keeper.remove(&name),
            }
        }
        for ((key, generation), held) in shards {
            if let Err(error) = self.adopt_held(&key, generation, held) {
                tracing::error!(shard = %key, "its listen(2) calls can't be answered: {error}");
            }
        }
    }

    fn adopt_held(&mut self, key: &ShardKey, generation: Generation, held: Held) -> io::Result<()> {
        let Held { notify, call, original, mut inner } = held;
        let mut journal = call.map_or_else(Journal::new, Journal::adopt)?;
        let waits = notify.as_ref().is_some_and(|notify| journal.is_open(notify));
        match original {
            Some(original) if waits => journal = journal.with_original(original),
            Some(original) => {
                inner.extend(self.adopt_answered(key, generation, original, &inner));
                self.keeper.remove(&original_name(key, generation));
            }
            None => {}
        }
        let broker = match notify {
            Some(notify) => Some((self.spawn_broker(key, generation, &notify, journal)?, notify)),
            None => None,
        };
        let Some(group) = self.groups.get_mut(&key.group) else { return Ok(()) };
        let graft = |(container, original)| Graft {
            container,
            key: group.fronts.new_key(),
            original,
            holder: None,
            inner_served: false,
        };
        let grafts = inner.into_iter().map(graft).collect();
        if let Some(slot) = group.slots.get_mut(&key.slot) {
            slot.directs.insert(generation, DirectRun { broker, reason: None, grafts });
        }
        Ok(())
    }

    /// The former agent was killed between answering the program and keeping its socket as an inner door.
    fn adopt_answered(
        &mut self,
        key: &ShardKey,
        generation: Generation,
        original: OwnedFd,
        inner: &[(ContainerPort, OwnedFd)],
    ) -> Option<(ContainerPort, OwnedFd)> {
        let container = ContainerPort(SockRef::from(&original).local_addr().ok()?.as_socket()?.port());
        let fronts = &self.groups.get(&key.group)?.fronts;
        // Without a listener in its place the socket is the program's.
        let is_replaced = fronts.direct_targets(key.slot, generation).iter().any(|(port, _)| *port == container);
        if !is_replaced || inner.iter().any(|(port, _)| *port == container) {
            return None;
        }
        self.keeper.put(&inner_name(key, generation, container), original.as_fd());
        Some((container, original))
    }
}

impl Held {
    fn take(&mut self, part: Part, descriptor: OwnedFd) {
        match part {
            Part::Notify => self.notify = Some(descriptor),
            Part::Call => self.call = Some(descriptor),
            Part::Original => self.original = Some(descriptor),
            Part::Inner(container) => self.inner.push((container, descriptor)),
        }
    }
}

/// Lets go of everything of a group's shards.
pub(in crate::reconcile) fn forget_group(keeper: &mut Keeper, group: &GroupName) {
    for kind in ["notify", "call", "original", "inner"] {
        keeper.remove_prefix(&format!("{kind}/{group}/"));
    }
}

pub(super) fn notify_name(key: &ShardKey, generation: Generation) -> String {
    format!("notify/{}/{}/{generation}", key.group, key.slot)
}

pub(super) fn call_name(key: &ShardKey, generation: Generation) -> String {
    format!("call/{}/{}/{generation}", key.group, key.slot)
}

pub(super) fn original_name(key: &ShardKey, generation: Generation) -> String {
    format!("original/{}/{}/{generation}", key.group, key.slot)
}

pub(super) fn inner_name(key: &ShardKey, generation: Generation, container: ContainerPort) -> String {
    format!("inner/{}/{}/{generation}/{}", key.group, key.slot, container.0)
}

fn parse_name(name: &str) -> Option<(ShardKey, Generation, Part)> {
    let parts: Vec<&str> = name.split('/').collect();
    let (group, slot, generation, part) = match parts.as_slice() {
        ["notify", group, slot, generation] => (group, slot, generation, Part::Notify),
        ["call", group, slot, generation] => (group, slot, generation, Part::Call),
        ["original", group, slot, generation] => (group, slot, generation, Part::Original),
        ["inner", group, slot, generation, port] => {
            (group, slot, generation, Part::Inner(ContainerPort(port.parse().ok()?)))
        }
        _ => return None,
    };
    let key = ShardKey { group: group.parse::<GroupName>().ok()?, slot: SlotId(slot.parse().ok()?) };
    Some((key, generation.parse().ok()?, part))
}
