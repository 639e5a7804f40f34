//! Takes in specifications: whatever could be wrong with one is found before anything that runs is changed.

use std::collections::BTreeMap;

use sherd_lb::table::MAX_SLOTS;
use sherd_topology::plan::{GroupName, Layout, LayoutRequest, Plan};
use tokio::sync::oneshot;

use super::{
    Reconciler,
    group::{Group, Intent},
    message::Message,
    publish::Fronts,
    rollout::{Change, note_stored},
    world,
};
use crate::{
    control::{ApplyError, RolloutError},
    fault,
    runtime::{Progress, RuntimeError},
    spec::{GroupSpec, RuntimeSpec},
    status::{PlanReport, RolloutStatus},
    store::StoreError,
};

/// Who waits for a specification to be taken in.
#[derive(Debug)]
pub(super) enum Reply {
    Apply(oneshot::Sender<Result<PlanReport, ApplyError>>),
    Undo(oneshot::Sender<Result<RolloutStatus, RolloutError>>),
}

/// Changes of groups in the order in which they were asked for: what one needs may be there only after a later one was made.
#[derive(Debug, Default)]
pub(super) struct Changes {
    last: u64,
    pending: usize,
    /// The last that was made of a group, as long as others are pending.
    made: BTreeMap<GroupName, u64>,
}

impl Changes {
    /// One is asked for that will be made later; its number.
    fn begin(&mut self) -> u64 {
        self.pending += 1;
        self.last += 1;
        self.last
    }

    /// What it needs is there, or isn't; whether it is overtaken.
    fn end(&mut self, group: &GroupName, number: u64) -> bool {
        let overtaken = self.made.get(group).is_some_and(|made| *made > number);
        self.pending = self.pending.saturating_sub(1);
        match self.pending {
            0 => self.made.clear(),
            _ if overtaken => {}
            _ => drop(self.made.insert(group.clone(), number)),
        }
        overtaken
    }

    /// One was made at once.
    pub(super) fn note_made(&mut self, group: &GroupName) {
        self.last += 1;
        if self.pending > 0 {
            self.made.insert(group.clone(), self.last);
        }
    }
}

impl Reconciler {
    pub(super) fn apply(
        &mut self,
        spec: Box<GroupSpec>,
        text: String,
        dry_run: bool,
        reply: oneshot::Sender<Result<PlanReport, ApplyError>>,
    ) {
        if dry_run {
            let report = self.check(&spec).map(|plan| self.report(&plan, std::slice::from_ref(&*spec), dry_run));
            return drop(reply.send(report));
        }
        self.prepare(spec, text, Change::Apply, Reply::Apply(reply));
    }

    /// Gets what a group needs, and takes the specification in then.
    pub(super) fn prepare(&mut self, spec: Box<GroupSpec>, text: String, change: Change, reply: Reply) {
        if let Err(error) = self.check(&spec) {
            return self.tell(reply, &spec.name, Err(error));
        }
        let Some(runtime) = self.runtimes.of(spec.runtime.kind()) else {
            let reason = "the agent's settings say docker = \"off\"; name an engine's socket there".to_owned();
            let error = ApplyError::Runtime { runtime: spec.runtime.kind(), reason };
            return self.tell(reply, &spec.name, Err(error));
        };
        let (outbox, number) = (self.outbox.clone(), self.changes.begin());
        tokio::spawn(async move {
            let (progress, group) = (outbox.clone(), spec.name.clone());
            let told = move |step: Progress| {
                let _ = progress.send(Message::Progress { group: group.clone(), line: progress_line(&step) });
            };
            let result = runtime.prepare(&spec, &told).await;
            let _ = outbox.send(Message::Prepared { spec, text, change: (number, change), result, reply });
        });
    }

    /// What a group needs is there: the rest happens at once, and either all of it or nothing.
    pub(super) fn on_prepared(
        &mut self,
        spec: GroupSpec,
        text: String,
        (number, change): (u64, &Change),
        result: Result<(), RuntimeError>,
        reply: Reply,
    ) {
        let name = spec.name.clone();
        let answer = match result {
            _ if self.changes.end(&name, number) => {
                let reason = "it was changed or stopped while what this change needs was got: apply it again if it still \
                              holds";
                Err(ApplyError::Refused { group: name.clone(), reason: reason.to_owned() })
            }
            Ok(()) if *change == Change::Undo && self.groups.get(&name).is_none_or(Group::is_purged) => {
                let reason = "it is purged, and with it what there was before: apply a specification";
                Err(ApplyError::Refused { group: name.clone(), reason: reason.to_owned() })
            }
            Ok(()) => self.commit(spec, text, change),
            Err(error) => Err(not_prepared(&spec, &error)),
        };
        self.tell(reply, &name, answer);
    }

