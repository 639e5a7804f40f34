//! The simulated kernel's side of published addresses, and the front that the loop has of each. An address, its listeners and its table
//! live for as long as somebody has their descriptors: the agent, or the holder.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
};

use sherd_lb::{
    cells::{Cells, SlotCells},
    front::{AdoptError, Force, FrontConfig, Misses, OpenError, Path, Place, SlotError, SteeringMode, Totals},
    table::{Choice, Flow, MAX_TABLE_LEN, Reasoning, SlotIndex, SlotMask, SteeringTable},
};

use super::{holder::descriptor, state::with};

const ANCHOR: &str = "anchor";
const SLOT_PREFIX: &str = "slot.";

/// Everything that is bound, and who relays.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    pub(super) fronts: BTreeMap<SocketAddr, Bound>,
    pub(super) workers: super::worker::Workers,
}

/// A published address.
#[derive(Debug)]
pub(super) struct Bound {
    /// Fronts that the agent has of it: one, or none while no agent is there.
    fronts: u32,
    max_slots: u16,
    /// Slots with a listener; whether it listens.
    pub(super) slots: BTreeMap<u16, bool>,
    /// The table names them.
    pub(super) named: BTreeSet<u16>,
}

impl Kernel {
    /// Whose address that is: group `a` has ports 8001 and 8011, `b` 8002 and 8012, and so on.
    pub(super) fn group_of(address: SocketAddr) -> String {
        let letter = address.port().saturating_sub(8001) % 10;
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"][usize::from(letter)].to_owned()
    }

    /// What nobody has a descriptor of is gone.
    pub(super) fn sweep(&mut self, held: &BTreeSet<String>) {
        let is_held = |address: &SocketAddr, name: &str| {
            held.contains(&format!("front/{}/{address}/{name}", Self::group_of(*address)))
        };
        for (address, bound) in self.fronts.iter_mut().filter(|(_, bound)| bound.fronts == 0) {
            bound.slots.retain(|slot, _| is_held(address, &format!("{SLOT_PREFIX}{slot}")));
            bound.named.retain(|slot| bound.slots.contains_key(slot));
        }
        self.fronts.retain(|address, bound| bound.fronts > 0 || is_held(address, ANCHOR));
    }

    /// What the holder must have of an address, so that nothing is refused without an agent.
    pub(super) fn needed(address: SocketAddr, bound: &Bound) -> impl Iterator<Item = String> + '_ {
        let listeners = bound.slots.iter().filter(|(_, listens)| **listens);
        let names = listeners.map(|(slot, _)| format!("{SLOT_PREFIX}{slot}"));
        let names = names.chain([ANCHOR.to_owned(), Front::STATE.to_owned()]);
        names.map(move |name| format!("front/{}/{address}/{name}", Self::group_of(address)))
    }
}

/// See [`sherd_lb::front::Front`].
#[derive(Debug)]
pub(crate) struct Front {
    address: SocketAddr,
}

impl Drop for Front {
    fn drop(&mut self) {
        if super::is_on() {
            with(|world| {
                if let Some(bound) = world.kernel.fronts.get_mut(&self.address) {
                    bound.fronts -= 1;
                }
                world.kernel.sweep(&world.holder.names);
            });
        }
    }
}

impl Front {
    pub(in crate::reconcile) const STATE: &'static str = "state";

    pub(in crate::reconcile) fn open(config: &FrontConfig, table: &SteeringTable) -> Result<Self, OpenError> {
        let address = config.address;
        table.check(config.max_slots)?;
        with(|world| {
            let attach = |kind: io::ErrorKind| OpenError::Attach { address, source: kind.into() };
            if world.faults.strike(&mut world.chance, 30) {
                return Err(attach(io::ErrorKind::OutOfMemory));
            }
            if world.kernel.fronts.contains_key(&address) {
                return Err(attach(io::ErrorKind::AddrInUse));
            }
            let bound =
                Bound { fronts: 1, max_slots: config.max_slots, slots: BTreeMap::new(), named: BTreeSet::new() };
            world.kernel.fronts.insert(address, bound);
            world.tell(|| format!("{address} is published"));
            Ok(Self { address })
        })
    }

