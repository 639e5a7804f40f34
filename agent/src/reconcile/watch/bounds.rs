//! The load beyond which a slot's connections go to their second choice. Pure.

/// Beyond its share of the load, a quarter of it and this much: a few connections more or less are no reason to leave the
/// hash.
const SLACK: u128 = 8;

/// The bound of each slot (weight, load, in service), as bounded-load consistent hashing has it (Mirrokni et al., 2016).
/// 0: none, because nobody is there to pass on to.
pub(super) fn bounds(slots: &[(u32, u64, bool)]) -> Vec<u32> {
    let serving = || slots.iter().filter(|(weight, _, in_service)| *in_service && *weight > 0);
    let load: u128 = serving().map(|(_, load, _)| u128::from(*load)).sum();
    let weights: u128 = serving().map(|(weight, ..)| u128::from(*weight)).sum();
    let alone = serving().count() < 2;
    let bound = |weight: u32| {
        let share = (load * u128::from(weight)).div_ceil(weights.max(1));
        u32::try_from(share + share / 4 + SLACK).unwrap_or(u32::MAX)
    };
    slots.iter().map(|(weight, ..)| if alone { 0 } else { bound(*weight) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(slots: &[(u32, u64, bool)], expected: &[u32]) {
        assert_eq!(bounds(slots), expected, "{slots:?}");
    }

    #[test]
    fn a_slot_may_have_its_share_and_a_little_more() {
        check(&[], &[]);
        check(&[(1, 500, true)], &[0]);
        check(&[(1, 500, true), (1, 500, false)], &[0, 0]);
        check(&[(1, 0, true), (1, 0, true)], &[8, 8]);
        check(&[(1, 100, true), (1, 300, true)], &[258, 258]);
        check(&[(1, 100, true), (3, 300, true), (0, 0, true)], &[133, 383, 8]);
        check(&[(u32::MAX, u64::MAX / 4, true), (u32::MAX, 1, true)], &[u32::MAX, u32::MAX]);
    }
}