    /// Whoever asked may have gone away meanwhile: then nobody needs the answer.
    fn tell(&self, reply: Reply, name: &GroupName, answer: Result<PlanReport, ApplyError>) {
        if let Err(error) = &answer {
            tracing::warn!("specification refused; what runs goes on: {}", super::chain(error));
        }
        match reply {
            Reply::Apply(reply) => drop(reply.send(answer)),
            Reply::Undo(reply) => {
                let failed = |source| RolloutError::Apply { group: name.clone(), source };
                drop(reply.send(answer.map_err(failed).and_then(|_| self.rollout_answer(name))));
            }
        }
    }

    pub(super) fn commit(&mut self, spec: GroupSpec, text: String, change: &Change) -> Result<PlanReport, ApplyError> {
        // The host may have changed while the image was pulled.
        let plan = self.check(&spec)?;
        let report = self.report(&plan, std::slice::from_ref(&spec), false);
        let name = spec.name.clone();
        if self.unread.contains(&name) {
            self.store.put(&name, &text)?;
            let reason = "what was stored of it could not be read, and its shards were left alone: the specification is \
                          stored now; `systemctl restart sherd` has them taken over";
            return Err(ApplyError::Refused { group: name, reason: reason.to_owned() });
        }
        let layout = plan.layouts.iter().find(|layout| layout.group == name).cloned();
        let slots = layout.as_ref().map_or(&[][..], |layout| &layout.slots);
        let none = Fronts::none(&name);
        let present = self.groups.get(&name).map_or(&none, |group| &group.fronts);
        let opened = present.open_new(&spec, &self.host, slots, &self.keeper)?;
        let record = self.groups.get(&name).and_then(|group| group.record_of(&text, change));
        // Whose record is of another specification than the stored one goes on with the stored one, and forgets the record. So
        // whoever asks for a change has it told from then on, and what is taken back is never gone back to.
        let is_asked_for = !matches!(change, Change::Rollback(_));
        record.iter().filter(|_| is_asked_for).try_for_each(|record| self.store.put_rollout(&name, record))?;
        let leaving = present.announce_leaving(&spec, &mut self.keeper);
        // From here on a restarted agent runs this specification.
        if let Err(error) = self.store.put(&name, &text) {
            leaving.iter().for_each(|name| self.keeper.remove(name));
            return Err(error.into());
        }
        fault::point("apply.stored");
        record.iter().filter(|_| !is_asked_for).for_each(|record| note_stored(&self.store, &name, record));
        let group =
            self.groups.entry(name.clone()).or_insert_with(|| Group::new(spec.clone(), String::new(), Intent::Run));
        let again = group.text == text;
        group.set_spec(spec, text);
        match record {
            Some(record) => group.rollout.record = Some(record),
            None if again => group.rollout.go_on(),
            None => {}
        }
        let retired = group.fronts.merge(opened, &group.spec, &mut self.keeper);
        group.forget_fronts(&retired);
        group.equip_new_fronts(&mut self.keeper);
        fault::point("apply.published");
        self.take_plan(&plan);
        self.follow_live(&name);
        tracing::info!(group = %name, slots = report.layouts.iter().filter(|layout| layout.group == name).map(|layout| layout.slots.len()).sum::<usize>(), "specification applied");
        self.send_event(super::report::group_event(&name, "group-applied", "specification applied".into()));
        Ok(report)
    }

    /// The plan with this specification, if nothing stands against it.
    fn check(&self, spec: &GroupSpec) -> Result<Plan, ApplyError> {
        for (other, group) in &self.groups {
            if *other == spec.name || !matches!(group.intent, Intent::Run) {
                continue;
            }
            let taken =
                spec.ports.iter().find(|port| group.spec.ports.iter().any(|theirs| theirs.host.overlaps(&port.host)));
            if let Some(port) = taken {
                return Err(ApplyError::PortOfGroup { address: port.host.addresses()[0], other: other.clone() });
            }
        }
        let plan = self.plan_with(std::slice::from_ref(spec));
        let unplaced: Vec<_> = plan
            .faults
            .iter()
            // A new exclusive group must not push out one that has its place.
            .filter(|fault| {
                fault.group == spec.name || self.groups.get(&fault.group).is_some_and(|group| group.layout.is_some())
            })
            .map(ToString::to_string)
            .collect();
        if !unplaced.is_empty() {
            return Err(ApplyError::Unplaceable { group: spec.name.clone(), faults: unplaced });
        }
        let slots = plan.layouts.iter().find(|layout| layout.group == spec.name).map_or(0, |layout| layout.slots.len());
        check_slots(spec, slots)?;
        Ok(plan)
    }

