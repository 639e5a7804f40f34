//! A shard takes over from the one that it came up beside: new connections go to it, and the other one finishes those it has.

use std::time::Duration;

use sherd_topology::plan::{GroupName, SlotId};

use super::connections::{entered_in_time, no_namespace};
use crate::{
    clock, fault,
    reconcile::{
        Reconciler,
        view::{Service, Step},
    },
    runtime::ShardId,
};

impl Reconciler {
    /// Both shards are there throughout, so each new connection gets one that serves, wherever this is interrupted. The worker
    /// turns first: a path that points at it then leads to the new shard.
    pub(super) fn promote(&mut self, name: &GroupName, id: SlotId, shard: &ShardId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let now = clock::now();
        let until = now + group.spec.drain;
        let Some(slot) = group.slots.get_mut(&id) else { return };
        let Some(next) = slot.next.as_ref().filter(|next| next.id == *shard) else { return };
        let (Some(worker), Some(reach), generation) = (slot.worker.clone(), next.reach.clone(), next.generation) else {
            return;
        };
        if !group.fronts.has_listeners(id, generation, &reach.ports) {
            // It has closed its listener since it was asked.
            slot.next = None;
            return self.follow_live(name);
        }
        let (backend, inner) = match slot.backend_of(&reach, &group.fronts) {
            Ok(backend) => backend,
            Err(error) => {
                slot.fail(&group.spec, Duration::ZERO, no_namespace(&error), now);
                return slot.hold_until_backoff();
            }
        };
        fault::point("promote.before");
        let entered = worker.set_backend(Some(backend));
        let drained = worker.drain_former(until);
        fault::point("promote.half");
        group.fronts.choose_paths(id, generation);
        let is_in = slot.service() == Service::In;
        let unserved = if is_in { group.fronts.take_in(id, &reach.ports).err() } else { None };
        fault::point("promote.after");
        slot.hand_over(drained, now, until);
        slot.judged.begin_shard();
        slot.directs.values_mut().for_each(|direct| direct.serve_inner(&worker, &inner));
        (slot.backend, slot.reconnect) = (Some(shard.clone()), unserved.is_some());
        if let Some(live) = &mut slot.live {
            live.served |= slot.service == Some(Service::In);
        }
        slot.cause = None;
        if let Some(error) = unserved {
            slot.fail_to_serve(&group.spec, &error);
        }
        group.settle_hung();
        if group.slots.get(&id).is_some_and(|slot| slot.service() == Service::In) {
            group.begin_slow_start(id, &self.host, now);
        }
        tracing::info!(group = %name, slot = %id, %shard, "{name}/{id}: {shard} takes over");
        self.note_path_of_image(name, id);
        self.await_worker(name, id, Step::Promote(shard.clone()), move || entered_in_time(&entered));
    }
}
