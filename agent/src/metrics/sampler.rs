//! Looks at CPUs, shards and workers when somebody asks, and keeps what adds up over time. Blocks on small reads of
//! procfs and cgroupfs; an agent that nobody asks looks at nothing.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sherd_topology::plan::{GroupName, SlotId};

use super::{
    ForeignTime, Snapshot, Usage, UsageReader, cpu_ticks,
    foreign::{Consumer, Ledger, Reading, SlotReading},
    mappings::Mappings,
};
use crate::status::SlotStatus;

/// Who asks sooner gets what the last one got, so that no client makes the agent busy.
const LEAST_INTERVAL: Duration = Duration::from_millis(500);

/// What was found at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// When, on a clock that only goes on.
    pub at: Duration,
    /// What each shard used, by its pid.
    pub shards: BTreeMap<u32, Usage>,
    /// What slots' PUs did for others, since the sampler first saw the slot.
    pub foreign: BTreeMap<(GroupName, SlotId), ForeignTime>,
}

impl Sample {
    /// What the slot's present shard used; none while it has none.
    pub fn of_shard(&self, slot: &SlotStatus) -> Option<&Usage> {
        self.shards.get(&slot.pid?)
    }
}

/// See the module. One for all who ask, so that they see the same counters.
#[derive(Debug)]
pub struct Sampler {
    usage: UsageReader,
    started: Instant,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    ledger: Ledger,
    mappings: Mappings,
    last: Option<(Instant, Arc<Sample>)>,
}

impl Sampler {
    /// Looks at nothing yet.
    pub fn new() -> Self {
        let usage = UsageReader::new();
        let ledger = Ledger::new(usage.ticks_per_second());
        let kept = Mutex::new(Kept { ledger, mappings: Mappings::of_this_host(), last: None });
        Self { usage, started: Instant::now(), kept }
    }

    /// A look at what the snapshot names, or the last one if that was just now.
    pub fn sample(&self, snapshot: &Snapshot) -> Arc<Sample> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((at, sample)) = &kept.last
            && now.duration_since(*at) < LEAST_INTERVAL
        {
            return Arc::clone(sample);
        }
        let pids: Vec<u32> = each_slot(snapshot).filter_map(|(_, slot)| slot.pid).collect();
        let mut shards = self.usage.of_shards(pids);
        kept.mappings.complete(&mut shards, now, |pid| self.usage.by_node_of_mappings(pid));
        kept.ledger.advance(reading(snapshot, &shards));
        let foreign = kept.ledger.totals();
        let sample = Arc::new(Sample { at: now.duration_since(self.started), shards, foreign });
        kept.last = Some((now, Arc::clone(&sample)));
        sample
    }

    /// What this process itself used.
    pub fn of_self(&self) -> Usage {
        self.usage.of_self()
    }
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

fn reading(snapshot: &Snapshot, shards: &BTreeMap<u32, Usage>) -> Reading {
    let threads: BTreeMap<_, _> = snapshot
        .slots
        .iter()
        .filter_map(|slot| Some(((&slot.group, slot.slot), slot.relay.as_ref()?.thread_id?)))
        .collect();
    let slots = each_slot(snapshot).map(|(group, slot)| {
        let shard = slot.pid.and_then(|pid| {
            Some(Consumer { identity: (pid, slot.generation), cpu_seconds: shards.get(&pid)?.cpu_seconds })
        });
        let relay = threads
            .get(&(group, slot.slot))
            .and_then(|&thread| Some(Consumer { identity: (thread, 0), cpu_seconds: thread_cpu_seconds(thread)? }));
        ((group.clone(), slot.slot), SlotReading { cpus: slot.cpus.clone(), shard, relay })
    });
    let slots = slots.collect();
    // Last, so that what has been counted of shards has been counted here too.
    let cpus = cpu_ticks::parse(&fs::read_to_string("/proc/stat").unwrap_or_default());
    Reading { cpus, slots }
}

fn each_slot(snapshot: &Snapshot) -> impl Iterator<Item = (&GroupName, &SlotStatus)> {
    snapshot.status.groups.iter().flat_map(|group| group.slots.iter().map(|slot| (&group.name, slot)))
}

/// The first number of schedstat (Documentation/scheduler/sched-stats.rst): time on a CPU, in nanoseconds.
fn thread_cpu_seconds(thread: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    let nanos: u64 = text.split_whitespace().next()?.parse().ok()?;
    Some(nanos as f64 / 1e9)
}
