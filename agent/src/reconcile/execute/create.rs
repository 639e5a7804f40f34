//! The order for a slot's next shard: its place, its ports, and the shim in front of it.

use std::{net::TcpListener, sync::Arc, time::Duration};

use sherd_topology::plan::{GroupName, SlotId};

use super::report;
use crate::{
    clock,
    reconcile::{
        Reconciler,
        direct::Generation,
        group::{Running, SlotRun},
        step_task::outcome,
        view::Step,
    },
    runtime::{ShardKey, ShardOrder},
    spec::{ContainerPort, GroupSpec, RuntimeSpec},
};

impl Reconciler {
    pub(super) fn create(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let (spec, shards) = (Arc::clone(&group.spec), group.planned().len());
        let Some(place) = group.place(id).cloned() else { return };
        let Some(slot) = group.slots.get_mut(&id) else { return };
        slot.generation = slot.next_generation();
        let process_ports = match &spec.runtime {
            RuntimeSpec::Process(_) => free_ports(&spec),
            RuntimeSpec::Docker(_) => Ok(Vec::new()),
        };
        let process_ports = match process_ports {
            Ok(ports) => ports,
            Err(error) => {
                slot.fail(&spec, Duration::ZERO, format!("no free port for it: {error}"), clock::now());
                return;
            }
        };
        let (key, generation) = (ShardKey { group: name.clone(), slot: id }, slot.generation);
        let behind_shim = spec.is_behind_shim() && slot.trial.suspicion().is_none();
        let shim = match behind_shim {
            true => self.open_door(&key, generation, self.images_on_relay(&spec)).map(Some),
            false => Ok(None),
        };
        let Some(slot) = self.slot_mut(name, id) else { return };
        let shim = match shim {
            Ok(shim) => shim,
            Err(error) => {
                slot.fail(&spec, Duration::ZERO, format!("its shim can't be put in place: {error}"), clock::now());
                return;
            }
        };
        let order = ShardOrder {
            key,
            spec,
            slot: place,
            shards: u32::try_from(shards).unwrap_or(u32::MAX),
            generation,
            process_ports,
            shim,
        };
        slot.step = Some(Running { step: Step::Create });
        let Some(runtime) = self.runtimes.of(order.spec.runtime.kind()) else { return };
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let outcome = outcome(runtime.create(&order).await.map(|_| ()));
            report(&outbox, order.key, Step::Create, outcome, Vec::new());
        });
    }
}

impl SlotRun {
    /// One that no shard of the slot had. Beside a living shard it is of the other parity: its listener has the other place.
    fn next_generation(&self) -> Generation {
        let next = self.generation + 1;
        let serving = self.shards.iter().find(|shard| Some(&shard.id) == self.roles.primary.as_ref());
        next + u64::from(serving.is_some_and(|serving| serving.generation % 2 == next % 2))
    }
}

/// A port nobody has at the moment, for each container port. Somebody else may be quicker; the shard then ends and
/// the next one gets other ports.
fn free_ports(spec: &GroupSpec) -> std::io::Result<Vec<(ContainerPort, u16)>> {
    let mut held = Vec::new();
    for port in &spec.ports {
        if held.iter().all(|(container, _): &(ContainerPort, TcpListener)| *container != port.container) {
            held.push((port.container, TcpListener::bind(("0.0.0.0", 0))?));
        }
    }
    held.iter().map(|(container, listener)| Ok((*container, listener.local_addr()?.port()))).collect()
}
