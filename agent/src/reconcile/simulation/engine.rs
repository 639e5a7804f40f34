//! The simulated engine's calls: each takes a while, may be refused, may be done without an answer, or find nobody there.

use std::{io, time::Duration};

use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use sherd_topology::plan::Slot;
use tokio::sync::mpsc;

use super::state::{World, with};
use crate::{
    runtime::{
        End, EngineHealth, Executed, Listing, LogLine, Operation, ProgressSink, Runtime, RuntimeError, RuntimeEvent,
        ShardId, ShardOrder, ShardState,
    },
    spec::GroupSpec,
};

/// See the module. Its shards are the world's.
pub(super) struct Engine;

fn gone(operation: Operation) -> RuntimeError {
    let source = io::Error::from(io::ErrorKind::ConnectionRefused).into();
    RuntimeError::EngineGone { operation, engine: "simulated".to_owned(), source }
}

/// One call: before it is done it may be refused, and afterwards its answer lost.
async fn call<T>(
    operation: Operation,
    act: impl FnOnce(&mut World) -> Result<T, RuntimeError>,
) -> Result<T, RuntimeError> {
    let wait = with(|world| match world.faults.strike(&mut world.chance, 30) {
        true => world.chance.millis(500..6_000),
        false => world.chance.millis(1..20),
    });
    tokio::time::sleep(wait).await;
    let done = with(|world| {
        if world.faults.engine_is_away {
            return Err(gone(operation));
        }
        if world.faults.strike(&mut world.chance, 30) {
            world.tell(|| format!("the engine refuses: {operation}"));
            let (engine, message) = ("simulated".to_owned(), "it is out of sorts".to_owned());
            return Err(RuntimeError::Refused { operation, engine, status: 500, message });
        }
        act(world)
    })?;
    let (wait, is_lost) = with(|world| {
        let is_slow = world.faults.strike(&mut world.chance, 20);
        let wait = world.chance.millis(if is_slow { 300..4_000 } else { 1..10 });
        (wait, world.faults.strike(&mut world.chance, 20))
    });
    tokio::time::sleep(wait).await;
    if is_lost {
        with(|world| world.tell(|| format!("the engine's answer is lost: {operation}")));
        return Err(RuntimeError::TimedOut { operation, engine: "simulated".to_owned(), after: wait });
    }
    Ok(done)
}

impl World {
    /// Everything that the agent does to a container.
    fn touch(&mut self, operation: Operation, id: &ShardId) {
        self.tell(|| format!("{operation} {id}"));
        if self.shards.foreign.contains(id) {
            self.note_broken(&format!("{operation}: {id} is not ours"));
        }
        self.note_call(operation, id);
    }

    /// Whoever listens hears of it, as a rule.
    pub(super) fn emit(&mut self, key: &crate::runtime::ShardKey, kind: &str) {
        if !self.faults.strike(&mut self.chance, 50) {
            self.shards.emit(key, kind);
        }
    }

    pub(super) fn end_due_shards(&mut self) {
        for key in self.shards.end_due(self.now()) {
            self.tell(|| format!("a shard of {key} has ended"));
            self.emit(&key, "die");
        }
    }

    fn start_shard(&mut self, id: &ShardId) -> Result<(), RuntimeError> {
        let (pid, started, now) = (self.shards.new_pid(), self.wall(), self.now());
        let missing = || RuntimeError::NoSuchShard { operation: Operation::Start, id: id.clone() };
        let shard = self.shards.all.get_mut(id).ok_or_else(missing)?;
        if shard.pid().is_some() {
            return Ok(());
        }
        shard.start(pid, started, now, &mut self.chance);
        let key = shard.key.clone();
        self.note_started(&key);
        self.emit(&key, "start");
        Ok(())
    }

    /// It ends some time from now; how long that takes.
    fn stop_shard(&mut self, id: &ShardId, grace: Duration) -> Duration {
        self.note_stop(id);
        let (now, most) = (self.now(), u64::try_from(grace.as_millis()).unwrap_or(u64::MAX).clamp(2, 60_000));
        let wait = self.chance.millis(1..most);
        let Some(shard) = self.shards.all.get_mut(id).filter(|shard| shard.pid().is_some()) else {
            return Duration::ZERO;
        };
        let at = shard.ends_at.map_or(now + wait, |at| at.min(now + wait));
        shard.ends_at = Some(at);
        at.saturating_sub(now)
    }
}

impl Runtime for Engine {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn version(&self) -> BoxFuture<'_, Result<String, RuntimeError>> {
        call(Operation::Version, |_| Ok("Simulated Engine".to_owned())).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Listing, RuntimeError>> {
        let list = |world: &mut World| {
            world.tell(|| "listing shards".to_owned());
            Ok(world.shards.listing())
        };
        call(Operation::List, list).boxed()
    }

