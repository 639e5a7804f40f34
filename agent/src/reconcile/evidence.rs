//! What the traffic of a rollout's new shards says of them: keeps what was counted of each slot's shard, and has
//! [`verdict`] compare while they are on trial. Counts and the clock come in; nothing is looked at here.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sherd_topology::plan::SlotId;

use crate::{
    rollout::verdict::{self, Evidence, Judgement, Policy, Sample, Times},
    runtime::ShardId,
    spec::TrafficPolicy,
};

/// What a shard did before its slot's turn is told by the last one or two of these.
const BEFORE: Duration = Duration::from_secs(30);

/// What has been counted of a slot by some time. It goes on when another shard takes over.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Counted {
    pub(super) ended: u64,
    /// Of these, without an answer.
    pub(super) unanswered: u64,
    /// Connections that couldn't be handed to the shard.
    pub(super) refused: u64,
    /// First answers. Absent: nobody times them.
    pub(super) answers: Option<Times>,
    /// CPU time of the shard itself. Absent: nobody has looked.
    pub(super) cpu_seconds: Option<f64>,
}

impl Counted {
    fn since(&self, before: &Self) -> Sample {
        let times = |now: Times, before: Times| Times {
            count: now.count.saturating_sub(before.count),
            sum_seconds: (now.sum_seconds - before.sum_seconds).max(0.0),
            squares: now.squares.zip(before.squares).map(|(now, before)| (now - before).max(0.0)),
        };
        let cpu = self.cpu_seconds.zip(before.cpu_seconds).map_or(0.0, |(now, before)| (now - before).max(0.0));
        Sample {
            // A worker that was replaced counts from the beginning.
            connections: self.ended.saturating_sub(before.ended),
            unanswered: self.unanswered.saturating_sub(before.unanswered),
            connect_failures: self.refused.saturating_sub(before.refused),
            first_answer: self.answers.zip(before.answers).map(|(now, before)| times(now, before)),
            cpu_seconds: cpu,
        }
    }
}

/// The shard that a slot's connections go to.
#[derive(Debug)]
struct Track {
    shard: ShardId,
    /// From [`BEFORE`] to twice as long ago, where it has been there so long.
    first: Counted,
    later: (Instant, Counted),
    latest: Counted,
}

/// A new shard that is looked at.
#[derive(Debug)]
struct Trial {
    /// What had been counted of all slots when it began.
    began: BTreeMap<SlotId, (ShardId, Counted)>,
    /// The slot's former shard.
    before: Option<Sample>,
    /// Connections at which it is looked at next. Each look may err, so there are few.
    next_look: u64,
    last: Judgement,
}

/// One group's.
#[derive(Debug, Default)]
pub(super) struct EvidenceRun {
    tracks: BTreeMap<SlotId, Track>,
    /// What the shard did that was taken over from last.
    before: BTreeMap<SlotId, Sample>,
    trials: BTreeMap<SlotId, Trial>,
    noted: Option<Instant>,
    /// CPU time is being read.
    pub(super) reads_cpu: bool,
    /// CPU time of shards, as far as it was read.
    pub(super) cpu_seconds: BTreeMap<ShardId, f64>,
}

impl EvidenceRun {
    /// Whether counts are due that are looked at so often.
    pub(super) fn is_due(&self, every: Duration, now: Instant) -> bool {
        self.noted.is_none_or(|noted| now.saturating_duration_since(noted) >= every)
    }

    /// Takes what has been counted by now of each slot that has a shard.
    pub(super) fn note(&mut self, counted: BTreeMap<SlotId, (ShardId, Counted)>, now: Instant) {
        self.noted = Some(now);
        // A shard that ended before the next one came: the slot's former one all the same.
        let is_there = |slot: &SlotId| counted.contains_key(slot);
        let ended = self.tracks.iter().filter(|(slot, _)| !is_there(slot));
        self.before.extend(ended.map(|(slot, track)| (*slot, track.sample())));
        self.tracks.retain(|slot, _| is_there(slot));
        self.cpu_seconds.retain(|shard, _| counted.values().any(|(known, _)| known == shard));
        for (slot, (shard, mut counted)) in counted {
            counted.cpu_seconds = self.cpu_seconds.get(&shard).copied();
            for trial in self.trials.values_mut() {
                let began = trial.began.get_mut(&slot).filter(|(began, _)| *began == shard);
                began.into_iter().for_each(|(_, began)| began.cpu_seconds = began.cpu_seconds.or(counted.cpu_seconds));
            }
            match self.tracks.get_mut(&slot).filter(|track| track.shard == shard) {
                Some(track) => track.note(counted, now),
                None => {
                    let track = Track { shard, first: counted, later: (now, counted), latest: counted };
                    let former = self.tracks.insert(slot, track);
                    former.map(|former| self.before.insert(slot, former.sample()));
                }
            }
        }
    }

