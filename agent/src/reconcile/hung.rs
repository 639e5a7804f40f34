//! Shards that don't accept: out of service while others are there to serve, back when they accept again, and what waited
//! for them goes elsewhere after a while. What is found, and when, is `watch`'s business.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    time::Instant,
};

use sherd_lb::{front::Place, graft::Holder, sockdiag, stall::Finding};
use sherd_topology::plan::SlotId;

use super::{
    Reconciler,
    group::{Group, SlotRun},
    publish::watched_shapes,
    view::Service,
    watch::{Found, Watch},
};
use crate::runtime::procfs;

/// Processes of a shard that are looked at to find its listener.
const MAX_LOOKED_AT: usize = 64;

/// A shard that doesn't accept.
#[derive(Debug, Clone)]
pub(super) struct HungRun {
    since: Instant,
    /// The addresses where it doesn't, and its listeners there by their SO_COOKIE.
    listeners: BTreeMap<SocketAddr, u64>,
}

impl HungRun {
    /// When that was found.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// For the status.
    pub(super) fn cause(&self) -> String {
        format!("it has not accepted for {:.1} s", self.since.elapsed().as_secs_f64())
    }
}

impl Reconciler {
    /// Tells the watch what there is to look at, if that has changed.
    pub(super) fn direct_watch(&mut self) {
        let shapes: Vec<_> = self.groups.iter().flat_map(|(name, group)| watched_shapes(name, group)).collect();
        if self.watched == shapes {
            return;
        }
        if self.watch.is_none() {
            match Watch::start(self.outbox.clone()) {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => return tracing::error!("hung shards can't be found: no thread: {error}"),
            }
        }
        let watched = shapes.iter().filter_map(|shape| self.groups.get(&shape.group)?.fronts.watched(shape)).collect();
        if let Some(watch) = &self.watch {
            watch.look_at(watched);
        }
        self.watched = shapes;
    }

    pub(super) fn on_found(&mut self, found: &Found) {
        let Some(group) = self.groups.get_mut(&found.group) else { return };
        let index = super::steering_table::index_of(found.slot);
        let front = group.fronts.front_at(found.address);
        // What was found is about a listener that may be gone.
        if front.and_then(|front| front.direct_cookie(index, Place::A)) != Some(found.listener) {
            return;
        }
        let Some(slot) = group.slots.get_mut(&found.slot) else { return };
        let (name, id, address) = (found.group.clone(), found.slot, found.address);
        match found.finding {
            Finding::Hung => {
                slot.note_hung(address, found.listener);
                self.counters.note_hung(&name, id);
                // It may be slow for a moment: what lasts is a warning.
                tracing::info!(group = %name, slot = %id, %address, "{name}/{id} doesn't accept: its connections go to others");
                self.send_event(super::report::slot_event(
                    &name,
                    id,
                    "slot-hung",
                    "its accept queue doesn't move".into(),
                ));
            }
            Finding::Back(after) => {
                slot.note_accepting(address);
                if slot.hung.is_none() {
                    group.take_back(id);
                }
                tracing::info!(group = %name, slot = %id, %address, ?after, "{name}/{id} accepts again");
                let message = format!("it accepts again, after {:.3} s", after.as_secs_f64());
                self.send_event(super::report::slot_event(&name, id, "slot-accepts", message));
            }
            Finding::Move => self.move_queue(found),
        }
        if let Some(group) = self.groups.get_mut(&name) {
            group.settle_hung();
        }
    }

    /// What waits for a hung shard goes to the others.
    fn move_queue(&mut self, found: &Found) {
        let (name, id) = (found.group.clone(), found.slot);
        let Some(group) = self.groups.get_mut(&name) else { return };
        // With nobody else there it waits where it is.
        let result = match group.others_accept(id) {
            true => group.move_queue(found),
            false => Err("no other slot accepts".to_owned()),
        };
        match &result {
            Ok(queued) => {
                tracing::warn!(group = %name, slot = %id, connections = queued, "{name}/{id} still doesn't accept: what waited for it goes to others");
            }
            // Found again every two seconds.
            Err(reason) => tracing::info!(group = %name, slot = %id, "what waits for {name}/{id} stays: {reason}"),
        }
        self.watch.iter().for_each(|watch| watch.moved(found.clone(), result.is_ok()));
        // A connection of ours, which it accepts when it is back.
        if let Some(live) = self.slot_mut(&name, id).and_then(|slot| slot.live.as_ref()) {
            live.nudge.notify_one();
        }
    }
}

