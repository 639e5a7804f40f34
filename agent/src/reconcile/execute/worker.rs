//! A slot's worker and its listeners: made before the slot's first shard, dismantled after its last.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc::Receiver},
    time::Duration,
};

use sherd_lb::relay::{Pin, WorkerConfig};
use sherd_topology::plan::{GroupName, Slot, SlotId};

use super::WORKER_TIMEOUT;
use crate::{
    clock, fault,
    reconcile::{
        Reconciler, chain,
        direct::DirectRun,
        group::{Intent, SlotRun},
        message::Outcome,
        publish,
        steering_table::index_of,
        view::Step,
        world::{self, Worker},
    },
    spec::GroupSpec,
};

impl Reconciler {
    /// The name of a slot's worker thread; the kernel keeps 15 bytes of it.
    fn worker_name(group: &GroupName, slot: SlotId) -> String {
        format!("{slot}/{group}").chars().take(15).collect()
    }

    pub(in crate::reconcile) fn equip(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(place) = group.place(id).cloned() else { return };
        let spec = Arc::clone(&group.spec);
        fault::point("equip.before");
        let totals = self.returning.take_totals(name, id);
        let Some(slot) = group.slots.get_mut(&id) else { return };
        // One that is there already accepts where it doesn't yet.
        let worker = match slot.worker.clone() {
            Some(worker) => Ok(worker),
            None => spawn_worker(Self::worker_name(name, id), &spec, &place, &totals)
                .map(Arc::new)
                .inspect(|_| slot.directs.values_mut().for_each(DirectRun::forget_inner))
                .map_err(|error| format!("its worker thread can't be started: {error}")),
        };
        let made = worker.and_then(|worker| {
            let served = group.fronts.equip(id, &worker, &mut self.keeper).map_err(|error| chain(&error))?;
            Ok((worker, served))
        });
        fault::point("equip.after");
        match made {
            Ok((worker, served)) => {
                (slot.worker, slot.unserved) = (Some(worker), false);
                let taken = self.take_back(name, id);
                let wait = move || {
                    // Before it has them, nobody would know that there is something to finish.
                    for taken in taken {
                        // An error means that the worker is gone, and they with it.
                        let _ = taken.recv_timeout(WORKER_TIMEOUT);
                    }
                    match served.iter().find_map(failure) {
                        Some(cause) => Outcome::Worker(format!("its worker can't accept: {cause}")),
                        None => Outcome::Done,
                    }
                };
                self.await_worker(name, id, Step::Equip, wait);
            }
            Err(cause) => {
                slot.fail(&spec, Duration::ZERO, cause, clock::now());
                slot.hold_until_backoff();
            }
        }
    }

    /// The slot is out of the table, has no shard and serves nothing: when its worker has emptied the queues, listeners
    /// and worker end.
    pub(super) fn retire(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(worker) = group.slots.get(&id).and_then(|slot| slot.worker.clone()) else { return };
        fault::point("retire.before");
        let emptied = group.fronts.stop_serving(id, &worker);
        self.await_worker(name, id, Step::Retire, move || {
            for queue in emptied {
                // An error means that the worker is gone: what is queued moves on when the listener ends.
                let _ = queue.recv_timeout(WORKER_TIMEOUT);
            }
            Outcome::Done
        });
    }

    pub(super) fn on_retired(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        group.fronts.retire(id, &mut self.keeper);
        fault::point("retire.after");
        group.settled.clear();
        if let Some(worker) = group.slots.get_mut(&id).and_then(|slot| slot.worker.take()) {
            // Its end waits for its thread, which may be in the middle of something.
            world::blocking(move || drop(worker));
        }
    }

    /// Slots that no plan has any more are forgotten when nothing of them is left: their worker may have been a former agent's.
    pub(in crate::reconcile) fn forget_gone_slots(&mut self, name: &GroupName) {
        let Some(group) = self.groups.get_mut(name).filter(|group| matches!(group.intent, Intent::Run)) else { return };
        let planned: Vec<SlotId> = group.planned().iter().map(|slot| slot.id).collect();
        let is_left =
            |slot: &SlotRun| slot.worker.is_some() || slot.step.is_some() || slot.stale || !slot.shards.is_empty();
        group.slots.retain(|id, slot| planned.contains(id) || is_left(slot));
    }
}

/// Why a listener isn't served, if it isn't.
pub(super) fn failure(served: &Receiver<std::io::Result<()>>) -> Option<String> {
    match served.recv_timeout(WORKER_TIMEOUT) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

fn spawn_worker(
    name: String,
    spec: &GroupSpec,
    place: &Slot,
    totals: &BTreeMap<String, u64>,
) -> std::io::Result<Worker> {
    let limits = publish::limits(spec);
    Worker::spawn_going_on(WorkerConfig { slot: index_of(place.id).0, name, pin: pin_to(place), limits }, totals)
}

pub(super) fn pin_to(place: &Slot) -> Pin {
    let cpus: Vec<u32> = place.cpus.iter().map(|cpu| cpu.0).collect();
    Box::new(move || sherd_lb::pinning::set_affinity(&cpus))
}
