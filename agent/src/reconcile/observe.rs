//! What the runtimes say is true: listings, event streams and probes, and what follows from them for each slot.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use sherd_topology::plan::{GroupName, SlotId};
use tokio::{sync::Notify, task::JoinHandle};

use super::{
    Reconciler,
    direct::{DirectRun, Failed},
    drift::{DriftCause, End},
    group::{Group, Live, SlotRun},
    inspect::{Question, Reach, Unreached},
    message::{Consequence, Message},
    probe::{Prober, question_for},
    view::{Pinning, Service},
    world,
};
use crate::{
    clock,
    health::{BackoffPolicy, Readiness, Thresholds, Verdict},
    runtime::{Listing, ObservedShard, RuntimeError, ShardId, ShardState},
    spec::GroupSpec,
};

/// Longest rest between two listings; see [`Reconciler::observe`].
const REST_MAX: Duration = Duration::from_secs(5);

impl Reconciler {
    /// Asks a runtime for all our shards, unless that is under way. After one that took long, so long is it left alone: an
    /// engine with thousands of events has time for them too.
    pub(super) fn observe(&mut self, kind: &'static str) {
        let view = self.runtime_views.entry(kind).or_default();
        let now = clock::now();
        if view.listing || view.not_before.is_some_and(|not_before| now < not_before) {
            view.again = true;
            return;
        }
        let Some(runtime) = self.runtimes.of(kind) else { return };
        (view.listing, view.again, view.last) = (true, false, Some(now));
        let (outbox, rest) = (self.outbox.clone(), view.rest_until.map(tokio::time::Instant::from_std));
        tokio::spawn(async move {
            if let Some(rest) = rest {
                tokio::time::sleep_until(rest).await;
            }
            let began = clock::now();
            let result = runtime.list().await;
            let _ = outbox.send(Message::Listed { runtime: runtime.kind(), began, result });
        });
    }

    pub(super) fn on_listed(&mut self, kind: &'static str, began: Instant, result: Result<Listing, RuntimeError>) {
        let was_away = self.runtime_views.get(kind).is_some_and(|view| view.error.is_some());
        self.note_runtime(kind, result.as_ref().map(|_| ()));
        let (view, now) = (self.runtime_views.entry(kind).or_default(), clock::now());
        view.listing = false;
        match result {
            Ok(listing) => {
                view.listed = true;
                view.rest_until = Some(now + now.duration_since(began).min(REST_MAX));
                self.take_listing(kind, (began, was_away), listing);
            }
            // Nobody tells when it answers again: it is asked until it does.
            Err(_) => view.again = true,
        }
        if self.runtime_views[kind].again {
            self.observe(kind);
        }
    }

    /// `was_away`: until this listing the runtime did not answer.
    fn take_listing(&mut self, kind: &'static str, (began, was_away): (Instant, bool), listing: Listing) {
        self.take_foreign(kind, &listing.foreign);
        self.take_renamed(kind, listing.renamed);
        let mut disturbed = Vec::new();
        let mut shards = listing.shards;
        let now = clock::now();
        for (name, group) in &mut self.groups {
            if group.spec.runtime.kind() != kind {
                continue;
            }
            let mine: Vec<ObservedShard> = shards.extract_if(.., |shard| shard.key.group == *name).collect();
            for shard in &mine {
                group.slots.entry(shard.key.slot).or_default();
            }
            for (id, slot) in &mut group.slots {
                // What changed the engine after the listing began is not in it.
                let changes = slot.step.is_some() && !slot.ends_beside();
                if changes || slot.changed.is_some_and(|changed| changed >= began) {
                    continue;
                }
                slot.stale = false;
                let unseen = slot.ended_unseen(&mine);
                slot.shards = mine.iter().filter(|shard| shard.key.slot == *id).cloned().collect();
                slot.generation = slot.shards.iter().map(|shard| shard.generation).fold(slot.generation, u64::max);
                let found = slot.disturbed(&group.spec, was_away, now);
                disturbed.extend(found.map(|found| (name.clone(), *id, found)));
                note_ends(slot, &group.spec, was_away, now);
                unseen.iter().for_each(|shard| slot.note_unseen_end(&group.spec, shard, was_away, now));
            }
        }
        for shard in shards {
            self.remove_orphan(kind, shard);
        }
        self.bury_direct(kind);
        self.tend_doors(kind);
        let names: Vec<GroupName> = self.groups.keys().cloned().collect();
        for name in names {
            self.follow_live(&name);
        }
        self.note_disturbances(disturbed);
    }

