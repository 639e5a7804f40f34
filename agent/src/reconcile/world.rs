//! The loop's ways to the kernel and to threads beside it. In its tests another world can be in their place (`simulation`), in which the
//! same loop runs. Decides nothing.

use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};

use sherd_lb::cells::Cells;
use sherd_topology::{
    discover::{self, DiscoverError},
    model::Host,
    plan::Slot,
};
use tokio::task::JoinHandle;

#[cfg(not(all(test, feature = "simulation")))]
pub(super) use sherd_lb::{
    front::{Explanation, Front},
    holder::HolderClient,
    relay::Worker,
};
#[cfg(not(all(test, feature = "simulation")))]
pub(super) use sherd_topology::plan::plan;

#[cfg(not(all(test, feature = "simulation")))]
pub(super) use super::plan::next_steps;
#[cfg(all(test, feature = "simulation"))]
use super::simulation;
#[cfg(all(test, feature = "simulation"))]
pub(super) use super::simulation::{Explanation, Front, HolderClient, Worker, next_steps, plan};
use super::{
    drift::{self, Reading},
    inspect::{Question, Reach, Unreached},
    memory::Memory,
};
use crate::runtime::{
    procfs,
    verify::{self, PinningFault},
};

/// Answers for the real world where no simulated one is there.
macro_rules! simulated {
    ($($answer:expr)?) => {
        #[cfg(all(test, feature = "simulation"))]
        if simulation::is_on() {
            return $($answer)?;
        }
    };
}

/// Does what blocks beside the loop.
pub(super) fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    simulated!(simulation::blocking(act));
    tokio::task::spawn_blocking(act)
}

/// Starts a thread that ends by itself.
///
/// # Errors
/// As pthread_create(3).
pub(super) fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    simulated!(Ok(()));
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

/// See [`Question::ask`].
pub(super) fn ask(question: &Question, known: Option<Reach>, proven: bool) -> Result<Reach, Unreached> {
    simulated!(simulation::ask(question));
    question.ask(known, proven)
}

/// See [`verify::pinning`].
pub(super) fn pinning(pid: u32, place: &Slot) -> Result<(), PinningFault> {
    simulated!(simulation::pinning(pid, place));
    verify::pinning(pid, place)
}

/// See [`Memory::read`].
pub(super) fn memory(limit_bytes: Option<u64>, place: &Slot, serving_pid: u32) -> io::Result<Memory> {
    simulated!(simulation::memory());
    Memory::read(limit_bytes, place, serving_pid)
}

/// See [`drift::cpus_of_host`].
pub(super) fn cpus_of_host() -> io::Result<String> {
    simulated!(Ok(simulation::cpus_of_host()));
    drift::cpus_of_host()
}

/// What this thread has used so far.
pub(super) fn cpu_time() -> Duration {
    simulated!(Duration::ZERO);
    drift::cpu_time()
}

/// See [`procfs::age`].
pub(super) fn age(pid: u32) -> Option<Duration> {
    simulated!(simulation::age(pid));
    procfs::age(pid)
}

/// See [`procfs::is_stopped`]. Simulated shards are no processes.
pub(super) fn is_stopped(pid: u32) -> bool {
    simulated!(false);
    procfs::is_stopped(pid)
}

/// See [`Reading::of`]. A simulated host has room for everything.
pub(super) fn resources(directories: &[PathBuf]) -> Reading {
    simulated!(Reading::of(&[]));
    Reading::of(directories)
}

/// See [`discover::this_host`].
pub(super) fn this_host() -> Result<Host, DiscoverError> {
    simulated!(Ok(simulation::host()));
    discover::this_host()
}

/// See [`Cells::create`].
///
/// # Errors
/// As bpf(2). A simulated kernel counts nothing.
pub(super) fn make_cells() -> io::Result<Arc<Cells>> {
    simulated!(Err(io::ErrorKind::Unsupported.into()));
    Cells::create()
}

/// Guards of agents that could not end in order are removed.
pub(super) fn remove_former_guards(instance: &str) {
    simulated!();
    super::direct::Means::remove_former(instance);
}

/// See [`sherd_lb::heap::return_free_memory`].
pub(super) fn return_free_memory() {
    simulated!();
    sherd_lb::heap::return_free_memory();
}
