//! The simulated world of this thread: its clock, its chance, and the parts that the loop meets. Owns them; what they do is theirs.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sherd_topology::model::Host;

use super::{front::Kernel, holder::Holder, laws::Seen, plants::Plant, script::Faults, seconds, shards::Shards};
use crate::reconcile::memory::Memory;

/// When the simulated time begins, by the wall clock.
const BEGIN: Duration = Duration::from_secs(1_700_000_000);

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    /// What the loop's clock last said in this life.
    static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The agent was killed.
pub(super) struct Killed;

/// Everything outside the loop.
pub(super) struct World {
    pub(super) chance: Chance,
    pub(super) host: Host,
    pub(super) shards: Shards,
    pub(super) kernel: Kernel,
    pub(super) holder: Holder,
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) faults: Faults,
    pub(super) seen: Seen,
    /// A fault of the loop that was put there to be found.
    pub(super) plant: Option<Plant>,
    /// Fault points until the agent is killed at one.
    pub(super) dies_in: Option<u32>,
    /// What was found to be against a law, in order.
    pub(super) broken: Vec<String>,
    pub(super) is_told: bool,
    /// When the world began, by the wall clock.
    pub(super) began_at: Duration,
    /// Times are from there on: the agent's present life, in the world's time and in that of its timers.
    life: (Duration, Option<tokio::time::Instant>),
}

impl World {
    pub(super) fn new(chance: Chance, host: Host, is_told: bool) -> Self {
        Self {
            chance,
            host,
            shards: Shards::default(),
            kernel: Kernel::default(),
            holder: Holder::default(),
            files: BTreeMap::new(),
            faults: Faults::default(),
            seen: Seen::default(),
            plant: None,
            dies_in: None,
            broken: Vec::new(),
            is_told,
            began_at: BEGIN,
            life: (Duration::ZERO, None),
        }
    }

    /// Since the world began.
    pub(super) fn now(&self) -> Duration {
        let (before, began) = self.life;
        before + began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    pub(super) fn wall(&self) -> SystemTime {
        UNIX_EPOCH + self.began_at + self.now()
    }

    pub(super) fn begin_life(&mut self) {
        self.life = (self.now(), Some(tokio::time::Instant::now()));
        LAST.set(None);
    }

    /// Its timers' clock is about to go.
    pub(super) fn end_life(&mut self) {
        self.life = (self.now(), None);
        self.dies_in = None;
    }

    /// No agent is there for so long.
    pub(super) fn pass(&mut self, time: Duration) {
        self.life.0 += time;
    }

    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        if self.is_told {
            println!("{} {}", seconds(self.now()), what());
        }
    }

    /// A law is broken.
    pub(super) fn note_broken(&mut self, what: &str) {
        self.tell(|| format!("BROKEN: {what}"));
        self.broken.push(format!("at {} s: {what}", seconds(self.now()).trim()));
    }

    pub(super) fn dies_at(&mut self, point: &str) -> bool {
        let Some(left) = &mut self.dies_in else { return false };
        *left = left.saturating_sub(1);
        let dies = *left == 0;
        if dies {
            self.dies_in = None;
            self.seen.note_death(point);
            self.tell(|| format!("the agent is killed at {point}"));
        }
        dies
    }

    /// Now and then there is none for a second shard, or nobody can tell.
    pub(super) fn memory(&mut self) -> std::io::Result<Memory> {
        let available = if self.faults.strike(&mut self.chance, 100) { 1 } else { 1 << 30 };
        Ok(Memory { needed: 1 << 20, available, on_nodes: None })
    }
}

pub(super) fn after_the_last(now: Instant) -> Instant {
    let now = LAST.get().map_or(now, |last| now.max(last + Duration::from_nanos(1)));
    LAST.set(Some(now));
    now
}

pub(super) fn is_on() -> bool {
    IS_ON.get()
}

/// Looks at this thread's world, or changes it.
///
/// # Panics
/// When there is none.
pub(super) fn with<T>(look: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(|world| look(world.as_mut().expect("a simulated world")))
}

pub(super) fn put(world: World) {
    WORLD.set(Some(world));
    IS_ON.set(true);
}

pub(super) fn take() -> Option<World> {
    IS_ON.set(false);
    WORLD.take()
}

/// SplitMix64 (Steele et al., 2014).
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }

    pub(super) fn in_range(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    pub(super) fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.in_range(range))
    }

    /// True in so many of a thousand cases.
    pub(super) fn per_mille(&mut self, cases: u64) -> bool {
        self.below(1000) < cases
    }

    pub(super) fn of_these<'a, T>(&mut self, these: &'a [T]) -> &'a T {
        &these[self.below(these.len() as u64) as usize]
    }
}
