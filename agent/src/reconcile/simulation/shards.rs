//! The shards of the simulated engine: what each is, does, and has shown. Owns them; errors and delays of calls are `engine`'s.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime},
};

use sherd_lb::relay::Target;
use sherd_topology::{
    model::{CpuSet, NodeSet},
    plan::{MemoryBinding, Slot},
};
use tokio::sync::mpsc::UnboundedSender;

use super::state::Chance;
use crate::{
    reconcile::inspect::{Question, Reach, Unreached},
    runtime::{
        Foreign, ImageId, Listing, ObservedShard, RuntimeError, RuntimeEvent, ShardId, ShardKey, ShardOrder,
        ShardState, verify::PinningFault,
    },
    spec::{RuntimeSpec, SpecHash},
};

/// Where a simulated shard listens, whatever its address.
const PORT: u16 = 80;

/// One shard.
#[derive(Debug, Clone)]
pub(super) struct Simulated {
    pub(super) key: ShardKey,
    pub(super) spec: SpecHash,
    pub(super) generation: u64,
    pub(super) cpus: CpuSet,
    mems: NodeSet,
    pub(super) state: ShardState,
    /// What its program does: the image's name.
    program: String,
    /// Of its present run.
    pub(super) ready_from: Duration,
    pub(super) ends_at: Option<Duration>,
    sick_until: Duration,
    /// The agent was told that it is ready: once in its present run, and the last time.
    pub(super) was_shown: bool,
    pub(super) is_shown: bool,
    /// Since when it was told so every time.
    pub(super) shown_since: Option<Duration>,
    /// When it was last frozen or thawed: what the engine said of it just before may be heard later.
    pub(super) frozen_at: Option<Duration>,
}

/// All shards, and what is none of ours.
#[derive(Debug, Default)]
pub(super) struct Shards {
    pub(super) all: BTreeMap<ShardId, Simulated>,
    /// Containers of others that bear our label, or none.
    pub(super) foreign: BTreeSet<ShardId>,
    /// The engine takes those for ours whose label says so.
    pub(super) believes_labels: bool,
    pub(super) listeners: Vec<UnboundedSender<Result<RuntimeEvent, RuntimeError>>>,
    last_id: u64,
    last_pid: u32,
}

/// The address of the shard with this pid.
pub(super) fn address_of(pid: u32) -> SocketAddr {
    let [_, a, b, c] = pid.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, a, b, c)), PORT)
}

impl Simulated {
    pub(super) fn pid(&self) -> Option<u32> {
        match self.state {
            ShardState::Running { pid, .. } | ShardState::Paused { pid } => Some(pid),
            _ => None,
        }
    }

    pub(super) fn runs(&self) -> bool {
        matches!(self.state, ShardState::Running { .. })
    }

    /// It accepts.
    pub(super) fn is_ready(&self, now: Duration) -> bool {
        self.runs() && self.ready_from <= now && self.sick_until <= now
    }

    /// How long its process has been there.
    pub(super) fn age(&self, wall: SystemTime) -> Option<Duration> {
        match self.state {
            ShardState::Running { started, .. } => Some(wall.duration_since(started).unwrap_or_default()),
            ShardState::Paused { .. } => Some(Duration::ZERO),
            _ => None,
        }
    }

    pub(super) fn start(&mut self, pid: u32, started: SystemTime, now: Duration, chance: &mut Chance) {
        self.state = ShardState::Running { pid, started };
        (self.was_shown, self.is_shown, self.shown_since) = (false, false, None);
        self.sick_until = Duration::ZERO;
        let soon = chance.millis(20..700);
        self.ready_from = now + soon;
        self.ends_at = None;
        match self.program.split(':').next() {
            Some("slow") => self.ready_from = now + chance.millis(1_000..4_000),
            Some("silent") => self.ready_from = Duration::MAX,
            Some("dies") => self.ends_at = Some(now + chance.millis(10..1_500)),
            Some("late") => self.ends_at = Some(self.ready_from + chance.millis(500..4_000)),
            _ => {}
        }
    }

    pub(super) fn sicken(&mut self, until: Duration) {
        self.sick_until = until;
    }
}

impl Shards {
    pub(super) fn create(&mut self, order: &ShardOrder) -> ShardId {
        let same = |shard: &Simulated| shard.key == order.key && shard.generation == order.generation;
        if let Some((id, _)) = self.all.iter().find(|(_, shard)| same(shard)) {
            return id.clone();
        }
        let program = match &order.spec.runtime {
            RuntimeSpec::Docker(container) => container.image.clone(),
            RuntimeSpec::Process(process) => process.command.join(" "),
        };
        let id = self.new_id();
        let shard = Simulated {
            key: order.key.clone(),
            spec: order.spec.hash(),
            generation: order.generation,
            cpus: order.slot.cpus.clone(),
            mems: mems_of(&order.slot),
            state: ShardState::Created,
            program,
            ready_from: Duration::MAX,
            ends_at: None,
            sick_until: Duration::ZERO,
            was_shown: false,
            is_shown: false,
            shown_since: None,
            frozen_at: None,
        };
        self.all.insert(id.clone(), shard);
        id
    }

    pub(super) fn add_foreign(&mut self) {
        let id = self.new_id();
        self.foreign.insert(id);
    }

    fn new_id(&mut self) -> ShardId {
        self.last_id += 1;
        ShardId(format!("c{:04}", self.last_id))
    }

    pub(super) fn new_pid(&mut self) -> u32 {
        self.last_pid += 1;
        self.last_pid
    }

