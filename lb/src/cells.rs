//! What is counted of each slot of each published address: one array that the eBPF programs, relay workers and the agent
//! share, of which each address has a range. Owns its layout (bpf/cells.h) and who has which range; counts nothing itself.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

mod lost;
mod reading;

pub use lost::LostConnections;
pub use reading::{ANSWER_BOUNDS_MICROS, CellReading, Counts, DURATION_BOUNDS_MICROS, Histogram, RTT_BOUNDS_MICROS};

use crate::{
    sys::{bpf, shared_map::SharedMap},
    table::{Load, SlotIndex},
};

const VERSION: u64 = 3;
const CELLS: u32 = 8192;
const CELL_SIZE: usize = 64;
const TALLY_SIZE: usize = 512;
/// Of a value of the array: eight cells, or one tally.
const VALUE_SIZE: usize = 512;
const CELLS_OF_A_VALUE: u32 = (VALUE_SIZE / CELL_SIZE) as u32;
const FIRST_TALLY: u32 = CELLS / CELLS_OF_A_VALUE;
const VALUES: u32 = FIRST_TALLY + CELLS;
const PAGE_SIZE: usize = 4096;
/// Ranges begin where tallies begin a page, so that each address maps its own only: the array has 4.5 MiB. Their cells then
/// have values of their own, and share a page with others'.
const RANGE_STEP: u32 = (PAGE_SIZE / TALLY_SIZE) as u32;
/// Of an address that has none; bpf/cells.h.
pub(crate) const NO_CELL: u32 = u32::MAX;

/// Offsets in `struct cell`.
mod cell {
    pub(super) const PICKED: usize = 0;
    pub(super) const ESTABLISHED: usize = 8;
    pub(super) const CLOSED: usize = 16;
    pub(super) const LOST: usize = 24;
    pub(super) const RELAYED: usize = 32;
    pub(super) const RELAYED_CLOSED: usize = 40;
    pub(super) const PRESSURE: usize = 48;
    pub(super) const BOUND: usize = 52;
    pub(super) const WEIGHT: usize = 56;
}

/// Offsets in `struct tally`.
mod tally {
    pub(super) const BYTES_RECEIVED: usize = 0;
    pub(super) const BYTES_ACKED: usize = 8;
    pub(super) const RETRANSMITS: usize = 16;
    pub(super) const RTT_SUM: usize = 24;
    pub(super) const DURATION_SUM: usize = 32;
    pub(super) const MIGRATED: usize = 40;
    pub(super) const CONTAINED: usize = 48;
    pub(super) const VERSION: usize = 56;
    pub(super) const UNANSWERED: usize = 64;
    pub(super) const IGNORED: usize = 72;
    pub(super) const ANSWER_SUM: usize = 80;
    pub(super) const ANSWER_SQUARES: usize = 88;
    pub(super) const ANSWER: usize = 96;
    pub(super) const RTT: usize = 152;
    pub(super) const DURATION: usize = 312;
}

/// The array.
#[derive(Debug)]
pub struct Cells {
    map: OwnedFd,
    id: u32,
    /// Tally 0, which no slot has: what is counted for all of them.
    common: SharedMap,
    taken: Mutex<Taken>,
}

/// Ranges, each by its first cell and how many there are.
#[derive(Debug)]
struct Taken {
    used: BTreeMap<u32, u32>,
    /// Of addresses of a former agent that have not been taken over yet.
    reserved: BTreeMap<u32, u32>,
}

impl Taken {
    fn all(&self) -> BTreeMap<u32, u32> {
        self.used.iter().chain(&self.reserved).map(|(first, count)| (*first, *count)).collect()
    }
}

impl PartialEq for Cells {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Cells {}

impl Cells {
    /// # Errors
    /// Where bpf(2) is not permitted.
    pub fn create() -> io::Result<Arc<Self>> {
        let map = bpf::create_array(VALUE_SIZE as u32, VALUES)?;
        let cells = Self::open(map)?;
        cells.common.store_u64s(tally::VERSION, &[VERSION]);
        Ok(Arc::new(cells))
    }

    /// The array that an earlier process made: put it into the holder.
    ///
    /// # Errors
    /// When it is none of this version.
    pub fn adopt(map: OwnedFd) -> io::Result<Arc<Self>> {
        let info = bpf::info(map.as_fd())?;
        if (info.value_size as usize, info.max_entries) != (VALUE_SIZE, VALUES) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not the cells of this version of sherd"));
        }
        let cells = Self::open(map)?;
        match cells.common.load_u64(tally::VERSION) {
            VERSION => Ok(Arc::new(cells)),
            found => Err(io::Error::new(io::ErrorKind::InvalidData, format!("cells of version {found}"))),
        }
    }

