//! The direct path of the agent's groups: shims that come, listen(2) calls that are decided, listeners that are in
//! shards' hands. Which path a slot's connections take is set when the slot is taken in; a slot whose program could not
//! be grafted goes on over its worker.

mod contained;
mod door;
mod held;
mod listen;
mod means;
mod pace;
mod relayed;
mod trial;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::{Shutdown, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use sherd_lb::{
    graft::{Broker, Grafted, Holder, Journal, Report},
    relay::{PortKey, Role, Target, Worker},
    sockdiag,
};
use sherd_shim::hello::{Answer, Hello};
use socket2::SockRef;

pub(super) use self::{
    door::{Door, Greeting},
    held::forget_group,
    listen::{ListenCall, ListenerJoin},
    means::Means,
    trial::{Failed, Trial},
};
use self::{
    held::{call_name, inner_name, notify_name, original_name},
    pace::Pace,
};
use super::{
    Reconciler,
    group::{Group, SlotRun},
    message::Message,
    view::Service,
};
use crate::{
    fault,
    runtime::{ImageId, ShardKey, ShimOrder, procfs},
    spec::ContainerPort,
};

/// How long the handshake of a connection that was steered already may take, on a network that loses no packet of it.
const HANDSHAKE: Duration = Duration::from_millis(500);

/// Tells the shards of a slot apart, as [`crate::runtime::ShardOrder::generation`].
pub(super) type Generation = u64;

/// What the agent has of a shard whose listen(2) is trapped.
pub(super) struct DirectRun {
    pub(super) generation: Generation,
    /// Answers its calls; absent when its trap could not be set.
    broker: Option<(Broker, OwnedFd)>,
    /// Why its connections don't reach it directly, as far as that is known.
    pub(super) reason: Option<String>,
    pub(super) grafts: Vec<Graft>,
}

/// A listener in the shard's hands, and the program's own socket.
pub(super) struct Graft {
    pub(super) container: ContainerPort,
    /// The inner door's, in the slot's worker.
    pub(super) key: PortKey,
    original: OwnedFd,
    /// Absent after a restart of the agent.
    holder: Option<Holder>,
    /// The slot's worker accepts from the program's own socket.
    inner_served: bool,
}

impl Reconciler {
    /// The shim and the door for a shard that is about to be made.
    pub(super) fn open_door(
        &mut self,
        key: &ShardKey,
        generation: Generation,
        except: BTreeSet<ImageId>,
    ) -> io::Result<ShimOrder> {
        // Not below the run directory: /run is mounted noexec on Debian, and Podman keeps that for what it mounts.
        let programs = self.settings.state_dir.join("shim");
        crate::shim::install(&programs)?;
        let directory = door::directory(&self.settings.run_dir, key, generation);
        let door = Door::open(&directory, key.clone(), generation, self.outbox.clone())?;
        self.doors.insert((key.clone(), generation), door);
        self.means.prepare();
        Ok(ShimOrder { programs, door: directory, except })
    }

    /// After a listing of the runtime: doors of shards that an earlier agent made are opened again, and those of shards
    /// that are gone are removed.
    pub(super) fn tend_doors(&mut self, kind: &str) {
        let groups = &self.groups;
        let lives = |key: &ShardKey, generation| {
            let Some(group) = groups.get(&key.group) else { return false };
            let listed = group.spec.runtime.kind() == kind;
            group.slots.get(&key.slot).is_some_and(|slot| !listed || slot.may_have(generation))
        };
        let gone = self.doors.keys().filter(|(key, generation)| !lives(key, *generation));
        for place in gone.cloned().collect::<Vec<_>>() {
            self.doors.remove(&place).into_iter().for_each(Door::remove);
        }
        for (name, group) in self.groups.iter().filter(|(_, group)| group.spec.runtime.kind() == kind) {
            for (slot, run) in &group.slots {
                for shard in &run.shards {
                    let key = ShardKey { group: name.clone(), slot: *slot };
                    let directory = door::directory(&self.settings.run_dir, &key, shard.generation);
                    let place = (key, shard.generation);
                    // An engine doesn't start a container whose door is not there, as after a reboot.
                    let due = directory.is_dir() || group.spec.is_behind_shim();
                    if self.doors.contains_key(&place) || !due {
                        continue;
                    }
                    match Door::open(&directory, place.0.clone(), place.1, self.outbox.clone()) {
                        Ok(door) => drop(self.doors.insert(place, door)),
                        Err(error) => tracing::warn!(group = %name, %slot, "its shim's door can't be opened: {error}"),
                    }
                }
            }
        }
    }

