//! Says what is: the status of everything, plans as reports, events. Reads the loop's state; changes only what was
//! last reported.

use std::{
    collections::BTreeSet,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use sherd_topology::{
    model::Host,
    plan::{Change, ChangeKind, GroupName, Plan, SlotId},
};

use super::{
    Reconciler,
    group::{Group, Intent, SlotRun},
    publish::Published,
    view::{Service, Step},
};
use crate::{
    clock,
    spec::GroupSpec,
    status::{
        AgentStatus, BesideStatus, Event, GroupLayout, GroupState, GroupStatus, Path, PlanChange, PlanReport,
        PortStatus, RolloutPhase, RuntimeStatus, SlotLayout, SlotState, SlotStatus, Steering,
    },
    store::RelayedImages,
};

impl Reconciler {
    pub(super) fn status(&self) -> AgentStatus {
        let runtimes = self.runtime_views.iter().map(|(name, view)| RuntimeStatus {
            name: (*name).to_owned(),
            available: view.listed && view.error.is_none(),
            version: view.version.clone(),
            error: view.error.clone(),
        });
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            instance: self.settings.instance.clone(),
            started_unix_ms: unix_ms(self.started),
            host: host_name(),
            usable_cpus: self.host.usable(),
            reserved_cpus: self.settings.reserved.clone(),
            runtimes: runtimes.collect(),
            groups: self
                .groups
                .iter()
                .map(|(name, group)| group.status(name, &self.host, &self.relayed_images))
                .collect(),
            warnings: self.warnings.clone(),
        }
    }

    /// A plan in words. `specs` are those that would be applied.
    pub(super) fn report(&self, plan: &Plan, specs: &[GroupSpec], dry_run: bool) -> PlanReport {
        let layouts = plan.layouts.iter().map(|layout| GroupLayout {
            group: layout.group.clone(),
            slots: layout
                .slots
                .iter()
                .map(|slot| SlotLayout { slot: slot.id, cpus: slot.cpus.clone(), mems: slot.mems.clone() })
                .collect(),
        });
        let mut changes: Vec<PlanChange> = plan.changes.iter().map(plan_change).collect();
        for spec in specs {
            let restarts = self.groups.get(&spec.name).filter(|group| {
                matches!(group.intent, Intent::Run) && group.hash != spec.hash() && group.has_living_shard()
            });
            if let Some(group) = restarts {
                let layout = plan.layouts.iter().find(|layout| layout.group == spec.name);
                let slots = layout.map_or(&[][..], |layout| &layout.slots);
                changes.push(PlanChange {
                    group: spec.name.clone(),
                    slot: None,
                    kind: "restarted".into(),
                    message: format!(
                        "{}: its shards are replaced slot by slot, because what runs in them changes; {}",
                        spec.name,
                        group.order_in_words(spec, slots)
                    ),
                });
            }
        }
        let faults = plan.faults.iter().map(ToString::to_string).collect();
        PlanReport { dry_run, layouts: layouts.collect(), changes, faults }
    }

    /// Remembers since when each slot is in its state, and tells subscribers of changes.
    pub(super) fn note_slot_states(&mut self) {
        let mut events = Vec::new();
        for (name, group) in &mut self.groups {
            let wanted: BTreeSet<SlotId> = group.slots.keys().copied().filter(|id| group.wants(*id)).collect();
            for (id, slot) in &mut group.slots {
                let state = slot.state(wanted.contains(id));
                if slot.reported.is_some_and(|(reported, _)| reported == state) {
                    continue;
                }
                slot.reported = Some((state, clock::wall()));
                use SlotState::{Failed, Unhealthy, Unready, Waiting};
                let message = match state {
                    Failed | Waiting | Unready | Unhealthy => slot.told_cause(&group.spec).unwrap_or_default(),
                    _ => String::new(),
                };
                let why = if message.is_empty() { String::new() } else { format!(": {message}") };
                tracing::info!(group = %name, slot = %id, %state, "{name}/{id} is {state}{why}");
                events.push(Event {
                    at_unix_ms: unix_ms(clock::wall()),
                    group: Some(name.clone()),
                    slot: Some(*id),
                    kind: "slot-state".into(),
                    state: Some(state),
                    message,
                });
            }
        }
        events.into_iter().for_each(|event| self.send_event(event));
    }
}

