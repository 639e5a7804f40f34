//! The steering program's maps: their layout (that of `bpf/steer.h`), and every write to them.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
};

use super::{AdoptError, SlotError, places::Places};
use crate::{
    cells::{Cells, NO_CELL, SlotCells},
    sys::{
        bpf::{self, Map},
        shared_map::SharedMap,
    },
    table::{
        CompiledTable, LEVELS, MAX_SLOTS, NO_SLOT, Policy, ROOMY_TABLE_LEN, Row, Seed, SlotIndex, SlotMask, TableError,
    },
};

const MAGIC: u32 = 0x6472_6873;
const VERSION: u32 = 4;

/// Offsets in `struct state`; steer.h asserts the same.
mod state {
    pub(super) const MAGIC: usize = 0;
    pub(super) const VERSION: usize = 4;
    pub(super) const SEQUENCE: usize = 8;
    pub(super) const REFUSE: usize = 12;
    pub(super) const SEED: usize = 16;
    pub(super) const MAX_SLOTS: usize = 32;
    pub(super) const CPUS: usize = 36;
    pub(super) const CHUNKS: usize = 40;
    pub(super) const WORDS: usize = 44;
    pub(super) const GENERATIONS: usize = 48;
    pub(super) const IN: usize = 64;
    pub(super) const INDEX_OF: usize = 192;
    pub(super) const FORCED: usize = 2240;
    pub(super) const CELL_BASE: usize = 2244;
    pub(super) const CELLS_ID: usize = 2248;
    pub(super) const SIZE: usize = 2256;
}

const CHUNK_ENTRIES: usize = 2048;
const CHUNK_SIZE: usize = CHUNK_ENTRIES * size_of::<u16>();
const ROW_SIZE: usize = LEVELS * SlotMask::WORDS * size_of::<u64>();
const TOTALS_WORDS: usize = 8;
/// Of these, [`Totals::retries`].
const RETRIES: usize = 3;
/// Of `struct force_key`.
const FORCE_KEY_SIZE: usize = 20;
/// Connections of our own that are on their way at a time.
const MAX_FORCED: u32 = 1 << 16;

/// Kernel numbers of map types, and the sizes that `sizes` gives for a shape.
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const REUSEPORT_SOCKARRAY: u32 = 20;

/// The maps by the names that the program's object file and the holder know them by.
pub(super) const NAMES: [&str; 7] = ["state", "table", "rows", "sockets", "picks", "totals", "forced"];

/// What the program counts, since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Connections that went to another slot than their first choice.
    pub failovers: u64,
    /// Connections that went to the anchor.
    pub anchored: u64,
    /// Connections that were refused.
    pub dropped: u64,
    /// Selections that failed because a slot's listener was gone; each was followed by another.
    pub retries: u64,
    /// Of these: the listener was in another SO_REUSEPORT group. Anything but 0 is a fault.
    pub foreign: u64,
    /// Connections that moved from a closed listener to another.
    pub migrated: u64,
    /// Packets whose addresses could not be read. Anything but 0 is a fault.
    pub unread: u64,
    /// Connections that got their second choice because the first had too much to do.
    pub deflected: u64,
}

/// The sizes that the maps of an address are made with, for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) max_slots: u32,
    /// One more than the highest CPU number the kernel can have.
    pub(super) cpus: u32,
    /// Of the table, each generation.
    pub(super) chunks: u32,
    /// Of the array of sockets.
    pub(super) places: Places,
}

impl Shape {
    pub(super) fn new(max_slots: u16, table_len: u32) -> io::Result<Self> {
        let longest = table_len.max(ROOMY_TABLE_LEN).max(crate::table::default_len(usize::from(max_slots)));
        let chunks = longest.div_ceil(CHUNK_ENTRIES as u32);
        let max_slots = u32::from(max_slots);
        Ok(Self { max_slots, cpus: possible_cpus()?.0, chunks, places: Places::new(max_slots) })
    }

    /// The same with the array of another process, whatever its size.
    pub(super) fn with_sockets(self, array: BorrowedFd<'_>) -> io::Result<Self> {
        let entries = bpf::info(array)?.max_entries;
        let small = || io::Error::other(format!("an array of {entries} for {} slots", self.max_slots));
        Ok(Self { places: Places::of(self.max_slots, entries).ok_or_else(small)?, ..self })
    }

