//! Weighted Maglev tables (Eisenbud et al., NSDI'16): entries in proportion to weight, and few entries that change
//! when a slot comes or goes. Pure and the same on every host.

use siphasher::sip::SipHasher13;

use super::{NO_SLOT, SlotIndex};

/// The slot of each entry. Slots of weight 0 get none; without a slot all entries are [`NO_SLOT`].
///
/// # Panics
/// When `len` is below 3 or above 2^31 and there are slots.
pub fn table(slots: &[(SlotIndex, u32)], len: u32) -> Vec<u16> {
    let mut entries = vec![NO_SLOT; len as usize];
    // The search is for free entries: a bit for each stays in the first-level cache, the table does not.
    let mut taken = vec![0; entries.len().div_ceil(64)];
    let mut turns: Vec<_> = slots.iter().filter(|(_, weight)| *weight > 0).map(|&slot| Turn::new(slot, len)).collect();
    // By index, so that the order of the argument has no influence.
    turns.sort_unstable_by_key(|turn| turn.slot);
    assert!(turns.is_empty() || (3..=1 << 31).contains(&len), "a table of {len} entries");
    let Some(heaviest) = turns.iter().map(|turn| turn.weight).max() else { return entries };
    let mut free = len;
    loop {
        for turn in &mut turns {
            turn.credit += u64::from(turn.weight);
            if turn.credit < u64::from(heaviest) {
                continue;
            }
            turn.credit -= u64::from(heaviest);
            entries[turn.take(&mut taken, len)] = turn.slot.0;
            free -= 1;
            if free == 0 {
                return entries;
            }
        }
    }
}

/// Whether `n` is prime.
pub fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| u64::from(*d) * u64::from(*d) <= u64::from(n)).all(|d| !n.is_multiple_of(d))
}

/// The first prime from `n` on. Saturates at the last prime of u32.
pub fn prime_from(n: u32) -> u32 {
    (n..=u32::MAX).find(|n| is_prime(*n)).unwrap_or(4_294_967_291)
}

/// A slot's walk through its own permutation of the entries.
struct Turn {
    slot: SlotIndex,
    weight: u32,
    credit: u64,
    position: u32,
    skip: u32,
}

impl Turn {
    fn new((slot, weight): (SlotIndex, u32), len: u32) -> Self {
        let hash = SipHasher13::new_with_keys(0x7368_6572_6420_6d61, 0x676c_6576_2074_6162).hash(&slot.0.to_le_bytes());
        let position = (hash >> 32) % u64::from(len);
        let skip = (hash & 0xffff_ffff) % u64::from(len - 1) + 1;
        Self { slot, weight, credit: 0, position: position as u32, skip: skip as u32 }
    }

    /// Takes the next free entry of the permutation; there is one, and a prime length makes the walk visit all.
    fn take(&mut self, taken: &mut [u64], len: u32) -> usize {
        loop {
            let entry = self.position as usize;
            // Both are below `len`, which is at most 2^31: no overflow, and no division.
            self.position += self.skip;
            if self.position >= len {
                self.position -= len;
            }
            let (word, bit) = (&mut taken[entry / 64], 1 << (entry % 64));
            if *word & bit == 0 {
                *word |= bit;
                return entry;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(entries: &[u16]) -> Vec<usize> {
        let mut counts = vec![0; 1024];
        entries.iter().filter(|slot| **slot != NO_SLOT).for_each(|slot| counts[usize::from(*slot)] += 1);
        counts
    }

    fn equal(slots: impl IntoIterator<Item = u16>) -> Vec<(SlotIndex, u32)> {
        slots.into_iter().map(|slot| (SlotIndex(slot), 1)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn entries_follow_weights(weights in prop::collection::btree_map(0u16..1024, 0u32..50, 1..64)) {
            let slots: Vec<_> = weights.iter().map(|(slot, weight)| (SlotIndex(*slot), *weight)).collect();
            let entries = table(&slots, 65537);
            let total: u32 = weights.values().sum();
            let counts = counts(&entries);
            for (slot, weight) in &weights {
                let share = if total == 0 { 0.0 } else { 65537.0 * f64::from(*weight) / f64::from(total) };
                let count = counts[usize::from(*slot)] as f64;
                prop_assert!((count - share).abs() <= 2.0 + share / 100.0, "slot {} has {}, share {}", slot, count, share);
            }
            prop_assert!(total == 0 || !entries.contains(&NO_SLOT));
        }

        #[test]
        fn removing_a_slot_moves_few_others(n in 2u16..256, gone in any::<prop::sample::Index>()) {
            let gone = gone.index(usize::from(n)) as u16;
            let before = table(&equal(0..n), 65537);
            let after = table(&equal((0..n).filter(|slot| *slot != gone)), 65537);
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count() as f64 / 65537.0;
            prop_assert!(moved <= 1.0 / f64::from(n) + 0.01, "{} of {} moved", moved, n);
        }

        #[test]
        fn order_has_no_influence(mut slots in prop::collection::hash_set(0u16..1024, 1..32).prop_map(Vec::from_iter)) {
            let one = table(&equal(slots.iter().copied()), 4099);
            slots.reverse();
            prop_assert_eq!(one, table(&equal(slots), 4099));
        }
    }

    #[test]
    fn no_slot_fills_no_entry() {
        assert!(table(&[], 101).iter().all(|slot| *slot == NO_SLOT));
        assert!(table(&[(SlotIndex(1), 0)], 101).iter().all(|slot| *slot == NO_SLOT));
    }

    #[test]
    fn primes() {
        for (n, expected) in [(0, false), (1, false), (2, true), (9, false), (65537, true), (4_294_967_291, true)] {
            assert_eq!(is_prime(n), expected, "{n}");
        }
        assert_eq!(prime_from(25_600), 25_601);
    }
}