impl Group {
    fn status(&self, name: &GroupName, host: &Host, images: &RelayedImages) -> GroupStatus {
        let published = !self.spec.ports.is_empty();
        let slots: Vec<SlotStatus> =
            self.slots.iter().map(|(id, slot)| self.slot_status(*id, slot, (published, host, images))).collect();
        let (state, message) = self.state(&slots);
        GroupStatus {
            name: name.clone(),
            runtime: self.spec.runtime.kind().to_owned(),
            unit: self.spec.layout.unit,
            spec: self.hash.to_string(),
            state,
            message,
            rollout: self.rollout_status(),
            ports: self
                .fronts
                .list
                .iter()
                .filter(|published| !published.leaving)
                .map(|published| self.port_status(published))
                .collect(),
            slots,
        }
    }

    fn slot_status(
        &self,
        id: SlotId,
        slot: &SlotRun,
        (published, host, images): (bool, &Host, &RelayedImages),
    ) -> SlotStatus {
        let place = self.place(id);
        let newest = slot.shards.iter().max_by_key(|shard| shard.generation);
        let cpus = place.map(|place| place.cpus.clone()).or_else(|| newest.map(|shard| shard.cpus.clone()));
        let cpus = cpus.unwrap_or_default();
        let state = slot.state(self.wants(id));
        let path = if self.fronts.is_direct(id) { Path::Direct } else { Path::Relay };
        let direct = self.fronts.direct_counts(id).filter(|_| path == Path::Direct);
        let could_be_direct = self.spec.is_behind_shim() || self.spec.is_too_capable();
        let ready = matches!(state, SlotState::Ready | SlotState::Unhealthy);
        let relayed = could_be_direct && path == Path::Relay && ready;
        let because = || match self.spec.is_too_capable() {
            true => "its container has CAP_NET_ADMIN, and could change the host's network by a listener of ours".into(),
            false => slot.relayed_because(images),
        };
        SlotStatus {
            slot: id,
            mems: place.map(|place| place.mems.clone()).unwrap_or_default(),
            node: host.nodes_of(&cpus),
            cpus,
            state,
            path: published.then_some(path),
            path_reason: relayed.then(because),
            shard: slot.roles.primary.as_ref().or(newest.map(|shard| &shard.id)).map(ToString::to_string),
            pid: slot.live.as_ref().map(|live| live.pid),
            next: slot.next_status(),
            former: slot.former_status(),
            generation: slot.generation,
            since_unix_ms: slot.reported.map_or(0, |(_, since)| unix_ms(since)),
            shard_started_unix_ms: slot.live.as_ref().map(|live| unix_ms(live.started)),
            restarts: slot.restarts,
            ready,
            health: slot.health_status(&self.spec, self.fronts.share_percent(id)),
            connections: slot.open() + direct.map_or(0, |counts| counts.open()),
            accepted: slot.worker.as_ref().map_or(0, |worker| worker.stats().accepted.get())
                + direct.map_or(0, |counts| counts.established),
            cause: slot.told_cause(&self.spec),
            last_error: slot.last_error.clone(),
        }
    }

    fn state(&self, slots: &[SlotStatus]) -> (GroupState, Option<String>) {
        match self.intent {
            Intent::Stop if self.is_wound_down() => return (GroupState::Stopped, None),
            Intent::Stop | Intent::Purge => return (GroupState::Stopping, None),
            Intent::Run => {}
        }
        let unpublished = self.fronts.list.iter().find_map(|published| published.front.as_ref().err());
        if let Some(fault) = self.fault.as_ref().or(unpublished) {
            return (GroupState::Degraded, Some(fault.clone()));
        }
        let rollout = self.rollout.record.as_ref().filter(|record| !record.phase.is_over());
        if let Some(record) = rollout.filter(|record| record.phase == RolloutPhase::Paused) {
            let why = record.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            return (GroupState::Degraded, Some(format!("the rollout is paused{why}")));
        }
        if !slots.is_empty() && slots.iter().all(|slot| slot.state == SlotState::Ready) {
            let state = if rollout.is_some() { GroupState::Progressing } else { GroupState::Ready };
            return (state, None);
        }
        use SlotState::{Failed, Unhealthy, Unready, Waiting};
        let troubled = slots.iter().find(|slot| matches!(slot.state, Failed | Waiting | Unready | Unhealthy));
        match troubled {
            Some(slot) => {
                let cause = slot.cause.as_deref().unwrap_or("it is not ready");
                (GroupState::Degraded, Some(format!("slot {}: {cause}", slot.slot)))
            }
            None => (GroupState::Progressing, None),
        }
    }
}

