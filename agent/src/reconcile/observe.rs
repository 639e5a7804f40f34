//! What the runtimes say is true: listings, event streams and probes, and what follows from them for each slot.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::StreamExt;
use sherd_topology::plan::{GroupName, SlotId};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use super::{
    Reconciler,
    direct::Failed,
    group::{Group, Live, SlotRun},
    inspect::{Question, Reach, Unreached},
    message::{Consequence, Message},
    probe::{Prober, question_for},
    view::{Pinning, Service},
};
use crate::{
    health::{BackoffPolicy, Readiness, Thresholds, Verdict},
    runtime::{Listing, ObservedShard, Runtime, RuntimeError, ShardId, ShardState},
    spec::GroupSpec,
};

/// Longest wait before a lost event stream is opened again.
const EVENTS_RETRY_MAX: Duration = Duration::from_secs(15);

impl Reconciler {
    /// Listens to what happens in each runtime, for as long as the loop lives.
    pub(super) fn watch_runtimes(&mut self) {
        for runtime in &self.runtimes.0 {
            tokio::spawn(watch(Arc::clone(runtime), self.outbox.clone()));
        }
    }

    /// Asks a runtime for all our shards, unless that is under way.
    pub(super) fn observe(&mut self, kind: &'static str) {
        let view = self.runtime_views.entry(kind).or_default();
        let now = Instant::now();
        if view.listing || view.not_before.is_some_and(|not_before| now < not_before) {
            view.again = true;
            return;
        }
        let Some(runtime) = self.runtimes.of(kind) else { return };
        (view.listing, view.again, view.last) = (true, false, Some(now));
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let result = runtime.list().await;
            let _ = outbox.send(Message::Listed { runtime: runtime.kind(), began: now, result });
        });
    }

    pub(super) fn on_listed(&mut self, kind: &'static str, began: Instant, result: Result<Listing, RuntimeError>) {
        self.note_runtime(kind, result.as_ref().map(|_| ()));
        let view = self.runtime_views.entry(kind).or_default();
        view.listing = false;
        if let Ok(listing) = result {
            view.listed = true;
            self.take_listing(kind, began, listing);
        }
        if self.runtime_views[kind].again {
            self.observe(kind);
        }
    }

    fn take_listing(&mut self, kind: &'static str, began: Instant, listing: Listing) {
        for foreign in listing.foreign {
            if self.foreign.insert(foreign.id.clone()) {
                tracing::warn!(
                    container = foreign.name,
                    reason = foreign.reason,
                    "labelled as ours, but isn't: left alone"
                );
            }
        }
        let mut shards = listing.shards;
        let now = Instant::now();
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
                if slot.step.is_some() || slot.changed.is_some_and(|changed| changed >= began) {
                    continue;
                }
                slot.stale = false;
                slot.shards = mine.iter().filter(|shard| shard.key.slot == *id).cloned().collect();
                slot.generation = slot.shards.iter().map(|shard| shard.generation).fold(slot.generation, u64::max);
                note_end(slot, &group.spec, now);
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
    }

    /// A shard that no specification knows: left over from a group that was purged while the agent died.
    fn remove_orphan(&mut self, kind: &'static str, shard: ObservedShard) {
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
            let running = slot.shards.iter().filter_map(|shard| match shard.state {
                ShardState::Running { pid, started } => Some((shard, pid, started)),
                _ => None,
            });
            // As planning does: the wanted specification first, then the newest.
            let running = running.max_by_key(|(shard, ..)| (shard.spec == *hash, shard.generation));
            match (running, &slot.live) {
                (None, _) => slot.live = None,
                (Some((shard, pid, _)), Some(live)) if live.id == shard.id && live.pid == pid => {}
                (Some((shard, pid, started)), _) => {
                    let question = Question {
                        direct: fronts.direct_targets(*id, shard.generation),
                        former: shard.spec != *hash,
                        proven: is_adopted(slot),
                        ..question_for(spec, shard, pid)
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
                    slot.judged.begin_shard();
                    slot.live = Some(live_shard(slot, spec, shard, pid, started, prober, nudge));
                }
            }
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
        // A former prober asked otherwise: of the same shard, before it was given a listener.
        let is_present = prober == run.probers;
        let Some(live) = run.live.as_mut().filter(|live| is_present && live.id == *shard) else {
            return Consequence::None;
        };
        let before = live.readiness.verdict();
        let (known, now) = (live.reach.is_some(), Instant::now());
        let excused = result.is_err() && live.readiness.is_starting(now);
        let after = live.readiness.note(result.is_ok(), now);
        run.judged.note_check(result.is_ok(), excused);
        match result {
            Ok(reach) => {
                live.reach = Some(reach);
                if after == Verdict::Ready {
                    live.was_ready = true;
                    run.cause = None;
                    if before == Verdict::Unready {
                        self.end_trial(group, slot, shard);
                    }
                }
            }
            Err(unreached) => {
                live.silent = unreached.is_silence();
                let text = super::chain(&unreached);
                if before == Verdict::Ready {
                    run.last_error = Some(text.clone());
                    tracing::info!(%group, %slot, "{group}/{slot} fails a probe: {text}");
                }
                // Its namespace goes with it: why it ended is known, or will be.
                if run.cause.is_none() || !matches!(unreached, Unreached::Namespace(_)) {
                    run.cause = Some(text);
                }
            }
        }
        if known && before == after { Consequence::None } else { Consequence::Plan }
    }
}

