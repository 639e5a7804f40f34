//! What follows for a group's slots from how their shards are: who is out, who stays in although it fails, who gets less than
//! its share, and what is told of all that. The rules are in [`crate::health`]; here their inputs are gathered and their
//! outputs kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use sherd_lb::relay::WorkerStats;
use sherd_topology::{
    model::Host,
    plan::{GroupName, SlotId},
};

use super::{
    Reconciler,
    group::{Group, SlotRun},
    publish::Fronts,
    report,
    view::Service,
};
use crate::{
    clock,
    health::{
        Verdict,
        outlier::{Change, Outcomes, Outlier, Policy, Reason},
        panic, slow_start,
    },
    spec::{HealthPolicy, Observe},
    status::{Event, HealthStatus},
};

/// Why a shard was taken out of service, for the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ejection {
    /// Its checks fail.
    Check,
    /// Its connections do.
    Connections(Reason),
}

impl Ejection {
    /// Every reason, in the order of [`JudgedRun::ejections`].
    pub(super) const ALL: [Self; 3] =
        [Self::Check, Self::Connections(Reason::Consecutive), Self::Connections(Reason::Rate)];

    /// Its name as a metric label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Connections(Reason::Consecutive) => "consecutive_failures",
            Self::Connections(Reason::Rate) => "failure_rate",
        }
    }
}

/// How a slot's shard is, beyond its readiness.
#[derive(Debug, Default)]
pub(super) struct JudgedRun {
    outlier: Outlier,
    /// Since when it would be out.
    failing_since: Option<Instant>,
    /// It stays in service all the same.
    held: bool,
    /// It is out, or about to be.
    out: bool,
    /// When it came into service, until it has its whole share.
    ramp_since: Option<Instant>,
    /// Checks that passed, and that failed and counted; of all shards that the slot had.
    checks: (u64, u64),
    /// Times it was taken out, in the order of [`Ejection::ALL`].
    ejections: [u64; Ejection::ALL.len()],
}

impl JudgedRun {
    /// Another shard: what was found of the former one doesn't concern it.
    pub(super) fn begin_shard(&mut self) {
        (self.outlier, self.failing_since) = (Outlier::default(), None);
        (self.held, self.out) = (false, false);
    }

    pub(super) fn note_check(&mut self, passed: bool, excused: bool) {
        let (good, bad) = &mut self.checks;
        *good += u64::from(passed);
        *bad += u64::from(!passed && !excused);
    }

    /// It fails and is in service: too many others fail too.
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Checks that passed, and those that failed.
    pub(super) fn checks(&self) -> (u64, u64) {
        self.checks
    }

    pub(super) fn ejections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Ejection::ALL.into_iter().zip(self.ejections).map(|(reason, count)| (reason.label(), count))
    }

    fn is_ejected(&self) -> bool {
        self.outlier.ejected().is_some()
    }

    fn ejected_because(&self, now: Instant) -> Option<String> {
        let (reason, until) = self.outlier.ejected()?;
        let why = match reason {
            Reason::Consecutive => "its connections failed one after the other",
            Reason::Rate => "too many of its connections failed",
        };
        Some(format!("{why}: out for {:.0?} more", until.saturating_duration_since(now)))
    }
}

impl SlotRun {
    /// Whether its shard is to be out, as far as itself is concerned.
    pub(super) fn fails(&self) -> bool {
        let unready = self.live.as_ref().is_some_and(|live| live.readiness.verdict() == Verdict::Unready);
        unready || self.judged.is_ejected()
    }

    /// Why it is out of service, or in service all the same, where its health is the reason.
    pub(super) fn health_cause(&self, spec: &HealthPolicy) -> Option<String> {
        let ejected = self.judged.ejected_because(clock::now());
        let why = ejected.or_else(|| self.judged.held.then(|| self.cause.clone()).flatten());
        match self.judged.held {
            true => {
                let why = why.unwrap_or_else(|| "its checks fail".to_owned());
                let most = spec.max_ejected_percent;
                Some(format!("{why}; it stays in service, as more than {most} % of the group's shards fail"))
            }
            false => why,
        }
    }

