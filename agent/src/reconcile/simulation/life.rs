//! A seed from its first event until it has converged: one agent after the other, each the real loop, turn by turn, with the laws
//! checked after every turn.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::FutureExt;
use sherd_topology::{
    discover,
    model::{CpuSet, Host},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    engine::{self, Engine},
    laws,
    plants::Plant,
    script::{Happening, Script, Wish, specification},
    state::{self, Chance, Killed, World, with},
};
use crate::{
    control::{ApplyError, Request, RolloutAction, RolloutError, StopError},
    reconcile::{
        Parts, Reconciler, Runtimes, Settings, Wake,
        heard::Heard,
        keeper::{HolderUnit, Keeper},
    },
    runtime::ShardId,
    spec::GroupSpec,
    status::{PlanReport, RolloutStatus},
    store::Store,
};

/// Once nothing fails any more, all is as specified after that: a rollout of four slots that start slowly, the longest back-off,
/// and a look at everything, one after the other.
const CONVERGES_IN: Duration = Duration::from_secs(120);
/// Calls that were under way when the trouble ended have come to their ends by then.
const AFTERMATH: Duration = Duration::from_secs(15);
/// And stays so: for longer than it takes the loop to look at everything.
const STAYS_FOR: Duration = Duration::from_secs(35);
/// An agent that doesn't find what it needs ends, and is started again after that.
const RESTART: Duration = Duration::from_secs(1);

static HOST: LazyLock<Host> =
    LazyLock::new(|| discover::synthetic("package:1 [numa(memory=8GB)] l3:2 core:6 pu:1").expect("a description"));

/// What a seed came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) turns: u64,
    pub(super) lives: u64,
    pub(super) broken: Vec<String>,
}

/// How a life ended.
enum End {
    /// The agent is to be started again after that.
    Died(Duration),
    /// The world has seen enough.
    Over,
}

/// Lives a seed.
pub(super) fn live(seed: u64, plant: Option<Plant>, is_told: bool) -> Outcome {
    let mut chance = Chance::of(seed);
    let mut script = Script::of(&mut chance);
    let mut world = World::new(chance, HOST.clone(), is_told);
    world.faults.are_on = true;
    world.faults.rate_percent = script.rate_percent;
    world.plant = plant;
    world.shards.believes_labels = plant == Some(Plant::BelievesLabels);
    state::put(world);
    let (mut lives, mut calm) = (0, Calm::default());
    loop {
        lives += 1;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without threads or sockets");
        let end = runtime.block_on(one_life(&mut script, &mut calm));
        // Its calls end with it; what the engine has done by then is done.
        drop(runtime);
        let is_broken = with(|world| {
            world.shards.listeners.clear();
            !world.broken.is_empty()
        });
        match end {
            End::Died(away) if !is_broken => with(|world| world.pass(away)),
            End::Died(_) | End::Over => break,
        }
    }
    let world = state::take().expect("it was put there");
    Outcome { turns: world.seen.turns, lives, broken: world.broken }
}

/// How it goes once nothing fails any more.
#[derive(Debug, Default)]
struct Calm {
    since: Option<Duration>,
    settled_since: Option<Duration>,
    /// What isn't settled, as last looked.
    lacks: String,
}

impl Calm {
    /// Whether the world has seen enough.
    fn look(&mut self, reconciler: &Reconciler, asked: &[Asked]) -> bool {
        let Some(since) = self.since else { return false };
        let now = with(|world| world.now());
        let answered = match asked.first() {
            Some(asked) => Err(format!("{} waits for an answer: {}", asked.group, asked.wish)),
            None => Ok(()),
        };
        match (laws::settled(reconciler).and(answered), self.settled_since) {
            (Ok(()), None) => self.settled_since = Some(now),
            (Ok(()), Some(settled)) => return settled + STAYS_FOR <= now,
            (Err(lacks), None) => self.lacks = lacks,
            (Err(lacks), Some(_)) if now < since + AFTERMATH => (self.settled_since, self.lacks) = (None, lacks),
            (Err(lacks), Some(_)) => {
                with(|world| world.note_broken(&format!("it doesn't stay settled: {lacks}")));
                return true;
            }
        }
        let is_late = self.settled_since.is_none() && since + CONVERGES_IN <= now;
        if is_late {
            with(|world| world.note_broken(&format!("not settled after {CONVERGES_IN:?}: {}", self.lacks)));
        }
        is_late
    }
}

