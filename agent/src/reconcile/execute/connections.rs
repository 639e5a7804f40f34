//! A slot's connections: where its worker connects, whether new ones come, and the end of those that are there.

use std::{io, os::fd::OwnedFd, sync::mpsc::Receiver, time::Duration};

use sherd_lb::{
    front::SlotError,
    relay::{Backend, BackendError, PortKey},
};
use sherd_topology::plan::{GroupName, SlotId};

use super::WORKER_TIMEOUT;
use crate::{
    clock, fault,
    reconcile::{
        Reconciler, chain,
        group::SlotRun,
        inspect::Reach,
        message::Outcome,
        publish::Fronts,
        view::{Service, Step},
    },
    runtime::ShardId,
    spec::GroupSpec,
};

impl Reconciler {
    pub(super) fn connect(&mut self, name: &GroupName, id: SlotId, shard: ShardId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(slot) = group.slots.get_mut(&id) else { return };
        let (Some(worker), Some(reach)) = (&slot.worker, slot.live.as_ref().and_then(|live| live.reach.as_ref()))
        else {
            return;
        };
        let (backend, inner) = match slot.backend_of(reach, &group.fronts) {
            Ok(backend) => backend,
            Err(error) => {
                slot.fail(&group.spec, Duration::ZERO, no_namespace(&error), clock::now());
                slot.hold_until_backoff();
                return;
            }
        };
        // Before an address that is new: its connections would find no target there.
        let entered = worker.set_backend(Some(backend));
        slot.directs.values_mut().for_each(|direct| direct.serve_inner(worker, &inner));
        let mut unserved = None;
        if slot.service() == Service::In {
            let generation = slot.live.as_ref().map_or(slot.generation, |live| live.generation);
            group.fronts.choose_paths(id, generation);
            unserved = group.fronts.take_in(id, &reach.ports).err();
        }
        (slot.backend, slot.reconnect) = (Some(shard.clone()), unserved.is_some());
        if let Some(error) = unserved {
            slot.fail_to_serve(&group.spec, &error);
        }
        group.settle_hung();
        self.await_worker(name, id, Step::Connect(shard), move || entered_in_time(&entered));
    }

    /// The inner doors of a shard that comes up are served before it takes over: what checks it from inside finds it answer.
    pub(in crate::reconcile) fn serve_inner_doors(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(slot) = group.slots.get_mut(&id) else { return };
        let next = slot.next.as_ref().and_then(|next| slot.directs.get(&next.generation));
        // Without a backend it is connected soon, and then to these too.
        if slot.backend.is_none() || next.is_none_or(|direct| direct.grafts.is_empty()) {
            return;
        }
        let (Some(worker), Some(reach)) = (&slot.worker, slot.live.as_ref().and_then(|live| live.reach.as_ref()))
        else {
            return;
        };
        match slot.backend_of(reach, &group.fronts) {
            Ok((backend, inner)) => {
                // To the same shard, so its result is of no interest.
                drop(worker.set_backend(Some(backend)));
                slot.directs.values_mut().for_each(|direct| direct.serve_inner(worker, &inner));
            }
            Err(error) => slot.last_error = Some(no_namespace(&error)),
        }
    }