    /// Type, size of a value, number of values, in the order of [`NAMES`].
    pub(super) fn sizes(&self) -> [(u32, u32, u32); NAMES.len()] {
        [
            (ARRAY, state::SIZE as u32, 1),
            (ARRAY, CHUNK_SIZE as u32, 2 * self.chunks),
            (ARRAY, ROW_SIZE as u32, 2 * (self.max_slots + self.cpus)),
            (REUSEPORT_SOCKARRAY, 8, self.places.entries()),
            (PERCPU_ARRAY, 8, self.max_slots),
            (PERCPU_ARRAY, 8 * TOTALS_WORDS as u32, 1),
            (HASH, 8, MAX_FORCED),
        ]
    }
}

/// All maps of one address.
#[derive(Debug)]
pub(super) struct Maps {
    shape: Shape,
    /// In the order of [`NAMES`].
    maps: [Map; NAMES.len()],
    /// The others are mapped while they are written only: their pages would count as memory of this process for good.
    state: SharedMap,
    cells: Option<Arc<SlotCells>>,
}

/// What an address keeps when another version of the agent takes it over. These fields are where they are in every version
/// from 1 on, those of the cells since there are any; all else is made anew.
#[derive(Debug)]
pub(super) struct Inheritance {
    pub(super) version: u32,
    pub(super) seed: Seed,
    pub(super) max_slots: u32,
    cells_id: u32,
    cell_base: u32,
    in_service: SlotMask,
    index_of: Vec<u16>,
}

impl Inheritance {
    /// What `state` has, of whatever version.
    pub(super) fn read(state: BorrowedFd<'_>) -> Result<Self, AdoptError> {
        let io = |source| AdoptError::Io { name: NAMES[0].into(), source };
        let other = |detail| AdoptError::OtherMake { name: NAMES[0], detail };
        let size = bpf::info(state).map_err(io)?.value_size as usize;
        if size < state::FORCED {
            return Err(other(format!("its size is {size}")));
        }
        let shared = SharedMap::new(state, size).map_err(io)?;
        let magic = shared.load_u32(state::MAGIC);
        if magic != MAGIC {
            return Err(other(format!("magic {magic:#x}, wanted {MAGIC:#x}")));
        }
        let max_slots = shared.load_u32(state::MAX_SLOTS);
        let has_cells = size >= state::CELLS_ID + size_of::<u32>();
        let index_of =
            (0..max_slots.min(u32::from(MAX_SLOTS)) as usize).map(|slot| shared.load_u16(state::INDEX_OF + 2 * slot));
        Ok(Self {
            version: shared.load_u32(state::VERSION),
            seed: Seed([shared.load_u64(state::SEED), shared.load_u64(state::SEED + 8)]),
            max_slots,
            cells_id: if has_cells { shared.load_u32(state::CELLS_ID) } else { 0 },
            cell_base: if has_cells { shared.load_u32(state::CELL_BASE) } else { NO_CELL },
            in_service: SlotMask::from_words(std::array::from_fn(|word| shared.load_u64(state::IN + word * 8))),
            index_of: index_of.collect(),
        })
    }

    /// Keeps its room in the cells, if it has any there.
    pub(super) fn reserve(&self, cells: &Cells) {
        if self.shares(cells) {
            cells.reserve(self.cell_base, self.max_slots);
        }
    }

    /// Its room in the cells, where the listeners that shards have of it count; `None`: that is in another array, or nowhere.
    pub(super) fn take_cells(&self, cells: &Arc<Cells>) -> io::Result<Option<Arc<SlotCells>>> {
        if self.shares(cells) { cells.take_again(self.cell_base, self.max_slots) } else { Ok(None) }
    }

    fn shares(&self, cells: &Cells) -> bool {
        self.cells_id == cells.id() && self.cell_base != NO_CELL
    }

    /// Whether its maps and its program can be gone on with as they are, in an agent with this array of cells.
    pub(super) fn is_ours(&self, cells: Option<&Cells>) -> bool {
        self.version == VERSION && self.cells_id == cells.map_or(0, Cells::id)
    }
}

