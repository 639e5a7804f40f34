//! Carries out steps, without judgement: what a step does is here, when it is due is [`super::plan`]'s.
//!
//! What takes an engine or the kernel a while runs as a task and reports back; the slot is busy until then. What is a
//! few system calls is done at once.

use std::{
    net::TcpListener,
    os::fd::OwnedFd,
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use sherd_lb::relay::{Backend, Pin, Worker, WorkerConfig};
use sherd_topology::plan::{GroupName, Slot, SlotId};
use tokio::sync::mpsc;

use super::{
    Reconciler,
    direct::{DirectRun, Failed},
    group::{Group, Running, SlotRun},
    message::{Message, Outcome},
    steering_table::index_of,
    step_task::{StepTask, outcome},
    view::{Pinning, Service, Step},
};
use crate::{
    control::StopError,
    fault,
    runtime::{ShardId, ShardKey, ShardOrder, ShardState},
    spec::{ContainerPort, GroupSpec, RuntimeSpec},
};

/// When a wrong pinning is mended again after the last try.
const REPIN_RETRY: Duration = Duration::from_secs(5);

impl Reconciler {
    pub(super) fn execute(&mut self, group: &GroupName, slot: SlotId, step: Step) {
        match step {
            Step::Equip => self.equip(group, slot),
            Step::Connect(shard) => self.connect(group, slot, shard),
            Step::TakeIn => self.set_service(group, slot, Service::In),
            Step::TakeOut => self.set_service(group, slot, Service::Out),
            Step::Drain => self.drain(group, slot),
            Step::Disconnect => self.disconnect(group, slot),
            Step::Retire => self.retire(group, slot),
            Step::Create => self.create(group, slot),
            Step::Start(_) | Step::Verify(_) | Step::Repin(_) | Step::Stop(_) | Step::Remove(_) => {
                self.begin(group, slot, step);
            }
        }
    }

    /// The name of a slot's worker thread; the kernel keeps 15 bytes of it.
    fn worker_name(group: &GroupName, slot: SlotId) -> String {
        format!("{slot}/{group}").chars().take(15).collect()
    }

    fn equip(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(place) = group.place(id).cloned() else { return };
        let spec = Arc::clone(&group.spec);
        fault::point("equip.before");
        let made = spawn_worker(Self::worker_name(name, id), &spec, &place)
            .map_err(|error| format!("its worker thread can't be started: {error}"))
            .and_then(|worker| {
                let served = group.fronts.equip(id, &worker, &mut self.keeper).map_err(|error| super::chain(&error))?;
                Ok((worker, served))
            });
        fault::point("equip.after");
        let Some(slot) = group.slots.get_mut(&id) else { return };
        match made {
            Ok((worker, served)) => {
                slot.direct.iter_mut().for_each(DirectRun::forget_inner);
                slot.worker = Some(Arc::new(worker));
                let wait = move || match served.iter().find_map(failure) {
                    Some(cause) => Outcome::Worker(format!("its worker can't accept: {cause}")),
                    None => Outcome::Done,
                };
                self.await_worker(name, id, Step::Equip, wait);
            }
            Err(cause) => {
                slot.fail(&spec, Duration::ZERO, cause, Instant::now());
                slot.hold_until_backoff();
            }
        }
    }

    fn connect(&mut self, name: &GroupName, id: SlotId, shard: ShardId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(slot) = group.slots.get_mut(&id) else { return };
        let (Some(worker), Some(reach)) = (&slot.worker, slot.live.as_ref().and_then(|live| live.reach.as_ref()))
        else {
            return;
        };
        let netns = match reach.netns.as_ref().map(|netns| netns.try_clone()).transpose() {
            Ok(netns) => netns,
            Err(error) => {
                let cause = format!("its namespace can't be kept open: {error}");
                slot.fail(&group.spec, Duration::ZERO, cause, Instant::now());
                slot.hold_until_backoff();
                return;
            }
        };
        let mut ports = group.fronts.backend_ports(&reach.ports);
        ports.extend(slot.direct.iter().flat_map(|direct| direct.inner_targets(&reach.ports)));
        let backend = Backend { netns: netns.map(OwnedFd::from), ports };
        if slot.service() == Service::In {
            group.fronts.choose_paths(id);
        }
        let entered = worker.set_backend(Some(backend));
        slot.direct.iter_mut().for_each(|direct| direct.serve_inner(worker));
        (slot.backend, slot.reconnect) = (Some(shard.clone()), false);
        self.await_worker(name, id, Step::Connect(shard), move || match entered.recv_timeout(WORKER_TIMEOUT) {
            Ok(Ok(())) => Outcome::Done,
            Ok(Err(error)) => Outcome::Worker(super::chain(&error)),
            Err(error) => Outcome::Worker(error.to_string()),
        });
    }

    /// Waits, on a thread for that, until a worker has done what it was told; the slot is busy until then.
    fn await_worker(
        &mut self,
        name: &GroupName,
        id: SlotId,
        step: Step,
        wait: impl FnOnce() -> Outcome + Send + 'static,
    ) {
        let Some(slot) = self.slot_mut(name, id) else { return };
        slot.step = Some(Running { step: step.clone() });
        let (outbox, key) = (self.outbox.clone(), ShardKey { group: name.clone(), slot: id });
        tokio::task::spawn_blocking(move || {
            let outcome = wait();
            report(&outbox, key, step, outcome, Vec::new());
        });
    }

    fn set_service(&mut self, name: &GroupName, id: SlotId, service: Service) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let is_in = service == Service::In;
        if is_in {
            group.fronts.choose_paths(id);
        }
        fault::point(if is_in { "take_in.before" } else { "take_out.before" });
        let set = group.fronts.set_in(id, is_in);
        fault::point(if is_in { "take_in.after" } else { "take_out.after" });
        let Some(slot) = group.slots.get_mut(&id) else { return };
        match set {
            Err(error) if is_in => {
                slot.fail(&group.spec, Duration::ZERO, super::chain(&error), Instant::now());
                slot.hold_until_backoff();
            }
            Err(error) => tracing::error!(group = %name, slot = %id, "not taken out: {}", super::chain(&error)),
            Ok(()) => {
                slot.service = Some(service);
                // Whatever accepts from now on hasn't been found hung yet.
                slot.hung = None;
                if let Some(live) = slot.live.as_mut().filter(|_| is_in) {
                    live.served = true;
                    self.note_path_of_image(name, id);
                }
            }
        }
    }

    fn drain(&mut self, name: &GroupName, id: SlotId) {
        let Some(drain) = self.groups.get(name).map(|group| group.spec.drain) else { return };
        self.set_service(name, id, Service::Draining { until: Instant::now() + drain });
        if let Some(slot) = self.slot_mut(name, id) {
            slot.expect_direct(Instant::now());
        }
    }

    /// The worker turns away from the shard. What it relays to it may go on until the end of the drain, if there is one:
    /// a connection may have been accepted after the counters were looked at.
    fn disconnect(&mut self, name: &GroupName, id: SlotId) {
        let Some(slot) = self.slot_mut(name, id) else { return };
        slot.backend = None;
        let until = match slot.service() {
            Service::Draining { until } => until,
            Service::In | Service::Out => Instant::now(),
        };
        let Some(worker) = &slot.worker else { return };
        let (left, closed) = (worker.set_backend(None), worker.drain_former(until));
        self.await_worker(name, id, Step::Disconnect, move || {
            let patience = until.saturating_duration_since(Instant::now()) + WORKER_TIMEOUT;
            // A worker that is gone has left and closed everything too.
            let _ = (left.recv_timeout(WORKER_TIMEOUT), closed.recv_timeout(patience));
            Outcome::Done
        });
    }

    /// The slot is out of the table, has no shard and serves nothing: when its worker has emptied the queues, listeners
    /// and worker end.
    fn retire(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(worker) = group.slots.get(&id).and_then(|slot| slot.worker.clone()) else { return };
        fault::point("retire.before");
        let emptied = group.fronts.stop_serving(id, &worker);
        self.await_worker(name, id, Step::Retire, move || {
            for queue in emptied {
                // An error means that the worker is gone: what is queued moves on when the listener ends.
                let _ = queue.recv_timeout(WORKER_TIMEOUT);
            }
            Outcome::Done
        });
    }

    fn on_retired(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        group.fronts.retire(id, &mut self.keeper);
        fault::point("retire.after");
        group.settled.clear();
        if let Some(worker) = group.slots.get_mut(&id).and_then(|slot| slot.worker.take()) {
            // Its end waits for its thread, which may be in the middle of something.
            tokio::task::spawn_blocking(move || drop(worker));
        }
        self.forget_if_gone(name, id);
    }

    /// A slot that no plan has any more is forgotten when nothing of it is left.
    fn forget_if_gone(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let planned = group.place(id).is_some();
        if !planned && group.slots.get(&id).is_some_and(|slot| slot.shards.is_empty() && slot.worker.is_none()) {
            group.slots.remove(&id);
        }
    }

    fn create(&mut self, name: &GroupName, id: SlotId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let (spec, shards) = (Arc::clone(&group.spec), group.planned().len());
        let Some(place) = group.place(id).cloned() else { return };
        let Some(slot) = group.slots.get_mut(&id) else { return };
        slot.generation += 1;
        let process_ports = match &spec.runtime {
            RuntimeSpec::Process(_) => free_ports(&spec),
            RuntimeSpec::Docker(_) => Ok(Vec::new()),
        };
        let process_ports = match process_ports {
            Ok(ports) => ports,
            Err(error) => {
                slot.fail(&spec, Duration::ZERO, format!("no free port for it: {error}"), Instant::now());
                return;
            }
        };
        let (key, generation) = (ShardKey { group: name.clone(), slot: id }, slot.generation);
        let behind_shim = spec.is_behind_shim() && slot.trial.suspicion().is_none();
        let shim = match behind_shim {
            true => self.open_door(&key, generation, self.images_on_relay(&spec)).map(Some),
            false => Ok(None),
        };
        let Some(slot) = self.slot_mut(name, id) else { return };
        let shim = match shim {
            Ok(shim) => shim,
            Err(error) => {
                slot.fail(&spec, Duration::ZERO, format!("its shim can't be put in place: {error}"), Instant::now());
                return;
            }
        };
        let order = ShardOrder {
            key,
            spec,
            slot: place,
            shards: u32::try_from(shards).unwrap_or(u32::MAX),
            generation,
            process_ports,
            shim,
        };
        slot.step = Some(Running { step: Step::Create });
        let Some(runtime) = self.runtimes.of(order.spec.runtime.kind()) else { return };
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let outcome = outcome(runtime.create(&order).await.map(|_| ()));
            report(&outbox, order.key, Step::Create, outcome, Vec::new());
        });
    }

    fn begin(&mut self, name: &GroupName, id: SlotId, step: Step) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let (spec, place) = (Arc::clone(&group.spec), group.place(id).cloned());
        let Some(runtime) = self.runtimes.of(spec.runtime.kind()) else { return };
        let Some(slot) = group.slots.get_mut(&id) else { return };
        if let Step::Stop(shard) = &step {
            slot.note_overdue(&spec, shard);
            slot.stopping = Some(shard.clone());
        }
        if let (Step::Repin(_), Some(worker), Some(place)) = (&step, &slot.worker, &place) {
            let moved = worker.pin(pin_to(place));
            tokio::task::spawn_blocking(move || {
                if let Some(cause) = failure(&moved) {
                    tracing::warn!("a relay worker can't be moved with its slot: {cause}");
                }
            });
        }
        slot.step = Some(Running { step: step.clone() });
        let task = StepTask {
            runtime,
            key: ShardKey { group: name.clone(), slot: id },
            pid: slot.live.as_ref().map(|live| live.pid),
            failed: slot.backoff.failures() > 0,
            spec,
            place,
        };
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let (outcome, last_lines) = task.run(&step).await;
            report(&outbox, task.key, step, outcome, last_lines);
        });
    }

    pub(super) fn on_stepped(
        &mut self,
        name: &GroupName,
        id: SlotId,
        step: &Step,
        outcome: Outcome,
        last_lines: Vec<String>,
    ) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let spec = Arc::clone(&group.spec);
        let Some(slot) = group.slots.get_mut(&id) else { return };
        let now = Instant::now();
        slot.step = None;
        if matches!(step, Step::Create | Step::Start(_) | Step::Stop(_) | Step::Remove(_)) {
            (slot.changed, slot.stale) = (Some(now), true);
        }
        if !last_lines.is_empty() {
            slot.last_lines = last_lines;
        }
        let engine_changed = slot.stale;
        match (step, outcome) {
            (Step::Verify(_) | Step::Repin(_), outcome) => self.note_pinning(name, id, outcome),
            (Step::Retire, _) => self.on_retired(name, id),
            (_, Outcome::Done | Outcome::Pinned(_)) => {}
            (_, Outcome::Engine(error)) => {
                let cause = super::chain(&error);
                slot.fail(&spec, Duration::ZERO, cause.clone(), now);
                slot.hold_until_backoff();
                group.tell_stop_waiters(name, id, &cause);
                if error.is_outage() {
                    self.note_runtime(spec.runtime.kind(), Err(&error));
                }
            }
            (_, Outcome::Worker(cause) | Outcome::NotPinned(cause)) => {
                slot.backend = None;
                slot.fail(&spec, Duration::ZERO, cause, now);
                slot.hold_until_backoff();
            }
        }
        if engine_changed {
            self.observe(spec.runtime.kind());
        }
    }

    fn note_pinning(&mut self, name: &GroupName, id: SlotId, outcome: Outcome) {
        let Some(slot) = self.slot_mut(name, id) else { return };
        let faulty = Pinning::Faulty { retry_after: Instant::now() + REPIN_RETRY };
        let (pinning, fault) = match outcome {
            // The place that was asked about: the plan may have another one by now.
            Outcome::Pinned(place) => (Pinning::Holds(place), None),
            Outcome::Done => (Pinning::Unknown, None),
            Outcome::NotPinned(cause) | Outcome::Worker(cause) => (faulty, Some(cause)),
            Outcome::Engine(error) => (faulty, Some(super::chain(&error))),
        };
        if let Some(live) = &mut slot.live {
            live.pinning = pinning;
        }
        if let Some(cause) = fault {
            tracing::warn!(group = %name, slot = %id, "{name}/{id} is not pinned as planned: {cause}");
            slot.last_error = Some(cause);
            self.counters.note_pinning_fault(name, id);
        }
    }
}

