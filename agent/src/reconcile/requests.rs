//! Answers what the API asks, and takes in what tasks report.

use futures_util::StreamExt;
use sherd_topology::plan::{GroupName, SlotId};

use super::{
    Reconciler,
    group::Intent,
    message::{Consequence, Message},
};
use crate::{
    control::{LogLines, LogsError, Output, Request, ShardLine, ShardLogs, StopError},
    runtime::{LogOutput, Runtime, ShardId},
};

impl Reconciler {
    pub(super) fn answer(&mut self, request: Request) {
        // Whoever asked may have gone away meanwhile: then nobody needs the answer.
        match request {
            Request::Status { reply } => drop(reply.send(self.status())),
            Request::Metrics { reply } => drop(reply.send(self.snapshot())),
            Request::Topology { reply } => drop(reply.send(Box::new((*self.host).clone()))),
            Request::Apply { spec, text, dry_run, reply } => self.apply(spec, text, dry_run, reply),
            Request::Plan { specs, reply } => drop(reply.send(self.what_if(&specs))),
            Request::Specification { group, reply } => {
                drop(reply.send(self.groups.get(&group).map(|group| group.text.clone())));
            }
            Request::Stop { group, purge, reply } => self.stop(&group, purge, reply),
            Request::Logs { group, slot, tail, follow, reply } => {
                drop(reply.send(self.logs(&group, slot, tail, follow)));
            }
            Request::Explain { question, reply } => drop(reply.send(self.explain(&question))),
            Request::Rollout { group, action, reply } => self.rollout(&group, action, reply),
            Request::Subscribe { reply } => drop(reply.send(self.events.subscribe())),
        }
    }

    pub(super) fn handle(&mut self, message: Message) -> Consequence {
        match message {
            Message::Listed { runtime, began, result } => self.on_listed(runtime, began, result),
            Message::Version { runtime, version } => {
                let view = self.runtime_views.entry(runtime).or_default();
                // It answers: what it has is asked for at once.
                (view.version, view.not_before) = (Some(version), None);
            }
            Message::Stepped { group, slot, step, outcome, last_lines } => {
                self.on_stepped(&group, slot, &step, outcome, last_lines);
            }
            Message::Probed { group, slot, prober, shard, result } => {
                return self.on_probed(&group, slot, (prober, &shard), result);
            }
            Message::Prepared { spec, text, change, result, reply } => {
                self.on_prepared(*spec, text, (change.0, &change.1), result, reply);
            }
            Message::Progress { group, line } => self.send_event(super::report::progress(&group, line)),
            Message::ShimCame { key, generation, greeting } => self.on_shim(&key, generation, greeting),
            Message::ListenCalled { key, generation, call } => self.on_listen(&key, generation, call),
            Message::HolderFound { key, generation, shared, found, call } => {
                self.on_holder_found(&key, generation, shared, found, call);
            }
            Message::ListenerJoins { key, generation, join } => self.on_listener_joins(&key, generation, &join),
            Message::Looked(look) => return self.on_looked(look),
            Message::HostChanged(host) => self.on_host_changed(*host),
            Message::Found(found) => self.on_found(&found),
            Message::ListenerFound { found, listener } => self.move_queue(&found, listener),
            Message::Missed => self.note_closed_listeners(),
            Message::Grafted { key, generation, report } => self.on_graft_report(&key, generation, report),
            Message::ContainedEnded { ended } => {
                self.on_contained_ended(ended);
                return Consequence::None;
            }
            Message::CpuRead { group, used } => {
                self.on_cpu_read(&group, used);
                return Consequence::None;
            }
            Message::DirectCounted { began, counts } => self.on_direct_counted(began, counts),
            Message::OrphanRemoved { runtime, id, result } => {
                self.orphans.remove(&id);
                if let Err(error) = result {
                    tracing::warn!(shard = %id, "a shard of no group can't be removed yet: {}", super::chain(&error));
                }
                self.observe(runtime);
            }
        }
        Consequence::Plan
    }