    /// The plan as if these specifications were applied too.
    pub(super) fn what_if(&self, specs: &[GroupSpec]) -> PlanReport {
        self.report(&self.plan_with(specs), specs, true)
    }

    fn plan_with(&self, specs: &[GroupSpec]) -> Plan {
        let replaced = |name: &GroupName| specs.iter().any(|spec| spec.name == *name);
        // A group that is being stopped keeps its CPUs until its shards have let go of them.
        let kept = self
            .groups
            .iter()
            .filter(|(name, group)| !replaced(name) && (matches!(group.intent, Intent::Run) || group.layout.is_some()));
        let mut requests: Vec<LayoutRequest> = kept.map(|(_, group)| group.spec.layout.clone()).collect();
        requests.extend(specs.iter().map(|spec| spec.layout.clone()));
        let current: Vec<Layout> = self.groups.values().filter_map(|group| group.layout.clone()).collect();
        world::plan(&self.host, &self.settings.reserved, &requests, &current)
    }

    /// Plans what is there again and takes the result.
    pub(super) fn replan(&mut self) {
        let plan = self.plan_with(&[]);
        self.take_plan(&plan);
    }

    /// Makes a plan the one that is executed.
    fn take_plan(&mut self, plan: &Plan) {
        for change in &plan.changes {
            tracing::info!(group = %change.group, slot = %change.slot, "plan: {change}");
        }
        self.counters.note_plan_changes(&plan.changes);
        for (name, group) in &mut self.groups {
            let planned = plan.layouts.iter().find(|layout| layout.group == *name).cloned();
            group.fault = plan.faults.iter().find(|fault| fault.group == *name).map(ToString::to_string);
            if let Some(fault) = &group.fault {
                tracing::error!(group = %name, fault, "the group has no place; what runs of it goes on");
            }
            // A group that lost its place keeps what it has: stopping it is the operator's decision.
            let layout = planned.or_else(|| group.layout.clone().filter(|_| group.fault.is_some()));
            group.set_layout(layout, &self.host);
        }
    }
}

fn check_slots(spec: &GroupSpec, slots: usize) -> Result<(), ApplyError> {
    let group = spec.name.clone();
    if slots > usize::from(MAX_SLOTS) {
        return Err(ApplyError::TooManySlots { group, slots, max: usize::from(MAX_SLOTS) });
    }
    for port in &spec.ports {
        let publish = port.publish();
        if let Some(weights) = port.weights.as_ref().filter(|weights| weights.len() != slots) {
            let reason = format!(
                "port {publish} has {} weights for {slots} slots: give one weight for each slot",
                weights.len()
            );
            return Err(ApplyError::Refused { group, reason });
        }
        if let Some(len) = port.table_len.filter(|len| (*len as usize) < 100 * slots) {
            let reason = format!(
                "port {publish} has a table of {len} entries for {slots} slots: set table_len to a prime of at least {}",
                100 * slots
            );
            return Err(ApplyError::Refused { group, reason });
        }
    }
    Ok(())
}

fn not_prepared(spec: &GroupSpec, error: &RuntimeError) -> ApplyError {
    let reason = super::chain(error);
    match &spec.runtime {
        RuntimeSpec::Docker(container) if !error.is_outage() => {
            ApplyError::Image { image: container.image.clone(), reason }
        }
        RuntimeSpec::Docker(_) | RuntimeSpec::Process(_) => {
            ApplyError::Runtime { runtime: spec.runtime.kind(), reason }
        }
    }
}

fn progress_line(step: &Progress) -> String {
    match step.bytes {
        Some((done, total)) if total > 0 => {
            format!("{}: {} {} of {} KiB", step.subject, step.action, done / 1024, total / 1024)
        }
        _ => format!("{}: {}", step.subject, step.action),
    }
}

impl From<StoreError> for ApplyError {
    fn from(error: StoreError) -> Self {
        let (path, source) = error.into_parts();
        ApplyError::Store { path, source }
    }
}

impl From<StoreError> for crate::control::StopError {
    fn from(error: StoreError) -> Self {
        let (path, source) = error.into_parts();
        crate::control::StopError::Store { path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_later_stands() {
        let (web, api): (GroupName, GroupName) = ("web".parse().expect("a name"), "api".parse().expect("a name"));
        let mut changes = Changes::default();
        let (first, second, other) = (changes.begin(), changes.begin(), changes.begin());
        assert!(!changes.end(&web, second));
        assert!(changes.end(&web, first), "an older one takes the place of a newer one");
        assert!(!changes.end(&api, other));
        assert!(changes.made.is_empty());
        let pending = changes.begin();
        changes.note_made(&web);
        assert!(changes.end(&web, pending), "a group that was purged comes back");
        changes.note_made(&web);
        let later = changes.begin();
        assert!(!changes.end(&web, later));
    }
}
