//! A set of slots as the eBPF program holds it. Pure.

use super::{MAX_SLOTS, SlotIndex};

/// A set of slots below [`MAX_SLOTS`]; others are never in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotMask([u64; Self::WORDS]);

impl SlotMask {
    pub(crate) const WORDS: usize = MAX_SLOTS as usize / 64;

    /// Adds a slot.
    ///
    /// # Panics
    /// When the slot is not below [`MAX_SLOTS`].
    pub fn insert(&mut self, slot: SlotIndex) {
        assert!(slot.0 < MAX_SLOTS, "slot {slot} is checked before it gets here");
        self.0[usize::from(slot.0 / 64)] |= 1 << (slot.0 % 64);
    }

    /// Takes a slot out.
    pub fn remove(&mut self, slot: SlotIndex) {
        if slot.0 < MAX_SLOTS {
            self.0[usize::from(slot.0 / 64)] &= !(1 << (slot.0 % 64));
        }
    }

    /// Whether the slot is in it.
    pub fn contains(&self, slot: SlotIndex) -> bool {
        slot.0 < MAX_SLOTS && self.0[usize::from(slot.0 / 64)] >> (slot.0 % 64) & 1 == 1
    }

    /// Whether no slot is in it.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; Self::WORDS]
    }

    /// The slots of both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// The slots, ascending.
    pub fn iter(&self) -> impl Iterator<Item = SlotIndex> + '_ {
        (0..MAX_SLOTS).map(SlotIndex).filter(|slot| self.contains(*slot))
    }

    pub(crate) fn words(&self) -> &[u64; Self::WORDS] {
        &self.0
    }

    pub(crate) fn from_words(words: [u64; Self::WORDS]) -> Self {
        Self(words)
    }
}

impl FromIterator<SlotIndex> for SlotMask {
    fn from_iter<I: IntoIterator<Item = SlotIndex>>(slots: I) -> Self {
        let mut mask = Self::default();
        slots.into_iter().filter(|slot| slot.0 < MAX_SLOTS).for_each(|slot| mask.insert(slot));
        mask
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(slots in prop::collection::btree_set(0u16..1024, 0..40), gone in 0u16..1024) {
            let mut mask: SlotMask = slots.iter().copied().map(SlotIndex).collect();
            mask.remove(SlotIndex(gone));
            let expected: BTreeSet<u16> = slots.into_iter().filter(|slot| *slot != gone).collect();
            prop_assert_eq!(mask.iter().map(|slot| slot.0).collect::<BTreeSet<_>>(), expected.clone());
            prop_assert_eq!(mask.is_empty(), expected.is_empty());
        }
    }
}