impl Group {
    /// Hung slots that would serve are out, as long as any other is in: else those that wait would wait for nobody.
    pub(super) fn settle_hung(&mut self) {
        self.forget_former_listeners();
        let serving = self.slots.iter().filter(|(_, slot)| slot.service() == Service::In);
        let (hung, others): (Vec<_>, Vec<_>) = serving.partition(|(_, slot)| slot.hung.is_some());
        let (alone, hung): (bool, Vec<SlotId>) = (others.is_empty(), hung.into_iter().map(|(id, _)| *id).collect());
        for id in hung {
            if alone {
                self.take_back(id);
            } else if let Err(error) = self.fronts.take_out(id) {
                tracing::error!(group = %self.spec.name, slot = %id, "not taken out: {}", super::chain(&error));
            }
        }
    }

    /// What was found of a listener says nothing of the one that took its place.
    fn forget_former_listeners(&mut self) {
        for (id, slot) in &mut self.slots {
            let Some(hung) = &mut slot.hung else { continue };
            let index = super::steering_table::index_of(*id);
            let present = |address| self.fronts.front_at(address)?.direct_cookie(index, Place::A);
            hung.listeners.retain(|address, listener| present(*address) == Some(*listener));
            slot.hung.take_if(|hung| hung.listeners.is_empty());
        }
    }

    /// A slot that would serve does.
    fn take_back(&mut self, id: SlotId) {
        let Some(slot) = self.slots.get(&id).filter(|slot| slot.service() == Service::In) else { return };
        // Of one whose shard isn't known yet nothing was taken.
        let Some(reach) = slot.live.as_ref().and_then(|live| live.reach.as_ref()) else { return };
        if let Err(error) = self.fronts.take_in(id, &reach.ports) {
            tracing::error!(group = %self.spec.name, slot = %id, "not taken in again: {}", super::chain(&error));
        }
    }

    fn others_accept(&self, id: SlotId) -> bool {
        self.slots.iter().any(|(other, slot)| *other != id && slot.service() == Service::In && slot.hung.is_none())
    }

    /// How many there were.
    fn move_queue(&mut self, found: &Found) -> Result<u32, String> {
        let index = super::steering_table::index_of(found.slot);
        let slot = self.slots.get(&found.slot).ok_or("there is no such slot")?;
        let listening = sockdiag::listeners(found.address.port()).map_err(|error| error.to_string())?;
        let listening = listening.iter().find(|listening| listening.cookie == found.listener);
        let listening = listening.ok_or("its listener is closed")?;
        let listener = slot.listener(listening).ok_or("no process of it is found to have its listener")?;
        let backlog = i32::try_from(listening.backlog).unwrap_or(i32::MAX);
        let front = self.fronts.front_at_mut(found.address).ok_or("its address is no longer published")?;
        front.move_queue(index, Place::A, listener.as_fd(), backlog).map_err(|error| super::chain(&error))?;
        Ok(listening.queued)
    }
}

impl SlotRun {
    fn note_hung(&mut self, address: SocketAddr, listener: u64) {
        let hung = self.hung.get_or_insert_with(|| HungRun { since: Instant::now(), listeners: BTreeMap::new() });
        hung.listeners.insert(address, listener);
    }

    fn note_accepting(&mut self, address: SocketAddr) {
        if let Some(hung) = &mut self.hung {
            hung.listeners.remove(&address);
        }
        self.hung.take_if(|hung| hung.listeners.is_empty());
    }

    /// A copy of the shard's listener.
    fn listener(&self, listening: &sockdiag::Listening) -> Option<OwnedFd> {
        self.known_holder(listening.cookie).or_else(|| self.holder(listening))?.listener()
    }

    /// Where the shard's listener of this cookie was put, if it is there still.
    pub(super) fn known_holder(&self, cookie: u64) -> Option<Holder> {
        let known = self.direct.iter().flat_map(|direct| &direct.grafts).filter_map(|graft| graft.holder().copied());
        known.filter(|holder| holder.is_of(cookie)).find(|holder| holder.listener().is_some())
    }

    /// Wherever the shard's listener is now (dup'ed, forked, passed on).
    pub(super) fn holder(&self, listening: &sockdiag::Listening) -> Option<Holder> {
        let pid = self.live.as_ref()?.pid;
        // A hostile one may have any number, and the loop waits.
        let processes = procfs::descendants(pid).into_iter().chain([pid]).take(MAX_LOOKED_AT);
        Holder::find(processes, listening.inode)
    }
}