impl Maps {
    /// Takes new maps and writes what stays the same for the address's life.
    pub(super) fn initialize(
        fds: Vec<OwnedFd>,
        shape: Shape,
        seed: Seed,
        (array, cells): (Option<&Cells>, Option<Arc<SlotCells>>),
    ) -> io::Result<Self> {
        let maps = open(fds)?;
        let state = SharedMap::new(maps[0].as_fd(), state::SIZE)?;
        state.store_u32(state::CELL_BASE, cells.as_ref().map_or(NO_CELL, |cells| cells.base()));
        state.store_u32(state::CELLS_ID, array.map_or(0, Cells::id));
        state.store_u64s(state::SEED, &seed.0);
        state.store_u32(state::MAX_SLOTS, shape.max_slots);
        state.store_u32(state::CPUS, shape.cpus);
        state.store_u32(state::CHUNKS, shape.chunks);
        state.store_u32(state::WORDS, shape.max_slots.div_ceil(64));
        let identity: Vec<u16> = (0..shape.max_slots as u16).collect();
        state.store_u16s(state::INDEX_OF, &identity);
        state.store_u32(state::VERSION, VERSION);
        state.store_u32(state::MAGIC, MAGIC);
        Ok(Self { shape, maps, state, cells })
    }

    /// Goes on where another version was.
    pub(super) fn inherit(&self, from: &Inheritance) {
        self.state.store_u16s(state::INDEX_OF, &from.index_of);
        self.state.store_u64s(state::IN, from.in_service.words());
    }

    /// Takes maps that an earlier process of this version made, after a look at each.
    pub(super) fn adopt(fds: Vec<OwnedFd>, cells: Option<&Arc<Cells>>) -> Result<Self, AdoptError> {
        let io = |name: &'static str| move |source| AdoptError::Io { name: name.into(), source };
        let maps = open(fds).map_err(io("maps"))?;
        let other = |name, detail: String| AdoptError::OtherMake { name, detail };
        if maps[0].info.value_size as usize != state::SIZE {
            return Err(other(NAMES[0], format!("its size is {}", maps[0].info.value_size)));
        }
        let state = SharedMap::new(maps[0].as_fd(), state::SIZE).map_err(io(NAMES[0]))?;
        let (magic, version) = (state.load_u32(state::MAGIC), state.load_u32(state::VERSION));
        if (magic, version) != (MAGIC, VERSION) {
            return Err(other(
                NAMES[0],
                format!("magic {magic:#x} version {version}, wanted {MAGIC:#x} version {VERSION}"),
            ));
        }
        let field = |offset| state.load_u32(offset);
        let (max_slots, entries) = (field(state::MAX_SLOTS), maps[3].info.max_entries);
        let places = Places::of(max_slots, entries);
        let places = places.ok_or_else(|| other(NAMES[3], format!("{entries} entries for {max_slots} slots")))?;
        let shape = Shape { max_slots, cpus: field(state::CPUS), chunks: field(state::CHUNKS), places };
        for ((name, map), (map_type, value_size, entries)) in NAMES.into_iter().zip(&maps).zip(shape.sizes()) {
            let found = (map.info.map_type, map.info.value_size, map.info.max_entries);
            let key_size = if map_type == HASH { FORCE_KEY_SIZE } else { size_of::<u32>() };
            if found != (map_type, value_size, entries) || map.info.key_size as usize != key_size {
                return Err(other(name, format!("type, value size, entries are {found:?}")));
            }
        }
        // Connections of an earlier process that was killed before they were there. Their ports are free for clients now, whom
        // the entries would steer.
        state.store_u32(state::FORCED, 0);
        maps[6].clear().map_err(io(NAMES[6]))?;
        let base = field(state::CELL_BASE);
        let cells = match cells.filter(|_| base != NO_CELL) {
            Some(cells) => cells.take_again(base, shape.max_slots).map_err(io("cells"))?,
            None => None,
        };
        if cells.is_none() {
            state.store_u32(state::CELL_BASE, NO_CELL);
        }
        Ok(Self { shape, maps, state, cells })
    }

    /// What is counted of the address's slots; `None` where there was no room for it.
    pub(super) fn cells(&self) -> Option<&Arc<SlotCells>> {
        self.cells.as_ref()
    }

    /// The memory of the map at `index` of [`NAMES`].
    fn shared(&self, index: usize) -> Result<SharedMap, SlotError> {
        let (_, value_size, entries) = self.shape.sizes()[index];
        SharedMap::new(self.maps[index].as_fd(), value_size as usize * entries as usize).map_err(SlotError::PutTable)
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        NAMES.into_iter().zip(self.maps.iter().map(AsFd::as_fd))
    }

    pub(super) fn max_slots(&self) -> u32 {
        self.shape.max_slots
    }

