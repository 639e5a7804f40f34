//! Shards that don't accept: out of service while others are there to serve, back when they accept again, and what waited
//! for them goes elsewhere after a while. What is found, and when, is `watch`'s business.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use sherd_lb::{front::Path, graft::Holder, sockdiag, stall::Finding};
use sherd_topology::plan::SlotId;

use super::{
    Reconciler,
    group::{Group, SlotRun},
    message::Message,
    publish::{Published, watched_shapes},
    view::Service,
    watch::{Found, Watch},
    world,
};
use crate::{clock, runtime::procfs};

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

    /// For how long.
    pub(super) fn lasts(&self) -> Duration {
        clock::since(self.since)
    }

    /// For the status.
    pub(super) fn cause(&self) -> String {
        let addresses: Vec<String> = self.listeners.keys().map(ToString::to_string).collect();
        format!("it has not accepted for {:.1} s at {}", clock::since(self.since).as_secs_f64(), addresses.join(", "))
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
        if front.and_then(|front| front.serving_cookie(index)) != Some(found.listener) {
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
                tracing::info!(group = %name, slot = %id, %address, ?after, "{name}/{id} accepts again");
                let message = format!("it accepts again, after {:.3} s", after.as_secs_f64());
                self.send_event(super::report::slot_event(&name, id, "slot-accepts", message));
            }
            Finding::Move => self.find_listener(found),
        }
        if let Some(group) = self.groups.get_mut(&name) {
            group.settle_hung();
        }
    }

    /// What waits for a hung shard goes to the others, by way of its listener. Where that isn't where it was put, it is looked
    /// for off the loop: a shard may have many processes.
    fn find_listener(&mut self, found: &Found) {
        let Some(slot) = self.slot_mut(&found.group, found.slot) else { return };
        let known = slot.known_holder(found.listener).and_then(|holder| holder.listener());
        let pid = slot.living_pid();
        match (known, pid) {
            (Some(listener), _) => self.move_queue(found, Ok(listener)),
            (None, Some(pid)) => {
                let (outbox, found) = (self.outbox.clone(), found.clone());
                world::blocking(move || {
                    let listener = look_for_listener(&found, pid);
                    // The loop has ended: the next agent finds it too.
                    let _ = outbox.send(Message::ListenerFound { found, listener });
                });
            }
            (None, None) => self.move_queue(found, Err("its shard is not known".to_owned())),
        }
    }

    pub(super) fn move_queue(&mut self, found: &Found, listener: Result<OwnedFd, String>) {
        let (name, id) = (found.group.clone(), found.slot);
        let Some(group) = self.groups.get_mut(&name) else { return };
        // With nobody else there it waits where it is.
        let result = match group.others_accept(id, found.address) {
            true => listener.and_then(|listener| group.move_queue(found, &listener)),
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
    /// At each address hung slots that would serve are out, as long as any other is in: else those that wait would wait for
    /// nobody. At addresses where their shard accepts they go on.
    pub(super) fn settle_hung(&mut self) {
        self.forget_former_listeners();
        let mut changes = Vec::new();
        for published in &self.fronts.list {
            let serving = self.slots.iter().filter(|(id, slot)| self.serves_at(**id, slot, published));
            let (hung, others): (Vec<_>, Vec<_>) =
                serving.partition(|(id, slot)| self.is_hung_at(**id, slot, published));
            let back = others.iter().chain(hung.iter().filter(|_| others.is_empty())).map(|(id, _)| (**id, true));
            let out = hung.iter().filter(|_| !others.is_empty()).map(|(id, _)| (**id, false));
            changes.extend(back.chain(out).map(|(id, is_in)| (published.address, id, is_in)));
        }
        for (address, id, is_in) in changes {
            if let Err(error) = self.fronts.set_in_at(address, id, is_in) {
                tracing::error!(group = %self.spec.name, slot = %id, %address, is_in, "not taken in or out: {}", super::chain(&error));
            }
        }
    }

    /// Whether the slot serves the address, or would. Of one whose shard isn't known yet nothing was taken.
    fn serves_at(&self, id: SlotId, slot: &SlotRun, published: &Published) -> bool {
        // A worker that isn't told of it yet has no target there.
        let is_connected = slot.backend.is_some() && !slot.reconnect;
        let reach = slot.live.as_ref().filter(|_| is_connected).and_then(|live| live.reach.as_ref());
        let is_reached = match (reach, &published.front) {
            (Some(reach), _) => reach.ports.iter().any(|(container, _)| *container == published.port.container),
            (None, Ok(front)) => front.is_in(super::steering_table::index_of(id)),
            (None, Err(_)) => false,
        };
        slot.service() == Service::In && is_reached
    }

    /// Whether connections to the address would wait for the slot: its shard doesn't accept there, or its worker relays them to
    /// a listener where it doesn't.
    fn is_hung_at(&self, id: SlotId, slot: &SlotRun, published: &Published) -> bool {
        let Some(hung) = &slot.hung else { return false };
        let (index, container) = (super::steering_table::index_of(id), published.port.container);
        let is_relayed = published.front.as_ref().is_ok_and(|front| front.path(index) == Path::Relay);
        let of_port = |address| {
            self.fronts.list.iter().any(|other| other.address == address && other.port.container == container)
        };
        hung.listeners.contains_key(&published.address) || (is_relayed && hung.listeners.keys().copied().any(of_port))
    }

    /// What was found of a listener says nothing of the one that took its place.
    fn forget_former_listeners(&mut self) {
        for (id, slot) in &mut self.slots {
            let Some(hung) = &mut slot.hung else { continue };
            let index = super::steering_table::index_of(*id);
            let present = |address| self.fronts.front_at(address)?.serving_cookie(index);
            hung.listeners.retain(|address, listener| present(*address) == Some(*listener));
            slot.hung.take_if(|hung| hung.listeners.is_empty());
        }
    }

    fn others_accept(&self, id: SlotId, address: SocketAddr) -> bool {
        let accepts = |published: &Published, other: SlotId, slot: &SlotRun| {
            self.serves_at(other, slot, published) && !self.is_hung_at(other, slot, published)
        };
        let at = self.fronts.list.iter().find(|published| published.address == address);
        at.is_some_and(|at| self.slots.iter().any(|(other, slot)| *other != id && accepts(at, *other, slot)))
    }

    /// How many there were.
    fn move_queue(&mut self, found: &Found, listener: &OwnedFd) -> Result<u32, String> {
        let index = super::steering_table::index_of(found.slot);
        let listening = listening(found)?;
        let backlog = i32::try_from(listening.backlog).unwrap_or(i32::MAX);
        let front = self.fronts.front_at_mut(found.address).ok_or("its address is no longer published")?;
        if front.serving_cookie(index) != Some(found.listener) {
            return Err("its listener is another by now".to_owned());
        }
        let Path::Direct(place) = front.path(index) else { return Err("its worker accepts".to_owned()) };
        front.move_queue(index, place, listener.as_fd(), backlog).map_err(|error| super::chain(&error))?;
        Ok(listening.queued)
    }
}

fn listening(found: &Found) -> Result<sockdiag::Listening, String> {
    let listening = sockdiag::listeners(found.address.port()).map_err(|error| error.to_string())?;
    let listening = listening.into_iter().find(|listening| listening.cookie == found.listener);
    listening.ok_or_else(|| "its listener is closed".to_owned())
}

/// A copy of the listener, from whichever process of the shard has it.
fn look_for_listener(found: &Found, pid: u32) -> Result<OwnedFd, String> {
    let holder = holder_among(pid, listening(found)?.inode);
    let listener = holder.filter(|holder| holder.is_of(found.listener)).and_then(|holder| holder.listener());
    listener.ok_or_else(|| "no process of it is found to have its listener".to_owned())
}

/// Wherever a listener of the shard is now (dup'ed, forked, passed on).
fn holder_among(pid: u32, inode: u32) -> Option<Holder> {
    // A hostile one may have any number.
    let processes = procfs::descendants(pid).into_iter().chain([pid]).take(MAX_LOOKED_AT);
    Holder::find(processes, inode)
}

impl SlotRun {
    fn note_hung(&mut self, address: SocketAddr, listener: u64) {
        let hung = self.hung.get_or_insert_with(|| HungRun { since: clock::now(), listeners: BTreeMap::new() });
        hung.listeners.insert(address, listener);
    }

    fn note_accepting(&mut self, address: SocketAddr) {
        if let Some(hung) = &mut self.hung {
            hung.listeners.remove(&address);
        }
        self.hung.take_if(|hung| hung.listeners.is_empty());
    }

    /// Where the shard's listener of this cookie was put, if it is there still.
    pub(super) fn known_holder(&self, cookie: u64) -> Option<Holder> {
        let known = self.directs.values().flat_map(|direct| &direct.grafts).filter_map(|graft| graft.holder().copied());
        known.filter(|holder| holder.is_of(cookie)).find(|holder| holder.listener().is_some())
    }
}

/// Wherever the listener of this SO_COOKIE is that the shard with this pid has at a published address. Looks at its
/// processes, which may take a second: not for the loop.
pub(super) fn holder_of(pid: u32, published: SocketAddr, cookie: u64) -> Option<Holder> {
    let listening = sockdiag::listeners(published.port()).ok()?;
    holder_among(pid, listening.iter().find(|listening| listening.cookie == cookie)?.inode)
}
