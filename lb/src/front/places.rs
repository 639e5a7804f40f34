//! Where in the array of sockets each listener of an address is: relayed slots', the anchor, then those that shards hold.
//! Pure. The array is made once, at its largest, because a socket fits one only.

use crate::table::SlotIndex;

/// Which of a slot's two direct listeners: a new shard joins at the one while the former still accepts at the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The first; the only one in an array that an older version has made.
    A,
    /// The second.
    B,
}

impl Place {
    /// Both, the first of them first.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// The one that this is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Who accepts a slot's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Its relay worker.
    Relay,
    /// Its shard: the one whose listener is at this place.
    Direct(Place),
}

impl Path {
    /// Whether a shard accepts, at whichever place.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::Direct(_))
    }
}

/// The layout of one address's array; `bpf/steer.h` says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Places {
    max_slots: u32,
    entries: u32,
}

impl Places {
    /// Of a new array. `max_slots` is at least 1.
    pub(super) fn new(max_slots: u32) -> Self {
        Self { max_slots, entries: max_slots * (1 + Place::ALL.len() as u32) + 1 }
    }

    /// Of an array that is there. `None`: it has no room for each slot and the anchor.
    pub(super) fn of(max_slots: u32, entries: u32) -> Option<Self> {
        (0 < max_slots && max_slots < entries).then_some(Self { max_slots, entries })
    }

    pub(super) fn entries(self) -> u32 {
        self.entries
    }

    /// The direct places that each slot has.
    pub(super) fn direct_places(self) -> &'static [Place] {
        const PLACES: &[Place] = &Place::ALL;
        let fit = (self.entries - 1) / self.max_slots;
        &PLACES[..PLACES.len().min(fit as usize - 1)]
    }

    pub(super) fn anchor(self) -> u32 {
        self.max_slots
    }

    /// The index of the slot's listener on that path; `None` where the array has no such place.
    pub(super) fn index(self, slot: SlotIndex, path: Path) -> Option<u32> {
        let slot = u32::from(slot.0);
        let block = match path {
            Path::Relay => return (slot < self.max_slots).then_some(slot),
            Path::Direct(place) => self.direct_places().iter().position(|there| *there == place)?,
        };
        (slot < self.max_slots).then(|| self.max_slots * (1 + block as u32) + 1 + slot)
    }

    /// The path whose index this is; the relay for one that no path of the slot has.
    pub(super) fn path(self, slot: SlotIndex, index: u32) -> Path {
        let direct = self.direct_places().iter().copied().map(Path::Direct);
        direct.into_iter().find(|path| self.index(slot, *path) == Some(index)).unwrap_or(Path::Relay)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn check(entries: u32, expected: Option<&[Place]>) {
        let places = Places::of(64, entries);
        assert_eq!(places.map(Places::direct_places), expected, "{entries} entries");
        let Some(places) = places else { return };
        let mut taken = BTreeSet::from([places.anchor()]);
        for slot in (0..64).map(SlotIndex) {
            for path in [Path::Relay].into_iter().chain(Place::ALL.map(Path::Direct)) {
                let index = places.index(slot, path);
                assert_eq!(
                    index.is_some(),
                    path == Path::Relay
                        || expected.is_some_and(|there| { there.iter().any(|place| path == Path::Direct(*place)) })
                );
                let Some(index) = index else { continue };
                assert!(index < entries && taken.insert(index), "{slot} {path:?} has {index}");
                assert_eq!(places.path(slot, index), path);
            }
        }
        for path in [Path::Relay, Path::Direct(Place::A), Path::Direct(Place::B)] {
            assert_eq!(places.index(SlotIndex(64), path), None, "it would be another slot's");
        }
    }

    #[test]
    fn every_listener_has_an_index_of_its_own() {
        check(64, None);
        check(65, Some(&[]));
        check(129, Some(&[Place::A]));
        check(193, Some(&Place::ALL));
        // Of a later version.
        check(257, Some(&Place::ALL));
        assert_eq!(Places::new(64), Places { max_slots: 64, entries: 193 });
        assert_eq!(Places::of(0, 5), None);
    }

    #[test]
    fn an_index_of_another_make_is_the_relays() {
        assert_eq!(Places::new(4).path(SlotIndex(1), 40_000), Path::Relay);
    }
}