    /// For the status; absent without a shard.
    pub(super) fn health_status(&self, spec: &crate::spec::GroupSpec, share_percent: u32) -> Option<HealthStatus> {
        let live = self.live.as_ref()?;
        Some(HealthStatus {
            check: spec.readiness.check.name().to_owned(),
            passing: live.readiness.verdict() == Verdict::Ready,
            ejected: self.judged.ejected_because(clock::now()),
            held: self.judged.held,
            checks_failed: self.judged.checks.1,
            share_percent,
        })
    }

    /// What its clients' connections came to, as its worker counts those that it relays, and the kernel those that the shard
    /// accepts itself: of these only, whose client had asked something, because it doesn't say who ended them.
    fn outcomes(&self, observe: Observe, direct: Outcomes) -> Outcomes {
        let count = |of: fn(&WorkerStats) -> u64| self.worker.as_ref().map_or(0, |worker| of(worker.stats()));
        let refused = self.connect_failures();
        match observe {
            Observe::Off => Outcomes::default(),
            Observe::Connect => Outcomes { succeeded: count(|stats| stats.established.get()), failed: refused },
            Observe::Answer => Outcomes {
                succeeded: count(|stats| stats.answered.get()) + direct.succeeded,
                failed: refused + count(|stats| stats.unanswered.get()) + direct.failed,
            },
        }
    }
}

impl Group {
    /// Which slots stay in service although they fail; what is to be told of that.
    pub(super) fn judge(&mut self, name: &GroupName, now: Instant) -> Vec<Event> {
        let wanted: BTreeSet<SlotId> = self.slots.keys().copied().filter(|id| self.wants(*id)).collect();
        let mut known = Vec::new();
        for (id, slot) in &mut self.slots {
            let lives = wanted.contains(id) && slot.live.as_ref().is_some_and(|live| live.was_ready);
            let fails = lives && slot.fails();
            slot.judged.failing_since = fails.then(|| slot.judged.failing_since.unwrap_or(now));
            // One that is ready and not in service yet takes nobody's place: whoever is held for want of it stays until then.
            if lives && (fails || slot.service() == Service::In) {
                // One that doesn't accept is out by itself, and counts.
                let hung = slot.hung.as_ref().map(super::hung::HungRun::since);
                known.push((*id, slot.judged.failing_since.or(hung)));
            }
        }
        let held = panic::held(&known, self.spec.health.max_ejected_percent);
        let was_held = self.slots.values().any(|slot| slot.judged.held);
        for (id, slot) in &mut self.slots {
            let fails = slot.judged.failing_since.is_some();
            slot.judged.held = fails && held.contains(id);
            let out = fails && !slot.judged.held;
            if std::mem::replace(&mut slot.judged.out, out) != out && out && slot.service() == Service::In {
                slot.judged.count_ejection();
            }
        }
        let is_held = self.slots.values().any(|slot| slot.judged.held);
        let message = match (was_held, is_held) {
            (false, true) => "too many shards fail: those beyond the bound stay in service",
            (true, false) => "no shard that fails is in service any more",
            _ => return Vec::new(),
        };
        tracing::warn!(group = %name, max_ejected_percent = self.spec.health.max_ejected_percent, "{name}: {message}");
        let kind = if is_held { "group-panic" } else { "group-panic-over" };
        vec![report::group_event(name, kind, message.to_owned())]
    }

    /// Slots that get less than their share, with what they get of it.
    fn shares(&mut self, now: Instant) -> BTreeMap<SlotId, u32> {
        let whole = self.spec.health.slow_start;
        let mut shares = BTreeMap::new();
        for (id, slot) in &mut self.slots {
            if slot.service() != Service::In {
                slot.judged.ramp_since = None;
            }
            let Some(since) = slot.judged.ramp_since else { continue };
            match slow_start::percent(now.saturating_duration_since(since), whole) {
                slow_start::WHOLE_PERCENT => slot.judged.ramp_since = None,
                percent => drop(shares.insert(*id, percent)),
            }
        }
        shares
    }