    fn open(map: OwnedFd) -> io::Result<Self> {
        let common = SharedMap::part(map.as_fd(), tally_at(0), TALLY_SIZE)?;
        let id = bpf::info(map.as_fd())?.id;
        let taken = Taken { used: BTreeMap::from([(0, RANGE_STEP)]), reserved: BTreeMap::new() };
        Ok(Self { map, id, common, taken: Mutex::new(taken) })
    }

    /// For the holder.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Sockets of the guard that were made to listen by somebody else than the agent, and contained; since the array was
    /// made.
    pub fn contained(&self) -> u64 {
        self.common.load_u64(tally::CONTAINED)
    }

    /// The kernel's number of the array.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Room for an address. `None`: there is no more.
    ///
    /// Not where connections of an address that was given up are still open: the kernel will count them as closed there.
    /// The cells themselves tell, so no process needs to remember. Relayed ones need no such care: their workers keep the
    /// address's room, and end with their process.
    pub(crate) fn take(self: &Arc<Self>, slots: u32) -> io::Result<Option<Arc<SlotCells>>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        // Mapped for this only: what is mapped and read counts as this process's memory.
        let cells = SharedMap::new(self.map.as_fd(), CELLS as usize * CELL_SIZE)?;
        let word = |number: u32, offset| cells.load_u64(number as usize * CELL_SIZE + offset);
        let is_quiet = |number| word(number, cell::ESTABLISHED) == word(number, cell::CLOSED);
        let Some(base) = gap(&taken.all(), slots, is_quiet) else { return Ok(None) };
        let range = SlotCells::map(self, base, slots)?;
        range.clear();
        taken.used.insert(base, slots);
        Ok(Some(Arc::new(range)))
    }

    /// The room that an address has had before. `None`: it can't be that address's.
    pub(crate) fn take_again(self: &Arc<Self>, base: u32, slots: u32) -> io::Result<Option<Arc<SlotCells>>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = base..base.saturating_add(slots);
        let fits = wanted.end <= CELLS && base.is_multiple_of(RANGE_STEP);
        taken.reserved.remove(&base);
        if !fits || taken.all().iter().any(|(first, count)| overlap(&(*first..first + count), &wanted)) {
            return Ok(None);
        }
        let range = SlotCells::map(self, base, slots)?;
        taken.used.insert(base, slots);
        Ok(Some(Arc::new(range)))
    }

    /// Keeps the room of an address that will be taken over from others.
    pub(crate) fn reserve(&self, base: u32, slots: u32) {
        if base != NO_CELL && base.checked_add(slots).is_some_and(|end| end <= CELLS) {
            self.taken.lock().unwrap_or_else(PoisonError::into_inner).reserved.insert(base, slots);
        }
    }

    /// Every address has been taken over that will be: what is still reserved is nobody's.
    pub fn end_reservations(&self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).reserved.clear();
    }
}

