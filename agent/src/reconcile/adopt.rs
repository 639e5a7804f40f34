//! The first thing an agent does: finds what a former one left, and goes on with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use sherd_topology::plan::{GroupName, Layout, MemoryBinding, Slot, SlotId};

use super::{
    Reconciler,
    group::{Group, Intent},
    handover::Returning,
    publish::{self, Fronts},
    rollout::RolloutRun,
    view::Service,
    world::{self, Front},
};
use crate::{
    clock,
    runtime::{ObservedShard, Runtime, ShardState},
    store::{Standing, StoreError},
};

/// How long a runtime may hold up the agent's start. Without its answer the groups are planned as if it had no shards;
/// planning gives the same slots for the same machine, and what differs is moved later.
const FIRST_LISTING_TIMEOUT: Duration = Duration::from_secs(5);
/// The same while connections that were handed over stand still.
const LISTING_TIMEOUT_WHILE_CONNECTIONS_WAIT: Duration = Duration::from_millis(500);

/// Why an agent can't go on with what a former one left.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The state directory can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Whatever the holder has may still listen: binding its addresses anew would fail for as long as this agent lives.
    #[error("the holder did not say what it has; start the agent again, and see the holder's log if that lasts")]
    Holder,
}

impl Reconciler {
    /// Loads the specifications, asks what runs, takes over listeners and tables from the holder. After that the
    /// loop can run; connections that waited while no agent was there are served as soon as their shard is reached.
    ///
    /// # Errors
    /// When the state directory can't be read, or the holder doesn't answer; the next agent finds what this one would have.
    pub async fn adopt(&mut self) -> Result<(), AdoptError> {
        let (stored, aside) = self.store.load()?;
        for broken in aside {
            let mut warning =
                format!("{} could not be obeyed and was set aside: {}", broken.path.display(), broken.reason);
            if let Some(group) = broken.group {
                warning
                    .push_str("; what runs of the group is left alone until `sherd apply` and a restart of the agent");
                self.unread.insert(group);
            }
            tracing::error!(warning);
            self.warnings.push(warning);
        }
        for stored in stored {
            let intent = match stored.standing {
                Standing::Running => Intent::Run,
                Standing::Stopped => Intent::Stop,
            };
            let (record, fault) = self.store.rollout(&stored.spec.name);
            if let Some(warning) = fault {
                tracing::error!(warning);
                self.warnings.push(warning);
            }
            let rollout = RolloutRun::adopt(record, &stored.text, clock::now());
            let name = stored.spec.name.clone();
            self.groups.insert(name, Group { rollout, ..Group::new(stored.spec, stored.text, intent) });
        }
        self.returning = Returning::find(&mut self.keeper);
        world::remove_former_guards(&self.settings.instance);
        let shards = self.first_listing().await;
        self.place_as_found(&shards);
        self.take_fronts();
        self.adopt_direct();
        if self.keeper.is_unanswered() {
            return Err(AdoptError::Holder);
        }
        for group in self.groups.values_mut() {
            for (id, slot) in &mut group.slots {
                // One that was out comes in when its shard passes its check: whatever it was out for may still be so.
                if group.fronts.is_in(*id) {
                    slot.service = Some(Service::In);
                }
            }
        }
        self.take_back_all();
        Ok(())
    }

    async fn first_listing(&mut self) -> Vec<ObservedShard> {
        let bound = match self.returning.is_empty() {
            true => FIRST_LISTING_TIMEOUT,
            false => LISTING_TIMEOUT_WHILE_CONNECTIONS_WAIT,
        };
        let list = |runtime: Arc<dyn Runtime>| async move {
            (runtime.kind(), tokio::time::timeout(bound, runtime.list()).await)
        };
        let mut shards = Vec::new();
        for (kind, answer) in join_all(self.runtimes.0.iter().cloned().map(list)).await {
            match answer {
                Ok(Ok(listing)) => shards.extend(listing.shards),
                Ok(Err(error)) => self.note_runtime(kind, Err(&error)),
                Err(_) => tracing::warn!(runtime = kind, ?bound, "no answer yet; going on without"),
            }
        }
        shards
    }

    /// Plans with the CPUs that the running shards have as the current layout.
    fn place_as_found(&mut self, shards: &[ObservedShard]) {
        let mut found: BTreeMap<GroupName, BTreeMap<SlotId, Slot>> = BTreeMap::new();
        for shard in shards.iter().filter(|shard| matches!(shard.state, ShardState::Running { .. })) {
            let Some(group) = self.groups.get(&shard.key.group) else { continue };
            let slot = Slot {
                id: shard.key.slot,
                cpus: shard.cpus.clone(),
                mems: shard.mems.clone(),
                memory: if shard.mems.is_empty() { MemoryBinding::None } else { group.spec.layout.memory },
                memory_limit_bytes: None,
            };
            found.entry(shard.key.group.clone()).or_default().insert(slot.id, slot);
        }
        for (group, slots) in found {
            if let Some(found_group) = self.groups.get_mut(&group) {
                found_group.layout = Some(Layout { group, slots: slots.into_values().collect() });
            }
        }
        self.replan();
    }

    /// Takes over what the holder has of each group; what belongs to no group is let go.
    fn take_fronts(&mut self) {
        let names: Vec<String> = self.keeper.names();
        let mut strangers: BTreeSet<&str> = BTreeSet::new();
        for name in &names {
            match name.strip_prefix("front/").and_then(|rest| rest.split('/').next()) {
                Some(group) if self.groups.keys().any(|known| known.as_str() == group) => {}
                Some(group) if self.unread.iter().any(|known| known.as_str() == group) => self.keeper.note_known(name),
                Some(group) => drop(strangers.insert(group)),
                None => {}
            }
        }
        for group in strangers {
            tracing::info!(group, "no specification of this group: its addresses are given up");
            self.keeper.remove_prefix(&format!("front/{group}/"));
        }
        let states = names.iter().filter(|name| {
            name.starts_with("front/") && name.rsplit_once('/').is_some_and(|(_, name)| name == Front::STATE)
        });
        for name in states {
            if let (Some(state), Some(cells)) = (self.keeper.take(name), self.keeper.cells()) {
                Front::reserve_cells(cells, state.as_fd());
            }
        }
        for (name, group) in &mut self.groups {
            if !matches!(group.intent, Intent::Run) {
                // A former agent was killed before it had given them up: nobody is going to serve them.
                if names.iter().any(|kept| kept.starts_with(&format!("front/{name}/"))) {
                    Fronts::give_up(name, &mut self.keeper);
                }
                continue;
            }
            let kept: Vec<(String, OwnedFd)> = self.keeper.take_prefix(&publish::group_prefix(name));
            for (name, _) in &kept {
                self.keeper.note_known(name);
            }
            let kept = publish::by_address(kept, name);
            let slots = group.planned().to_vec();
            let counted = |address, slot| self.returning.counted(name, address, slot);
            group.fronts = Fronts::adopt(&group.spec, &self.host, &slots, kept, counted, &mut self.keeper);
            group.fronts.set_tables(&self.host, &slots);
        }
        // What is still reserved is nobody's, but for groups that nobody can read: their shards count on.
        if let Some(cells) = self.keeper.cells().filter(|_| self.unread.is_empty()) {
            cells.end_reservations();
        }
    }
}
