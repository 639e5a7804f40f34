//! Deadlines of many connections: a hierarchical timing wheel. Pure: time comes in as ticks, and what expires comes
//! out as indexes; it knows no clock and no connection.
//!
//! Each entry is an index of the caller's slab and sits in at most one bucket. An entry that falls due is handed to
//! the caller, who looks at the real deadline and puts it back if that has moved: activity on a connection costs one
//! store in the connection, never a move in the wheel.

/// Ticks since the worker began; one is [`TICK_MILLIS`] long.
pub(super) type Tick = u32;

/// How long a tick is, and so how late a deadline may be noticed.
pub(super) const TICK_MILLIS: u64 = 16;

const LEVELS: usize = 4;
const BITS: u32 = 6;
const BUCKETS: usize = 1 << BITS;
/// No further ahead than this: 64^4 ticks are three days. What is later is looked at then, and put back.
const HORIZON: Tick = (1 << (BITS * LEVELS as u32)) - 1;
const NONE: u32 = u32::MAX;
const OUT: u16 = u16::MAX;

/// See the module.
#[derive(Debug)]
pub(super) struct Wheel {
    now: Tick,
    /// The first entry of each bucket.
    heads: [[u32; BUCKETS]; LEVELS],
    /// A bit for each bucket with entries.
    filled: [u64; LEVELS],
    /// By the caller's index.
    links: Vec<Link>,
    /// What has fallen due and was not handed out yet.
    due: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
    /// `level * BUCKETS + bucket`, `DUE`, or `OUT`.
    place: u16,
}

const DUE: u16 = OUT - 1;

impl Wheel {
    pub(super) fn new() -> Self {
        Self { now: 0, heads: [[NONE; BUCKETS]; LEVELS], filled: [0; LEVELS], links: Vec::new(), due: NONE }
    }

    /// Puts `index` in for `deadline`, or moves it there.
    pub(super) fn set(&mut self, index: u32, deadline: Tick) {
        if self.links.len() <= index as usize {
            self.links.resize(index as usize + 1, Link { next: NONE, previous: NONE, place: OUT });
        }
        self.clear(index);
        let deadline = deadline.clamp(self.now.saturating_add(1), self.now.saturating_add(HORIZON));
        let place = self.place_of(deadline);
        self.push(index, place);
    }