fn overlap(one: &Range<u32>, other: &Range<u32>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Where the tally of that number is, in bytes.
fn tally_at(number: u32) -> usize {
    (FIRST_TALLY + number) as usize * VALUE_SIZE
}

/// The first place, at a page of tallies, where so many are free, all of them quiet.
fn gap(taken: &BTreeMap<u32, u32>, slots: u32, is_quiet: impl Fn(u32) -> bool) -> Option<u32> {
    let ends = taken.iter().map(|(first, count)| (first + count).next_multiple_of(RANGE_STEP));
    let nexts = taken.keys().skip(1).copied().chain([CELLS]);
    ends.zip(nexts).find_map(|(end, next)| {
        let mut base = end;
        while base + slots <= next {
            match (base..base + slots).rev().find(|number| !is_quiet(*number)) {
                None => return Some(base),
                Some(loud) => base = (loud + 1).next_multiple_of(RANGE_STEP),
            }
        }
        None
    })
}

/// The cells of one address. Dropping it gives its room to others.
#[derive(Debug)]
pub struct SlotCells {
    cells: Arc<Cells>,
    base: u32,
    slots: u32,
    /// The pages that its cells are in; offsets are from the first of its own.
    shared: SharedMap,
    shared_from: usize,
    tallies: SharedMap,
}

impl SlotCells {
    fn map(cells: &Arc<Cells>, base: u32, slots: u32) -> io::Result<Self> {
        let (map, slots_usize) = (cells.map.as_fd(), slots as usize);
        let shared_from = base as usize * CELL_SIZE % PAGE_SIZE;
        let shared_len = shared_from + slots_usize * CELL_SIZE;
        let shared = SharedMap::part(map, base as usize * CELL_SIZE - shared_from, shared_len)?;
        let tallies = SharedMap::part(map, tally_at(base), slots_usize * TALLY_SIZE)?;
        Ok(Self { cells: Arc::clone(cells), base, slots, shared, shared_from, tallies })
    }

    fn clear(&self) {
        self.shared.store_u64s(self.shared_from, &vec![0; self.slots as usize * CELL_SIZE / 8]);
        self.tallies.store_u64s(0, &vec![0; self.slots as usize * TALLY_SIZE / 8]);
    }

    /// The number of the first slot's cell.
    pub(crate) fn base(&self) -> u32 {
        self.base
    }

    pub(crate) fn array(&self) -> &Arc<Cells> {
        &self.cells
    }

    /// The number of a slot's cell; `None` for one beyond the address's.
    pub fn number(&self, slot: SlotIndex) -> Option<u32> {
        (u32::from(slot.0) < self.slots).then(|| self.base + u32::from(slot.0))
    }

    /// All that is counted of a slot; zeros for one beyond the address's.
    pub fn read(&self, slot: SlotIndex) -> CellReading {
        if u32::from(slot.0) >= self.slots {
            return CellReading::default();
        }
        let word = |offset| self.tallies.load_u64(usize::from(slot.0) * TALLY_SIZE + offset);
        CellReading {
            counts: self.counts(slot),
            migrated: word(tally::MIGRATED),
            bytes_received: word(tally::BYTES_RECEIVED),
            bytes_sent: word(tally::BYTES_ACKED),
            retransmits: word(tally::RETRANSMITS),
            unanswered: word(tally::UNANSWERED),
            ignored: word(tally::IGNORED),
            first_answer: Histogram::read(word(tally::ANSWER_SUM), |n| word(tally::ANSWER + 8 * n)),
            first_answer_squares: word(tally::ANSWER_SQUARES),
            rtt: Histogram::read(word(tally::RTT_SUM), |n| word(tally::RTT + 8 * n)),
            duration: Histogram::read(word(tally::DURATION_SUM), |n| word(tally::DURATION + 8 * n)),
        }
    }

    /// Its connections alone.
    pub fn counts(&self, slot: SlotIndex) -> Counts {
        let Some(at) = self.at(slot) else { return Counts::default() };
        let word = |offset| self.shared.load_u64(at + offset);
        // What is subtracted comes first: the difference never seems negative.
        let closed = word(cell::CLOSED) + word(cell::RELAYED_CLOSED);
        let established = word(cell::ESTABLISHED) + word(cell::RELAYED);
        Counts { picked: word(cell::PICKED), established, closed, lost: word(cell::LOST).cast_signed() }
    }

    /// What the slot has to do, as the steering program sees it.
    pub fn load(&self, slot: SlotIndex) -> Load {
        let Some(at) = self.at(slot) else { return Load::default() };
        let word = |offset| self.shared.load_u64(at + offset).cast_signed();
        let open = word(cell::PICKED) - word(cell::CLOSED) - word(cell::RELAYED_CLOSED) - word(cell::LOST);
        let pressure = self.shared.load_u32(at + cell::PRESSURE);
        Load { load: open.max(0).cast_unsigned() + u64::from(pressure), bound: self.shared.load_u32(at + cell::BOUND) }
    }

    /// Connections that were picked and will never be established; negative when it was too many before.
    pub fn add_lost(&self, slot: SlotIndex, connections: i64) {
        self.add(slot, cell::LOST, connections.cast_unsigned());
    }

    /// The load beyond which connections of the policy `connection` go to their second choice; 0: never.
    pub fn set_bound(&self, slot: SlotIndex, bound: u32) {
        self.store(slot, cell::BOUND, bound);
    }

    /// Load that no connection shows.
    pub fn set_pressure(&self, slot: SlotIndex, pressure: u32) {
        self.store(slot, cell::PRESSURE, pressure);
    }

    pub(crate) fn set_weight(&self, slot: SlotIndex, weight: u32) {
        self.store(slot, cell::WEIGHT, weight);
    }

    /// For a relay worker: one each, so that workers share nothing that they write.
    pub fn account(self: &Arc<Self>, slot: SlotIndex) -> Arc<Account> {
        Arc::new(Account { cells: Arc::clone(self), slot })
    }

    /// Relayed connections ended with the agent that relayed them, all but those of each slot that are `kept`; those that
    /// shards accepted themselves did not. Where fewer than `kept` are counted as open, an agent between took them for
    /// lost, or counted elsewhere: then they count as new ones.
    pub fn forget_relayed(&self, kept: impl Fn(SlotIndex) -> u64) {
        for slot in (0..self.slots as u16).map(SlotIndex) {
            let open = self.word(slot, cell::RELAYED).wrapping_sub(self.word(slot, cell::RELAYED_CLOSED));
            let kept = kept(slot);
            self.add(slot, cell::RELAYED_CLOSED, open.saturating_sub(kept));
            let missing = kept.saturating_sub(open);
            if missing > 0 {
                self.add(slot, cell::PICKED, missing);
                self.add(slot, cell::RELAYED, missing);
            }
        }
    }

    fn word(&self, slot: SlotIndex, offset: usize) -> u64 {
        self.at(slot).map_or(0, |at| self.shared.load_u64(at + offset))
    }

    fn store(&self, slot: SlotIndex, offset: usize, value: u32) {
        self.at(slot).into_iter().for_each(|at| self.shared.store_u32(at + offset, value));
    }

    fn add(&self, slot: SlotIndex, offset: usize, addend: u64) {
        self.at(slot).into_iter().for_each(|at| self.shared.add_u64(at + offset, addend));
    }

    fn at(&self, slot: SlotIndex) -> Option<usize> {
        (u32::from(slot.0) < self.slots).then(|| self.shared_from + usize::from(slot.0) * CELL_SIZE)
    }
}

impl Drop for SlotCells {
    fn drop(&mut self) {
        self.cells.taken.lock().unwrap_or_else(PoisonError::into_inner).used.remove(&self.base);
    }
}

/// Counts what a relay worker accepts for a slot.
#[derive(Debug)]
pub struct Account {
    cells: Arc<SlotCells>,
    slot: SlotIndex,
}

impl Account {
    /// A connection that was steered to the slot has been accepted. It is counted as closed when that is dropped.
    pub fn open(self: &Arc<Self>) -> OpenConnection {
        self.cells.add(self.slot, cell::RELAYED, 1);
        self.resume()
    }

    /// A connection that a former process counted as open, and handed over.
    pub fn resume(self: &Arc<Self>) -> OpenConnection {
        OpenConnection(Some(Arc::clone(self)))
    }
}

/// A relayed connection, as long as it is open.
#[derive(Debug)]
pub struct OpenConnection(Option<Arc<Account>>);

impl OpenConnection {
    /// The slot that it was steered to.
    pub(crate) fn slot(&self) -> Option<SlotIndex> {
        self.0.as_ref().map(|account| account.slot)
    }

    /// It goes on elsewhere, and stays counted as open.
    pub(crate) fn hand_over(mut self) {
        self.0 = None;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(account) = &self.0 {
            account.cells.add(account.slot, cell::RELAYED_CLOSED, 1);
        }
    }
}

const _: () = assert!(
    tally::ANSWER + 8 * ANSWER_BOUNDS_MICROS.len() + 8 == tally::RTT
        && tally::RTT + 8 * RTT_BOUNDS_MICROS.len() + 8 == tally::DURATION
        && tally::DURATION + 8 * DURATION_BOUNDS_MICROS.len() + 8 == TALLY_SIZE
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_fill_gaps_and_do_not_overlap() {
        let mut taken = BTreeMap::from([(0, 8)]);
        for (slots, expected) in [(10, Some(8)), (1, Some(24)), (9000, None), (8160, Some(32)), (1, None)] {
            let found = gap(&taken, slots, |_| true);
            assert_eq!(found, expected, "{slots}");
            taken.extend(found.map(|base| (base, slots)));
        }
        taken.remove(&8);
        assert_eq!((gap(&taken, 17, |_| true), gap(&taken, 16, |_| true)), (None, Some(8)));
    }

    #[test]
    fn a_place_where_connections_are_open_is_no_gap() {
        let taken = BTreeMap::from([(0, 8), (32, 8)]);
        for (loud, slots, expected) in [
            (&[8][..], 8, Some(16)),
            (&[15], 9, Some(16)),
            (&[16], 8, Some(8)),
            (&[16], 9, Some(40)),
            (&[9, 17], 16, Some(40)),
            (&[31, 40, 8191], 32, Some(48)),
            (&[8, 2000, 4000, 6000], 2500, None),
        ] {
            assert_eq!(gap(&taken, slots, |number| !loud.contains(&number)), expected, "{loud:?} {slots}");
        }
    }
}
