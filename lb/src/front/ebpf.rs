//! Steering by the eBPF program: loads it with maps of its own for one address.

use std::{
    error::Error,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use aya::{EbpfLoader, include_bytes_aligned, maps::Map, programs::SkReuseport};
use socket2::SockRef;

use super::{
    AdoptError, SlotError,
    maps::{Forcing, Inheritance, Maps, Misses, NAMES, Shape, Totals},
    places::{Path, Place, Places},
};
use crate::{
    cells::{Cells, SlotCells},
    lent::LentMaps,
    sys,
    table::{Choice, CompiledTable, Model, Seed, SlotIndex, SlotMask, SteeringTable},
};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.o"));

/// The name of the program's descriptor.
pub(super) const PROGRAM: &str = "program";
/// Maps that a program may be given.
const CELLS: &str = "cells";
const SOCKETS: &str = "sockets";

/// A loaded program and its maps.
#[derive(Debug)]
pub(super) struct Ebpf {
    program: OwnedFd,
    maps: Maps,
}

impl Ebpf {
    /// # Errors
    /// When bpf(2) is not permitted, or this kernel refuses the program.
    pub(super) fn load(
        max_slots: u16,
        table: &SteeringTable,
        seed: Seed,
        cells: Option<&Arc<Cells>>,
    ) -> Result<Self, Box<dyn Error>> {
        Self::load_shape(Shape::new(max_slots, table.table_len)?, table, seed, cells)
    }

    pub(super) fn load_shape(
        shape: Shape,
        table: &SteeringTable,
        seed: Seed,
        cells: Option<&Arc<Cells>>,
    ) -> Result<Self, Box<dyn Error>> {
        let room = take_cells(cells, shape.max_slots)?;
        let (program, maps) = load_object(&shape, room.as_deref(), None)?;
        let maps = Maps::initialize(maps, shape, seed, (cells.map(|cells| &**cells), room))?;
        maps.put_table(&CompiledTable::new(table))?;
        Ok(Self { program, maps })
    }

    /// The program (attached to the group already) and maps of an earlier process, in the order of [`NAMES`].
    pub(super) fn adopt(program: OwnedFd, maps: Vec<OwnedFd>, cells: Option<&Arc<Cells>>) -> Result<Self, AdoptError> {
        Ok(Self { program, maps: Maps::adopt(maps, cells)? })
    }

    /// A program and maps of this version in the place of another's: with its array of sockets, because a socket fits one
    /// only, with what it had in service, and with its room in the cells: listeners count there for as long as they live. Not
    /// attached yet.
    pub(super) fn succeed(
        from: &Inheritance,
        sockets: BorrowedFd<'_>,
        table: &SteeringTable,
        cells: Option<&Arc<Cells>>,
    ) -> Result<Self, Box<dyn Error>> {
        let max_slots = u16::try_from(from.max_slots)?;
        let shape = Shape::new(max_slots, table.table_len)?.with_sockets(sockets)?;
        let former = cells.map_or(Ok(None), |cells| from.take_cells(cells))?;
        let room = former.map_or_else(|| take_cells(cells, shape.max_slots), |former| Ok(Some(former)))?;
        let (program, maps) = load_object(&shape, room.as_deref(), Some(sockets))?;
        let maps = Maps::initialize(maps, shape, from.seed, (cells.map(|cells| &**cells), room))?;
        maps.inherit(from);
        maps.put_table(&CompiledTable::new(table))?;
        Ok(Self { program, maps })
    }

    /// What is counted of the address's slots.
    pub(super) fn cells(&self) -> Option<&Arc<SlotCells>> {
        self.maps.cells()
    }

    pub(super) fn max_slots(&self) -> u32 {
        self.maps.max_slots()
    }

    pub(super) fn max_table_len(&self) -> usize {
        self.maps.max_table_len()
    }

    pub(super) fn descriptors(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        self.maps.descriptors().chain([(PROGRAM, self.program.as_fd())]).collect()
    }

    pub(super) fn attach(&self, anchor: BorrowedFd<'_>) -> io::Result<()> {
        sys::sockopt::attach_reuseport_ebpf(anchor, self.program.as_fd())
    }

    pub(super) fn places(&self) -> Places {
        self.maps.places()
    }

    /// A socket enters the array once it listens.
    pub(super) fn enter(&self, slot: Option<SlotIndex>, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.set_socket(self.index_of(slot), socket)
    }

    pub(super) fn leave(&self, slot: SlotIndex) -> io::Result<()> {
        self.maps.set_in(slot, false);
        self.maps.clear_socket(self.index_of(Some(slot)))
    }

    /// A listener that a shard accepts from, at the index of its place. One that was there goes.
    pub(super) fn enter_direct(&self, index: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.maps.clear_socket(index)?;
        self.set_socket(index, socket)
    }

    /// Nothing is there where the array lacks the place.
    pub(super) fn leave_direct(&self, slot: SlotIndex, place: Place) -> io::Result<()> {
        self.direct_index(slot, place).map_or(Ok(()), |index| self.maps.clear_socket(index))
    }

    /// The SO_COOKIE of the listener at the slot's place; the entry empties itself when the shard closes it.
    pub(super) fn direct_cookie(&self, slot: SlotIndex, place: Place) -> io::Result<Option<u64>> {
        self.direct_index(slot, place).map_or(Ok(None), |index| self.maps.socket_cookie(index))
    }

    /// To the listener at this index, from the next SYN on.
    pub(super) fn set_index_of(&self, slot: SlotIndex, index: u32) {
        self.maps.set_index_of(slot, index);
    }

    pub(super) fn path(&self, slot: SlotIndex) -> Path {
        if u32::from(slot.0) >= self.max_slots() {
            return Path::Relay;
        }
        self.places().path(slot, self.maps.index_of(slot))
    }

    pub(super) fn forcing(&self) -> io::Result<Forcing> {
        self.maps.forcing()
    }

    pub(super) fn misses(&self) -> io::Result<Misses> {
        self.maps.misses()
    }

    pub(super) fn direct_index(&self, slot: SlotIndex, place: Place) -> Option<u32> {
        self.places().index(slot, Path::Direct(place))
    }

    /// Whether the slot's place holds this socket; None while the place is empty.
    pub(super) fn holds(&self, slot: Option<SlotIndex>, socket: BorrowedFd<'_>) -> io::Result<Option<bool>> {
        let cookie = SockRef::from(&socket).cookie()?;
        Ok(self.maps.socket_cookie(self.index_of(slot))?.map(|held| held == cookie))
    }

    pub(super) fn set_in(&self, slot: SlotIndex, in_service: bool) {
        self.maps.set_in(slot, in_service);
    }

    pub(super) fn in_service(&self) -> SlotMask {
        self.maps.in_service()
    }

    pub(super) fn set_refuse(&self, refuse: bool) {
        self.maps.set_refuse(refuse);
    }

    pub(super) fn set_table(&self, table: &SteeringTable) -> Result<(), SlotError> {
        self.maps.put_table(&CompiledTable::new(table))
    }

    pub(super) fn picks(&self, slots: u16) -> Vec<u64> {
        (0..slots).map(|slot| self.maps.picks(u32::from(slot))).collect()
    }

    pub(super) fn totals(&self) -> Totals {
        self.maps.totals()
    }

    pub(super) fn model(&self, table: &SteeringTable, none_in: Choice) -> Model {
        let load = |cells: &Arc<SlotCells>, slot: SlotIndex| (slot, cells.load(slot));
        let slots = table.slots.iter().map(|slot| slot.index);
        let loads = self.cells().into_iter().flat_map(|cells| slots.clone().map(|slot| load(cells, slot)));
        Model::new(table, self.maps.seed(), self.in_service(), none_in).with_loads(loads)
    }

    /// Where the slot's listener for its relay worker is, or the anchor.
    fn index_of(&self, slot: Option<SlotIndex>) -> u32 {
        slot.map_or(self.places().anchor(), |slot| u32::from(slot.0))
    }

    fn set_socket(&self, index: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.maps.set_socket(index, u64::try_from(socket.as_raw_fd()).map_err(io::Error::other)?)
    }
}

/// Room for the address's slots. Where there is no more, nothing is counted of them and their load is not known.
fn take_cells(cells: Option<&Arc<Cells>>, max_slots: u32) -> io::Result<Option<Arc<SlotCells>>> {
    cells.map_or(Ok(None), |cells| cells.take(max_slots))
}

/// The program, and its maps in the order of [`NAMES`].
fn load_object(
    shape: &Shape,
    cells: Option<&SlotCells>,
    sockets: Option<BorrowedFd<'_>>,
) -> Result<(OwnedFd, Vec<OwnedFd>), Box<dyn Error>> {
    let mut loader = EbpfLoader::new();
    for (name, (_, _, entries)) in NAMES.into_iter().zip(shape.sizes()) {
        loader.map_max_entries(name, entries);
    }
    if cells.is_none() {
        // One that nobody uses.
        loader.map_max_entries(CELLS, 1);
    }
    let there: Vec<_> = cells
        .map(|cells| (CELLS, cells.array().descriptor()))
        .into_iter()
        .chain(sockets.map(|sockets| (SOCKETS, sockets)))
        .collect();
    let lent = LentMaps::lend(&mut loader, &there)?;
    let loaded = loader.load(OBJECT);
    drop((loader, lent));
    let mut object = loaded?;
    let program: &mut SkReuseport = object.program_mut("steer").ok_or("no program in the object")?.try_into()?;
    program.load()?;
    let program = program.fd()?.as_fd().try_clone_to_owned()?;
    let map = |name| -> Result<OwnedFd, Box<dyn Error>> {
        match object.map(name) {
            Some(Map::Array(map) | Map::PerCpuArray(map) | Map::ReusePortSockArray(map) | Map::HashMap(map)) => {
                Ok(map.fd().as_fd().try_clone_to_owned()?)
            }
            _ => Err(format!("no map {name} in the object").into()),
        }
    };
    let maps = NAMES.into_iter().map(map).collect::<Result<Vec<_>, _>>()?;
    drop(object);
    // aya reads all of the kernel's BTF at each load: some 20 MB that nobody needs again.
    sys::heap::return_free_memory();
    Ok((program, maps))
}
