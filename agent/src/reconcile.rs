//! The reconcile loop: one task owns all state of the agent and brings the host to what the specifications say.
//! Observe, plan, execute, again after every change; whoever wants something sends a message.
//!
//! Deciding ([`plan`], [`view`]) is pure; engine calls run as tasks of their own and report back, so a slow engine
//! holds up its own shards and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use sherd_topology::{
    model::{CpuSet, Host},
    plan::{GroupName, SlotId},
};
use tokio::sync::{broadcast, mpsc, oneshot};

use self::{
    drift::{DriftCause, Whose},
    group::{Group, SlotRun},
    heard::Heard,
    keeper::Keeper,
    message::{Consequence, Message},
};
use crate::{
    clock,
    control::{self, Request},
    runtime::{Runtime, RuntimeError, ShardId, ShardKey},
    status::Event,
    store::{RelayedImages, Store},
};

mod adopt;
mod anchor_age;
mod apply;
mod counters;
mod direct;
pub mod drift;
mod evidence;
mod execute;
mod explain;
mod group;
mod handover;
mod heard;
mod hung;
mod inspect;
mod judging;
pub mod keeper;
mod memory;
mod message;
mod observe;
mod order;
mod plan;
mod probe;
mod publish;
mod report;
mod requests;
mod roles;
mod rollout;
mod service;
#[cfg(all(test, feature = "simulation"))]
pub(crate) mod simulation;
mod snapshot;
mod steering_table;
mod step_task;
mod traffic;
mod view;
mod watch;
mod world;

pub use adopt::AdoptError;
pub use counters::Counters;

/// How often the loop looks at time-outs, anchors and retries.
const TICK: Duration = Duration::from_millis(250);
/// The same while every slot serves.
const QUIET_TICK: Duration = Duration::from_secs(1);
/// How often the runtimes are asked for everything, whatever they reported.
const OBSERVE_EVERY: Duration = Duration::from_secs(30);
/// Passes over a group's slots before the loop turns to messages again. A slot takes about ten steps from nothing to
/// serving; more than that in one go means that two rules undo each other.
const MAX_PASSES: u32 = 32;

/// Which groups a turn of the loop plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    /// Those that time alone can change.
    Unsettled,
}

/// What the loop has waited for.
#[derive(Debug)]
enum Wake {
    Message(Message),
    Heard(Heard),
    Request(Request),
    Tick,
}

/// What the agent's configuration says to the loop.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Separates several agents on one host.
    pub instance: String,
    /// CPUs that no shard gets.
    pub reserved: CpuSet,
    /// How long relayed connections may go on that can't be handed over, when the agent is told to end.
    pub shutdown_drain: Duration,
    /// How long the holder keeps relayed connections for the next agent; 0: they are not handed over.
    pub relay_handover: Duration,
    /// The agent's sockets, and the doors of shards' shims.
    pub run_dir: PathBuf,
    /// Where the shim is, for containers to execute.
    pub state_dir: PathBuf,
}

/// The runtimes of this agent: `process`, and `docker` where the configuration has an engine.
pub struct Runtimes(pub Vec<Arc<dyn Runtime>>);

impl Runtimes {
    fn kinds(&self) -> Vec<&'static str> {
        self.0.iter().map(|runtime| runtime.kind()).collect()
    }

    fn of(&self, kind: &str) -> Option<Arc<dyn Runtime>> {
        self.0.iter().find(|runtime| runtime.kind() == kind).cloned()
    }
}

/// What the loop knows of one runtime.
#[derive(Debug, Default)]
struct RuntimeView {
    version: Option<String>,
    error: Option<String>,
    /// It has been listed at least once since the agent started: before that nothing of its groups is decided.
    listed: bool,
    /// A listing is under way.
    listing: bool,
    /// Something changed since the listing under way began.
    again: bool,
    last: Option<Instant>,
    /// No listing before that: the last one failed.
    not_before: Option<Instant>,
    failures: u32,
    /// So long is it left alone after a listing.
    rest_until: Option<Instant>,
}

