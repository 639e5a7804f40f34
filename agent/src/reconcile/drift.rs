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
    plan::{GroupName, Slot},
};

pub(super) use self::{
    ends::{Act, End, HeardAct},
    notes::Whose,
    others::Paused,
    resources::Reading,
};
use self::{
    ends::{Circumstances, end_of},
    notes::Standing,
};
use super::{
    Reconciler,
    group::{Group, SlotRun},
    message::{Consequence, Message},
    view::Pinning,
    world,
};
use crate::{
    clock,
    runtime::{ShardKey, verify::PinningFault},
};

mod cause;
mod ends;
mod notes;
mod others;
mod resources;

pub use self::cause::DriftCause;

/// Between two looks at where shards are: at least this, and so long that looking takes the agent at most the
/// [`LOOKING_SHARE`]th part of the time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// At most this.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(30);
/// Half a thousandth of one CPU.
const LOOKING_SHARE: u32 = 2000;
/// Where the kernel tells which CPUs run.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// Absent: that is no drift, but an end or a failure to look.
fn cause_of(fault: &PinningFault) -> Option<DriftCause> {
    match fault {
        PinningFault::CgroupCpus { .. } => Some(DriftCause::Cpuset),
        PinningFault::CgroupMems { .. } => Some(DriftCause::Mems),
        PinningFault::ThreadCpus { .. } => Some(DriftCause::Affinity),
        PinningFault::ThreadMems { .. } => Some(DriftCause::MemoryPolicy),
        PinningFault::Gone { .. } | PinningFault::Unreadable { .. } => None,
    }
}

/// A shard that is to be looked at.
#[derive(Debug, Clone)]
struct Looked {
    key: ShardKey,
    pid: u32,
    place: Slot,
    /// Nobody but the kernel tells when somebody stops it by a signal.
    is_process: bool,
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
    /// Some process shard is stopped by a signal: its runtime tells which.
    any_stopped: bool,
    resources: Reading,
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
    /// What is otherwise and no slot's.
    standing: Standing,
    /// The wall clock's time at boot.
    boot: Option<Duration>,
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
        let directories = [self.settings.state_dir.clone(), self.settings.run_dir.clone()];
        world::blocking(move || {
            let began = world::cpu_time();
            let cpus = world::cpus_of_host();
            let any_stopped = due.iter().any(|looked| looked.is_process && world::is_stopped(looked.pid));
            let drifted = due.into_iter().filter_map(look_at).collect();
            let resources = world::resources(&directories);
            let took = world::cpu_time().saturating_sub(began);
            // The loop has ended: nobody repairs any more.
            let _ = outbox.send(Message::Looked(Look { drifted, any_stopped, resources, took, cpus }));
        });
    }

    pub(super) fn on_looked(&mut self, look: Look) -> Consequence {
        let now = clock::now();
        self.drift.looking = false;
        self.drift.next = Some(now + (look.took * LOOKING_SHARE).clamp(LOOK_EVERY, LOOK_AT_LEAST_EVERY));
        self.note_resources(look.resources);
        self.note_descriptors(&look.cpus);
        let waits =
            |group: &Group| group.spec.runtime.kind() == "process" && group.slots.values().any(SlotRun::is_paused);
        if look.any_stopped || self.groups.values().any(waits) {
            self.observe("process");
        }
        if let Ok(cpus) = look.cpus {
            if self.drift.cpus.as_ref().is_some_and(|known| *known != cpus) {
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
        slot.last_error = Some(reason.clone());
        self.note_slot_drift(&key.group, key.slot, cause, &reason);
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
            self.note_drift(&Whose::Group(name), DriftCause::Host, &reason);
        }
        self.replan();
    }
}

fn pinned<'a>(name: &'a GroupName, group: &'a Group) -> impl Iterator<Item = Looked> {
    group.slots.iter().filter_map(move |(id, slot)| {
        let live = slot.live.as_ref().filter(|_| slot.step.is_none())?;
        let Pinning::Holds(place) = &live.pinning else { return None };
        let key = ShardKey { group: name.clone(), slot: *id };
        Some(Looked { key, pid: live.pid, place: place.clone(), is_process: group.spec.runtime.kind() == "process" })
    })
}

fn look_at(looked: Looked) -> Option<Drifted> {
    let Looked { key, pid, place, .. } = looked;
    let fault = world::pinning(pid, &place).err()?;
    let cause = cause_of(&fault)?;
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