fn live_shard(
    slot: &SlotRun,
    spec: &GroupSpec,
    shard: &ObservedShard,
    pid: u32,
    started: SystemTime,
    prober: JoinHandle<()>,
    nudge: Arc<Notify>,
) -> Live {
    let thresholds = Thresholds { rise: spec.readiness.rise, fall: spec.readiness.fall };
    let adopted = is_adopted(slot);
    let ran = started.elapsed().unwrap_or_default();
    let may_fail_until = Instant::now() + spec.readiness.start_period.saturating_sub(ran);
    Live {
        id: shard.id.clone(),
        generation: shard.generation,
        spec: shard.spec.clone(),
        pid,
        started,
        seen: Instant::now(),
        readiness: if adopted { Readiness::adopted(thresholds) } else { Readiness::new(thresholds, may_fail_until) },
        was_ready: adopted,
        served: adopted,
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

/// If the shard that ran has ended and nobody told it to, that is a failure: the next one waits.
fn note_end(slot: &mut SlotRun, spec: &GroupSpec, now: Instant) {
    let Some(live) = &slot.live else { return };
    let state = slot.shards.iter().find(|shard| shard.id == live.id).map(|shard| shard.state);
    let cause = match state {
        Some(ShardState::Running { .. } | ShardState::Paused { .. }) => return,
        Some(ShardState::Exited { oom: true, .. }) => "the kernel killed it for want of memory".to_owned(),
        Some(ShardState::Exited { code: Some(code), .. }) => format!("it exited with code {code}"),
        Some(ShardState::Exited { code: None, .. } | ShardState::Dead | ShardState::Created) => "it ended".to_owned(),
        Some(ShardState::Removing) | None => "somebody removed it".to_owned(),
    };
    if slot.stopping.as_ref() != Some(&live.id) {
        // Whatever this agent saw of it: it may have been looked at anew since.
        let ran = live.started.elapsed().unwrap_or_else(|_| now.duration_since(live.seen));
        let (id, was_ready, live_spec) = (live.id.clone(), live.was_ready, live.spec.clone());
        if !was_ready {
            slot.note_never_ready(spec, &id, Failed::Exited, &cause);
        }
        slot.failure = Some((live_spec, cause.clone()));
        slot.fail(spec, ran, cause, now);
        slot.restarts += 1;
    }
    slot.live = None;
}

impl SlotRun {
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

/// Tells the loop to look again whenever the runtime says that something happened.
async fn watch(runtime: Arc<dyn Runtime>, outbox: mpsc::UnboundedSender<Message>) {
    let kind = runtime.kind();
    let mut retry = Duration::from_millis(200);
    loop {
        let mut events = runtime.events();
        if let Ok(version) = runtime.version().await {
            let _ = outbox.send(Message::Version { runtime: kind, version });
        }
        // Whatever happened while nobody listened.
        if outbox.send(Message::Changed { runtime: kind }).is_err() {
            return;
        }
        while let Some(Ok(event)) = events.next().await {
            retry = Duration::from_millis(200);
            tracing::debug!(runtime = kind, key = ?event.key, kind = event.kind, "event");
            let message = match event.key {
                // Of a check of the engine's own, which changes nothing that a listing tells.
                Some(key) if event.kind.starts_with("health_status") => Message::HealthChanged { key },
                _ => Message::Changed { runtime: kind },
            };
            if outbox.send(message).is_err() {
                return;
            }
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(EVENTS_RETRY_MAX);
    }
}