    /// A shim is about to execute a shard's program.
    pub(super) fn on_shim(&mut self, key: &ShardKey, generation: Generation, greeting: Greeting) {
        let answer = match self.take_shim(key, generation, greeting.hello, greeting.notify) {
            Ok(()) => Answer::Go,
            Err(reason) => {
                tracing::warn!(shard = %key, generation, "its shim is refused: {reason}");
                Answer::Refuse
            }
        };
        // It has given up waiting, and says so itself.
        let _ = (&greeting.stream).write_all(&[answer.to_byte()]);
    }

    fn take_shim(
        &mut self,
        key: &ShardKey,
        generation: Generation,
        hello: Hello,
        notify: Option<OwnedFd>,
    ) -> Result<(), String> {
        let slot = self.slot_mut(&key.group, key.slot).ok_or("no group has this slot")?;
        if slot.generation != generation {
            return Err(format!("the slot's shard is of generation {}", slot.generation));
        }
        if slot.direct.as_ref().is_some_and(|direct| direct.generation == generation && !direct.grafts.is_empty()) {
            return Err("this shard's program runs already".to_owned());
        }
        // Before that it may come again: the agent was killed before it answered. Should it be somebody else in the
        // container, it is the container's own listen(2) that he gets.
        let mut direct = DirectRun { generation, broker: None, reason: None, grafts: Vec::new() };
        match (hello, notify) {
            (Hello::Trapped, Some(notify)) => {
                // In the holder before the program runs: without a supervisor its listen(2) would fail for good.
                fault::point("shim.came");
                self.keeper.put(&notify_name(key, generation), notify.as_fd());
                fault::point("shim.kept");
                let journal = Journal::new().map_err(|error| error.to_string())?;
                let broker = self.spawn_broker(key, generation, &notify, journal).map_err(|error| error.to_string())?;
                direct.broker = Some((broker, notify));
            }
            (Hello::Untrapped { errno }, _) => {
                let error = io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(0));
                direct.reason = Some(format!("its listen(2) can't be trapped (Linux 5.19 and later can): {error}"));
            }
            (Hello::Trapped, None) => return Err("it came without a descriptor".to_owned()),
        }
        if let Some(slot) = self.slot_mut(&key.group, key.slot) {
            slot.direct = Some(direct);
        }
        Ok(())
    }

