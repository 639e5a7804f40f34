//! The control loop under a simulated engine, kernel, holder, disk and clock, with seeded faults at every call. What runs is the real
//! [`super::Reconciler`]; `world`, `store::disk` and `clock` lead here while a world is on.
//!
//! A seed decides everything: what the operator does, what happens to shards, which calls fail and how, when the agent is killed.
//! After each turn of the loop the laws are checked ([`laws`]), and once faults have stopped it has to converge.
//! Compiled with the feature `simulation`, because the loop's types are others then.
//! `SHERD_SEED=N cargo test -p sherd --lib --features simulation simulation -- --nocapture` replays one with its trace, `SHERD_SEEDS=N` runs so many.

use std::{
    io,
    time::{Duration, Instant, SystemTime},
};

use sherd_topology::{model::Host, plan::Slot};
use tokio::task::JoinHandle;

use super::{
    inspect::{Question, Reach, Unreached},
    memory::Memory,
};
use crate::runtime::verify::PinningFault;

mod engine;
pub(crate) mod files;
mod front;
mod holder;
mod laws;
mod life;
mod plants;
mod script;
mod shards;
mod state;
mod tests;
mod worker;

use self::state::{World, with};
pub(super) use self::{
    front::{Explanation, Front},
    holder::HolderClient,
    plants::{next_steps, plan},
    worker::Worker,
};

/// Whether this thread's world is a simulated one.
pub(crate) fn is_on() -> bool {
    state::is_on()
}

/// The simulated wall clock.
pub(crate) fn wall() -> Option<SystemTime> {
    is_on().then(|| with(|world| world.wall()))
}

/// A clock that stands while something is done; as any other it gives no time twice.
pub(crate) fn after_the_last(now: Instant) -> Instant {
    if is_on() { state::after_the_last(now) } else { now }
}

/// The agent may be killed here.
pub(crate) fn at_fault_point(name: &str) {
    if is_on() && with(|world| world.dies_at(name)) {
        // Not a panic of anybody's: no message, no backtrace.
        std::panic::resume_unwind(Box::new(state::Killed));
    }
}

/// Like a thread that does something: later, and in one go.
pub(super) fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let wait = with(|world| world.chance.millis(0..3));
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        act()
    })
}

pub(super) fn ask(question: &Question) -> Result<Reach, Unreached> {
    with(|world| {
        let (now, lies) = (world.now(), world.faults.strike(&mut world.chance, 20));
        match world.believes_what_runs() {
            true => world.shards.reach(question).map(|(_, reach)| reach),
            false => world.shards.ask(question, now, lies),
        }
    })
}

pub(super) fn pinning(pid: u32, place: &Slot) -> Result<(), PinningFault> {
    with(|world| world.shards.pinning(pid, place))
}

pub(super) fn age(pid: u32) -> Option<Duration> {
    with(|world| world.shards.by_pid(pid)?.age(world.wall()))
}

pub(super) fn memory() -> io::Result<Memory> {
    with(World::memory)
}

pub(super) fn cpus_of_host() -> String {
    with(|world| world.host.online().to_string())
}

pub(super) fn host() -> Host {
    with(|world| world.host.clone())
}

/// A time of the world, in seconds.
fn seconds(time: Duration) -> String {
    format!("{:9.3}", time.as_secs_f64())
}
