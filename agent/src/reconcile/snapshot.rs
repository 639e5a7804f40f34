//! The numbers of one moment for the metrics: read from workers, fronts and the loop's own counters.

use std::{net::SocketAddr, sync::atomic::Ordering};

use sherd_lb::{
    cells::{ANSWER_BOUNDS_MICROS, CellReading, DURATION_BOUNDS_MICROS, RTT_BOUNDS_MICROS},
    relay::{Cause, LATENCY_BOUNDS_MICROS},
    table::Load,
};
use sherd_topology::plan::{GroupName, SlotId};

use super::{
    Reconciler,
    counters::RECONCILE_BUCKETS,
    group::{Group, SlotRun},
    publish::Published,
    steering_table::index_of,
    world::Worker,
};
use crate::metrics::{
    GroupCounters, HandoverCounters, Histogram, KernelCounters, PortCounters, RelayCounters, SlotCounters, Snapshot,
};

impl Reconciler {
    pub(super) fn snapshot(&mut self) -> Snapshot {
        let counters = &self.counters;
        let slot_counters = |(name, group): (&GroupName, &Group)| -> Vec<SlotCounters> {
            let of = |(id, slot): (&SlotId, &SlotRun)| SlotCounters {
                group: name.clone(),
                slot: *id,
                pinning_errors: counters.pinning_faults.get(&(name.clone(), *id)).copied().unwrap_or(0),
                relay: slot.worker.as_ref().map(|worker| relay(worker)),
                kernel: kernel(group, *id),
                hung: counters.hung.get(&(name.clone(), *id)).copied().unwrap_or(0),
                is_hung: slot.hung.is_some(),
                checks: slot.judged.checks(),
                ejections: slot.judged.ejections().collect(),
            };
            group.slots.iter().map(of).collect()
        };
        let slots = self.groups.iter().flat_map(slot_counters).collect();
        let ports = self
            .groups
            .iter()
            .flat_map(|(name, group)| group.fronts.list.iter().filter_map(|published| port(name, group, published)));
        let groups = self.groups.iter().map(|(name, group)| GroupCounters {
            group: name.clone(),
            rollout_failures: counters.rollout_failures.get(name).copied().unwrap_or(0),
            held: group.slots.values().filter(|slot| slot.judged.is_held()).count() as u64,
            overdue: counters.anchored_overdue.get(name).copied().unwrap_or(0),
        });
        Snapshot {
            status: self.status(),
            slots,
            ports: ports.collect(),
            groups: groups.collect(),
            reconcile: Histogram {
                bounds_seconds: RECONCILE_BUCKETS.to_vec(),
                counts: counters.reconciles.to_vec(),
                sum_seconds: counters.reconcile_seconds,
            },
            reconcile_unsettled: counters.unsettled,
            plan_changes: counters.plan_changes.iter().map(|(kind, count)| (*kind, *count)).collect(),
            drifts: counters
                .drifts
                .iter()
                .map(|((group, cause), count)| (group.clone(), cause.name(), *count))
                .collect(),
            repairs: (counters.repairs, counters.repair_seconds),
            held_descriptors: self.keeper.held(),
            delayed_listens: counters.delayed_listens.load(Ordering::Relaxed),
            handover: HandoverCounters {
                handed: counters.relayed.handed,
                taken_back: counters.relayed.taken_back,
                lost: counters.relayed.lost_by_cause(),
            },
            contained: self.keeper.cells().map(|cells| cells.contained()),
        }
    }
}

/// At each address of the group.
fn kernel(group: &Group, id: SlotId) -> Vec<(SocketAddr, KernelCounters)> {
    let index = index_of(id);
    let of = |published: &Published| {
        let cells = published.front.as_ref().ok()?.cells()?;
        Some((published.address, kernel_counters(&cells.read(index), cells.load(index))))
    };
    group.fronts.list.iter().filter_map(of).collect()
}

fn kernel_counters(reading: &CellReading, load: Load) -> KernelCounters {
    KernelCounters {
        steered: reading.counts.picked,
        established: reading.counts.established,
        closed: reading.counts.closed,
        migrated: reading.migrated,
        load: load.load,
        bound: u64::from(load.bound),
        bytes_in: reading.bytes_received,
        bytes_out: reading.bytes_sent,
        retransmits: reading.retransmits,
        unanswered: reading.unanswered,
        first_answer: histogram(&ANSWER_BOUNDS_MICROS, &reading.first_answer.buckets, reading.first_answer.sum_micros),
        rtt: histogram(&RTT_BOUNDS_MICROS, &reading.rtt.buckets, reading.rtt.sum_micros),
        duration: histogram(&DURATION_BOUNDS_MICROS, &reading.duration.buckets, reading.duration.sum_micros),
    }
}

fn histogram(bounds_micros: &[u64], counts: &[u64], sum_micros: u64) -> Histogram {
    Histogram {
        bounds_seconds: bounds_micros.iter().map(|bound| *bound as f64 / 1e6).collect(),
        counts: counts.to_vec(),
        // Exact up to 2^53 microseconds, which is 285 years.
        sum_seconds: sum_micros as f64 / 1e6,
    }
}

fn relay(worker: &Worker) -> RelayCounters {
    let stats = worker.stats();
    RelayCounters {
        thread_id: worker.thread_id(),
        accepted: stats.accepted.get(),
        adopted: stats.adopted.get(),
        handed_over: stats.handed_over.get(),
        resumed: stats.resumed.get(),
        established: stats.established.get(),
        unanswered: stats.unanswered.get(),
        closed: stats.closed.get(),
        active: stats.active.get(),
        pending: stats.pending.get(),
        bytes_in: stats.bytes_in.get(),
        bytes_out: stats.bytes_out.get(),
        bytes_spliced: stats.bytes_spliced.get(),
        wakeups: stats.wakeups.get(),
        errors: Cause::ALL.iter().map(|cause| (cause.label(), stats.errors(*cause))).collect(),
        connect: histogram(
            &LATENCY_BOUNDS_MICROS,
            &stats.connect_latency.buckets(),
            stats.connect_latency.sum_micros(),
        ),
    }
}

fn port(name: &GroupName, group: &Group, published: &Published) -> Option<PortCounters> {
    let front = published.front.as_ref().ok()?;
    let picks = front.picks();
    let of = |id: &SlotId| picks.get(usize::from(index_of(*id).0)).copied().unwrap_or(0);
    let queue = |slot: Option<SlotId>| Some((slot, u64::from(front.queue_len(slot.map(index_of)).ok()?)));
    let listeners = std::iter::once(None).chain(group.slots.keys().copied().map(Some));
    let totals = front.totals();
    Some(PortCounters {
        group: name.clone(),
        address: published.address,
        picks: group.slots.keys().map(|id| (*id, of(id))).collect(),
        failovers: totals.failovers,
        anchored: totals.anchored,
        dropped: totals.dropped,
        migrated: totals.migrated,
        deflected: totals.deflected,
        unread: totals.unread,
        foreign: totals.foreign,
        queued: listeners.filter_map(queue).collect(),
    })
}
