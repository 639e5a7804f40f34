//! How many shards of a group may be out of service for their health at once. PURE.
//!
//! A check that fails everywhere mostly says something of the check, or of what all shards need: taking all of them out
//! turns a part of the answers being bad into none at all. Envoy's panic threshold is the model, with the difference that
//! shards beyond the bound stay in, and not all of the group.

use std::{collections::BTreeSet, time::Instant};

/// The shards that stay in service although they fail. `shards` are all that live and have been ready once, each with the time
/// since when it fails; those that fail longest are out.
pub fn held<Id: Copy + Ord>(shards: &[(Id, Option<Instant>)], max_percent: u32) -> BTreeSet<Id> {
    let allowed = (shards.len() * max_percent.min(100) as usize / 100).min(shards.len().saturating_sub(1));
    let mut failing: Vec<(Instant, Id)> = shards.iter().filter_map(|(id, since)| Some(((*since)?, *id))).collect();
    failing.sort_unstable();
    failing.into_iter().skip(allowed).map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// `since` in seconds; 0: it doesn't fail.
    fn check(max_percent: u32, since: &[u64], expected: &[usize]) {
        let begin = Instant::now();
        let shard = |(id, since): (usize, &u64)| (id, (*since > 0).then(|| begin + Duration::from_secs(*since)));
        let shards: Vec<_> = since.iter().enumerate().map(shard).collect();
        assert_eq!(held(&shards, max_percent), expected.iter().copied().collect(), "{max_percent} % of {since:?}");
    }

    #[test]
    fn half_of_a_group_may_be_out_and_never_all() {
        check(50, &[], &[]);
        check(50, &[1], &[0]);
        check(50, &[1, 0], &[]);
        check(50, &[2, 1], &[0]);
        check(50, &[1, 1], &[1]);
        check(50, &[3, 0, 2, 1], &[0]);
        check(50, &[1, 2, 3], &[1, 2]);
        check(0, &[1, 0], &[0]);
        check(100, &[1], &[0]);
        check(100, &[2, 1, 3], &[2]);
        check(10, &[1; 10], &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    proptest! {
        #[test]
        fn only_failing_ones_are_held_and_one_shard_serves(
            since in prop::collection::vec(prop::option::of(0..5u64), 1..40),
            max_percent in 0..=100u32,
        ) {
            let begin = Instant::now();
            let shards: Vec<_> =
                since.iter().map(|since| since.map(|since| begin + Duration::from_secs(since))).enumerate().collect();
            let held = held(&shards, max_percent);
            let failing = since.iter().flatten().count();
            prop_assert!(held.iter().all(|id| since[*id].is_some()));
            let out = failing - held.len();
            prop_assert!(out * 100 <= since.len() * max_percent as usize && out < since.len());
            // Nobody is held who needn't be.
            prop_assert!(held.is_empty() || (out + 1) * 100 > since.len() * max_percent as usize || out + 1 == since.len());
        }

        /// One that is out stays so while others come to fail: shards are not taken in and out in turn.
        #[test]
        fn later_failures_let_nobody_in(count in 1..40usize, failing in 0..40usize, max_percent in 0..=100u32) {
            let begin = Instant::now();
            let shards = |failing: usize| -> Vec<_> {
                (0..count).map(|id| (id, (id < failing).then(|| begin + Duration::from_secs(id as u64)))).collect()
            };
            let (before, after) = (held(&shards(failing), max_percent), held(&shards(failing + 1), max_percent));
            prop_assert!(before.is_subset(&after));
        }
    }
}