/// How long a worker may take for what it is told: a few system calls, or a queue that has to be emptied.
const WORKER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a listener isn't served, if it isn't.
fn failure(served: &Receiver<std::io::Result<()>>) -> Option<String> {
    match served.recv_timeout(WORKER_TIMEOUT) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

fn spawn_worker(name: String, spec: &GroupSpec, place: &Slot) -> std::io::Result<Worker> {
    Worker::spawn(WorkerConfig {
        slot: index_of(place.id).0,
        name,
        pin: pin_to(place),
        limits: super::publish::limits(spec),
    })
}

fn pin_to(place: &Slot) -> Pin {
    let cpus: Vec<u32> = place.cpus.iter().map(|cpu| cpu.0).collect();
    Box::new(move || sherd_lb::pinning::set_affinity(&cpus))
}

/// A port nobody has at the moment, for each container port. Somebody else may be quicker; the shard then ends and
/// the next one gets other ports.
fn free_ports(spec: &GroupSpec) -> std::io::Result<Vec<(ContainerPort, u16)>> {
    let mut held = Vec::new();
    for port in &spec.ports {
        if held.iter().all(|(container, _): &(ContainerPort, TcpListener)| *container != port.container) {
            held.push((port.container, TcpListener::bind(("0.0.0.0", 0))?));
        }
    }
    held.iter().map(|(container, listener)| Ok((*container, listener.local_addr()?.port()))).collect()
}

fn report(
    outbox: &mpsc::UnboundedSender<Message>,
    key: ShardKey,
    step: Step,
    outcome: Outcome,
    last_lines: Vec<String>,
) {
    // Nobody receives when the loop has ended, and then nobody has to know.
    let _ = outbox.send(Message::Stepped { group: key.group, slot: key.slot, step, outcome, last_lines });
}

impl SlotRun {
    /// Keeps planning from trying the same again before the back-off ends.
    fn hold_until_backoff(&mut self) {
        self.held_until = self.backoff.start_after();
    }

    /// A shard that is stopped because it was never ready in time has failed.
    fn note_overdue(&mut self, spec: &GroupSpec, shard: &ShardId) {
        let Some(live) = self.live.as_ref().filter(|live| live.id == *shard && !live.was_ready) else { return };
        let ran = live.seen.elapsed();
        if ran > spec.readiness.start_timeout {
            let why = self.cause.as_deref().unwrap_or("no probe succeeded");
            let cause = format!("not ready within {:?}: {why}", spec.readiness.start_timeout);
            self.restarts += 1;
            self.note_never_ready(spec, shard, Failed::TimedOut, &cause);
            self.fail(spec, ran, cause, Instant::now());
        }
    }
}

impl Group {
    /// Whoever waits for the group to stop learns that a shard doesn't; the agent goes on trying.
    fn tell_stop_waiters(&mut self, name: &GroupName, slot: SlotId, cause: &str) {
        for waiter in self.stop_waiters.drain(..) {
            let reason = format!("slot {slot}: {cause}");
            drop(waiter.send(Err(StopError::Shards { group: name.clone(), reason })));
        }
    }

    /// Whether a shard of it is alive.
    pub(super) fn has_living_shard(&self) -> bool {
        self.slots
            .values()
            .flat_map(|slot| &slot.shards)
            .any(|shard| matches!(shard.state, ShardState::Running { .. } | ShardState::Paused { .. }))
    }
}
