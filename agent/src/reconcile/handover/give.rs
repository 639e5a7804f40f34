//! The end of an agent: its workers give up what they relay, and the holder gets it. What can't be given stays with its worker.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::AsFd,
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use sherd_lb::{
    holder::HolderError,
    relay::{Handed, Parcel, PortKey, Unpacked},
};

use super::{
    super::{Reconciler, chain, group::Group, keeper::Keeper, world::Worker},
    ANSWER_TIMEOUT, parcel_name, ports,
    report::{self, Report},
};
use crate::{clock, fault, runtime::ShardKey};

/// How long the next agent may take to go on counting where nothing else waits for it.
const REPORT_TIME: Duration = Duration::from_secs(300);

/// What became of the connections.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct Given {
    /// The holder has them.
    pub(in crate::reconcile) connections: u64,
    /// Their worker has them again.
    pub(in crate::reconcile) left: u64,
    /// Workers that did not answer: what they have ends with the agent.
    pub(in crate::reconcile) silent_workers: u64,
    /// Why the holder didn't get those that are left.
    pub(in crate::reconcile) reason: Option<String>,
    /// From the first that stood still to the last that the holder got.
    pub(in crate::reconcile) took: Duration,
}

impl Reconciler {
    /// Gives what is relayed to the holder, all at once: whatever is to be said or written of it is done before or after.
    pub(in crate::reconcile) fn give_relayed(&mut self) -> Given {
        let time = self.settings.relay_handover;
        let workers: Vec<(ShardKey, Arc<Worker>)> = self
            .groups
            .iter()
            .flat_map(|(name, group)| group.keyed_workers().map(|(slot, worker)| (name.clone(), slot, worker.clone())))
            .map(|(group, slot, worker)| (ShardKey { group, slot }, worker))
            .collect();
        // First all of them: nobody hands a client to somebody who has given up everything.
        let stopped: Vec<Receiver<()>> = workers.iter().map(|(_, worker)| worker.stop_taking()).collect();
        let deadline = clock::now() + ANSWER_TIMEOUT;
        for stopped in stopped {
            let _ = stopped.recv_timeout(deadline.saturating_duration_since(clock::now()));
        }
        let (began, stamp) = (clock::now(), report::unix_ms());
        let ports: BTreeMap<_, BTreeMap<PortKey, SocketAddr>> =
            self.groups.iter().map(|(name, group)| (name, ports(group).into_iter().collect())).collect();
        let mut giving = Giving { keeper: &mut self.keeper, time, stamp, parcels: 0, given: Given::default() };
        if time.is_zero() {
            giving.given.left = workers.iter().map(|(_, worker)| worker.stats().active.get()).sum();
            giving.given.reason = Some("relay_handover is 0s".to_owned());
            giving.time = REPORT_TIME;
            return giving.report(began, &workers);
        }
        fault::point("handover.before");
        // All at once: each has a core of its own.
        let released: Vec<Receiver<Vec<Handed>>> = workers.iter().map(|(_, worker)| worker.release()).collect();
        for ((key, worker), released) in workers.iter().zip(released) {
            match released.recv_timeout(deadline.saturating_duration_since(clock::now())) {
                Ok(connections) => giving.give(key, worker, connections, &ports[&key.group]),
                Err(_) => giving.given.silent_workers += 1,
            }
        }
        giving.report(began, &workers)
    }
}

struct Giving<'a> {
    keeper: &'a mut Keeper,
    time: Duration,
    stamp: u64,
    parcels: usize,
    given: Given,
}

impl Giving<'_> {
    fn give(
        &mut self,
        key: &ShardKey,
        worker: &Worker,
        connections: Vec<Handed>,
        ports: &BTreeMap<PortKey, SocketAddr>,
    ) {
        fault::point("handover.released");
        let mut back = Vec::new();
        for batch in Parcel::split(connections) {
            match self.given.reason {
                None => back.extend(self.put(key, batch, ports)),
                Some(_) => back.extend(batch),
            }
        }
        if !back.is_empty() {
            self.given.left += back.len() as u64;
            drop(worker.resume(back));
        }
    }

    /// What the holder didn't take.
    fn put(&mut self, key: &ShardKey, batch: Vec<Handed>, ports: &BTreeMap<PortKey, SocketAddr>) -> Vec<Handed> {
        let parcel = match Parcel::pack(batch, |port, _| ports.get(&port).copied()) {
            Ok(parcel) => parcel,
            Err(Unpacked { connections, source }) => {
                self.given.reason = Some(format!("they can't be packed: {source}"));
                return connections;
            }
        };
        let name = parcel_name(key, self.stamp, self.parcels);
        self.parcels += 1;
        fault::point("handover.packed");
        match self.keeper.put_for(&name, parcel.descriptor(), self.time) {
            Ok(()) => {
                fault::point("handover.kept");
                self.given.connections += parcel.commit() as u64;
                Vec::new()
            }
            Err(error) => {
                self.given.reason = Some(refusal(&error));
                parcel.take_back()
            }
        }
    }

    fn report(mut self, began: Instant, workers: &[(ShardKey, Arc<Worker>)]) -> Given {
        self.given.took = clock::since(began);
        if !workers.is_empty() {
            let mut totals: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
            for (key, worker) in workers {
                totals.entry(key.group.clone()).or_default().insert(key.slot, worker.stats().totals());
            }
            let report = Report {
                connections: self.given.connections,
                began_unix_ms: self.stamp,
                took_micros: u64::try_from(self.given.took.as_micros()).unwrap_or(u64::MAX),
                totals,
            };
            let written = report.write().map_err(HolderError::Io);
            // For the figures of the next agent alone.
            let kept = written.and_then(|file| self.keeper.put_for(report::NAME, file.as_fd(), self.time));
            if let Err(error) = kept {
                tracing::warn!(
                    "the next agent counts anew, and won't know how many were handed over: {}",
                    chain(&error)
                );
            }
        }
        fault::point("handover.after");
        self.given
    }
}

fn refusal(error: &HolderError) -> String {
    match error {
        HolderError::Malformed { .. } => {
            "the holder is of an older version, which can't keep them: stop all groups and restart it".to_owned()
        }
        error => chain(error),
    }
}

impl Group {
    fn keyed_workers(&self) -> impl Iterator<Item = (sherd_topology::plan::SlotId, &Arc<Worker>)> {
        self.slots.iter().filter_map(|(id, slot)| Some((*id, slot.worker.as_ref()?)))
    }
}