    pub(in crate::reconcile) fn adopt(
        fds: Vec<(String, OwnedFd)>,
        config: &FrontConfig,
        _: &SteeringTable,
    ) -> Result<Self, AdoptError> {
        let names: BTreeSet<String> = fds.into_iter().map(|(name, _)| name).collect();
        let (address, is_there) = (config.address, |name: &str| names.contains(name));
        for name in [ANCHOR, Self::STATE] {
            if !is_there(name) {
                return Err(AdoptError::Missing { name });
            }
        }
        with(|world| match world.kernel.fronts.get_mut(&address) {
            None => Err(AdoptError::NotListening { name: ANCHOR.to_owned() }),
            Some(bound) => {
                bound.fronts += 1;
                bound.slots.retain(|slot, _| is_there(&format!("{SLOT_PREFIX}{slot}")));
                bound.named.retain(|slot| bound.slots.contains_key(slot));
                Ok(Self { address })
            }
        })
    }

    pub(in crate::reconcile) fn reserve_cells(_: &Cells, _: BorrowedFd<'_>) {}

    fn look<T>(&self, look: impl FnOnce(&Bound) -> T) -> T {
        with(|world| look(&world.kernel.fronts[&self.address]))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Bound) -> T) -> T {
        with(|world| change(world.kernel.fronts.get_mut(&self.address).expect("a front's address is bound")))
    }

    /// So that steering could not be changed.
    fn refuses(&self, slot: SlotIndex) -> Result<(), SlotError> {
        with(|world| match world.faults.strike(&mut world.chance, 5) {
            true => Err(SlotError::Steer { slot, source: io::ErrorKind::OutOfMemory.into() }),
            false => Ok(()),
        })
    }

    pub(in crate::reconcile) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(in crate::reconcile) fn is_v6only(&self) -> bool {
        true
    }

    pub(in crate::reconcile) fn inodes(&self) -> io::Result<Vec<u32>> {
        Ok(Vec::new())
    }

    pub(in crate::reconcile) fn max_table_len(&self) -> u32 {
        MAX_TABLE_LEN
    }

    pub(in crate::reconcile) fn mode(&self) -> SteeringMode {
        SteeringMode::Ebpf
    }

    pub(in crate::reconcile) fn max_slots(&self) -> u16 {
        self.look(|bound| bound.max_slots)
    }

    pub(in crate::reconcile) fn descriptors(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let slots =
            self.look(|bound| bound.slots.keys().map(|slot| format!("{SLOT_PREFIX}{slot}")).collect::<Vec<_>>());
        let names = [ANCHOR.to_owned(), Self::STATE.to_owned()].into_iter().chain(slots);
        names.map(|name| (name, descriptor())).collect()
    }

    pub(in crate::reconcile) fn prepare_slot(
        &mut self,
        slot: SlotIndex,
    ) -> Result<(String, BorrowedFd<'_>), SlotError> {
        self.refuses(slot)?;
        self.change(|bound| match bound.slots.contains_key(&slot.0) {
            true => Err(SlotError::Exists { slot }),
            false => {
                bound.slots.insert(slot.0, false);
                Ok((Self::listener_name(slot), descriptor()))
            }
        })
    }

    pub(in crate::reconcile) fn add_slot(&mut self, slot: SlotIndex) -> Result<(), SlotError> {
        self.refuses(slot)?;
        self.change(|bound| bound.slots.get_mut(&slot.0).map(|listens| *listens = true))
            .ok_or(SlotError::Missing { slot })
    }