/// Everything the agent knows and owns.
pub struct Reconciler {
    host: Arc<Host>,
    settings: Settings,
    store: Store,
    keeper: Keeper,
    runtimes: Runtimes,
    runtime_views: BTreeMap<&'static str, RuntimeView>,
    groups: BTreeMap<GroupName, Group>,
    /// Shards of groups that no specification knows, being removed.
    orphans: BTreeSet<ShardId>,
    changes: apply::Changes,
    /// Groups whose stored specification could not be read: what runs of them is left as it is.
    unread: BTreeSet<GroupName>,
    inbox: mpsc::UnboundedReceiver<Message>,
    outbox: mpsc::UnboundedSender<Message>,
    events: broadcast::Sender<Event>,
    /// Where shards' shims come, while their shards are there.
    doors: BTreeMap<(ShardKey, direct::Generation), direct::Door>,
    means: direct::Means,
    contained: direct::ContainedSockets,
    watch: Option<watch::Watch>,
    drift: drift::DriftWatch,
    /// What the watch was told to look at.
    watched: Vec<watch::WatchedShape>,
    /// Connections of shards are being counted.
    counting_direct: bool,
    relayed_images: RelayedImages,
    /// What a former agent relayed and no worker has yet.
    returning: handover::Returning,
    counters: Counters,
    started: std::time::SystemTime,
    warnings: Vec<String>,
    next_tick: Instant,
    /// Nothing was to be done when it was last looked.
    quiet: bool,
}

/// What a [`Reconciler`] is made of.
pub struct Parts {
    /// The machine.
    pub host: Host,
    /// The configuration.
    pub settings: Settings,
    /// The state directory.
    pub store: Store,
    /// The way to the holder.
    pub keeper: Keeper,
    /// The runtimes.
    pub runtimes: Runtimes,
}

impl Reconciler {
    /// A loop that has seen nothing yet. [`Reconciler::adopt`] comes next.
    pub fn new(parts: Parts) -> Self {
        let (outbox, inbox) = mpsc::unbounded_channel();
        let means = direct::Means::new(parts.settings.instance.clone(), parts.keeper.cells().cloned());
        let (events, _) = broadcast::channel(control::EVENT_QUEUE_LEN);
        let kinds = parts.runtimes.kinds();
        let (relayed_images, fault) = parts.store.relayed_images();
        let warnings: Vec<String> = fault.into_iter().collect();
        warnings.iter().for_each(|warning| tracing::error!(warning));
        Self {
            host: Arc::new(parts.host),
            settings: parts.settings,
            store: parts.store,
            keeper: parts.keeper,
            runtimes: parts.runtimes,
            runtime_views: kinds.into_iter().map(|kind| (kind, RuntimeView::default())).collect(),
            groups: BTreeMap::new(),
            orphans: BTreeSet::new(),
            changes: apply::Changes::default(),
            unread: BTreeSet::new(),
            inbox,
            outbox,
            events,
            doors: BTreeMap::new(),
            means,
            contained: direct::ContainedSockets::default(),
            watch: None,
            drift: drift::DriftWatch::default(),
            watched: Vec::new(),
            counting_direct: false,
            relayed_images,
            returning: handover::Returning::default(),
            counters: Counters::default(),
            started: clock::wall(),
            warnings,
            next_tick: clock::now(),
            quiet: true,
        }
    }