    /// A shard that no specification knows: left over from a group that was purged while the agent died.
    fn remove_orphan(&mut self, kind: &'static str, shard: ObservedShard) {
        if self.unread.contains(&shard.key.group) {
            return;
        }
        let Some(runtime) = self.runtimes.of(kind).filter(|_| self.orphans.insert(shard.id.clone())) else { return };
        tracing::info!(shard = %shard.id, group = %shard.key.group, "no specification wants this shard: removing it");
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let result = match runtime.stop(&shard.id, crate::spec::DEFAULT_STOP_GRACE).await {
                Ok(()) => runtime.remove(&shard.id).await,
                Err(error) => Err(error),
            };
            let _ = outbox.send(Message::OrphanRemoved { runtime: runtime.kind(), id: shard.id, result });
        });
    }

    /// Makes each slot's prober match the shard that runs in it.
    pub(super) fn follow_live(&mut self, name: &GroupName) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Group { spec, slots, hash, fronts, .. } = group;
        let Some(runtime) = self.runtimes.of(spec.runtime.kind()) else { return };
        for (id, slot) in slots.iter_mut() {
            slot.assign_roles(spec, hash, |generation| fronts.points_at(*id, generation), clock::now());
            let adopted = is_adopted(slot);
            let unknown = [(&slot.roles.primary, &slot.live, adopted), (&slot.roles.next, &slot.next, false)];
            let unknown = unknown.map(|(shard, known, adopted)| {
                let shard = shard.as_ref().filter(|_| known.is_none())?;
                let shard = slot.shards.iter().find(|found| found.id == *shard)?;
                let ShardState::Running { pid, started } = shard.state else { return None };
                Some((shard.clone(), pid, started, adopted))
            });
            let [live, next] = unknown.map(|unknown| {
                let (shard, pid, started, adopted) = unknown?;
                let question = Question {
                    direct: fronts.direct_targets(*id, shard.generation),
                    answering: slot.directs.get(&shard.generation).and_then(DirectRun::answering),
                    former: shard.spec != *hash,
                    proven: adopted,
                    ..question_for(spec, &shard, pid)
                };
                let nudge = Arc::new(Notify::new());
                slot.probers += 1;
                let prober = Prober {
                    number: slot.probers,
                    outbox: self.outbox.clone(),
                    group: name.clone(),
                    slot: *id,
                    shard: shard.id.clone(),
                    question: Arc::new(question),
                    spec: Arc::clone(spec),
                    runtime: Arc::clone(&runtime),
                    nudge: Arc::clone(&nudge),
                };
                let prober = tokio::spawn(prober.run());
                let past = match (adopted, fronts.has_served(*id, shard.generation)) {
                    (true, _) => Past::Serves,
                    (false, true) => Past::Served,
                    (false, false) => Past::None,
                };
                Some(live_shard(slot, spec, &shard, (pid, started), past, prober, nudge))
            });
            if live.is_some() {
                slot.judged.begin_shard();
            }
            slot.live = live.or(slot.live.take());
            slot.next = next.or(slot.next.take());
        }
    }

    /// Probes at once whatever refused a worker since the last look.
    pub(super) fn nudge_probers(&mut self) {
        for slot in self.groups.values_mut().flat_map(|group| group.slots.values_mut()) {
            let failures = slot.connect_failures();
            if let Some(live) = &mut slot.live
                && live.connect_failures != failures
            {
                live.connect_failures = failures;
                live.nudge.notify_one();
            }
        }
    }

    pub(super) fn on_probed(
        &mut self,
        group: &GroupName,
        slot: SlotId,
        (prober, shard): (u64, &ShardId),
        result: Result<Reach, Unreached>,
    ) -> Consequence {
        let Some(run) = self.slot_mut(group, slot) else { return Consequence::None };
        let is_next = run.next.as_ref().is_some_and(|next| next.id == *shard);
        // A former prober asked otherwise: of the same shard, before it was given a listener.
        let Some(live) = run.live_of_mut(shard).filter(|live| live.number == prober) else {
            return Consequence::None;
        };
        let before = live.readiness.verdict();
        let (known, now) = (live.reach.is_some(), clock::now());
        let (passed, excused) = (result.is_ok(), result.is_err() && live.readiness.is_starting(now));
        let after = live.readiness.note(result.is_ok(), now);
        live.trouble = result.as_ref().err().map(|unreached| super::chain(unreached));
        let is_gone = result.is_err() && world::age(live.pid).is_none();
        match result {
            Ok(reach) => {
                live.reach = Some(reach);
                live.was_ready |= after == Verdict::Ready;
                if after == Verdict::Ready && !is_next {
                    run.cause = None;
                }
                if after == Verdict::Ready && before == Verdict::Unready {
                    // What an earlier one of its specification ended by is no fault of this one.
                    run.failure = None;
                }
                if is_next && !known {
                    self.serve_inner_doors(group, slot);
                }
                if after == Verdict::Ready && before == Verdict::Unready {
                    self.end_trial(group, slot, shard);
                }
            }
            Err(unreached) => {
                live.silent = unreached.is_silence();
                let text = super::chain(&unreached);
                if before == Verdict::Ready {
                    run.last_error = Some(text.clone());
                    tracing::info!(%group, %slot, "{group}/{slot} fails a probe: {text}");
                }
                // Its namespace goes with it: why it ended is known, or will be. The slot has no trouble by one that comes up.
                if !is_next && (run.cause.is_none() || !matches!(unreached, Unreached::Namespace(_))) {
                    run.cause = Some(text);
                }
            }
        }
        if let Some(run) = self.slot_mut(group, slot).filter(|_| !is_next) {
            run.judged.note_check(passed, excused);
        }
        // Its runtime says so too, unless it hangs or the event was lost: then that is found out.
        if let Some(kind) = self.groups.get(group).filter(|_| is_gone).map(|group| group.spec.runtime.kind()) {
            self.observe(kind);
        }
        if known && before == after { Consequence::None } else { Consequence::Plan }
    }
}

