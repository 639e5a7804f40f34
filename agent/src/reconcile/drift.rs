//! What the kernel says is compared with the plan all the time, and repaired: shards that somebody moved, CPUs that went
//! offline or came back. Looking is a task of its own; this says when, and what follows.

use std::{
    fs, io,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use sherd_topology::{
    model::Host,
    plan::{GroupName, Slot, SlotId},
};

use super::{
    Reconciler,
    group::Group,
    message::{Consequence, Message},
    view::Pinning,
    world,
};
use crate::{
    clock,
    runtime::{ShardKey, verify::PinningFault},
};

/// Between two looks at where shards are: at least this, and so long that looking takes the agent at most the
/// [`LOOKING_SHARE`]th part of the time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// At most this.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(30);
/// Half a thousandth of one CPU.
const LOOKING_SHARE: u32 = 2000;
/// Where the kernel tells which CPUs run.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// What is found to be otherwise than planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DriftCause {
    /// A shard's cgroup has other CPUs: by hand, by the engine's `update`, by systemd, or by a cgroup further out.
    Cpuset,
    /// A shard's cgroup has other memory nodes.
    Mems,
    /// A thread may run elsewhere.
    Affinity,
    /// A thread may take memory from elsewhere.
    MemoryPolicy,
    /// The host has fewer CPUs than before, or more, or others are the agent's.
    Host,
}

impl DriftCause {
    /// As in events and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpuset => "cpuset",
            Self::Mems => "mems",
            Self::Affinity => "affinity",
            Self::MemoryPolicy => "memory-policy",
            Self::Host => "host",
        }
    }

    /// Absent: that is no drift, but an end or a failure to look.
    fn of(fault: &PinningFault) -> Option<Self> {
        match fault {
            PinningFault::CgroupCpus { .. } => Some(Self::Cpuset),
            PinningFault::CgroupMems { .. } => Some(Self::Mems),
            PinningFault::ThreadCpus { .. } => Some(Self::Affinity),
            PinningFault::ThreadMems { .. } => Some(Self::MemoryPolicy),
            PinningFault::Gone { .. } | PinningFault::Unreadable { .. } => None,
        }
    }
}

/// A shard that is to be looked at.
#[derive(Debug, Clone)]
struct Looked {
    key: ShardKey,
    pid: u32,
    place: Slot,
}

/// A shard that is not where it should be.
#[derive(Debug)]
pub(super) struct Drifted {
    key: ShardKey,
    pid: u32,
    place: Slot,
    cause: DriftCause,
    /// What the kernel said.
    reason: String,
}

/// What a look has found.
#[derive(Debug)]
pub(super) struct Look {
    drifted: Vec<Drifted>,
    /// CPU time.
    took: Duration,
    cpus: io::Result<String>,
}

/// When to look, and what was seen last.
#[derive(Debug, Default)]
pub(super) struct DriftWatch {
    looking: bool,
    next: Option<Instant>,
    cpus: Option<String>,
}

impl Reconciler {
    /// Looks where shards are and which CPUs run, off the loop, when that is due.
    pub(super) fn look_for_drift(&mut self, now: Instant) {
        if self.drift.looking || self.drift.next.is_some_and(|next| now < next) {
            return;
        }
        self.drift.looking = true;
        let due: Vec<Looked> = self.groups.iter().flat_map(|(name, group)| pinned(name, group)).collect();
        let outbox = self.outbox.clone();
        world::blocking(move || {
            let began = world::cpu_time();
            let cpus = world::cpus_of_host();
            let drifted = due.into_iter().filter_map(look_at).collect();
            // The loop has ended: nobody repairs any more.
            let _ = outbox.send(Message::Looked(Look { drifted, took: world::cpu_time().saturating_sub(began), cpus }));
        });
    }

    pub(super) fn on_looked(&mut self, look: Look) -> Consequence {
        let now = clock::now();
        self.drift.looking = false;
        self.drift.next = Some(now + (look.took * LOOKING_SHARE).clamp(LOOK_EVERY, LOOK_AT_LEAST_EVERY));
        let is_known = |cpus: &String| self.drift.cpus.as_ref().is_none_or(|known| known == cpus);
        if let Ok(cpus) = look.cpus {
            if !is_known(&cpus) {
                self.discover_again();
            }
            self.drift.cpus = Some(cpus);
        }
        if look.drifted.is_empty() {
            return Consequence::None;
        }
        for drifted in look.drifted {
            self.on_drifted(drifted, now);
        }
        Consequence::Plan
    }

