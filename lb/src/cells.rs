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
pub use reading::{CellReading, Counts, DURATION_BOUNDS_MICROS, Histogram, RTT_BOUNDS_MICROS};

use crate::{
    sys::{bpf, shared_map::SharedMap},
    table::{Load, SlotIndex},
};

const VERSION: u32 = 1;
const CELLS: u32 = 8192;
const CELL_SIZE: usize = 512;
/// Ranges begin at a page, so that each address maps its own only: the array has 4 MiB.
const CELLS_OF_A_PAGE: u32 = 4096 / CELL_SIZE as u32;
/// Of an address that has none; bpf/cells.h.
pub(crate) const NO_CELL: u32 = u32::MAX;

/// Offsets in `struct cell`.
mod cell {
    pub(super) const PICKED: usize = 0;
    pub(super) const ESTABLISHED: usize = 8;
    pub(super) const CLOSED: usize = 16;
    pub(super) const LOST: usize = 24;
    pub(super) const PRESSURE: usize = 32;
    pub(super) const BOUND: usize = 36;
    pub(super) const WEIGHT: usize = 40;
    pub(super) const VERSION: usize = 44;
    pub(super) const MIGRATED: usize = 48;
    pub(super) const BYTES_RECEIVED: usize = 64;
    pub(super) const BYTES_ACKED: usize = 72;
    pub(super) const RETRANSMITS: usize = 80;
    pub(super) const RTT_SUM: usize = 88;
    pub(super) const DURATION_SUM: usize = 96;
    pub(super) const CONTAINED: usize = 104;
    pub(super) const RTT: usize = 144;
    pub(super) const DURATION: usize = 304;
}

/// The array.
#[derive(Debug)]
pub struct Cells {
    map: OwnedFd,
    id: u32,
    /// Cell 0, which no slot has: what is counted for all of them.
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
        let map = bpf::create_array(CELL_SIZE as u32, CELLS)?;
        let cells = Self::open(map)?;
        cells.common.store_u32(cell::VERSION, VERSION);
        Ok(Arc::new(cells))
    }

    /// The array that an earlier process made: put it into the holder.
    ///
    /// # Errors
    /// When it is none of this version.
    pub fn adopt(map: OwnedFd) -> io::Result<Arc<Self>> {
        let info = bpf::info(map.as_fd())?;
        if (info.value_size as usize, info.max_entries) != (CELL_SIZE, CELLS) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not the cells of this version of sherd"));
        }
        let cells = Self::open(map)?;
        match cells.common.load_u32(cell::VERSION) {
            VERSION => Ok(Arc::new(cells)),
            found => Err(io::Error::new(io::ErrorKind::InvalidData, format!("cells of version {found}"))),
        }
    }

    fn open(map: OwnedFd) -> io::Result<Self> {
        let (id, common) = (bpf::info(map.as_fd())?.id, SharedMap::new(map.as_fd(), CELL_SIZE)?);
        let taken = Taken { used: BTreeMap::from([(0, CELLS_OF_A_PAGE)]), reserved: BTreeMap::new() };
        Ok(Self { map, id, common, taken: Mutex::new(taken) })
    }

    /// For the holder.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// Sockets of the guard that were made to listen by somebody else than the agent, and contained; since the array was
    /// made.
    pub fn contained(&self) -> u64 {
        self.common.load_u64(cell::CONTAINED)
    }

    /// The kernel's number of the array.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Room for an address. `None`: there is no more.
    pub(crate) fn take(self: &Arc<Self>, slots: u32) -> io::Result<Option<Arc<SlotCells>>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(base) = gap(&taken.all(), slots) else { return Ok(None) };
        let range = SlotCells::map(self, base, slots)?;
        range.clear();
        taken.used.insert(base, slots);
        Ok(Some(Arc::new(range)))
    }

    /// The room that an address has had before. `None`: it can't be that address's.
    pub(crate) fn take_again(self: &Arc<Self>, base: u32, slots: u32) -> io::Result<Option<Arc<SlotCells>>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = base..base.saturating_add(slots);
        let fits = wanted.end <= CELLS && base.is_multiple_of(CELLS_OF_A_PAGE);
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

    /// Every address has been taken over: what is still reserved is nobody's.
    pub fn end_reservations(&self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).reserved.clear();
    }
}

