//! The direct path of the agent's groups: shims that come, listen(2) calls that are decided, listeners that are in
//! shards' hands. Which path a slot's connections take is set when the slot is taken in; a slot whose program could not
//! be grafted goes on over its worker.

mod closed;
mod contained;
mod counting;
mod door;
mod held;
mod inner;
mod listen;
mod means;
mod pace;
mod relayed;
mod trial;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, atomic::Ordering},
    thread,
    time::Instant,
};

use sherd_lb::graft::{Answering, Broker, Journal, Report};
use sherd_shim::hello::{Answer, Hello};

pub(super) use self::{
    contained::ContainedSockets,
    counting::handshake_end,
    door::{Door, Greeting},
    held::forget_group,
    listen::{ListenCall, ListenerJoin, SharedListener},
    means::Means,
    trial::{Failed, Trial},
};
use self::{
    held::{call_name, inner_name, notify_name, original_name},
    inner::{Graft, keep_listening, note_graft},
    pace::Pace,
};
use super::{
    Reconciler,
    group::{Group, SlotRun},
    message::Message,
};
use crate::{
    fault,
    runtime::{ImageId, ShardKey, ShimOrder},
    spec::ContainerPort,
};

/// Tells the shards of a slot apart, as [`crate::runtime::ShardOrder::generation`].
pub(super) type Generation = u64;

/// What the agent has of a shard whose listen(2) is trapped.
pub(super) struct DirectRun {
    /// Answers its calls; absent when its trap could not be set.
    broker: Option<(Broker, OwnedFd)>,
    /// Why its connections don't reach it directly, as far as that is known.
    pub(super) reason: Option<String>,
    pub(super) grafts: Vec<Graft>,
}

impl DirectRun {
    pub(super) fn answering(&self) -> Option<Answering> {
        self.broker.as_ref().map(|(broker, _)| broker.answering().clone())
    }
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
        if slot.directs.get(&generation).is_some_and(|direct| !direct.grafts.is_empty()) {
            return Err("this shard's program runs already".to_owned());
        }
        // Before that it may come again: the agent was killed before it answered. Should it be somebody else in the
        // container, it is the container's own listen(2) that he gets.
        let mut direct = DirectRun { broker: None, reason: None, grafts: Vec::new() };
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
            slot.directs.insert(generation, direct);
            // Whoever asks it already doesn't know that its listen(2) is trapped.
            slot.look_again_at(generation);
        }
        self.follow_live(&key.group);
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
        let Some(direct) = slot.directs.get_mut(&generation) else { return };
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
                    slot.look_again_at(generation);
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
            let Group { slots, fronts, .. } = &mut *group;
            for (id, slot) in slots {
                if slot.step.is_some() || slot.stale {
                    continue;
                }
                let (others, gone): (Vec<Generation>, Vec<Generation>) =
                    slot.directs.keys().partition(|generation| runs(&slot.shards, **generation));
                for generation in gone {
                    let Some(direct) = slot.directs.remove(&generation) else { continue };
                    let key = ShardKey { group: name.clone(), slot: *id };
                    fronts.leave_direct(*id, generation, &others);
                    for graft in &direct.grafts {
                        graft.close_inner(slot.worker.as_deref());
                        self.keeper.remove(&inner_name(&key, generation, graft.container));
                    }
                    for name in [notify_name, call_name, original_name] {
                        self.keeper.remove(&name(&key, generation));
                    }
                }
            }
            group.settle_hung();
        }
    }
}

fn runs(shards: &[crate::runtime::ObservedShard], generation: Generation) -> bool {
    use crate::runtime::ShardState::{Created, Paused, Running};
    shards
        .iter()
        .any(|shard| shard.generation == generation && matches!(shard.state, Created | Running { .. } | Paused { .. }))
}

impl SlotRun {
    /// Whether a shard of this generation is there or being made.
    fn may_have(&self, generation: Generation) -> bool {
        let changing = self.generation == generation && (self.step.is_some() || self.stale);
        changing || self.shards.iter().any(|shard| shard.generation == generation)
    }

    /// Whether a shard of it, which need not serve, has a listener of ours.
    pub(super) fn has_listeners(&self) -> bool {
        self.directs.values().any(|direct| !direct.grafts.is_empty())
    }

    /// Everything that the holder must have of this slot.
    pub(super) fn direct_descriptors(&self, key: &ShardKey) -> Vec<(String, BorrowedFd<'_>)> {
        let mut all = Vec::new();
        for (generation, direct) in &self.directs {
            all.extend(direct.broker.iter().flat_map(|(broker, fd)| {
                [(notify_name(key, *generation), fd.as_fd()), (call_name(key, *generation), broker.journal())]
            }));
            let inner = |graft: &Graft| inner_name(key, *generation, graft.container);
            all.extend(direct.grafts.iter().map(|graft| (inner(graft), graft.original.as_fd())));
        }
        all
    }

    /// The process of the running shard of this generation.
    pub(super) fn pid_of(&self, generation: Generation) -> Option<u32> {
        self.shards.iter().find(|shard| shard.generation == generation).and_then(|shard| match shard.state {
            crate::runtime::ShardState::Running { pid, .. } => Some(pid),
            _ => None,
        })
    }
}