    fn on_drifted(&mut self, drifted: Drifted, now: Instant) {
        let Drifted { key, pid, place, cause, reason } = drifted;
        let Some(slot) = self.slot_mut(&key.group, key.slot) else { return };
        let busy = slot.step.is_some();
        // Whatever was changed meanwhile has been looked at since, or will be.
        let Some(live) = slot.live.as_mut().filter(|live| live.pid == pid && !busy) else { return };
        if live.pinning != Pinning::Holds(place) {
            return;
        }
        live.pinning = Pinning::Faulty { retry_after: now };
        slot.drifted.get_or_insert((now, cause));
        slot.last_error = Some(reason.clone());
        self.note_drift(&key.group, Some(key.slot), cause, &reason);
    }

    /// A shard is where it should be again.
    pub(super) fn note_repaired(&mut self, name: &GroupName, id: SlotId) {
        let Some((since, cause)) = self.slot_mut(name, id).and_then(|slot| slot.drifted.take()) else { return };
        let took = clock::since(since);
        self.counters.note_repair(took);
        tracing::info!(group = %name, slot = %id, cause = cause.name(), ?took, "{name}/{id} is where it was planned again");
        let message = format!("{} repaired in {:.3} s", cause.name(), took.as_secs_f64());
        self.send_event(super::report::slot_event(name, id, "drift-repaired", message));
    }

    fn note_drift(&mut self, name: &GroupName, slot: Option<SlotId>, cause: DriftCause, reason: &str) {
        self.counters.note_drift(name, cause);
        tracing::warn!(group = %name, slot = ?slot, cause = cause.name(), "{name} is not as planned: {reason}");
        let message = format!("{}: {reason}", cause.name());
        self.send_event(match slot {
            Some(slot) => super::report::slot_event(name, slot, "drift", message),
            None => super::report::group_event(name, "drift", message),
        });
    }

    fn discover_again(&self) {
        let outbox = self.outbox.clone();
        world::blocking(move || match world::this_host() {
            Ok(host) => drop(outbox.send(Message::HostChanged(Box::new(host)))),
            Err(error) => tracing::error!("the machine changed and can't be read: {}", super::chain(&error)),
        });
    }

    /// The machine has other CPUs than before: everything is planned again, with the fewest moves.
    pub(super) fn on_host_changed(&mut self, host: Host) {
        if *self.host == host {
            return;
        }
        let (before, after) = (self.host.usable(), host.usable());
        let reason = format!("CPUs {after} can be used, before it were {before}");
        let names: Vec<GroupName> = self.groups.keys().cloned().collect();
        self.host = Arc::new(host);
        for name in names {
            self.note_drift(&name, None, DriftCause::Host, &reason);
        }
        self.replan();
    }
}

fn pinned<'a>(name: &'a GroupName, group: &'a Group) -> impl Iterator<Item = Looked> {
    group.slots.iter().filter_map(move |(id, slot)| {
        let live = slot.live.as_ref().filter(|_| slot.step.is_none())?;
        let Pinning::Holds(place) = &live.pinning else { return None };
        let key = ShardKey { group: name.clone(), slot: *id };
        Some(Looked { key, pid: live.pid, place: place.clone() })
    })
}

fn look_at(looked: Looked) -> Option<Drifted> {
    let Looked { key, pid, place } = looked;
    let fault = world::pinning(pid, &place).err()?;
    let cause = DriftCause::of(&fault)?;
    Some(Drifted { key, pid, place, cause, reason: super::chain(&fault) })
}

/// CPUs that run, and those that the agent may use: a cgroup further out may leave it fewer.
pub(super) fn cpus_of_host() -> io::Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap_or_default();
    Ok(format!("{}{allowed}", fs::read_to_string(ONLINE)?))
}

/// What this thread has used so far.
pub(super) fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