fn overlap(one: &Range<u32>, other: &Range<u32>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The first place, at a page, where so many are free.
fn gap(taken: &BTreeMap<u32, u32>, slots: u32) -> Option<u32> {
    let ends = taken.iter().map(|(first, count)| (first + count).next_multiple_of(CELLS_OF_A_PAGE));
    let nexts = taken.keys().skip(1).copied().chain([CELLS]);
    ends.zip(nexts).find(|(end, next)| end + slots <= *next).map(|(end, _)| end)
}

/// The cells of one address. Dropping it gives its room to others.
#[derive(Debug)]
pub struct SlotCells {
    cells: Arc<Cells>,
    base: u32,
    slots: u32,
    shared: SharedMap,
}

impl SlotCells {
    fn map(cells: &Arc<Cells>, base: u32, slots: u32) -> io::Result<Self> {
        let shared = SharedMap::part(cells.map.as_fd(), base as usize * CELL_SIZE, slots as usize * CELL_SIZE)?;
        Ok(Self { cells: Arc::clone(cells), base, slots, shared })
    }

    fn clear(&self) {
        self.shared.store_u64s(0, &vec![0; self.slots as usize * CELL_SIZE / 8]);
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
        let Some(at) = self.at(slot) else { return CellReading::default() };
        let word = |offset| self.shared.load_u64(at + offset);
        CellReading {
            counts: self.counts(slot),
            migrated: word(cell::MIGRATED),
            bytes_received: word(cell::BYTES_RECEIVED),
            bytes_sent: word(cell::BYTES_ACKED),
            retransmits: word(cell::RETRANSMITS),
            rtt: Histogram::read(word(cell::RTT_SUM), |n| word(cell::RTT + 8 * n)),
            duration: Histogram::read(word(cell::DURATION_SUM), |n| word(cell::DURATION + 8 * n)),
        }
    }

    /// Its connections alone.
    pub fn counts(&self, slot: SlotIndex) -> Counts {
        let Some(at) = self.at(slot) else { return Counts::default() };
        let word = |offset| self.shared.load_u64(at + offset);
        // What is subtracted comes first: the difference never seems negative.
        let (closed, established) = (word(cell::CLOSED), word(cell::ESTABLISHED));
        Counts { picked: word(cell::PICKED), established, closed, lost: word(cell::LOST).cast_signed() }
    }

    /// What the slot has to do, as the steering program sees it.
    pub fn load(&self, slot: SlotIndex) -> Load {
        let Some(at) = self.at(slot) else { return Load::default() };
        let word = |offset| self.shared.load_u64(at + offset).cast_signed();
        let open = word(cell::PICKED) - word(cell::CLOSED) - word(cell::LOST);
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

    /// Of the slot's relayed connections all but `kept` ended with the agent that relayed them. Where fewer than `kept` are
    /// counted as open, an agent between took them for lost, or counted elsewhere: then they count as new ones.
    pub fn forget_open(&self, slot: SlotIndex, kept: u64) {
        let open = self.counts(slot).open();
        self.add(slot, cell::CLOSED, open.saturating_sub(kept));
        let missing = kept.saturating_sub(open);
        if missing > 0 {
            self.add(slot, cell::PICKED, missing);
            self.add(slot, cell::ESTABLISHED, missing);
        }
    }

    fn store(&self, slot: SlotIndex, offset: usize, value: u32) {
        self.at(slot).into_iter().for_each(|at| self.shared.store_u32(at + offset, value));
    }

    fn add(&self, slot: SlotIndex, offset: usize, addend: u64) {
        self.at(slot).into_iter().for_each(|at| self.shared.add_u64(at + offset, addend));
    }

    fn at(&self, slot: SlotIndex) -> Option<usize> {
        (u32::from(slot.0) < self.slots).then(|| usize::from(slot.0) * CELL_SIZE)
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
        self.cells.add(self.slot, cell::ESTABLISHED, 1);
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
            account.cells.add(account.slot, cell::CLOSED, 1);
        }
    }
}

const _: () = assert!(
    cell::RTT + 8 * RTT_BOUNDS_MICROS.len() + 8 == cell::DURATION
        && cell::DURATION + 8 * DURATION_BOUNDS_MICROS.len() + 8 == CELL_SIZE
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_fill_gaps_and_do_not_overlap() {
        let mut taken = BTreeMap::from([(0, 8)]);
        for (slots, expected) in [(10, Some(8)), (1, Some(24)), (9000, None), (8160, Some(32)), (1, None)] {
            let found = gap(&taken, slots);
            assert_eq!(found, expected, "{slots}");
            taken.extend(found.map(|base| (base, slots)));
        }
        taken.remove(&8);
        assert_eq!((gap(&taken, 17), gap(&taken, 16)), (None, Some(8)));
    }
}
