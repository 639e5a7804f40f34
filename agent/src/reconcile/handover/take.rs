//! The start of an agent: what a former one handed over goes to the worker of its slot, or of another where that is gone, as soon
//! as there is one.

use std::{collections::BTreeMap, net::SocketAddr, os::fd::AsFd, sync::mpsc::Receiver, time::Duration};

use sherd_lb::{
    relay::{Identity, Origin, Parcel, ParcelError, Summary},
    table::SlotIndex,
};
use sherd_topology::plan::{GroupName, SlotId};

use super::{
    super::{
        Reconciler, chain,
        counters::LostRelayed,
        group::{Group, Intent},
        keeper::Keeper,
    },
    PREFIX, parse_parcel_name, port_at,
    report::{self, Report, Totals},
};
use crate::{fault, runtime::ShardKey};

/// Connections of a former agent that the holder still has.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct Returning {
    /// By the holder's name.
    parcels: BTreeMap<String, (ShardKey, Summary)>,
    report: Option<Report>,
    /// What workers that aren't made yet go on counting from.
    totals: BTreeMap<GroupName, BTreeMap<SlotId, Totals>>,
}

impl Returning {
    /// What the holder has now. Nothing is taken yet.
    pub(in crate::reconcile) fn find(keeper: &mut Keeper) -> Self {
        let mut found = Self::default();
        for name in keeper.names() {
            if name == report::NAME {
                found.report = read_report(keeper);
                found.totals =
                    found.report.as_mut().map(|report| std::mem::take(&mut report.totals)).unwrap_or_default();
                continue;
            }
            if !name.starts_with(PREFIX) {
                continue;
            }
            let Some((key, parcel)) = parse_parcel_name(&name).zip(keeper.take(&name)) else { continue };
            match Parcel::summary(parcel.as_fd()) {
                Ok(summary) => drop(found.parcels.insert(name, (key, summary))),
                // That version may come back; until then they stay where they are, for their time.
                Err(error @ ParcelError::OtherVersion { .. }) => {
                    tracing::warn!(shard = %key, "relayed connections can't be taken back: {}", chain(&error));
                }
                Err(error) => {
                    tracing::warn!(shard = %key, "a parcel of relayed connections is given up: {}", chain(&error));
                    keeper.remove(&name);
                }
            }
        }
        found
    }

    /// What a former worker of the slot had counted: for the first one that is made.
    pub(in crate::reconcile) fn take_totals(&mut self, group: &GroupName, slot: SlotId) -> Totals {
        self.totals.get_mut(group).and_then(|slots| slots.remove(&slot)).unwrap_or_default()
    }

    /// Nothing was handed over.
    pub(in crate::reconcile) fn is_empty(&self) -> bool {
        self.parcels.is_empty()
    }

    fn connections(&self) -> u64 {
        self.parcels.values().map(|(_, summary)| u64::from(summary.connections)).sum()
    }

    /// How many are counted as open for a slot at an address of a group.
    pub(in crate::reconcile) fn counted(&self, group: &GroupName, address: SocketAddr, slot: SlotIndex) -> u64 {
        let of_group = self.parcels.values().filter(|(key, _)| key.group == *group);
        let counted = of_group.flat_map(|(_, summary)| &summary.counted);
        let here = counted.filter(|(at, of, _)| (*at, *of) == (address, slot));
        here.map(|(_, _, connections)| u64::from(*connections)).sum()
    }
}

fn read_report(keeper: &mut Keeper) -> Option<Report> {
    let report = Report::read(keeper.take(report::NAME)?);
    keeper.remove(report::NAME);
    report
        .inspect_err(|error| tracing::warn!("what the former agent says of its hand-over is unreadable: {error}"))
        .ok()
}

