//! What follows from which slots are in service: who helps whom, who serves the anchors, and how long connections wait
//! there when nobody does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sherd_lb::relay::Role;
use sherd_topology::{
    model::Host,
    plan::{GroupName, SlotId},
};

use super::{
    Reconciler,
    group::{Group, Intent, SlotRun},
    keeper::Keeper,
    steering_table,
    view::Service,
    world::{self, Worker},
};
use crate::{clock, spec::Unready};

impl Reconciler {
    /// Brings siblings and anchors in line with the slots that are in service now.
    pub(super) fn settle_service(&mut self, name: &GroupName) {
        let Some(group) = self.groups.get_mut(name) else { return };
        group.settle(&self.host);
    }

    /// Ends what has waited in the anchors of groups without a ready shard for too long.
    pub(super) fn age_anchors(&mut self, now: Instant) {
        for (name, group) in &mut self.groups {
            let bound = match group.spec.unready {
                Unready::Wait(bound) => bound,
                // What moved there from a listener that closed is refused as new connections are.
                Unready::Refuse => Duration::ZERO,
            };
            if group.unready_since.is_none() {
                continue;
            }
            let ended = group.fronts.end_overdue(bound, now);
            if ended > 0 {
                tracing::warn!(group = %name, connections = ended, ?bound, "no shard was ready in time: connections ended");
                self.counters.note_overdue(name, ended);
            }
        }
    }

    /// Tries again to publish what could not be.
    pub(super) fn publish_missing(&mut self, now: Instant) {
        for group in self.groups.values_mut().filter(|group| matches!(group.intent, Intent::Run)) {
            let slots = group.layout.as_ref().map_or(&[][..], |layout| &layout.slots);
            let new = group.fronts.publish_missing(&group.spec, &self.host, slots, &mut self.keeper, now);
            if new {
                group.equip_new_fronts(&mut self.keeper);
            }
        }
    }

    /// Gives up addresses that no specification has any more, once no shard listens there.
    pub(super) fn finish_leaving(&mut self) {
        for group in self.groups.values_mut() {
            let gone = group.fronts.finish_leaving(&mut self.keeper);
            group.forget_fronts(&gone);
        }
    }

    /// The agent ends: nobody accepts any more (new connections wait in the listeners, which the holder has), and what is
    /// relayed goes to the next agent by way of the holder. What can't has a while to finish.
    pub(super) async fn end_relaying(&mut self) {
        let given = self.give_relayed();
        tracing::info!(
            connections = given.connections,
            took = ?given.took,
            "relayed connections wait for the next agent; shards and listeners stay"
        );
        if given.silent_workers > 0 {
            tracing::error!(
                workers = given.silent_workers,
                "workers did not answer: what they relay ends; please report this"
            );
        }
        if let (Some(reason), 1..) = (&given.reason, given.left) {
            let time = self.settings.shutdown_drain;
            tracing::warn!(connections = given.left, ?time, "not handed over, they may finish: {reason}");
            self.drain_relays().await;
        }
    }

    async fn drain_relays(&mut self) {
        let deadline = clock::now() + self.settings.shutdown_drain;
        let drains: Vec<_> =
            self.groups.values().flat_map(Group::workers).map(|worker| worker.drain(deadline)).collect();
        let waited = world::blocking(move || {
            for drain in drains {
                // Each worker keeps to the deadline itself; this bounds waiting for one that is stuck.
                let _ = drain.recv_timeout(deadline.saturating_duration_since(clock::now()) + DRAIN_SLACK);
            }
        });
        if let Err(panic) = waited.await {
            tracing::error!(%panic, "waiting for the workers failed");
        }
    }

    /// Replaces workers whose thread has ended by a fault of ours: the slot gets another.
    pub(super) fn bury_workers(&mut self) {
        for (name, group) in &mut self.groups {
            for (id, slot) in &mut group.slots {
                let Some(worker) = slot.worker.take_if(|worker| !worker.is_alive()) else { continue };
                let reason = worker.last_error().unwrap_or_default();
                tracing::error!(group = %name, slot = %id, reason, "a relay worker ended: starting another; please report this");
                slot.last_error = Some(format!("its relay worker ended: {reason}"));
                slot.backend = None;
                group.fronts.forget_anchor_server(*id);
                group.settled.clear();
            }
        }
    }
}

/// What a worker may take beyond its deadline.
const DRAIN_SLACK: Duration = Duration::from_secs(1);

impl Group {
    pub(super) fn workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.slots.values().filter_map(|slot| slot.worker.as_ref())
    }

    /// Slots that are in service, ascending.
    pub(super) fn in_service(&self) -> Vec<SlotId> {
        let serving =
            |(id, slot): (&SlotId, &SlotRun)| (slot.service() == Service::In && slot.worker.is_some()).then_some(*id);
        self.slots.iter().filter_map(serving).collect()
    }

    fn settle(&mut self, host: &Host) {
        let serving = self.in_service();
        let former = self.fronts.anchor_server();
        // What waits there must not go to a shard that doesn't accept, unless there is no other.
        let accepts = |id: &&SlotId| self.slots.get(id).is_some_and(|slot| slot.hung.is_none());
        let server = serving.iter().find(accepts).or(serving.first()).copied();
        if serving == self.settled && server == former && !self.fronts.any_anchor_is_due() {
            return;
        }
        let worker_of = |id: &SlotId| self.slots.get(id).and_then(|slot| slot.worker.as_ref());
        for (id, slot) in &self.slots {
            let (Some(worker), Some(place)) = (&slot.worker, self.place(*id)) else { continue };
            let near = steering_table::nearest_first(host, self.planned(), place);
            let siblings = near.iter().filter(|other| serving.contains(other)).filter_map(worker_of);
            worker.set_siblings(siblings.map(|sibling| sibling.handle()).collect());
        }
        let former = former.and_then(|id| worker_of(&id).cloned());
        let worker = server.and_then(|id| Some((id, worker_of(&id)?.clone())));
        self.fronts.serve_anchors(worker.as_ref().map(|(id, worker)| (*id, worker)), former.as_ref());
        self.unready_since = match (serving.is_empty(), self.unready_since) {
            (true, None) => Some(clock::now()),
            (true, since) => since,
            (false, _) => None,
        };
        self.settled = serving;
    }

    /// Lets the workers there are accept from addresses that are new.
    pub(super) fn equip_new_fronts(&mut self, keeper: &mut Keeper) {
        for (id, slot) in &mut self.slots {
            let Some(worker) = slot.worker.clone() else { continue };
            if let Err(error) = self.fronts.equip(*id, &worker, keeper) {
                slot.last_error = Some(format!("it can't serve a new address: {}", super::chain(&error)));
            }
            // Whether it does is known when it was asked again.
            slot.unserved = true;
            // The new address needs a target: it is given with the next connect, and then its connections come.
            slot.reconnect = true;
        }
    }

    /// Stops accepting for addresses that are gone.
    pub(super) fn forget_fronts(&self, keys: &[sherd_lb::relay::PortKey]) {
        for worker in self.workers() {
            for key in keys {
                // Its completion is of no interest: the descriptor closes when the worker is done with it.
                drop(worker.stop_serving(*key, Role::Slot));
                drop(worker.stop_serving(*key, Role::Anchor));
            }
        }
    }
}
