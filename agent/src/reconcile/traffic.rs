//! Gathers what is counted of shards' traffic while new ones are on trial, for [`super::evidence`].

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sherd_lb::cells::{ANSWER_BOUNDS_MICROS, CellReading};
use sherd_topology::plan::{GroupName, SlotId};

use super::{
    Reconciler,
    evidence::Counted,
    group::{Group, Intent, Live},
    message::Message,
    world,
};
use crate::{
    metrics::UsageReader,
    rollout::{Shard, SlotFacts, verdict::Times},
    runtime::ShardId,
};

/// While shards are being replaced.
const OFTEN: Duration = Duration::from_millis(200);
/// Else: for what a shard did before its turn.
const SELDOM: Duration = Duration::from_secs(15);

impl Group {
    /// Whether anything of new shards' traffic is compared.
    fn compares_traffic(&self) -> bool {
        let policy = &self.spec.rollout.traffic;
        let bounds = [policy.max_error_points, policy.max_latency_percent, policy.max_cpu_percent];
        bounds.iter().any(Option::is_some)
    }

    /// Notes what has been counted by now, where that is due.
    fn note_traffic(&mut self, every: Duration, now: Instant) {
        if !self.rollout.evidence.is_due(every, now) {
            return;
        }
        let lives = self.slots.iter().filter_map(|(id, slot)| Some((*id, slot.live.as_ref()?.id.clone())));
        let counted = lives.map(|(id, shard)| (id, (shard, self.counted(id)))).collect();
        self.rollout.evidence.note(counted, now);
    }

    /// Of all connections of the slot, whoever accepted them.
    fn counted(&self, id: SlotId) -> Counted {
        let mut counted = Counted::default();
        if let Some(slot) = self.slots.get(&id) {
            counted.refused = slot.connect_failures();
            if let Some(stats) = slot.worker.as_ref().map(|worker| worker.stats()) {
                (counted.ended, counted.unanswered) = (stats.closed.get(), stats.unanswered.get());
            }
        }
        for reading in self.fronts.direct_readings(id) {
            counted.ended += reading.counts.closed;
            counted.unanswered += reading.unanswered;
            counted.answers = Some(sum(counted.answers.unwrap_or_default(), first_answers(&reading)));
        }
        counted
    }

    /// Says of each slot on trial whether its new shard is worse than those that aren't being replaced.
    pub(super) fn judge_traffic(&mut self, facts: &mut [SlotFacts], now: Instant) {
        let machine = &self.rollout.machine;
        let turns = machine.turns();
        let on_trial: BTreeMap<SlotId, Instant> =
            turns.iter().filter_map(|slot| Some((*slot, machine.is_on_trial(*slot)?))).collect();
        // What ran before has nothing else to be compared with, and nothing to go back to.
        if !self.compares_traffic() || self.rollout.is_rollback() {
            return self.rollout.evidence.set_trials(&[]);
        }
        let ends = |since: Instant| now.saturating_duration_since(since) >= self.spec.rollout.trial();
        let at_end: Vec<SlotId> = on_trial.iter().filter(|(_, since)| ends(**since)).map(|(slot, _)| *slot).collect();
        let began = on_trial.keys().any(|slot| self.rollout.evidence.outcome(*slot).is_none());
        if !turns.is_empty() {
            let at_once = began || !at_end.is_empty();
            self.note_traffic(if at_once { Duration::ZERO } else { OFTEN }, now);
        }
        let slots: Vec<SlotId> = on_trial.keys().copied().collect();
        self.rollout.evidence.set_trials(&slots);
        let stays = |fact: &&SlotFacts| fact.shard == Shard::Former && fact.serving && !turns.contains(&fact.id);
        let siblings: Vec<SlotId> = facts.iter().filter(stays).map(|fact| fact.id).collect();
        for fact in facts.iter_mut().filter(|fact| on_trial.contains_key(&fact.id)) {
            let at_end = at_end.contains(&fact.id);
            let policy = &self.spec.rollout.traffic;
            fact.is_worse = self.rollout.evidence.judge(fact.id, &siblings, policy, at_end);
        }
    }
}

impl Reconciler {
    /// Notes the traffic of groups in which nothing changes, and has CPU time read where it is compared.
    pub(super) fn look_at_traffic(&mut self, now: Instant) {
        let outbox = &self.outbox;
        for (name, group) in &mut self.groups {
            if !matches!(group.intent, Intent::Run) || !group.compares_traffic() {
                continue;
            }
            let due = group.rollout.evidence.is_due(SELDOM, now) || group.rollout.is_active();
            group.note_traffic(SELDOM, now);
            if group.spec.rollout.traffic.max_cpu_percent.is_none() || group.rollout.evidence.reads_cpu || !due {
                continue;
            }
            group.rollout.evidence.reads_cpu = true;
            let pid = |live: &Live| (live.id.clone(), live.pid);
            let shards: Vec<_> = group.slots.values().filter_map(|slot| slot.live.as_ref()).map(pid).collect();
            let (outbox, name) = (outbox.clone(), name.clone());
            world::blocking(move || {
                let used = UsageReader::new().of_shards(shards.iter().map(|(_, pid)| *pid));
                let seconds = |(id, pid)| Some((id, used.get(&pid)?.cpu_seconds));
                let used = shards.into_iter().filter_map(seconds).collect();
                // The loop has ended: nobody compares.
                let _ = outbox.send(Message::CpuRead { group: name, used });
            });
        }
    }

    pub(super) fn on_cpu_read(&mut self, name: &GroupName, used: BTreeMap<ShardId, f64>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        group.rollout.evidence.reads_cpu = false;
        group.rollout.evidence.cpu_seconds.extend(used);
    }
}

fn first_answers(reading: &CellReading) -> Times {
    let answers = &reading.first_answer;
    let squares = Some(reading.first_answer_squares as f64 / 1e12);
    Times { squares, ..Times::of_buckets(&ANSWER_BOUNDS_MICROS, &answers.buckets, answers.sum_micros) }
}

fn sum(one: Times, other: Times) -> Times {
    Times {
        count: one.count + other.count,
        sum_seconds: one.sum_seconds + other.sum_seconds,
        squares: Some(one.squares.unwrap_or_default() + other.squares.unwrap_or_default()),
    }
}
