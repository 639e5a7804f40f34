//! The listeners that a slot's worker accepts from, one at each address: from their making to their end, and what is in
//! their queues.

use std::{io, net::SocketAddr, sync::mpsc::Receiver};

use sherd_lb::{
    front::SlotError,
    relay::{PortKey, Role, Target},
};
use sherd_topology::plan::SlotId;

use super::{EquipError, Fronts, addresses::prefix};
use crate::{
    fault,
    reconcile::{
        chain,
        keeper::Keeper,
        steering_table::index_of,
        world::{Front, Worker},
    },
    spec::ContainerPort,
};

impl Fronts {
    /// Makes the slot's listeners, or takes those that are there, and lets its worker accept from them.
    pub(in crate::reconcile) fn equip(
        &mut self,
        slot: SlotId,
        worker: &Worker,
        keeper: &mut Keeper,
    ) -> Result<Vec<Receiver<io::Result<()>>>, EquipError> {
        let group = self.group.clone();
        let mut served = Vec::new();
        for (key, address, front) in self.open_fronts() {
            let index = index_of(slot);
            if front.listener(index).is_none() {
                // A former agent may have come as far as preparing it.
                if !front.slots().any(|slot| slot == index) {
                    let (name, listener) = front.prepare_slot(index)?;
                    fault::point("equip.prepared");
                    keeper.put(&format!("{}{name}", prefix(&group, address)), listener);
                    fault::point("equip.kept");
                }
                front.add_slot(index)?;
            }
            if let Some(listener) = front.listener(index) {
                let listener = listener.try_clone_to_owned().map_err(EquipError::Descriptor)?;
                let account = front.cells().map(|cells| cells.account(index));
                served.push(worker.serve_slot(key, listener, account));
            }
        }
        Ok(served)
    }

    /// Lets the worker empty the slot's queues, which nothing new comes into, and give up its listeners.
    pub(in crate::reconcile) fn stop_serving(&self, slot: SlotId, worker: &Worker) -> Vec<Receiver<()>> {
        let served = self
            .list
            .iter()
            .filter(|published| published.front.as_ref().is_ok_and(|front| front.listener(index_of(slot)).is_some()));
        served.map(|published| worker.stop_serving(published.key, Role::Slot)).collect()
    }

    /// Ends the slot's listeners.
    pub(in crate::reconcile) fn retire(&mut self, slot: SlotId, keeper: &mut Keeper) {
        let group = self.group.clone();
        for (_, address, front) in self.open_fronts() {
            let index = index_of(slot);
            if !front.slots().any(|slot| slot == index) {
                continue;
            }
            if let Err(error) = front.remove_slot(index) {
                tracing::error!(%group, %slot, %address, "its listener can't be removed: {}", chain(&error));
            }
            keeper.remove(&format!("{}{}", prefix(&group, address), Front::listener_name(index)));
        }
        self.forget_anchor_server(slot);
    }

    /// Has the slot's connections come in, at those addresses whose container port its shard is reached at: a shard of a
    /// former specification may lack one that is new.
    pub(in crate::reconcile) fn take_in(
        &mut self,
        slot: SlotId,
        reached: &[(ContainerPort, Target)],
    ) -> Result<(), SlotError> {
        for published in &mut self.list {
            let is_reached = reached.iter().any(|(container, _)| *container == published.port.container);
            if let Ok(front) = &mut published.front
                && front.is_in(index_of(slot)) != is_reached
            {
                front.set_in(index_of(slot), is_reached)?;
            }
        }
        Ok(())
    }

    /// No new connection comes to the slot.
    pub(in crate::reconcile) fn take_out(&mut self, slot: SlotId) -> Result<(), SlotError> {
        self.open_fronts().try_for_each(|(_, _, front)| front.set_in(index_of(slot), false))
    }

    /// Has the slot's connections come in at one address, or none.
    pub(in crate::reconcile) fn set_in_at(
        &mut self,
        address: SocketAddr,
        slot: SlotId,
        is_in: bool,
    ) -> Result<(), SlotError> {
        match self.front_at_mut(address).filter(|front| front.is_in(index_of(slot)) != is_in) {
            Some(front) => front.set_in(index_of(slot), is_in),
            None => Ok(()),
        }
    }

    /// Whether a bound address names the slot.
    pub(in crate::reconcile) fn is_in(&self, slot: SlotId) -> bool {
        self.bound().any(|front| front.is_in(index_of(slot)))
    }

    /// Connections in the slot's queues.
    pub(in crate::reconcile) fn queued(&self, slot: SlotId) -> u64 {
        let queue = |front: &Front| front.queue_len(Some(index_of(slot))).unwrap_or(0);
        self.bound().map(|front| u64::from(queue(front))).sum()
    }

    /// Where a worker connects for each front.
    pub(in crate::reconcile) fn backend_ports(&self, ports: &[(ContainerPort, Target)]) -> Vec<(PortKey, Target)> {
        let target =
            |port: ContainerPort| ports.iter().find(|(container, _)| *container == port).map(|(_, at)| at.clone());
        let fronts = self.list.iter().filter_map(|published| Some((published.key, target(published.port.container)?)));
        fronts.collect()
    }
}