    fn spawn_broker(
        &mut self,
        key: &ShardKey,
        generation: Generation,
        notify: &OwnedFd,
        journal: Journal,
    ) -> io::Result<Broker> {
        let (asking, telling) = (self.outbox.clone(), self.outbox.clone());
        let (asked, told) = (key.clone(), key.clone());
        let (mut pace, delayed) = (Pace::new(Instant::now()), Arc::clone(&self.counters.delayed_listens));
        let mut said = false;
        let decide = move |trapped: &_| {
            // Else a program that listens and closes all the time would keep the loop from all others.
            let wait = pace.take(Instant::now());
            if !wait.is_zero() {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(shard = %asked, "its programs call listen(2) all the time: what is too much waits");
                }
                delayed.fetch_add(1, Ordering::Relaxed);
                thread::sleep(wait);
            }
            listen::ask(&asking, &asked, generation, trapped)
        };
        let tell = move |report| {
            fault::point("graft.placed");
            if let Report::Grafted(grafted) = &report {
                keep_listening(grafted);
            }
            drop(telling.send(Message::Grafted { key: told.clone(), generation, report }));
        };
        let name = format!("graft-{}/{}", key.slot, key.group).chars().take(15).collect();
        let broker = Broker::spawn(name, notify.try_clone()?, journal, Box::new(decide), Box::new(tell))?;
        self.keeper.put(&call_name(key, generation), broker.journal());
        Ok(broker)
    }

    /// What became of a listen(2).
    pub(super) fn on_graft_report(&mut self, key: &ShardKey, generation: Generation, report: Report) {
        let Some(group) = self.groups.get_mut(&key.group) else { return };
        let Some(slot) = group.slots.get_mut(&key.slot) else { return };
        let Some(direct) = slot.direct.as_mut().filter(|direct| direct.generation == generation) else { return };
        match report {
            Report::Grafted(grafted) => {
                direct.reason = None;
                let container = ContainerPort(grafted.address.port());
                tracing::info!(shard = %key, port = grafted.address.port(), unset = ?grafted.unset_options, epoll = grafted.moved_registrations, "{key} accepts its connections itself");
                let graft = note_graft(direct, slot.worker.as_deref(), container, grafted, || group.fronts.new_key());
                if let Some(graft) = graft {
                    fault::point("graft.done");
                    self.keeper.put(&inner_name(key, generation, container), graft.original.as_fd());
                    fault::point("graft.kept");
                    slot.look_again();
                }
                self.keeper.remove(&original_name(key, generation));
            }
            Report::NotGrafted { address, reason } => {
                tracing::warn!(shard = %key, %address, "{key} is served by its worker: {reason}");
                direct.reason = Some(reason);
                self.keeper.remove(&original_name(key, generation));
            }
            Report::Ended => {}
        }
        self.follow_live(&key.group);
    }

    /// After a listing of the runtime: lets go of what the agent has of its shards that have ended.
    pub(super) fn bury_direct(&mut self, kind: &str) {
        for (name, group) in self.groups.iter_mut().filter(|(_, group)| group.spec.runtime.kind() == kind) {
            let Group { slots, fronts, .. } = group;
            for (id, slot) in slots {
                let Some(direct) = slot.direct.take_if(|direct| !runs(&slot.shards, direct.generation)) else {
                    continue;
                };
                if slot.step.is_some() || slot.stale {
                    slot.direct = Some(direct);
                    continue;
                }
                let key = ShardKey { group: name.clone(), slot: *id };
                fronts.leave_direct(*id);
                for graft in &direct.grafts {
                    close_inner(slot.worker.as_deref(), graft);
                    self.keeper.remove(&inner_name(&key, direct.generation, graft.container));
                }
                let generation = direct.generation;
                for name in [notify_name, call_name, original_name] {
                    self.keeper.remove(&name(&key, generation));
                }
            }
        }
    }

    /// Has counted what the shards that are being emptied have accepted themselves: off the loop, one count at a time.
    pub(super) fn count_direct(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (name, group) in &mut self.groups {
            let ports = group.fronts.addresses();
            for (id, slot) in &mut group.slots {
                let drains = matches!(slot.service(), Service::Draining { .. }) && slot.direct.is_some();
                let Some(live) = slot.live.as_ref().filter(|_| drains) else {
                    slot.direct_open = 0;
                    continue;
                };
                if slot.direct_counted_from.is_none_or(|from| from <= now) {
                    due.push((ShardKey { group: name.clone(), slot: *id }, live.pid, ports.clone()));
                }
            }
        }
        if self.counting_direct || due.is_empty() {
            return;
        }
        self.counting_direct = true;
        let outbox = self.outbox.clone();
        tokio::task::spawn_blocking(move || {
            let count = |(key, pid, ports): (ShardKey, u32, Vec<SocketAddr>)| (key, pid, accepted_by(pid, &ports));
            let counts = due.into_iter().map(count).collect();
            // The loop has ended: nobody drains any more.
            let _ = outbox.send(Message::DirectCounted { began: now, counts });
        });
    }

    /// What was counted, unless it was before the slot was drained.
    pub(super) fn on_direct_counted(&mut self, began: Instant, counts: Vec<(ShardKey, u32, u64)>) {
        self.counting_direct = false;
        for (key, pid, open) in counts {
            let Some(slot) = self.slot_mut(&key.group, key.slot) else { continue };
            let is_live = slot.live.as_ref().is_some_and(|live| live.pid == pid);
            let drains = matches!(slot.service(), Service::Draining { .. });
            if is_live && drains && slot.direct_counted_from.is_none_or(|from| from <= began) {
                slot.direct_open = open;
            }
        }
    }

    /// Whether some shard accepts its connections itself.
    pub(super) fn any_direct(&self) -> bool {
        self.groups.values().any(|group| group.fronts.any_direct())
    }

    /// Steering tries again where a shard has closed its listener, and counts that: one number for each address is looked
    /// at often, instead of every listener. As long as nobody connects, nobody has to know before the next tick.
    pub(super) fn look_for_misses(&mut self) -> bool {
        let missed = self.groups.values_mut().map(|group| group.fronts.take_misses()).filter(|missed| *missed).count();
        if missed > 0 {
            self.note_closed_listeners();
        }
        missed > 0
    }

    /// A shard that has closed its listener is reached no more: it is looked at anew.
    pub(super) fn note_closed_listeners(&mut self) {
        let mut lost = Vec::new();
        for (name, group) in &mut self.groups {
            let Group { slots, fronts, .. } = group;
            for (id, slot) in slots {
                if slot.live.is_some() && fronts.lost_direct(*id) {
                    fronts.leave_direct(*id);
                    let key = ShardKey { group: name.clone(), slot: *id };
                    if let Some(direct) = &mut slot.direct {
                        let generation = direct.generation;
                        for graft in direct.grafts.drain(..) {
                            close_inner(slot.worker.as_deref(), &graft);
                            self.keeper.remove(&inner_name(&key, generation, graft.container));
                        }
                    }
                    slot.look_again();
                    lost.push((name.clone(), *id));
                }
            }
        }
        for (name, slot) in lost {
            tracing::warn!(group = %name, %slot, "{name}/{slot} has closed its listener");
            self.follow_live(&name);
        }
    }
}