    /// Makes those the trials that there are.
    pub(super) fn set_trials(&mut self, slots: &[SlotId]) {
        self.trials.retain(|slot, _| slots.contains(slot));
        for slot in slots {
            if self.trials.contains_key(slot) {
                continue;
            }
            let began = self.tracks.iter().map(|(slot, track)| (*slot, (track.shard.clone(), track.latest))).collect();
            let before = self.before.remove(slot);
            let last = Judgement::TooLittle("none of its connections has ended".to_owned());
            self.trials.insert(*slot, Trial { began, before, next_look: 0, last });
        }
    }

    /// Why the slot's new shard is worse than others, if it is; `siblings` are slots that aren't being replaced. It is looked
    /// at each time it has had twice as many connections as before, and `at_end`.
    pub(super) fn judge(
        &mut self,
        slot: SlotId,
        siblings: &[SlotId],
        policy: &TrafficPolicy,
        at_end: bool,
    ) -> Option<String> {
        let trial = self.trials.get_mut(&slot)?;
        let tracks = &self.tracks;
        let since = |slot: &SlotId| {
            let (track, (shard, began)) = (tracks.get(slot)?, trial.began.get(slot)?);
            (track.shard == *shard).then(|| track.latest.since(began))
        };
        let sample = since(&slot)?;
        let come = sample.connections + sample.connect_failures;
        if (come >= trial.next_look || at_end) && come >= u64::from(policy.min_connections) {
            let siblings: Vec<Sample> = siblings.iter().filter_map(since).collect();
            let evidence = Evidence { shard: &sample, siblings: &siblings, before: trial.before.as_ref() };
            trial.last = verdict::judge(evidence, &policy.into());
            trial.next_look = come.saturating_mul(2);
        } else if come < u64::from(policy.min_connections) {
            let needed = policy.min_connections;
            trial.last = Judgement::TooLittle(format!("{come} of its connections have ended, {needed} are needed"));
        }
        match &trial.last {
            Judgement::Bad(why) => Some(why.clone()),
            Judgement::Good | Judgement::TooLittle(_) => None,
        }
    }

    /// What came of the slot's trial, for whoever is told that it is over.
    pub(super) fn outcome(&self, slot: SlotId) -> Option<&Judgement> {
        self.trials.get(&slot).map(|trial| &trial.last)
    }
}

impl Track {
    fn sample(&self) -> Sample {
        self.latest.since(&self.first)
    }

    fn note(&mut self, counted: Counted, now: Instant) {
        self.latest = counted;
        if now.saturating_duration_since(self.later.0) >= BEFORE {
            (self.first, self.later) = (self.later.1, (now, counted));
        }
        self.first.cpu_seconds = self.first.cpu_seconds.or(counted.cpu_seconds);
    }
}