/// What is known of a shard from before it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    /// Nothing.
    None,
    /// It has served, and is out: it has to be ready again, and may take its time for that.
    Served,
    /// It is in service, and stays so unless probes say otherwise.
    Serves,
}

fn live_shard(
    slot: &SlotRun,
    spec: &GroupSpec,
    shard: &ObservedShard,
    (pid, started): (u32, SystemTime),
    past: Past,
    prober: JoinHandle<()>,
    nudge: Arc<Notify>,
) -> Live {
    let thresholds = Thresholds { rise: spec.readiness.rise, fall: spec.readiness.fall };
    let age = world::age(pid).unwrap_or_default();
    let may_fail_until = clock::now() + spec.readiness.start_period.saturating_sub(age);
    Live {
        id: shard.id.clone(),
        number: slot.probers,
        generation: shard.generation,
        spec: shard.spec.clone(),
        pid,
        started,
        seen: clock::now(),
        age,
        readiness: match past {
            Past::Serves => Readiness::adopted(thresholds),
            Past::Served | Past::None => Readiness::new(thresholds, may_fail_until),
        },
        was_ready: past != Past::None,
        served: past != Past::None,
        trouble: None,
        silent: false,
        pinning: Pinning::Unknown,
        reach: None,
        prober,
        nudge,
        connect_failures: slot.connect_failures(),
    }
}