    pub(super) fn places(&self) -> Places {
        self.shape.places
    }

    pub(super) fn max_table_len(&self) -> usize {
        self.shape.chunks as usize * CHUNK_ENTRIES
    }

    pub(super) fn seed(&self) -> Seed {
        Seed([self.state.load_u64(state::SEED), self.state.load_u64(state::SEED + 8)])
    }

    pub(super) fn set_refuse(&self, refuse: bool) {
        self.state.store_u32(state::REFUSE, u32::from(refuse));
    }

    /// Writes the idle generation and flips to it. The program sees one or the other as a whole.
    pub(super) fn put_table(&self, table: &CompiledTable) -> Result<(), SlotError> {
        if table.entries.len() > self.max_table_len() {
            return Err(TableError::TooLong { table_len: table.entries.len() as u32 }.into());
        }
        let (entries, rows) = (self.shared(1)?, self.shared(2)?);
        if let Some(cells) = &self.cells {
            table.weights.iter().for_each(|(slot, weight)| cells.set_weight(*slot, *weight));
        }
        let sequence = self.state.load_u32(state::SEQUENCE);
        let idle = (sequence as usize + 1) & 1;
        // The last flip is visible before the first write to the generation that it retired.
        fence(Ordering::SeqCst);
        let policy = match table.policy {
            Policy::Connection => 0,
            Policy::Client => 1,
            Policy::Local => 2,
            Policy::Balanced => 3,
        };
        self.state.store_u32(state::GENERATIONS + idle * 8, policy);
        self.state.store_u32(state::GENERATIONS + idle * 8 + 4, table.entries.len() as u32);
        entries.store_u16s(idle * self.shape.chunks as usize * CHUNK_SIZE, &table.entries);
        for (slot, row) in &table.slots {
            self.put_row(&rows, idle, u32::from(slot.0), row);
        }
        let mut rows_of_cpus = vec![&table.any; self.shape.cpus as usize];
        for (cpu, row) in &table.cpus {
            if let Some(place) = rows_of_cpus.get_mut(*cpu as usize) {
                *place = row;
            }
        }
        for (cpu, row) in (0..).zip(rows_of_cpus) {
            self.put_row(&rows, idle, self.shape.max_slots + cpu, row);
        }
        fence(Ordering::SeqCst);
        self.state.store_u32(state::SEQUENCE, sequence.wrapping_add(1));
        Ok(())
    }

    fn put_row(&self, rows: &SharedMap, generation: usize, origin: u32, row: &Row) {
        let index = generation * (self.shape.max_slots + self.shape.cpus) as usize + origin as usize;
        for (level, mask) in row.iter().enumerate() {
            rows.store_u64s(index * ROW_SIZE + level * size_of_val(mask.words()), mask.words());
        }
    }

    pub(super) fn set_in(&self, slot: SlotIndex, in_service: bool) {
        let (word, bit) = (state::IN + usize::from(slot.0 / 64) * 8, 1 << (slot.0 % 64));
        if in_service { self.state.set_bits(word, bit) } else { self.state.clear_bits(word, bit) }
    }

    pub(super) fn in_service(&self) -> SlotMask {
        SlotMask::from_words(std::array::from_fn(|word| self.state.load_u64(state::IN + word * 8)))
    }

    pub(super) fn set_socket(&self, index: u32, socket: u64) -> io::Result<()> {
        self.maps[3].update(&index.to_ne_bytes(), socket)
    }

    pub(super) fn clear_socket(&self, index: u32) -> io::Result<()> {
        match self.maps[3].delete(&index.to_ne_bytes()) {
            // It empties itself when its socket closes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            cleared => cleared,
        }
    }