    /// Takes `index` out, if it is in.
    pub(super) fn clear(&mut self, index: u32) {
        let Some(&Link { next, previous, place }) = self.links.get(index as usize) else { return };
        if place == OUT {
            return;
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        if previous == NONE {
            self.set_head(place, next);
        } else {
            self.links[previous as usize].next = next;
        }
        self.links[index as usize].place = OUT;
    }

    /// When something has to be looked at next: never later than the earliest deadline.
    pub(super) fn next(&self) -> Option<Tick> {
        if self.due != NONE {
            return Some(self.now);
        }
        (0..LEVELS).filter_map(|level| self.next_in(level)).min()
    }

    /// The next entry that is due at `now`, taken out. `None`: nothing more is.
    pub(super) fn expired(&mut self, now: Tick) -> Option<u32> {
        while self.due == NONE {
            let next = self.next()?;
            if next > now {
                self.now = self.now.max(now);
                return None;
            }
            self.turn_to(next);
        }
        let index = self.due;
        self.clear(index);
        Some(index)
    }

    /// Goes to `tick`, where at least one bucket comes up: the lowest level's entries fall due, the others' go down.
    fn turn_to(&mut self, tick: Tick) {
        self.now = tick;
        for level in (0..LEVELS).rev() {
            let shift = BITS * level as u32;
            if tick & ((1 << shift) - 1) != 0 {
                continue;
            }
            let bucket = (tick >> shift) as usize & (BUCKETS - 1);
            while self.heads[level][bucket] != NONE {
                let index = self.heads[level][bucket];
                self.clear(index);
                // The exact deadline isn't stored: the owner is asked, and sets it again.
                self.push(index, DUE);
            }
        }
    }

    fn place_of(&self, deadline: Tick) -> u16 {
        // The highest bit in which deadline and now differ says how long they share a bucket of each level.
        let differing = (deadline ^ self.now).max(1).ilog2();
        let level = ((differing / BITS) as usize).min(LEVELS - 1);
        let bucket = (deadline >> (BITS * level as u32)) as usize & (BUCKETS - 1);
        (level * BUCKETS + bucket) as u16
    }

    fn next_in(&self, level: usize) -> Option<Tick> {
        if self.filled[level] == 0 {
            return None;
        }
        let shift = BITS * level as u32;
        let current = self.now >> shift;
        // Distance to the next filled bucket after the current one; a full turn where it is the current one itself.
        let ahead = self.filled[level].rotate_right((current + 1) & (BUCKETS as u32 - 1)).trailing_zeros() + 1;
        Some(current.saturating_add(ahead) << shift)
    }

    fn push(&mut self, index: u32, place: u16) {
        let head = self.head(place);
        self.links[index as usize] = Link { next: head, previous: NONE, place };
        if head != NONE {
            self.links[head as usize].previous = index;
        }
        self.set_head(place, index);
    }

    fn head(&self, place: u16) -> u32 {
        match place {
            DUE => self.due,
            _ => self.heads[place as usize / BUCKETS][place as usize % BUCKETS],
        }
    }

    fn set_head(&mut self, place: u16, index: u32) {
        if place == DUE {
            self.due = index;
            return;
        }
        let (level, bucket) = (place as usize / BUCKETS, place as usize % BUCKETS);
        self.heads[level][bucket] = index;
        if index == NONE {
            self.filled[level] &= !(1 << bucket);
        } else {
            self.filled[level] |= 1 << bucket;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Set(u32, Tick),
        Clear(u32),
        Pass(Tick),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let ahead = prop_oneof![0..70u32, 0..5_000u32, 0..400_000u32, 0..40_000_000u32];
        let step = prop_oneof![
            4 => (0..40u32, ahead.clone()).prop_map(|(index, ahead)| Step::Set(index, ahead)),
            1 => (0..40u32).prop_map(Step::Clear),
            3 => ahead.prop_map(Step::Pass),
        ];
        prop::collection::vec(step, 1..200)
    }

    /// What the worker does: ask, and put back what isn't due yet.
    fn expire(wheel: &mut Wheel, deadlines: &mut BTreeMap<u32, Tick>, now: Tick) -> Vec<u32> {
        let mut fired = Vec::new();
        while let Some(index) = wheel.expired(now) {
            let deadline = deadlines[&index];
            if deadline <= now {
                deadlines.remove(&index);
                fired.push(index);
            } else {
                wheel.set(index, deadline);
            }
        }
        fired
    }

    proptest! {
        #[test]
        fn everything_fires_at_its_deadline_and_nothing_before(steps in steps()) {
            let mut wheel = Wheel::new();
            let mut deadlines = BTreeMap::new();
            let mut now: Tick = 0;
            for step in steps {
                match step {
                    Step::Set(index, ahead) => {
                        deadlines.insert(index, now + ahead.max(1));
                        wheel.set(index, now + ahead.max(1));
                    }
                    Step::Clear(index) => {
                        deadlines.remove(&index);
                        wheel.clear(index);
                    }
                    Step::Pass(ticks) => {
                        now += ticks;
                        expire(&mut wheel, &mut deadlines, now);
                        prop_assert!(deadlines.values().all(|deadline| *deadline > now));
                    }
                }
                let earliest = deadlines.values().min();
                prop_assert!(wheel.next().is_some() == earliest.is_some());
                if let (Some(next), Some(earliest)) = (wheel.next(), earliest) {
                    prop_assert!(next <= *earliest, "sleeps until {next}, but {earliest} is due");
                }
            }
        }
    }
}
