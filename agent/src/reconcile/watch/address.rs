//! One look after the other at the slots of one published address.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use sherd_lb::{
    cells::{Counts, LostConnections, SlotCells},
    sockdiag,
    stall::{AcceptQueue, Finding, QueueSample, StallBounds},
    table::SlotIndex,
};
use sherd_topology::plan::GroupName;

use super::{BUSY, CALM, Found, IDLE, LAZY, WatchedAddress, WatchedShape, WatchedSlot, bounds::bounds};
use crate::{reconcile::message::Message, runtime::procfs};

/// An address, and what was seen of it.
#[derive(Debug)]
pub(super) struct Looks {
    watched: WatchedAddress,
    slots: BTreeMap<SlotIndex, SlotLooks>,
    /// When its cells were last looked at, and something had moved.
    last: Option<Instant>,
    moved: Option<Instant>,
    /// When the slots' bounds were last set.
    bounded: Option<Instant>,
    /// How often steering had met an empty place when it was last asked, and when that was.
    misses: u64,
    asked: Option<Instant>,
}

#[derive(Debug)]
struct SlotLooks {
    /// Whose queue it is.
    listener: Option<u64>,
    counts: Counts,
    lost: LostConnections,
    queue: AcceptQueue,
    queued: u32,
    /// Its queue is to be looked at, and could not be.
    due: bool,
    /// What each of its threads had waited for a CPU when its queue was last seen to stand.
    delays: BTreeMap<u32, Duration>,
}

impl SlotLooks {
    fn new(listener: Option<u64>) -> Self {
        let queue = AcceptQueue::new(StallBounds::default());
        let (counts, lost) = (Counts::default(), LostConnections::default());
        Self { listener, counts, lost, queue, queued: 0, due: false, delays: BTreeMap::new() }
    }

    /// Whether its accept queue can have anything in it.
    fn is_due(&self, counts: Counts) -> bool {
        self.listener.is_some()
            && (self.due || counts.established != self.counts.established || self.queued > 0 || self.queue.is_hung())
    }

    /// How long that thread of its which waited longest, having work, has waited for a CPU since the last look. One that
    /// accepts may be another; but where one waits there is not enough for all.
    fn starved(&mut self, pid: u32) -> Duration {
        let delays = procfs::run_delays(pid);
        let before = std::mem::replace(&mut self.delays, delays);
        if before.is_empty() && !self.delays.is_empty() {
            // Of the time before the first look nothing is known.
            return Duration::MAX;
        }
        let waited = |(tid, delay): (&u32, &Duration)| delay.saturating_sub(*before.get(tid).unwrap_or(delay));
        self.delays.iter().map(waited).max().unwrap_or_default()
    }
}

impl Looks {
    /// Goes on with these addresses, and with what was seen of those that stay.
    pub(super) fn renew(before: Vec<Self>, now: Vec<WatchedAddress>) -> Vec<Self> {
        let key = |watched: &WatchedAddress| (watched.shape.group.clone(), watched.shape.address);
        let mut before: BTreeMap<_, _> = before.into_iter().map(|looks| (key(&looks.watched), looks)).collect();
        let renewed = |watched: WatchedAddress| {
            let mut looks = match before.remove(&key(&watched)) {
                Some(looks) => Self { watched, ..looks },
                None => Self {
                    watched,
                    slots: BTreeMap::new(),
                    last: None,
                    moved: None,
                    bounded: None,
                    misses: 0,
                    asked: None,
                },
            };
            looks.renew_slots();
            looks
        };
        now.into_iter().map(renewed).collect()
    }

    fn renew_slots(&mut self) {
        let watched = &self.watched.shape.slots;
        self.slots.retain(|index, _| watched.iter().any(|slot| slot.index == *index));
        for slot in watched {
            let listener = slot.shard.map(|(listener, _)| listener);
            let looks = self.slots.entry(slot.index).or_insert_with(|| SlotLooks::new(listener));
            if looks.listener != listener {
                *looks = SlotLooks::new(listener);
            }
        }
    }

    pub(super) fn is_of(&self, group: &GroupName, address: SocketAddr) -> bool {
        self.watched.shape.group == *group && self.watched.shape.address == address
    }

    pub(super) fn note_moved(&mut self, now: Instant, listener: u64, moved: bool) {
        let of = self.slots.values_mut().find(|looks| looks.listener == Some(listener));
        of.into_iter().for_each(|looks| looks.queue.note_moved(now, moved));
    }

