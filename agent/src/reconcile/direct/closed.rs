//! Shards that have closed their listener and live on: how soon that is noticed, and that they are looked at anew.

use super::{Generation, held::inner_name};
use crate::{
    reconcile::{
        Reconciler, chain,
        group::{Group, SlotRun},
        view::Service,
    },
    runtime::ShardKey,
};

impl Reconciler {
    /// A shard that has closed its listener is reached no more: its slot is out until it is shown to accept again. Most have
    /// died, and their worker must not get what comes meanwhile: it would relay that, for want of a shard, to others.
    pub(in crate::reconcile) fn note_closed_listeners(&mut self) {
        let mut lost = Vec::new();
        for (name, group) in &mut self.groups {
            let Group { slots, fronts, .. } = group;
            for (id, slot) in slots {
                if slot.live.is_some() && fronts.lost_direct(*id) {
                    if let Err(error) = fronts.take_out(*id) {
                        tracing::error!(group = %name, slot = %id, "not taken out: {}", chain(&error));
                    } else if slot.service() == Service::In {
                        (slot.service, slot.hung) = (Some(Service::Out), None);
                    }
                    // Only there: on other ports it may go on listening.
                    let closed = fronts.leave_lost(*id);
                    let key = ShardKey { group: name.clone(), slot: *id };
                    let generation = slot.live.as_ref().map(|live| live.generation);
                    if let Some((generation, direct)) = generation.and_then(|of| Some((of, slot.directs.get_mut(&of)?)))
                    {
                        for graft in direct.grafts.extract_if(.., |graft| closed.contains(&graft.container)) {
                            graft.close_inner(slot.worker.as_deref());
                            self.keeper.remove(&inner_name(&key, generation, graft.container));
                        }
                    }
                    slot.look_again();
                    lost.push((name.clone(), *id));
                }
            }
        }
        for (name, slot) in lost {
            tracing::warn!(group = %name, %slot, "{name}/{slot} has closed its listener");
            self.groups.get_mut(&name).into_iter().for_each(Group::settle_hung);
            self.follow_live(&name);
        }
    }
}

impl SlotRun {
    /// Whether connections reach the shard is to be found out anew.
    pub(super) fn look_again(&mut self) {
        self.live = None;
        self.reconnect = true;
    }

    /// The same of its shard of this generation, which may be one that comes up beside the slot's.
    pub(super) fn look_again_at(&mut self, generation: Generation) {
        let primary = self.shards.iter().find(|shard| Some(&shard.id) == self.roles.primary.as_ref());
        match primary {
            Some(primary) if primary.generation != generation => self.next = None,
            _ => self.look_again(),
        }
    }
}