impl Group {
    fn port_status(&self, published: &Published) -> PortStatus {
        let (steering, steering_reason, error) = match &published.front {
            Ok(front) => match front.mode() {
                sherd_lb::front::SteeringMode::Ebpf => (Steering::Ebpf, None, None),
                sherd_lb::front::SteeringMode::Classic { reason } => (Steering::Classic, Some(reason.clone()), None),
            },
            Err(error) => (Steering::None, None, Some(error.clone())),
        };
        let is_direct = published.is_direct();
        let of_port = |other: &&Published| other.port.container == published.port.container && other.is_direct();
        let beside = self.fronts.list.iter().find(of_port).filter(|_| !is_direct);
        PortStatus {
            address: published.address,
            container_port: published.port.container.0,
            policy: published.port.policy.to_string(),
            steering,
            steering_reason,
            path: if is_direct { Path::Direct } else { Path::Relay },
            path_reason: beside.map(|other| {
                format!(
                    "a program has one listener for each port, and it is at {}: who comes here is relayed there",
                    other.address
                )
            }),
            error,
        }
    }
}

impl SlotRun {
    /// Why it is as it is.
    fn told_cause(&self, spec: &GroupSpec) -> Option<String> {
        if self.is_paused() {
            return self.cause.clone();
        }
        let hung = self.hung.as_ref().map(super::hung::HungRun::cause);
        hung.or_else(|| self.health_cause(&spec.health)).or_else(|| self.cause.clone())
    }

    /// Whether its shard is being stopped, not one beside it.
    fn stops(&self, step: &Step) -> bool {
        let is_primary = |shard| self.roles.primary.as_ref().is_none_or(|primary| primary == shard);
        matches!(step, Step::Stop(shard) if is_primary(shard))
    }

    /// The shard that comes up beside the slot's.
    fn next_status(&self) -> Option<BesideStatus> {
        let next = self.next.as_ref()?;
        Some(BesideStatus {
            shard: next.id.to_string(),
            pid: next.pid,
            generation: next.generation,
            message: match &next.trouble {
                Some(trouble) => format!("comes up: {trouble}"),
                None => "comes up".to_owned(),
            },
        })
    }

    /// The shard that was taken over from.
    fn former_status(&self) -> Option<BesideStatus> {
        let former = self.former.as_ref()?;
        let left = former.until.saturating_duration_since(clock::now());
        Some(BesideStatus {
            shard: former.id.to_string(),
            pid: former.pid,
            generation: former.generation,
            message: format!("was taken over from; its connections have {} s to finish", left.as_secs()),
        })
    }

    /// Where the slot is between nothing and ready.
    pub(super) fn state(&self, wanted: bool) -> SlotState {
        let waits = |until: Option<Instant>| until.is_some_and(|until| clock::now() < until);
        match (&self.step, &self.live, self.service()) {
            (_, _, Service::Draining { .. }) if self.live.is_some() => SlotState::Draining,
            (Some(running), _, _) if self.stops(&running.step) => SlotState::Stopping,
            (_, Some(_), Service::In) if self.judged.is_held() => SlotState::Unhealthy,
            (_, Some(_), Service::In) => SlotState::Ready,
            (_, Some(live), _) if live.served => SlotState::Unready,
            (_, Some(_), _) => SlotState::Starting,
            (Some(running), None, _) if matches!(running.step, Step::Create | Step::Start(_)) => SlotState::Creating,
            (_, None, _) if !wanted => SlotState::Absent,
            (_, None, _) if self.is_paused() => SlotState::Unready,
            (_, None, _) if waits(self.held_until) => SlotState::Failed,
            (_, None, _) if waits(self.backoff.start_after()) => SlotState::Waiting,
            (_, None, _) => SlotState::Creating,
        }
    }
}

/// A change's kind as one word.
pub(super) fn kind_name(kind: &ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Added { .. } => "added",
        ChangeKind::Removed { .. } => "removed",
        ChangeKind::Moved { .. } => "moved",
    }
}

fn plan_change(change: &Change) -> PlanChange {
    PlanChange {
        group: change.group.clone(),
        slot: Some(change.slot),
        kind: kind_name(&change.kind).to_owned(),
        message: change.to_string(),
    }
}

pub(super) fn progress(group: &GroupName, message: String) -> Event {
    group_event(group, "progress", message)
}

pub(super) fn slot_event(group: &GroupName, slot: SlotId, kind: &str, message: String) -> Event {
    Event { slot: Some(slot), ..group_event(group, kind, message) }
}

pub(super) fn group_event(group: &GroupName, kind: &str, message: String) -> Event {
    Event { group: Some(group.clone()), ..agent_event(kind, message) }
}

/// Of no group.
pub(super) fn agent_event(kind: &str, message: String) -> Event {
    Event { at_unix_ms: unix_ms(clock::wall()), group: None, slot: None, kind: kind.to_owned(), state: None, message }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned())
}