    fn stop(&mut self, name: &GroupName, purge: bool, reply: tokio::sync::oneshot::Sender<Result<(), StopError>>) {
        let Some(group) = self.groups.get_mut(name) else {
            drop(reply.send(Err(StopError::UnknownGroup { group: name.clone() })));
            return;
        };
        // Its specification is gone already: to stand still it would have to come back.
        let purge = purge || matches!(group.intent, Intent::Purge);
        let stored = if purge { self.store.remove(name) } else { self.store.stop(name) };
        if let Err(error) = stored {
            drop(reply.send(Err(StopError::from(error))));
            return;
        }
        group.intent = if purge { Intent::Purge } else { Intent::Stop };
        self.changes.note_made(name);
        group.stop_waiters.push(reply);
        tracing::info!(group = %name, purge, "stopping the group");
    }

    /// Tells whoever waits that a group is down; lets go of what a purged group had.
    pub(super) fn finish_stops(&mut self) {
        let down: Vec<GroupName> = self
            .groups
            .iter()
            .filter(|(_, group)| !matches!(group.intent, Intent::Run) && group.is_wound_down())
            .filter(|(_, group)| self.is_listed(group.spec.runtime.kind()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in down {
            let Some(group) = self.groups.get_mut(&name) else { continue };
            let had_place = group.layout.take().is_some();
            group.fronts.close(&mut self.keeper);
            // An inner door's socket would keep its shard's namespace.
            super::direct::forget_group(&mut self.keeper, &name);
            for waiter in group.stop_waiters.drain(..) {
                drop(waiter.send(Ok(())));
            }
            let purged = matches!(group.intent, Intent::Purge);
            if purged {
                self.groups.remove(&name);
            }
            if had_place || purged {
                tracing::info!(group = %name, purged, "the group is stopped");
                self.send_event(super::report::group_event(&name, "group-stopped", "nothing of it runs".into()));
                self.replan();
            }
        }
    }

    fn logs(
        &self,
        name: &GroupName,
        only: Option<SlotId>,
        tail: Option<usize>,
        follow: bool,
    ) -> Result<Vec<ShardLogs>, LogsError> {
        let group = self.groups.get(name).ok_or_else(|| LogsError::UnknownGroup { group: name.clone() })?;
        if let Some(slot) = only
            && !group.slots.contains_key(&slot)
        {
            return Err(LogsError::UnknownSlot { group: name.clone(), slot });
        }
        let runtime = self.runtimes.of(group.spec.runtime.kind());
        let slots = group.slots.iter().filter(|(id, _)| only.is_none_or(|only| only == **id));
        Ok(slots
            .map(|(id, slot)| {
                let newest = slot.shards.iter().max_by_key(|shard| shard.generation);
                let lines = match (newest, &runtime) {
                    (Some(shard), Some(runtime)) if slot.live.is_some() || slot.last_lines.is_empty() => {
                        runtime_lines(&**runtime, &shard.id, tail, follow)
                    }
                    // Its shard failed and is gone, or the next one hasn't said anything yet.
                    _ => kept_lines(slot.last_lines.clone(), tail),
                };
                ShardLogs { slot: *id, lines }
            })
            .collect())
    }
}

fn runtime_lines(runtime: &dyn Runtime, shard: &ShardId, tail: Option<usize>, follow: bool) -> LogLines {
    let lines = runtime.logs(shard, tail, follow).map(|line| match line {
        Ok(line) => {
            let output = match line.output {
                LogOutput::Stdout => Output::Stdout,
                LogOutput::Stderr => Output::Stderr,
            };
            Ok(ShardLine { output, text: line.text })
        }
        Err(error) => Err(std::io::Error::other(super::chain(&error))),
    });
    Box::pin(lines)
}

fn kept_lines(lines: Vec<String>, tail: Option<usize>) -> LogLines {
    let skip = tail.map_or(0, |tail| lines.len().saturating_sub(tail));
    let lines = lines.into_iter().skip(skip).map(|text| Ok(ShardLine { output: Output::Stdout, text }));
    Box::pin(futures_util::stream::iter(lines))
}