    /// The SO_COOKIE of the socket at `index`.
    pub(super) fn socket_cookie(&self, index: u32) -> io::Result<Option<u64>> {
        match self.maps[3].lookup(index) {
            Ok(cookie) => Ok(cookie.first().copied()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where in the array steering finds the slot's listener.
    pub(super) fn index_of(&self, slot: SlotIndex) -> u32 {
        u32::from(self.state.load_u16(state::INDEX_OF + 2 * usize::from(slot.0)))
    }

    /// From the next SYN on.
    pub(super) fn set_index_of(&self, slot: SlotIndex, index: u32) {
        self.state.store_u16s(state::INDEX_OF + 2 * usize::from(slot.0), &[index as u16]);
    }

    /// A descriptor and a mapping of its own, for whoever connects to a chosen listener.
    pub(super) fn forcing(&self) -> io::Result<Forcing> {
        let map = Map::new(self.maps[6].as_fd().try_clone_to_owned()?, 1)?;
        Ok(Forcing { map, state: SharedMap::new(self.maps[0].as_fd(), state::SIZE)? })
    }

    /// A descriptor of its own, for another thread.
    pub(super) fn misses(&self) -> io::Result<Misses> {
        Ok(Misses { totals: Map::new(self.maps[5].as_fd().try_clone_to_owned()?, possible_cpus()?.1)? })
    }

    pub(super) fn picks(&self, slot: u32) -> u64 {
        self.maps[4].lookup(slot).map_or(0, |per_cpu| per_cpu.iter().sum())
    }

    pub(super) fn totals(&self) -> Totals {
        let per_cpu = self.maps[5].lookup(0).unwrap_or_default();
        let sum = |word| sum_of(&per_cpu, word);
        Totals {
            failovers: sum(0),
            anchored: sum(1),
            dropped: sum(2),
            retries: sum(RETRIES),
            foreign: sum(4),
            migrated: sum(5),
            unread: sum(6),
            deflected: sum(7),
        }
    }
}

/// Selections that failed because a slot's listener was gone. Outlives the front.
#[derive(Debug)]
pub struct Misses {
    totals: Map,
}

impl Misses {
    /// Since the address was opened; never falls.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn count(&self) -> io::Result<u64> {
        Ok(sum_of(&self.totals.lookup(0)?, RETRIES))
    }
}

/// A word of the totals over all CPUs.
fn sum_of(per_cpu: &[u64], word: usize) -> u64 {
    per_cpu.chunks_exact(TOTALS_WORDS).map(|cpu| cpu[word]).sum()
}

/// Has connections of our own go to a listener of our choice, whatever the table says.
///
/// The key is a source address of this host, and a port that the caller has bound: the kernel drops packets from
/// outside that claim to come from one of its own addresses, and nobody else can bind the same.
#[derive(Debug)]
pub(super) struct Forcing {
    map: Map,
    state: SharedMap,
}

impl Forcing {
    /// Connections from `source` go to the listener at `index` of the array, or are refused where there is none.
    pub(super) fn force(&self, source: SocketAddr, index: u32) -> io::Result<()> {
        self.map.update(&force_key(source), u64::from(index))?;
        self.state.add_u32(state::FORCED, 1);
        Ok(())
    }

    /// No longer. Call it once for each [`force`](Self::force) that succeeded, when the connection is established.
    pub(super) fn release(&self, source: SocketAddr) {
        // There is nothing to do about a map that doesn't give up an entry; the next use of the port replaces it.
        let _ = self.map.delete(&force_key(source));
        self.state.add_u32(state::FORCED, u32::MAX);
    }
}

fn force_key(source: SocketAddr) -> [u8; FORCE_KEY_SIZE] {
    let mut key = [0; FORCE_KEY_SIZE];
    match source.ip() {
        IpAddr::V4(ip) => key[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => key[..16].copy_from_slice(&ip.octets()),
    }
    key[16..18].copy_from_slice(&source.port().to_be_bytes());
    key
}

fn open(fds: Vec<OwnedFd>) -> io::Result<[Map; NAMES.len()]> {
    let possible = possible_cpus()?.1;
    let maps = fds.into_iter().map(|fd| Map::new(fd, possible)).collect::<io::Result<Vec<_>>>()?;
    maps.try_into().map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// One more than the highest CPU number the kernel can have, and how many it can have.
fn possible_cpus() -> io::Result<(u32, usize)> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count_cpus(&text).ok_or_else(|| io::Error::other(format!("possible CPUs are {text:?}")))
}

fn count_cpus(list: &str) -> Option<(u32, usize)> {
    let mut counted = (0, 0);
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        counted = (counted.0.max(last + 1), counted.1 + (last.checked_sub(first)? as usize + 1));
    }
    Some(counted)
}

const _: () = assert!(NO_SLOT == 0xffff && SlotMask::WORDS == 16 && LEVELS == 5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn possible_cpus_are_counted() {
        for (list, expected) in [("0\n", Some((1, 1))), ("0-3\n", Some((4, 4))), ("0,2-4,9", Some((10, 5))), ("", None)]
        {
            assert_eq!(count_cpus(list), expected, "{list:?}");
        }
    }
}