    /// The engine places it again.
    pub(super) fn move_to(&mut self, id: &ShardId, place: &Slot) -> bool {
        let Some(shard) = self.all.get_mut(id) else { return false };
        (shard.cpus, shard.mems) = (place.cpus.clone(), mems_of(place));
        true
    }

    pub(super) fn by_pid(&self, pid: u32) -> Option<&Simulated> {
        self.all.values().find(|shard| shard.pid() == Some(pid))
    }

    pub(super) fn at(&self, address: SocketAddr) -> Option<(&ShardId, &Simulated)> {
        self.all.iter().find(|(_, shard)| shard.pid().map(address_of) == Some(address))
    }

    /// Those of a group that run, frozen or not.
    pub(super) fn living<'a>(&'a self, group: &'a str) -> impl Iterator<Item = (&'a ShardId, &'a Simulated)> + 'a {
        self.all.iter().filter(move |(_, shard)| shard.key.group.as_str() == group && shard.pid().is_some())
    }

    pub(super) fn listing(&self) -> Listing {
        let mut shards: Vec<ObservedShard> = self.all.iter().map(observed).collect();
        let mut foreign = Vec::new();
        for id in &self.foreign {
            match self.believes_labels {
                true => shards.push(taken_for_ours(id)),
                false => foreign.push(Foreign {
                    id: id.clone(),
                    name: id.to_string(),
                    reason: "it lacks the label of its slot".to_owned(),
                }),
            }
        }
        shards.sort_by(|a, b| (&a.key, a.generation).cmp(&(&b.key, b.generation)));
        Listing { shards, foreign, renamed: Vec::new() }
    }

    /// The living shard that a question is about, and where it would be reached.
    pub(super) fn reach(&mut self, question: &Question) -> Result<(&mut Simulated, Reach), Unreached> {
        let shard = self.all.values_mut().find(|shard| shard.pid() == Some(question.pid));
        let target = Target { address: address_of(question.pid), force: None };
        let ports = question.ports.iter().map(|asked| (asked.container, target.clone()));
        Ok((shard.ok_or_else(|| silence(question))?, Reach { netns: None, ports: ports.collect() }))
    }

    /// What a connection to the shard comes to; it is noted that the agent was told.
    pub(super) fn ask(&mut self, question: &Question, now: Duration, lies: bool) -> Result<Reach, Unreached> {
        let (shard, reach) = self.reach(question)?;
        shard.is_shown = shard.is_ready(now) && !lies;
        if !shard.is_shown {
            shard.shown_since = None;
            return Err(silence(question));
        }
        shard.was_shown = true;
        shard.shown_since.get_or_insert(now);
        Ok(reach)
    }

    pub(super) fn pinning(&self, pid: u32, place: &Slot) -> Result<(), PinningFault> {
        let shard = self.by_pid(pid).ok_or(PinningFault::Gone { pid })?;
        let cgroup = "/sys/fs/cgroup/simulated".into();
        if shard.cpus != place.cpus {
            let (wanted, found) = (place.cpus.clone(), shard.cpus.clone());
            return Err(PinningFault::CgroupCpus { cgroup, wanted, found });
        }
        if shard.mems != mems_of(place) {
            let (wanted, found) = (mems_of(place), shard.mems.clone());
            return Err(PinningFault::CgroupMems { cgroup, wanted, found });
        }
        Ok(())
    }

    /// When the next one ends by itself.
    pub(super) fn next_end(&self) -> Option<Duration> {
        self.all.values().filter(|shard| shard.pid().is_some()).filter_map(|shard| shard.ends_at).min()
    }

    /// Those that have ended by now.
    pub(super) fn end_due(&mut self, now: Duration) -> Vec<ShardKey> {
        let due = |shard: &&mut Simulated| shard.pid().is_some() && shard.ends_at.is_some_and(|at| at <= now);
        let mut ended = Vec::new();
        for shard in self.all.values_mut().filter(due) {
            shard.state = ShardState::Exited { code: Some(1), oom: false };
            shard.ends_at = None;
            ended.push(shard.key.clone());
        }
        ended
    }

    pub(super) fn emit(&mut self, key: &ShardKey, kind: &str) {
        let event = || RuntimeEvent::of(key, kind);
        self.listeners.retain(|listener| listener.send(Ok(event())).is_ok());
    }
}

fn silence(question: &Question) -> Unreached {
    let port = question.ports.first().map_or(PORT, |port| port.port);
    Unreached::NotListening { port, others: Vec::new() }
}

fn mems_of(place: &Slot) -> NodeSet {
    if place.memory == MemoryBinding::None { NodeSet::default() } else { place.mems.clone() }
}

fn observed((id, shard): (&ShardId, &Simulated)) -> ObservedShard {
    ObservedShard {
        id: id.clone(),
        key: shard.key.clone(),
        spec: shard.spec.clone(),
        cpus: shard.cpus.clone(),
        mems: shard.mems.clone(),
        state: shard.state,
        generation: shard.generation,
        process_ports: Vec::new(),
        image: Some(ImageId::new(&shard.program)),
        behind_shim: false,
    }
}

fn taken_for_ours(id: &ShardId) -> ObservedShard {
    ObservedShard {
        id: id.clone(),
        key: ShardKey { group: "z".parse().expect("a name"), slot: sherd_topology::plan::SlotId(0) },
        spec: SpecHash(String::new()),
        cpus: CpuSet::default(),
        mems: NodeSet::default(),
        state: ShardState::Exited { code: Some(0), oom: false },
        generation: 1,
        process_ports: Vec::new(),
        image: None,
        behind_shim: false,
    }
}