impl Reconciler {
    /// Makes the workers that the connections need, which take them; whether their shards have been listed or not. Those of groups
    /// that don't run any more end. What has no worker yet waits for the first one of its group.
    pub(in crate::reconcile) fn take_back_all(&mut self) {
        let found = self.returning.connections();
        let report = self.returning.report.take();
        if found == 0 && report.as_ref().is_none_or(|report| report.connections == 0) {
            return;
        }
        fault::point("takeback.before");
        let handed = report.as_ref().map_or(found, |report| report.connections);
        self.counters.relayed.handed = handed;
        self.counters.relayed.note_lost(LostRelayed::Missing, handed.saturating_sub(found));
        let keys: Vec<(String, ShardKey)> =
            self.returning.parcels.iter().map(|(name, (key, _))| (name.clone(), key.clone())).collect();
        for (name, ShardKey { group, slot }) in keys {
            match self.groups.get(&group).filter(|group| matches!(group.intent, Intent::Run)) {
                Some(running) => {
                    let Some(slot) = running.heir_of(slot) else { continue };
                    if running.slots.get(&slot).is_some_and(|slot| slot.worker.is_none()) {
                        self.equip(&group, slot);
                    }
                }
                // They wait in the holder, for their time: a later agent may read what this one can't.
                None if self.unread.contains(&group) => {}
                None => self.give_up(&name, LostRelayed::GroupGone),
            }
        }
        let relayed = &self.counters.relayed;
        tracing::info!(
            handed,
            taken_back = relayed.taken_back,
            lost = relayed.lost(),
            waiting = self.returning.connections(),
            took = ?report.as_ref().map(|report| Duration::from_micros(report.took_micros)),
            stood_still = ?report.as_ref().map(Report::stood_still),
            "relayed connections of the former agent go on"
        );
    }

    /// The slot has a worker: it goes on with what is the slot's, and with what is of slots that are gone.
    /// Gives what tells when the worker has them.
    pub(in crate::reconcile) fn take_back(&mut self, name: &GroupName, id: SlotId) -> Vec<Receiver<u32>> {
        let mut taken = Vec::new();
        let Some(group) = self.groups.get(name) else { return taken };
        let Some(worker) = group.slots.get(&id).and_then(|slot| slot.worker.clone()) else { return taken };
        let is_heir = |key: &ShardKey| key.group == *name && group.heir_of(key.slot) == Some(id);
        let parcels = self.returning.parcels.iter().filter(|(_, (key, _))| is_heir(key));
        let parcels: Vec<(String, SlotId)> = parcels.map(|(name, (key, _))| (name.clone(), key.slot)).collect();
        for (parcel, of) in parcels {
            let Some(descriptor) = self.keeper.take(&parcel) else {
                self.give_up(&parcel, LostRelayed::Missing);
                continue;
            };
            let Some(group) = self.groups.get(name) else { return taken };
            match Parcel::open(&descriptor, |origin| group.identify(of, origin)) {
                Ok(opened) => {
                    fault::point("takeback.opened");
                    self.counters.relayed.taken_back += opened.connections.len() as u64;
                    self.counters.relayed.note_lost(LostRelayed::Incomplete, opened.lost.into());
                    taken.push(worker.resume(opened.connections));
                    self.returning.parcels.remove(&parcel);
                    self.keeper.remove(&parcel);
                    fault::point("takeback.after");
                }
                Err(error) => {
                    tracing::warn!(group = %name, slot = %id, "a parcel of relayed connections is given up: {}", chain(&error));
                    self.give_up(&parcel, LostRelayed::Unreadable);
                }
            }
        }
        taken
    }

    /// The holder has the last descriptor of it: its connections are reset.
    fn give_up(&mut self, parcel: &str, cause: LostRelayed) {
        if let Some((_, summary)) = self.returning.parcels.remove(parcel) {
            self.counters.relayed.note_lost(cause, summary.connections.into());
        }
        self.keeper.remove(parcel);
    }
}

impl Group {
    /// Whose worker gets the connections of a slot: its own, or the first one's where the slot is gone.
    fn heir_of(&self, slot: SlotId) -> Option<SlotId> {
        match self.place(slot) {
            Some(_) => Some(slot),
            None => self.planned().iter().map(|slot| slot.id).min(),
        }
    }

    /// What a connection of the slot's former worker is here.
    fn identify(&self, slot: SlotId, origin: Origin) -> Option<Identity> {
        let address = origin.address?;
        let port = port_at(self, slot, address, origin.role)?;
        let published = self.fronts.list.iter().find(|published| published.key == port);
        let cells = published.and_then(|published| published.front.as_ref().ok()?.cells());
        let open = cells.zip(origin.counted).map(|(cells, slot)| cells.account(slot).resume());
        Some(Identity { port, open })
    }
}