impl From<&TrafficPolicy> for Policy {
    fn from(spec: &TrafficPolicy) -> Self {
        let ratio = |percent: Option<u32>| percent.map(|percent| f64::from(percent) / 100.0);
        Self {
            min_connections: spec.min_connections.into(),
            max_error_points: ratio(spec.max_error_points),
            max_slowdown: ratio(spec.max_latency_percent),
            max_cpu_ratio: ratio(spec.max_cpu_percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: TrafficPolicy = TrafficPolicy {
        min_connections: 100,
        max_error_points: Some(1),
        max_latency_percent: None,
        max_cpu_percent: Some(200),
    };

    /// Connections of each slot so far, and how many of them failed.
    struct World {
        run: EvidenceRun,
        now: Instant,
        slots: Vec<(ShardId, Counted)>,
    }

    impl World {
        fn new() -> Self {
            let shard = |slot| (ShardId(format!("old-{slot}")), Counted::default());
            let mut world =
                Self { run: EvidenceRun::default(), now: Instant::now(), slots: (0..3).map(shard).collect() };
            world.note(0);
            world
        }

        fn note(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
            let counted = self.slots.iter().enumerate().map(|(slot, counted)| (SlotId(slot as u32), counted.clone()));
            self.run.note(counted.collect(), self.now);
        }

        /// Traffic of some seconds: connections and failures, of each slot.
        fn pass(&mut self, seconds: u64, traffic: &[(u64, u64)]) {
            for ((shard, counted), (ended, failed)) in self.slots.iter_mut().zip(traffic) {
                counted.ended += ended;
                counted.unanswered += failed;
                // A millisecond each.
                let cpu = self.run.cpu_seconds.entry(shard.clone()).or_default();
                *cpu += *ended as f64 / 1e3;
            }
            self.note(seconds);
        }

        fn replace(&mut self, slot: usize) {
            self.slots[slot].0 = ShardId(format!("new-{slot}"));
            self.note(0);
            self.run.set_trials(&[SlotId(slot as u32)]);
        }

        fn judge(&mut self, slot: u32, siblings: &[u32], at_end: bool) -> Option<String> {
            let siblings: Vec<SlotId> = siblings.iter().map(|slot| SlotId(*slot)).collect();
            self.run.judge(SlotId(slot), &siblings, &POLICY, at_end)
        }
    }

    #[test]
    fn a_new_shard_is_compared_with_those_that_stay() {
        let mut world = World::new();
        world.pass(40, &[(5000, 0), (5000, 0), (5000, 0)]);
        world.replace(0);
        world.pass(1, &[(500, 50), (500, 0), (500, 0)]);
        let why = world.judge(0, &[1, 2], false).expect("a tenth fails");
        assert!(why.contains("10.0 %"), "{why}");
    }

    #[test]
    fn what_all_of_them_suffer_is_no_fault_of_the_new_one() {
        let mut world = World::new();
        world.pass(40, &[(5000, 0), (5000, 0), (5000, 0)]);
        world.replace(0);
        world.pass(1, &[(500, 50), (500, 50), (500, 50)]);
        assert_eq!(world.judge(0, &[1, 2], true), None);
        assert_eq!(world.run.outcome(SlotId(0)), Some(&Judgement::Good));
    }

    #[test]
    fn what_the_slot_always_suffers_is_neither() {
        let mut world = World::new();
        world.pass(40, &[(5000, 500), (5000, 0), (5000, 0)]);
        world.pass(31, &[(5000, 500), (5000, 0), (5000, 0)]);
        world.replace(0);
        world.pass(1, &[(500, 50), (500, 0), (500, 0)]);
        assert_eq!(world.judge(0, &[1, 2], true), None);
    }

    #[test]
    fn a_shard_that_ended_first_is_compared_with_too() {
        let mut world = World::new();
        world.pass(40, &[(5000, 500), (5000, 0), (5000, 0)]);
        let others = world.slots[1..].iter().enumerate();
        let others = others.map(|(slot, counted)| (SlotId(slot as u32 + 1), counted.clone())).collect();
        world.run.note(others, world.now);
        world.replace(0);
        world.pass(1, &[(500, 50), (500, 0), (500, 0)]);
        assert_eq!(world.judge(0, &[1, 2], true), None);
    }

    #[test]
    fn with_few_connections_nothing_is_said() {
        let mut world = World::new();
        world.pass(40, &[(5000, 0), (5000, 0), (5000, 0)]);
        world.replace(0);
        world.pass(1, &[(50, 50), (500, 0), (500, 0)]);
        assert_eq!(world.judge(0, &[1, 2], true), None);
        let Some(Judgement::TooLittle(why)) = world.run.outcome(SlotId(0)) else { panic!("too little") };
        assert_eq!(why, "50 of its connections have ended, 100 are needed");
    }

    #[test]
    fn it_is_looked_at_when_twice_as_many_have_come_and_at_the_end() {
        let mut world = World::new();
        world.pass(40, &[(5000, 0), (5000, 0), (5000, 0)]);
        world.replace(0);
        world.pass(1, &[(200, 0), (500, 0), (500, 0)]);
        assert_eq!(world.judge(0, &[1, 2], false), None);
        world.pass(1, &[(150, 100), (500, 0), (500, 0)]);
        assert_eq!(world.judge(0, &[1, 2], false), None, "no look is due");
        assert!(world.judge(0, &[1, 2], true).is_some());
    }

    #[test]
    fn cpu_time_is_of_the_shard_and_of_the_trial() {
        let mut world = World::new();
        world.pass(40, &[(5000, 0), (5000, 0), (5000, 0)]);
        world.replace(0);
        // Read a moment after it began.
        world.run.cpu_seconds.insert(ShardId("new-0".into()), 1.0);
        world.note(0);
        world.pass(1, &[(500, 0), (500, 0), (500, 0)]);
        assert_eq!(world.judge(0, &[1, 2], true), None);
        *world.run.cpu_seconds.get_mut(&ShardId("new-0".into())).expect("it is read") += 2.0;
        world.note(1);
        let why = world.judge(0, &[1, 2], true).expect("five times as much");
        assert!(why.contains("CPU time"), "{why}");
    }

    #[test]
    fn a_sibling_that_was_replaced_meanwhile_is_none() {
        let mut world = World::new();
        world.replace(0);
        world.pass(1, &[(500, 100), (500, 0), (500, 0)]);
        world.slots[1].0 = ShardId("other-1".into());
        world.note(0);
        assert_eq!(world.judge(0, &[1], true), None);
        assert!(matches!(world.run.outcome(SlotId(0)), Some(Judgement::TooLittle(_))));
    }
}