    pub(super) fn set_service(&mut self, name: &GroupName, id: SlotId, service: Service) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let is_in = service == Service::In;
        if let Some(live) = group.slots.get(&id).and_then(|slot| slot.live.as_ref()).filter(|_| is_in) {
            group.fronts.choose_paths(id, live.generation);
            group.begin_slow_start(id, &self.host, clock::now());
        }
        fault::point(if is_in { "take_in.before" } else { "take_out.before" });
        let reached = group.slots.get(&id).and_then(|slot| slot.live.as_ref()?.reach.as_ref());
        let set = match is_in {
            true => group.fronts.take_in(id, reached.map_or(&[], |reach| &reach.ports)),
            false => group.fronts.take_out(id),
        };
        fault::point(if is_in { "take_in.after" } else { "take_out.after" });
        let Some(slot) = group.slots.get_mut(&id) else { return };
        match set {
            Err(error) if is_in => {
                slot.fail(&group.spec, Duration::ZERO, chain(&error), clock::now());
                slot.hold_until_backoff();
            }
            Err(error) => tracing::error!(group = %name, slot = %id, "not taken out: {}", chain(&error)),
            Ok(()) => {
                if slot.service.replace(service) != Some(service) {
                    // Whatever accepts from now on hasn't been found hung yet.
                    slot.hung = None;
                }
                if let Some(live) = slot.live.as_mut().filter(|_| is_in) {
                    live.served = true;
                    self.note_path_of_image(name, id);
                    self.note_served(name, id);
                }
            }
        }
        if let Some(group) = self.groups.get_mut(name) {
            group.settle_hung();
        }
    }

    pub(super) fn drain(&mut self, name: &GroupName, id: SlotId) {
        let Some(drain) = self.groups.get(name).map(|group| group.spec.drain) else { return };
        self.set_service(name, id, Service::Draining { until: clock::now() + drain });
        if let Some(slot) = self.slot_mut(name, id) {
            slot.expect_direct(clock::now());
        }
    }

    /// The worker turns away from the shard. What it relays to it may go on until the end of the drain, if there is one:
    /// a connection may have been accepted after the counters were looked at.
    pub(super) fn disconnect(&mut self, name: &GroupName, id: SlotId) {
        let Some(slot) = self.slot_mut(name, id) else { return };
        slot.backend = None;
        let until = match slot.service() {
            Service::Draining { until } => until,
            Service::In | Service::Out => clock::now(),
        };
        let Some(worker) = &slot.worker else { return };
        let (left, closed) = (worker.set_backend(None), worker.drain_former(until));
        self.await_worker(name, id, Step::Disconnect, move || {
            let patience = until.saturating_duration_since(clock::now()) + WORKER_TIMEOUT;
            // A worker that is gone has left and closed everything too.
            let _ = (left.recv_timeout(WORKER_TIMEOUT), closed.recv_timeout(patience));
            Outcome::Done
        });
    }
}

impl SlotRun {
    /// Some address doesn't have the slot: it is connected once more after a while.
    pub(super) fn fail_to_serve(&mut self, spec: &GroupSpec, error: &SlotError) {
        self.fail(spec, Duration::ZERO, format!("it can't serve an address: {}", chain(error)), clock::now());
        self.hold_until_backoff();
    }

    /// What the worker is told while the shard that is reached so gets the slot's connections; also the doors into the other
    /// shards that are there, and the keys of all these.
    pub(super) fn backend_of(&self, reach: &Reach, fronts: &Fronts) -> io::Result<(Backend, Vec<PortKey>)> {
        let netns = reach.netns.as_ref().map(|netns| netns.try_clone()).transpose()?;
        let mut ports = fronts.backend_ports(&reach.ports);
        let beside = self.live.iter().chain(&self.next).map(|live| (live.generation, live.reach.as_ref()));
        let shards = beside.chain(self.former.iter().map(|former| (former.generation, former.reach.as_ref())));
        let doors = shards.filter_map(|(generation, reach)| Some((self.directs.get(&generation)?, reach?)));
        let inner: Vec<_> = doors.flat_map(|(direct, reach)| direct.inner_targets(&reach.ports)).collect();
        let keys = inner.iter().map(|(key, _)| *key).collect();
        ports.extend(inner);
        Ok((Backend { netns: netns.map(OwnedFd::from), ports }, keys))
    }
}

pub(super) fn no_namespace(error: &io::Error) -> String {
    format!("its namespace can't be kept open: {error}")
}

/// Whether a worker has turned to a backend.
pub(super) fn entered_in_time(entered: &Receiver<Result<(), BackendError>>) -> Outcome {
    match entered.recv_timeout(WORKER_TIMEOUT) {
        Ok(Ok(())) => Outcome::Done,
        Ok(Err(error)) => Outcome::Worker(chain(&error)),
        Err(error) => Outcome::Worker(error.to_string()),
    }
}