fn runs(shards: &[crate::runtime::ObservedShard], generation: Generation) -> bool {
    use crate::runtime::ShardState::{Created, Paused, Running};
    shards
        .iter()
        .any(|shard| shard.generation == generation && matches!(shard.state, Created | Running { .. } | Paused { .. }))
}

/// Connections to the addresses that a process or its descendants have open, or have yet to accept. Queues are looked at
/// before connections, and those before whose they are: one that is accepted meanwhile is counted at one place at least.
fn accepted_by(pid: u32, addresses: &[SocketAddr]) -> u64 {
    let ports: BTreeSet<u16> = addresses.iter().map(SocketAddr::port).collect();
    let listeners: Vec<_> = ports.iter().flat_map(|port| sockdiag::listeners(*port).unwrap_or_default()).collect();
    let open: Vec<_> = ports.iter().flat_map(|port| sockdiag::connections(*port).unwrap_or_default()).collect();
    let sockets = procfs::sockets(pid);
    let own = listeners.iter().filter(|listener| sockets.contains(&listener.inode));
    let queued: u64 = own.map(|listener| u64::from(listener.queued)).sum();
    queued + open.iter().filter(|inode| sockets.contains(inode)).count() as u64
}

/// The program's own socket listens in its namespace, from before its call returns: its neighbours there, and whoever has
/// another descriptor of it, find nothing changed.
fn keep_listening(grafted: &Grafted) {
    if let Err(error) = SockRef::from(&grafted.original).listen(grafted.backlog) {
        tracing::warn!("what listens inside the shard's namespace can't be kept: {error}");
    }
}

/// Keeps what was grafted; gives it back when its original socket is a new inner door.
fn note_graft<'a>(
    direct: &'a mut DirectRun,
    worker: Option<&Worker>,
    container: ContainerPort,
    grafted: Grafted,
    new_key: impl FnOnce() -> PortKey,
) -> Option<&'a Graft> {
    match direct.grafts.iter().position(|graft| graft.container == container) {
        // A second process of the shard: its own socket ends here, the first one's is the inner door.
        Some(at) if direct.grafts[at].shares(&grafted) => {
            direct.grafts[at].holder = Some(grafted.holder);
            None
        }
        // A former agent kept it, and was killed before it could answer the program.
        Some(at) if is_same_socket(&direct.grafts[at].original, &grafted.original) => {
            direct.grafts[at].holder = Some(grafted.holder);
            None
        }
        Some(at) => {
            close_inner(worker, &direct.grafts[at]);
            direct.grafts[at].original = grafted.original;
            direct.grafts[at].holder = Some(grafted.holder);
            direct.grafts[at].inner_served = false;
            Some(&direct.grafts[at])
        }
        None => {
            let (original, holder) = (grafted.original, Some(grafted.holder));
            direct.grafts.push(Graft { container, key: new_key(), original, holder, inner_served: false });
            direct.grafts.last()
        }
    }
}