async fn one_life(script: &mut Script, calm: &mut Calm) -> End {
    with(|world| {
        world.begin_life();
        world.tell(|| "the agent starts".to_owned());
        world.end_due_shards();
    });
    let end = AssertUnwindSafe(run(script, calm)).catch_unwind().await;
    with(World::end_life);
    match end {
        Ok(end) => end,
        Err(panic) if panic.is::<Killed>() => End::Died(with(|world| world.chance.millis(100..3_000))),
        Err(panic) => {
            with(|world| world.note_broken(&format!("the loop panicked: {}", text_of(&*panic))));
            End::Over
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

fn new_loop() -> Option<Reconciler> {
    let state_dir = PathBuf::from("/state");
    let store = Store::open(&state_dir).ok()?;
    let keeper = Keeper::connect(Path::new("/run/holder.sock"), HolderUnit::Systemd).ok()?;
    let settings = Settings {
        instance: "simulated".to_owned(),
        reserved: CpuSet::default(),
        shutdown_drain: Duration::from_secs(1),
        relay_handover: Duration::from_secs(10),
        run_dir: "/run".into(),
        state_dir,
    };
    let (host, runtimes) = (super::host(), Runtimes(vec![Arc::new(Engine)]));
    Some(Reconciler::new(Parts { host, settings, store, keeper, runtimes }))
}

async fn run(script: &mut Script, calm: &mut Calm) -> End {
    let mut asked = Vec::new();
    let Some(mut reconciler) = new_loop() else {
        with(|world| world.tell(|| "the agent can't start".to_owned()));
        happen_without_agent(script, calm);
        return End::Died(RESTART);
    };
    if reconciler.adopt().await.is_err() {
        return End::Died(RESTART);
    }
    laws::check_adopted(&reconciler);
    let (batches, mut heard) = mpsc::channel(1);
    reconciler.listen(&batches);
    loop {
        let wake = next(&mut reconciler, &mut heard, script).await;
        with(World::end_due_shards);
        if let Some(wake) = wake {
            reconciler.turn(wake);
            asked.retain_mut(|asked: &mut Asked| !asked.is_answered());
            laws::check(&reconciler);
        }
        while let Some(event) = script.take_due(with(|world| world.now())) {
            with(|world| world.tell(|| event.to_string()));
            match event {
                Happening::AgentIsKilled { points: None, away } => return End::Died(away),
                Happening::AgentIsKilled { points, .. } => with(|world| world.dies_in = points),
                Happening::AgentRestarts(away) => {
                    reconciler.end_relaying().await;
                    return End::Died(away);
                }
                Happening::Asked { group, wish } => ask(&mut reconciler, &mut asked, group, wish),
                Happening::Calm => {
                    with(|world| become_calm(world, calm));
                    if script.asks_in_the_end {
                        ask_in_the_end(&mut reconciler, &mut asked);
                    }
                }
                other => with(|world| happen(world, &other)),
            }
        }
        if with(|world| !world.broken.is_empty()) || calm.look(&reconciler, &asked) {
            return End::Over;
        }
    }
}

/// What the loop wakes up for next; absent: something happens in the world.
async fn next(reconciler: &mut Reconciler, heard: &mut mpsc::Receiver<Heard>, script: &Script) -> Option<Wake> {
    let (until_event, until_end, is_late) = with(|world| {
        let now = world.now();
        let until = |at: Option<Duration>| at.map_or(Duration::from_secs(60), |at| at.saturating_sub(now));
        (until(script.next_at()), until(world.shards.next_end()), world.faults.strike(&mut world.chance, 10))
    });
    if is_late {
        // The machine is busy: what has happened waits.
        tokio::time::sleep(with(|world| world.chance.millis(1..800))).await;
    }
    tokio::select! {
        biased;
        Some(message) = reconciler.inbox.recv() => Some(Wake::Message(message)),
        Some(heard) = heard.recv() => Some(Wake::Heard(heard)),
        () = tokio::time::sleep_until(reconciler.next_tick.into()) => Some(Wake::Tick),
        () = tokio::time::sleep(until_event.min(until_end)) => None,
    }
}

/// While it can't start, the world goes on.
fn happen_without_agent(script: &mut Script, calm: &mut Calm) {
    while let Some(event) = script.take_due(with(|world| world.now())) {
        match event {
            Happening::Calm => with(|world| become_calm(world, calm)),
            other => with(|world| happen(world, &other)),
        }
    }
}

/// An operator who waits for an answer.
struct Asked {
    group: String,
    wish: Wish,
    answer: Answer,
}

enum Answer {
    Apply(oneshot::Receiver<Result<PlanReport, ApplyError>>),
    Stop(oneshot::Receiver<Result<(), StopError>>),
    Rollout(oneshot::Receiver<Result<RolloutStatus, RolloutError>>),
}

impl Asked {
    fn is_answered(&mut self) -> bool {
        let (is_done, is_granted) = match &mut self.answer {
            Answer::Apply(answer) => told(answer),
            Answer::Stop(answer) => told(answer),
            Answer::Rollout(answer) => told(answer),
        };
        if is_granted {
            with(|world| {
                world.tell(|| format!("{} is told: {} is done", self.group, self.wish));
                world.seen.note_acknowledged(&self.group, &self.wish);
                let still = world.shards.living(&self.group).next().map(|(id, _)| id.clone());
                if let (Wish::Stop { .. }, Some(id)) = (&self.wish, still) {
                    world.note_broken(&format!("{} is told to be stopped, and {id} runs", self.group));
                }
            });
        }
        is_done
    }
}

/// Whether there is an answer, and it is yes.
fn told<T, E>(answer: &mut oneshot::Receiver<Result<T, E>>) -> (bool, bool) {
    match answer.try_recv() {
        Ok(answer) => (true, answer.is_ok()),
        Err(oneshot::error::TryRecvError::Empty) => (false, false),
        Err(oneshot::error::TryRecvError::Closed) => (true, false),
    }
}

fn ask(reconciler: &mut Reconciler, asked: &mut Vec<Asked>, group: String, wish: Wish) {
    let name = group.parse().expect("a name");
    with(|world| {
        world.seen.note_asked(&group, &wish);
    });
    let rollout = |action| {
        let (reply, answer) = oneshot::channel();
        let name = group.parse().expect("a name");
        (Request::Rollout { group: name, action, reply }, Answer::Rollout(answer))
    };
    let (request, answer) = match &wish {
        Wish::Apply(text) => {
            let (reply, answer) = oneshot::channel();
            let spec = GroupSpec::parse("simulated.toml", text).unwrap_or_else(|faults| panic!("{faults}\n{text}"));
            let (spec, text) = (Box::new(spec), text.clone());
            (Request::Apply { spec, text, dry_run: false, reply }, Answer::Apply(answer))
        }
        Wish::Stop { purge } => {
            let (reply, answer) = oneshot::channel();
            (Request::Stop { group: name, purge: *purge, reply }, Answer::Stop(answer))
        }
        Wish::Undo => rollout(RolloutAction::Undo),
        Wish::Pause => rollout(RolloutAction::Pause),
        Wish::Resume => rollout(RolloutAction::Resume),
    };
    asked.push(Asked { group, wish, answer });
    reconciler.turn(Wake::Request(request));
    laws::check(reconciler);
}

/// For each group something that works, or its end.
fn ask_in_the_end(reconciler: &mut Reconciler, asked: &mut Vec<Asked>) {
    let names: Vec<String> = reconciler.groups.keys().map(ToString::to_string).collect();
    for name in names {
        let wish = with(|world| match world.chance.below(8) {
            0 => Wish::Stop { purge: true },
            1 => Wish::Stop { purge: false },
            _ => Wish::Apply(specification(&name, &["good", "slow"], &mut world.chance)),
        });
        ask(reconciler, asked, name, wish);
    }
}

fn become_calm(world: &mut World, calm: &mut Calm) {
    (world.faults.are_on, world.dies_in) = (false, None);
    for end in [Happening::EngineComes, Happening::HolderComes, Happening::ShardsThaw, Happening::CpusCome] {
        happen(world, &end);
    }
    for shard in world.shards.all.values_mut() {
        shard.sicken(Duration::ZERO);
    }
    calm.since = Some(world.now());
}

fn happen(world: &mut World, event: &Happening) {
    let now = world.now();
    let nth = |world: &World, nth: u64| -> Option<ShardId> {
        let living: Vec<&ShardId> =
            world.shards.all.iter().filter(|(_, shard)| shard.runs()).map(|(id, _)| id).collect();
        living.get(nth as usize % living.len().max(1)).map(|id| (*id).clone())
    };
    match *event {
        Happening::ShardEnds(number) => {
            let shard = nth(world, number).and_then(|id| world.shards.all.get_mut(&id));
            shard.into_iter().for_each(|shard| shard.ends_at = Some(now));
            world.end_due_shards();
        }
        Happening::ShardSickens(number, until) => {
            let shard = nth(world, number).and_then(|id| world.shards.all.get_mut(&id));
            shard.into_iter().for_each(|shard| shard.sicken(until));
        }
        Happening::ShardIsMoved(number) => {
            let shard = nth(world, number).and_then(|id| world.shards.all.get_mut(&id));
            shard.into_iter().for_each(|shard| shard.cpus = CpuSet::default());
        }
        Happening::ShardIsRemoved(number) => {
            nth(world, number).iter().for_each(|id| engine::remove_by_hand(world, id));
        }
        Happening::ShardIsFrozen(number, _) => {
            nth(world, number).iter().for_each(|id| engine::freeze(world, id, true));
        }
        Happening::ShardsThaw => {
            let all: Vec<ShardId> = world.shards.all.keys().cloned().collect();
            all.iter().for_each(|id| engine::freeze(world, id, false));
        }
        Happening::WorkerEnds(number) => world.kernel.workers.kill(number),
        Happening::StrangerComes => world.shards.add_foreign(),
        Happening::EngineGoes => engine::go_away(world),
        Happening::EngineComes => world.faults.engine_is_away = false,
        Happening::HolderEnds => {
            world.holder.end();
            world.kernel.sweep(&world.holder.names);
            world.seen.holder_trouble = now;
        }
        Happening::HolderComes => {
            world.holder.is_away = false;
            world.seen.holder_trouble = now;
        }
        // A machine with other CPUs is another one; see `cpus_of_host`.
        Happening::CpuGoes(number) => world.host = smaller(number),
        Happening::CpusCome => world.host = HOST.clone(),
        Happening::WallClockIsSet(by, true) => world.began_at += by,
        Happening::WallClockIsSet(by, false) => world.began_at -= by,
        // The agent's own, and the operator's while no agent is there.
        Happening::Asked { .. } | Happening::AgentIsKilled { .. } | Happening::AgentRestarts(_) | Happening::Calm => {}
    }
}

/// Without one of its CPUs.
fn smaller(number: u64) -> Host {
    let mut parts = HOST.parts().clone();
    let cpus: Vec<_> = parts.online.iter().collect();
    let gone = cpus[number as usize % cpus.len()];
    parts.online = parts.online.iter().filter(|cpu| *cpu != gone).collect();
    Host::new(parts).expect("a machine with a CPU offline")
}