    /// Whether a queue of it may have begun to stand.
    pub(super) fn is_suspicious(&self) -> bool {
        self.slots.values().any(|looks| looks.queue.is_suspicious())
    }

    /// Whether shards accept here themselves.
    pub(super) fn is_direct(&self) -> bool {
        self.watched.shape.slots.iter().any(|slot| slot.is_direct)
    }

    /// Looks once; true if anything moves, or waits.
    pub(super) fn look(&mut self, now: Instant, tell: &mut impl FnMut(Message)) -> bool {
        self.look_for_misses(now, tell);
        if !self.is_due(now) {
            return false;
        }
        self.last = Some(now);
        let Self { watched: WatchedAddress { shape, cells: Some(cells), .. }, slots, bounded, .. } = self else {
            return false;
        };
        let (mut due, mut moves) = (false, false);
        for slot in &shape.slots {
            let Some(looks) = slots.get_mut(&slot.index) else { continue };
            let counts = cells.counts(slot.index);
            if let Some(lost) = looks.lost.observe(now, counts.pending()) {
                cells.add_lost(slot.index, lost);
            }
            looks.due = looks.is_due(counts);
            due |= looks.due;
            moves |= counts.picked != looks.counts.picked;
            looks.counts = counts;
        }
        if moves && bounded.is_none_or(|at| now.duration_since(at) >= IDLE) {
            *bounded = Some(now);
            set_bounds(cells, &shape.slots);
        }
        if due {
            self.look_at_queues(now, tell);
        }
        if moves || due {
            self.moved = Some(now);
        }
        moves || due
    }

    /// Where no shard can hang and nothing moves there is only what was lost to be found, once in a second.
    fn is_due(&self, now: Instant) -> bool {
        let within = |at: Option<Instant>, bound| at.is_some_and(|at| now.duration_since(at) < bound);
        // Rounds come a little early, too.
        self.is_direct() || within(self.moved, CALM) || !within(self.last, LAZY - BUSY)
    }

    /// Steering tries again where a shard has closed its listener, and counts that: one number is looked at often, instead of
    /// every listener.
    fn look_for_misses(&mut self, now: Instant, tell: &mut impl FnMut(Message)) {
        let due = self.asked.is_none_or(|at| now.duration_since(at) >= IDLE);
        let Some(misses) = self.watched.misses.as_ref().filter(|_| due) else { return };
        self.asked = Some(now);
        // What can't be read now can be a moment later.
        let Ok(count) = misses.count() else { return };
        if std::mem::replace(&mut self.misses, count) != count {
            tell(Message::Missed);
        }
    }

    fn look_at_queues(&mut self, now: Instant, tell: &mut impl FnMut(Message)) {
        let WatchedAddress { shape, cells: Some(cells), .. } = &self.watched else { return };
        let Ok(listening) = sockdiag::listeners(shape.address.port()) else { return };
        for slot in &shape.slots {
            let (Some((cookie, pid)), Some(looks)) = (slot.shard, self.slots.get_mut(&slot.index)) else { continue };
            let Some(listener) = listening.iter().find(|listening| listening.cookie == cookie) else { continue };
            let established = looks.counts.established;
            let starved = match listener.queued {
                0 => {
                    looks.delays.clear();
                    Duration::ZERO
                }
                // Most queues move: then nobody has to be asked.
                queued if looks.queue.moves(established, queued) => Duration::ZERO,
                _ => looks.starved(pid),
            };
            (looks.queued, looks.due) = (listener.queued, false);
            let established = [established, cells.counts(slot.index).established];
            let sample = QueueSample { queued: listener.queued, established, starved };
            if let Some(finding) = looks.queue.observe(now, sample) {
                tell(Message::Found(found(shape, slot, cookie, finding)));
            }
        }
    }
}

fn set_bounds(cells: &SlotCells, watched: &[WatchedSlot]) {
    let slots: Vec<_> =
        watched.iter().map(|slot| (slot.weight, cells.load(slot.index).load, slot.in_service)).collect();
    for (slot, bound) in watched.iter().zip(bounds(&slots)) {
        cells.set_bound(slot.index, bound);
    }
}

fn found(watched: &WatchedShape, slot: &WatchedSlot, listener: u64, finding: Finding) -> Found {
    Found { group: watched.group.clone(), slot: slot.id, address: watched.address, listener, finding }
}