/// The table, which outlives the agent, says that it was serving: it goes on serving unless probes say otherwise.
fn is_adopted(slot: &SlotRun) -> bool {
    slot.service() == Service::In && (slot.backend.is_none() || slot.reconnect)
}

/// If the shard that ran, or the one that came up beside it, has ended and nobody told it to, that is a failure: the next one
/// waits. A shard that was taken over from may end.
fn note_ends(slot: &mut SlotRun, spec: &GroupSpec, was_away: bool, now: Instant) {
    let end_of = |slot: &SlotRun, live: &Option<Live>| slot.end_of(&live.as_ref()?.id, was_away, now);
    if let Some(end) = end_of(slot, &slot.next)
        && let Some(next) = slot.next.take()
    {
        // The slot goes on by the one that serves.
        let of_slot = slot.cause.clone();
        slot.note_end(spec, &next, end, now);
        slot.cause = of_slot;
    }
    if let Some(end) = end_of(slot, &slot.live)
        && let Some(live) = slot.live.take()
        && slot.note_end(spec, &live, end, now)
    {
        slot.restarts += 1;
    }
}

impl SlotRun {
    /// Shards that were started since the last listing and have ended by this one: so soon that nobody saw them run.
    fn ended_unseen(&self, listed: &[ObservedShard]) -> Vec<ObservedShard> {
        let was_made =
            |id: &ShardId| self.shards.iter().any(|known| known.id == *id && known.state == ShardState::Created);
        let is_unseen = |shard: &&ObservedShard| {
            let ended = matches!(shard.state, ShardState::Exited { .. } | ShardState::Dead);
            ended
                && was_made(&shard.id)
                && self.live_of(&shard.id).is_none()
                && self.stopping.as_ref() != Some(&shard.id)
        };
        listed.iter().filter(is_unseen).cloned().collect()
    }

    /// That is a failure as any other: else the next one would be made at once, and again, and no rollout would fail.
    fn note_unseen_end(&mut self, spec: &GroupSpec, shard: &ObservedShard, was_away: bool, now: Instant) {
        let Some(End { cause: by, text: cause }) = self.end_of(&shard.id, was_away, now) else { return };
        if !by.is_some_and(DriftCause::is_asked_for) {
            self.note_never_ready(spec, &shard.id, Failed::Exited, &cause);
        }
        self.failure = Some((shard.spec.clone(), cause.clone()));
        let of_slot = self.cause.clone();
        self.fail(spec, Duration::ZERO, cause, now);
        match self.live {
            // The slot goes on by the one that serves.
            Some(_) => self.cause = of_slot,
            None => self.restarts += 1,
        }
    }

    /// The shard has ended; whether that is a failure.
    fn note_end(&mut self, spec: &GroupSpec, live: &Live, end: End, now: Instant) -> bool {
        if self.stopping.as_ref() == Some(&live.id) {
            return false;
        }
        // Whatever this agent saw of it: it may have been looked at anew since.
        let ran = live.age + now.duration_since(live.seen);
        let End { cause: by, text: cause } = end;
        if !live.was_ready && !by.is_some_and(DriftCause::is_asked_for) {
            self.note_never_ready(spec, &live.id, Failed::Exited, &cause);
        }
        self.failure = Some((live.spec.clone(), cause.clone()));
        self.fail(spec, ran, cause, now);
        true
    }

    /// Notes a failure of the slot: the next try waits for its back-off.
    pub(super) fn fail(&mut self, spec: &GroupSpec, ran: Duration, cause: String, now: Instant) {
        let policy =
            BackoffPolicy { first: spec.backoff.first, max: spec.backoff.max, reset_after: spec.backoff.reset_after };
        let wait = self.backoff.note_failure(policy, ran, now);
        let failures = self.backoff.failures();
        tracing::warn!(group = %spec.name, failures, "{}: {cause}; the next try is in {wait:?}", spec.name);
        self.last_error = Some(cause.clone());
        self.cause = Some(cause);
    }
}
