//! Faults of the loop that are put there to be found: each is a decision or an answer that is changed on its way, as a mistake in the
//! loop would. None is in the loop's own code.

use std::{collections::BTreeSet, time::Instant};

use sherd_topology::{
    model::{CpuSet, Host},
    plan::{Layout, LayoutRequest, Plan, SlotId},
};

use super::state::{World, is_on, with};
use crate::reconcile::view::{Pinning, Service, SlotView, Step, Wanted};

/// Which fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plant {
    /// A shard is stopped while connections go to it.
    StopsBeforeTakingOut,
    /// A shard counts as ready as soon as it runs.
    BelievesWhatRuns,
    /// A rollout replaces all slots at once.
    ReplacesAllAtOnce,
    /// A specification is acknowledged, and isn't stored.
    ForgetsFiles,
    /// What the holder must have isn't given to it.
    ForgetsDescriptors,
    /// Whatever bears the label is taken for ours.
    BelievesLabels,
    /// Two groups get the same CPUs.
    GivesCpusTwice,
    /// A shard that ended isn't started again.
    NeverRestarts,
    /// A shard that was moved by hand stays there.
    NeverRepins,
    /// An ended shard's slot stays in service.
    NeverTakesOut,
    /// Two rules undo each other.
    Dithers,
}

impl World {
    pub(super) fn forgets_files(&self) -> bool {
        self.plant == Some(Plant::ForgetsFiles)
    }

    pub(super) fn believes_what_runs(&self) -> bool {
        self.plant == Some(Plant::BelievesWhatRuns)
    }

    pub(super) fn forgets_descriptors(&self) -> bool {
        self.plant == Some(Plant::ForgetsDescriptors)
    }
}

fn plant() -> Option<Plant> {
    if is_on() { with(|world| world.plant) } else { None }
}

/// See [`crate::reconcile::plan::next_steps`].
pub(in crate::reconcile) fn next_steps(
    slots: &[SlotView],
    turns: &BTreeSet<SlotId>,
    now: Instant,
) -> Vec<(SlotId, Step)> {
    let plan = |slots: &[SlotView], turns| crate::reconcile::plan::next_steps(slots, turns, now);
    let changed = |change: fn(&mut SlotView)| {
        let mut slots = slots.to_vec();
        slots.iter_mut().for_each(change);
        slots
    };
    let without = |is_left_out: fn(&Step) -> bool| {
        let mut steps = plan(slots, turns);
        steps.retain(|(_, step)| !is_left_out(step));
        steps
    };
    match plant() {
        Some(Plant::StopsBeforeTakingOut) => {
            let hides = |slot: &mut SlotView| {
                let is_former = |spec| slot.shards.iter().any(|shard| shard.spec != spec);
                if !slot.overlaps && matches!(&slot.wanted, Wanted::Run { spec, .. } if is_former(spec.clone())) {
                    (slot.service, slot.backend) = (Service::Out, None);
                }
            };
            let (hidden, open) = (plan(&changed(hides), turns), plan(slots, turns));
            let stops = hidden.into_iter().filter(|(_, step)| matches!(step, Step::Stop(_)));
            let stops: Vec<_> = stops.collect();
            let others = open.into_iter().filter(|(slot, _)| stops.iter().all(|(stopped, _)| stopped != slot));
            others.chain(stops.iter().cloned()).collect()
        }
        Some(Plant::ReplacesAllAtOnce) if !turns.is_empty() => plan(slots, &slots.iter().map(|slot| slot.id).collect()),
        Some(Plant::NeverRestarts) => {
            let gives_up = |slot: &mut SlotView| slot.busy |= slot.start_after.is_some_and(|_| slot.shards.is_empty());
            plan(&changed(gives_up), turns)
        }
        Some(Plant::NeverRepins) => {
            let content = |slot: &mut SlotView| {
                if let (Pinning::Faulty { .. }, Wanted::Run { slot: place, .. }) = (&slot.pinning, &slot.wanted) {
                    slot.pinning = Pinning::Holds(place.clone());
                }
            };
            plan(&changed(content), turns)
        }
        Some(Plant::NeverTakesOut) => without(|step| matches!(step, Step::TakeOut)),
        Some(Plant::Dithers) => {
            let mut steps = plan(slots, turns);
            let is_settled = |slot: &&SlotView| steps.is_empty() && slot.service == Service::In && slot.id == SlotId(3);
            let more: Vec<_> = slots.iter().filter(is_settled).map(|slot| (slot.id, Step::TakeOut)).collect();
            steps.extend(more);
            steps
        }
        _ => plan(slots, turns),
    }
}

/// See [`sherd_topology::plan::plan`].
pub(in crate::reconcile) fn plan(
    host: &Host,
    reserved: &CpuSet,
    requests: &[LayoutRequest],
    current: &[Layout],
) -> Plan {
    let mut plan = sherd_topology::plan::plan(host, reserved, requests, current);
    if plant() == Some(Plant::GivesCpusTwice)
        && let [first, second, ..] = &mut plan.layouts[..]
        && let (Some(from), Some(to)) = (first.slots.first(), second.slots.first_mut())
    {
        to.cpus = from.cpus.clone();
    }
    plan
}