fn is_same_socket(one: &OwnedFd, other: &OwnedFd) -> bool {
    let cookie = |socket| SockRef::from(socket).cookie().ok();
    cookie(one).is_some() && cookie(one) == cookie(other)
}

impl DirectRun {
    /// Where connections of the inner doors go.
    pub(super) fn inner_targets(&self, reach: &[(ContainerPort, Target)]) -> Vec<(PortKey, Target)> {
        let target = |graft: &Graft| {
            let (_, target) = reach.iter().find(|(container, _)| *container == graft.container)?;
            target.force.is_some().then(|| (graft.key, target.clone()))
        };
        self.grafts.iter().filter_map(target).collect()
    }

    /// The program has shown that it accepts from its listener: what comes to its own socket is relayed there. Before
    /// that the program alone may accept from its own socket: one that has a second descriptor of it does, and expects it
    /// to block as it made it.
    pub(super) fn serve_inner(&mut self, worker: &Worker) {
        for graft in self.grafts.iter_mut().filter(|graft| !graft.inner_served) {
            match graft.original.try_clone() {
                Ok(listener) => {
                    drop(worker.serve(graft.key, listener, Role::Inner));
                    graft.inner_served = true;
                }
                Err(error) => tracing::warn!("no descriptor for an inner door: {error}"),
            }
        }
    }

    /// Its worker is another one.
    pub(super) fn forget_inner(&mut self) {
        self.grafts.iter_mut().for_each(|graft| graft.inner_served = false);
    }
}

impl Graft {
    fn shares(&self, grafted: &Grafted) -> bool {
        self.holder.is_some_and(|holder| holder.is_same_listener(&grafted.holder))
    }

    pub(super) fn holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }
}

/// The program's own socket listens no longer, so that the program can bind its port again.
fn close_inner(worker: Option<&Worker>, graft: &Graft) {
    if let Some(worker) = worker.filter(|_| graft.inner_served) {
        drop(worker.stop_serving(graft.key, Role::Inner));
    }
    // Copies of it are in the worker, for a moment, and in the holder.
    let _ = SockRef::from(&graft.original).shutdown(Shutdown::Both);
}

impl SlotRun {
    /// Whether a shard of this generation is there or being made.
    fn may_have(&self, generation: Generation) -> bool {
        let changing = self.generation == generation && (self.step.is_some() || self.stale);
        changing || self.shards.iter().any(|shard| shard.generation == generation)
    }

    /// The slot has just been taken out of the table: what was steered to its shard may still be in a handshake.
    pub(super) fn expect_direct(&mut self, now: Instant) {
        if self.direct.is_some() {
            (self.direct_open, self.direct_counted_from) = (1, Some(now + HANDSHAKE));
        }
    }

    /// Whether connections reach the shard is to be found out anew.
    fn look_again(&mut self) {
        self.live = None;
        self.reconnect = true;
    }

    /// Everything that the holder must have of this slot.
    pub(super) fn direct_descriptors(&self, key: &ShardKey) -> Vec<(String, BorrowedFd<'_>)> {
        let Some(direct) = &self.direct else { return Vec::new() };
        let broker = direct.broker.iter().flat_map(|(broker, fd)| {
            [(notify_name(key, direct.generation), fd.as_fd()), (call_name(key, direct.generation), broker.journal())]
        });
        let inner = direct
            .grafts
            .iter()
            .map(|graft| (inner_name(key, direct.generation, graft.container), graft.original.as_fd()));
        broker.chain(inner).collect()
    }
}