    fn prepare<'a>(&'a self, _: &'a GroupSpec, _: ProgressSink<'a>) -> BoxFuture<'a, Result<(), RuntimeError>> {
        call(Operation::Pull, |_| Ok(())).boxed()
    }

    fn create<'a>(&'a self, order: &'a ShardOrder) -> BoxFuture<'a, Result<ShardId, RuntimeError>> {
        let create = |world: &mut World| {
            let id = world.shards.create(order);
            world.tell(|| format!("{id} is made for {} as generation {}", order.key, order.generation));
            world.note_call(Operation::Create, &id);
            world.emit(&order.key, "create");
            Ok(id)
        };
        call(Operation::Create, create).boxed()
    }

    fn start<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let start = |world: &mut World| {
            world.touch(Operation::Start, id);
            world.start_shard(id)
        };
        call(Operation::Start, start).boxed()
    }

    fn stop<'a>(&'a self, id: &'a ShardId, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let stop = move |world: &mut World| {
            world.touch(Operation::Stop, id);
            Ok(world.stop_shard(id, grace))
        };
        async move {
            tokio::time::sleep(call(Operation::Stop, stop).await?).await;
            with(World::end_due_shards);
            Ok(())
        }
        .boxed()
    }

    fn remove<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let remove = |world: &mut World| {
            world.touch(Operation::Remove, id);
            if let Some(shard) = world.shards.all.remove(id) {
                world.emit(&shard.key, "destroy");
            }
            Ok(())
        };
        call(Operation::Remove, remove).boxed()
    }

    fn update_cpus<'a>(&'a self, id: &'a ShardId, slot: &'a Slot) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let operation = Operation::UpdateCpus;
        let update = move |world: &mut World| {
            world.touch(operation, id);
            let moved = world.shards.move_to(id, slot);
            if moved { Ok(()) } else { Err(RuntimeError::NoSuchShard { operation, id: id.clone() }) }
        };
        call(operation, update).boxed()
    }

    fn unpause<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let unpause = |world: &mut World| {
            world.touch(Operation::Unpause, id);
            if world.shards.all.get(id).is_some_and(|shard| matches!(shard.state, ShardState::Paused { .. })) {
                freeze(world, id, false);
            }
            Ok(())
        };
        call(Operation::Unpause, unpause).boxed()
    }

    fn rename<'a>(&'a self, id: &'a ShardId, _: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        let rename = |world: &mut World| {
            world.touch(Operation::Rename, id);
            Ok(())
        };
        call(Operation::Rename, rename).boxed()
    }

    /// The check of a shard: it succeeds while the shard is ready.
    fn exec<'a>(
        &'a self,
        id: &'a ShardId,
        _: u32,
        _: &'a [String],
        _: Duration,
    ) -> BoxFuture<'a, Result<Executed, RuntimeError>> {
        let operation = Operation::Exec;
        let exec = move |world: &mut World| {
            let now = world.now();
            let shard = world.shards.all.get_mut(id).filter(|shard| shard.pid().is_some());
            let shard = shard.ok_or_else(|| RuntimeError::NoSuchShard { operation, id: id.clone() })?;
            shard.is_shown = shard.is_ready(now);
            shard.shown_since = shard.shown_since.filter(|_| shard.is_shown);
            Ok(Executed { end: End::Exited(i32::from(!shard.is_shown)), output: String::new() })
        };
        call(operation, exec).boxed()
    }

    fn health<'a>(&'a self, id: &'a ShardId) -> BoxFuture<'a, Result<EngineHealth, RuntimeError>> {
        let health = |world: &mut World| {
            let is_ready = world.shards.all.get(id).is_some_and(|shard| shard.is_ready(world.now()));
            Ok(if is_ready { EngineHealth::Healthy } else { EngineHealth::Unhealthy { output: String::new() } })
        };
        call(Operation::Health, health).boxed()
    }

    fn logs(&self, _: &ShardId, _: Option<usize>, _: bool) -> BoxStream<'static, Result<LogLine, RuntimeError>> {
        stream::empty().boxed()
    }

    fn events(&self) -> BoxStream<'static, Result<RuntimeEvent, RuntimeError>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        with(|world| match world.faults.engine_is_away {
            true => drop(sender.send(Err(gone(Operation::Events)))),
            false => world.shards.listeners.push(sender),
        });
        stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }).boxed()
    }
}

/// It goes away, and so do the streams of its events.
pub(super) fn go_away(world: &mut World) {
    world.faults.engine_is_away = true;
    for listener in world.shards.listeners.drain(..) {
        // The agent may be away too.
        let _ = listener.send(Err(gone(Operation::Events)));
    }
}

/// Somebody does by hand to a shard what only the agent should.
pub(super) fn remove_by_hand(world: &mut World, id: &ShardId) {
    if let Some(shard) = world.shards.all.remove(id) {
        world.emit(&shard.key, "destroy");
    }
}

/// Freezes one that runs, or thaws it.
pub(super) fn freeze(world: &mut World, id: &ShardId, is_frozen: bool) {
    let (wall, now) = (world.wall(), world.now());
    let Some(shard) = world.shards.all.get_mut(id) else { return };
    (shard.shown_since, shard.frozen_at) = (None, Some(now));
    shard.state = match (shard.state, is_frozen) {
        (ShardState::Running { pid, .. }, true) => ShardState::Paused { pid },
        (ShardState::Paused { pid }, false) => ShardState::Running { pid, started: wall },
        (state, _) => state,
    };
    let key = shard.key.clone();
    world.emit(&key, if is_frozen { "pause" } else { "unpause" });
}