    /// Runs until `shutdown` fires; then hands over what is relayed, and leaves shards and listeners as they are.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Request>, mut shutdown: oneshot::Receiver<()>) {
        let (batches, mut heard) = mpsc::channel(1);
        self.listen(&batches);
        loop {
            let wake = tokio::select! {
                Some(message) = self.inbox.recv() => Wake::Message(message),
                Some(heard) = heard.recv() => Wake::Heard(heard),
                request = requests.recv() => match request {
                    Some(request) => Wake::Request(request),
                    None => break,
                },
                () = tokio::time::sleep_until(self.next_tick.into()) => Wake::Tick,
                _ = &mut shutdown => break,
            };
            self.turn(wake);
        }
        self.end_relaying().await;
    }

    /// Takes in what has happened, and does what can be done at once.
    fn turn(&mut self, wake: Wake) {
        let mut extent = Extent::All;
        match wake {
            Wake::Message(message) => {
                if self.handle(message) == Consequence::None {
                    return;
                }
            }
            Wake::Heard(heard) => {
                // What it says comes with a listing.
                self.on_heard(heard);
                return;
            }
            Wake::Request(request) => self.answer(request),
            Wake::Tick => {
                self.on_tick();
                self.next_tick = clock::now() + QUIET_TICK;
                extent = Extent::Unsettled;
            }
        }
        self.advance(extent);
        self.keep_cells();
        self.direct_watch();
        let is_quiet = self.groups.values().all(Group::is_quiet);
        let was_quiet = std::mem::replace(&mut self.quiet, is_quiet);
        if !is_quiet {
            self.next_tick = self.next_tick.min(clock::now() + TICK);
        } else if !was_quiet {
            // Making tables and loading programs takes much memory for a moment.
            world::return_free_memory();
        }
    }

    /// An address finds its cells again if the agent dies. If it died right here, they would be made anew with its program.
    fn keep_cells(&mut self) {
        let is_left = |group: &GroupName| self.keeper.knows(&publish::group_prefix(group));
        let in_use = self.groups.values().any(Group::is_published) || self.unread.iter().any(is_left);
        self.keeper.keep_cells(in_use);
    }

    fn on_tick(&mut self) {
        let now = clock::now();
        self.keeper.tend(now, || self.groups.values().flat_map(Group::descriptors).collect());
        for kind in self.runtimes.kinds() {
            let view = &self.runtime_views[kind];
            if view.last.is_none_or(|last| now.duration_since(last) >= OBSERVE_EVERY) || view.again {
                self.observe(kind);
            }
        }
        self.nudge_probers();
        self.groups.values_mut().flat_map(|group| group.slots.values_mut()).for_each(SlotRun::tend_former);
        self.look_for_drift(now);
        self.observe_connections(now);
        self.look_at_traffic(now);
        self.tend_all_shares(now);
        self.note_closed_listeners();
        self.end_contained();
        let has_listeners = |group: &&Group| group.slots.values().any(SlotRun::has_listeners);
        self.groups.values().filter(has_listeners).for_each(|group| group.fronts.attach_again());
        self.count_direct(now);
        self.bury_workers();
        self.publish_missing(now);
        self.finish_leaving();
        self.age_anchors(now);
    }

    /// Plans and executes until nothing more can be done at once.
    fn advance(&mut self, extent: Extent) {
        let began = clock::now();
        let due = |group: &Group| extent == Extent::All || !group.is_quiet();
        let names: Vec<GroupName> =
            self.groups.iter().filter(|(_, group)| due(group)).map(|(name, _)| name.clone()).collect();
        for name in &names {
            self.advance_group(name);
        }
        self.finish_stops();
        self.note_slot_states();
        self.counters.note_reconcile(clock::since(began));
    }

    fn advance_group(&mut self, name: &GroupName) {
        for _ in 0..MAX_PASSES {
            let Some(group) = self.groups.get(name) else { return };
            if !self.is_listed(group.spec.runtime.kind()) {
                // Without its engine too, a slot may have left service: nobody takes what waits in the anchors then.
                if group.fronts.anchor_server().is_some() {
                    self.settle_service(name);
                }
                return;
            }
            self.judge(name);
            let Some(group) = self.groups.get_mut(name) else { return };
            let views = group.views();
            let (turns, findings) = group.step_rollout(&views, clock::now());
            if self.follow_findings(name, findings) {
                continue;
            }
            let views = if self.decide_orders(name, &turns) { self.views(name) } else { views };
            let steps = world::next_steps(&views, &turns, clock::now());
            if steps.is_empty() {
                self.forget_gone_slots(name);
                self.tend_rollout(name, &views);
                self.settle_service(name);
                return;
            }
            for (slot, step) in steps {
                tracing::debug!(group = %name, %slot, ?step, "step");
                self.execute(name, slot, step);
            }
        }
        self.counters.note_unsettled();
        tracing::error!(group = %name, "the group's slots do not settle: please report this with the agent's log");
    }

    fn views(&self, name: &GroupName) -> Vec<view::SlotView> {
        self.groups.get(name).map(Group::views).unwrap_or_default()
    }

    /// Whether a runtime has told what it has since the agent started; before that nothing can be decided.
    fn is_listed(&self, kind: &str) -> bool {
        self.runtime_views.get(kind).is_some_and(|view| view.listed)
    }

    fn send_event(&self, event: Event) {
        // Nobody listening is the usual case.
        let _ = self.events.send(event);
    }

    fn note_runtime(&mut self, kind: &'static str, result: Result<(), &RuntimeError>) {
        let view = self.runtime_views.entry(kind).or_default();
        let Err(error) = result else {
            (view.error, view.failures, view.not_before) = (None, 0, None);
            return self.end_standing(DriftCause::Engine, kind);
        };
        let text = chain(error);
        view.failures = view.failures.saturating_add(1);
        let wait = Duration::from_millis(500).saturating_mul(1 << view.failures.min(6)).min(OBSERVE_EVERY);
        view.not_before = Some(clock::now() + wait);
        let reason = format!("the {kind} runtime does not answer; what runs goes on: {text}");
        let (is_new, was_there) = (view.error.as_ref() != Some(&text), view.listed);
        view.error = Some(text);
        // On a host without an engine that nobody asks for anything, nothing is otherwise than planned.
        if was_there || self.groups.values().any(|group| group.spec.runtime.kind() == kind) {
            self.begin_standing(Whose::Agent, DriftCause::Engine, kind, &reason);
        } else if is_new {
            tracing::warn!(runtime = kind, "{reason}");
        }
    }

    fn slot_mut(&mut self, group: &GroupName, slot: SlotId) -> Option<&mut SlotRun> {
        self.groups.get_mut(group)?.slots.get_mut(&slot)
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