    /// Brings the tables in line with who is in its slow start.
    pub(super) fn tend_shares(&mut self, host: &Host, now: Instant) {
        let shares = self.shares(now);
        if shares != *self.fronts.shares() {
            let slots = self.layout.as_ref().map_or(&[][..], |layout| &layout.slots);
            self.fronts.set_shares(host, slots, shares);
        }
    }

    /// A slot is about to come into service: before its first connection, its share is what it begins with.
    pub(super) fn begin_slow_start(&mut self, id: SlotId, host: &Host, now: Instant) {
        if self.spec.health.slow_start == Duration::ZERO {
            return;
        }
        let mut shares = self.shares(now);
        let Some(slot) = self.slots.get_mut(&id) else { return };
        slot.judged.ramp_since = Some(now);
        shares.insert(id, slow_start::FIRST_PERCENT);
        let slots = self.layout.as_ref().map_or(&[][..], |layout| &layout.slots);
        self.fronts.set_shares(host, slots, shares);
    }
}

impl JudgedRun {
    fn count_ejection(&mut self) {
        let reason = self.outlier.ejected().map_or(Ejection::Check, |(reason, _)| Ejection::Connections(reason));
        let place = Ejection::ALL.iter().position(|known| *known == reason).unwrap_or_default();
        self.ejections[place] += 1;
    }
}

impl Reconciler {
    /// Judges shards by what became of their connections since the last look.
    pub(super) fn observe_connections(&mut self, now: Instant) {
        let (mut events, mut changed) = (Vec::new(), BTreeSet::new());
        for (name, group) in &mut self.groups {
            let Some(policy) = policy(&group.spec.health) else { continue };
            let observe = group.spec.health.observe;
            let fronts = &group.fronts;
            for (id, slot) in group.slots.iter_mut().filter(|(_, slot)| slot.live.is_some()) {
                let outcomes = slot.outcomes(observe, direct_outcomes(fronts, *id));
                let (kind, message) = match slot.judged.outlier.note(outcomes, &policy, now) {
                    None => continue,
                    Some(Change::Ejected { bound, .. }) => {
                        let why = slot.judged.ejected_because(now).unwrap_or_default();
                        tracing::warn!(group = %name, slot = %id, ?bound, "{name}/{id} is ejected: {why}");
                        ("slot-ejected", why)
                    }
                    Some(Change::Returned) => {
                        tracing::info!(group = %name, slot = %id, "{name}/{id} may have connections again");
                        ("slot-returned", "its time out of service is over".to_owned())
                    }
                };
                events.push(report::slot_event(name, *id, kind, message));
                changed.insert(name.clone());
            }
        }
        events.into_iter().for_each(|event| self.send_event(event));
        // Time alone leads here: a group in which nothing else happens isn't looked at otherwise.
        changed.iter().for_each(|name| self.judge(name));
    }

    pub(super) fn judge(&mut self, name: &GroupName) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let events = group.judge(name, clock::now());
        events.into_iter().for_each(|event| self.send_event(event));
    }

    pub(super) fn tend_all_shares(&mut self, now: Instant) {
        for group in self.groups.values_mut() {
            group.tend_shares(&self.host, now);
        }
    }
}

/// Of the connections that the slot's shard accepted itself and that have ended.
fn direct_outcomes(fronts: &Fronts, slot: SlotId) -> Outcomes {
    let outcomes = fronts.direct_readings(slot).map(|reading| Outcomes {
        succeeded: reading.counts.closed.saturating_sub(reading.unanswered),
        failed: reading.ignored,
    });
    let sum = |sum: Outcomes, next: Outcomes| Outcomes {
        succeeded: sum.succeeded + next.succeeded,
        failed: sum.failed + next.failed,
    };
    outcomes.fold(Outcomes::default(), sum)
}

fn policy(spec: &HealthPolicy) -> Option<Policy> {
    (spec.observe != Observe::Off).then(|| Policy {
        in_a_row: spec.eject_after.into(),
        rate_percent: spec.eject_rate,
        rate_min: spec.eject_min.into(),
        first: spec.eject_time,
        max: spec.eject_time_max,
    })
}