    pub(in crate::reconcile) fn slots(&self) -> impl Iterator<Item = SlotIndex> + '_ {
        self.look(|bound| bound.slots.keys().copied().map(SlotIndex).collect::<Vec<_>>()).into_iter()
    }

    pub(in crate::reconcile) fn listener(&self, slot: SlotIndex) -> Option<BorrowedFd<'_>> {
        self.look(|bound| bound.slots.get(&slot.0) == Some(&true)).then(descriptor)
    }

    pub(in crate::reconcile) fn listener_name(slot: SlotIndex) -> String {
        format!("{SLOT_PREFIX}{slot}")
    }

    pub(in crate::reconcile) fn anchor(&self) -> BorrowedFd<'_> {
        descriptor()
    }

    pub(in crate::reconcile) fn set_in(&mut self, slot: SlotIndex, in_service: bool) -> Result<(), SlotError> {
        if in_service && self.listener(slot).is_none() {
            return Err(SlotError::Missing { slot });
        }
        self.refuses(slot)?;
        with(|world| {
            let Some(bound) = world.kernel.fronts.get_mut(&self.address) else { return };
            let changed = if in_service { bound.named.insert(slot.0) } else { bound.named.remove(&slot.0) };
            if changed {
                world.note_named(self.address, slot.0, in_service);
            }
        });
        Ok(())
    }

    pub(in crate::reconcile) fn is_in(&self, slot: SlotIndex) -> bool {
        self.look(|bound| bound.named.contains(&slot.0))
    }

    pub(in crate::reconcile) fn in_service(&self) -> SlotMask {
        self.look(|bound| bound.named.iter().copied().map(SlotIndex).collect())
    }

    pub(in crate::reconcile) fn set_table(&mut self, table: &SteeringTable) -> Result<(), SlotError> {
        Ok(table.check(self.max_slots())?)
    }

    pub(in crate::reconcile) fn remove_slot(&mut self, slot: SlotIndex) -> Result<(), SlotError> {
        self.change(|bound| {
            bound.named.remove(&slot.0);
            bound.slots.remove(&slot.0).map(drop).ok_or(SlotError::Missing { slot })
        })
    }

    /// In a slot's queue; what it relays is with it, as the simulated worker counts nothing.
    pub(in crate::reconcile) fn queue_len(&self, slot: Option<SlotIndex>) -> io::Result<u32> {
        let Some(slot) = slot else { return Ok(0) };
        with(|world| Ok(world.seen.open_connections(self.address, slot.0, world.now())))
    }

    pub(in crate::reconcile) fn picks(&self) -> Vec<u64> {
        vec![0; usize::from(self.max_slots())]
    }

    pub(in crate::reconcile) fn totals(&self) -> Totals {
        Totals::default()
    }

    pub(in crate::reconcile) fn cells(&self) -> Option<&Arc<SlotCells>> {
        None
    }

    pub(in crate::reconcile) fn forget_relayed(&self, _: impl Fn(SlotIndex) -> u64) {}

    pub(in crate::reconcile) fn explain(&self, _: &SteeringTable) -> Explanation {
        Explanation(self.in_service().iter().next())
    }

    // Shards with listeners of their own are not simulated: this kernel has no place for any, as with classic steering.

    pub(in crate::reconcile) fn places(&self) -> &'static [Place] {
        &[]
    }

    pub(in crate::reconcile) fn join_direct(
        &mut self,
        slot: SlotIndex,
        place: Place,
        _: BorrowedFd<'_>,
        _: i32,
    ) -> Result<(), SlotError> {
        Err(SlotError::NoPlace { address: self.address, slot, place })
    }

    pub(in crate::reconcile) fn move_queue(
        &mut self,
        slot: SlotIndex,
        place: Place,
        _: BorrowedFd<'_>,
        _: i32,
    ) -> Result<(), SlotError> {
        Err(SlotError::NoPlace { address: self.address, slot, place })
    }

    pub(in crate::reconcile) fn leave_direct(&mut self, slot: SlotIndex, place: Place) -> Result<(), SlotError> {
        Err(SlotError::NoPlace { address: self.address, slot, place })
    }

    pub(in crate::reconcile) fn set_path(&mut self, slot: SlotIndex, path: Path) -> Result<(), SlotError> {
        match path {
            Path::Relay => Ok(()),
            Path::Direct(place) => Err(SlotError::NoPlace { address: self.address, slot, place }),
        }
    }

    pub(in crate::reconcile) fn attach_again(&self) -> io::Result<()> {
        Ok(())
    }

    pub(in crate::reconcile) fn misses(&self) -> io::Result<Misses> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in crate::reconcile) fn path(&self, _: SlotIndex) -> Path {
        Path::Relay
    }

    pub(in crate::reconcile) fn direct_cookie(&self, _: SlotIndex, _: Place) -> Option<u64> {
        None
    }

    pub(in crate::reconcile) fn serving_cookie(&self, _: SlotIndex) -> Option<u64> {
        None
    }

    pub(in crate::reconcile) fn force(&self, _: SlotIndex, _: Place) -> io::Result<Force> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// See [`sherd_lb::front::Explanation`]: this kernel takes the first slot that its table names.
#[derive(Debug)]
pub(crate) struct Explanation(Option<SlotIndex>);

impl Explanation {
    pub(in crate::reconcile) fn choose(&self, _: &Flow, _: u32) -> Choice {
        self.0.map_or(Choice::Anchor, Choice::Slot)
    }

    pub(in crate::reconcile) fn reason(&self, _: &Flow, _: u32) -> Option<Reasoning> {
        None
    }

    pub(in crate::reconcile) fn without(&self, _: SlotIndex) -> Option<Self> {
        None
    }
}
