//! Labels that must not lie on each other; pure arithmetic.

/// Moves places apart until each is `gap` from the next, as near to where they want to be as that allows, within `from..=to`.
/// In the order of `wanted`. Without room enough, they are spread evenly.
pub(super) fn spread(wanted: &[f64], gap: f64, from: f64, to: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let gaps = wanted.len().saturating_sub(1) as f64;
    let gap = if gaps > 0.0 { gap.min((to - from).max(0.0) / gaps) } else { gap };
    let mut places = vec![0.0; wanted.len()];
    // Groups of labels that touch, each as (sum of where its first would want to be, how many): their mean moves least.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for index in &order {
        groups.push((wanted[*index], 1));
        while let [.., (before, many), (after, more)] = groups[..] {
            let end = before / many as f64 + many as f64 * gap;
            if after / more as f64 >= end {
                break;
            }
            groups.pop();
            // Seen from the first of both, those of the later group want to be that much higher up.
            let joined = before + after - more as f64 * many as f64 * gap;
            *groups.last_mut().expect("there were two") = (joined, many + more);
        }
    }
    let mut next = order.iter();
    let mut least = from;
    let mut left = wanted.len();
    for (sum, many) in groups {
        let most = to - (left as f64 - 1.0) * gap;
        let first = (sum / many as f64).min(most).max(least);
        for (step, index) in next.by_ref().take(many).enumerate() {
            places[*index] = first + step as f64 * gap;
        }
        least = first + many as f64 * gap;
        left -= many;
    }
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_move_no_more_than_they_must() {
        for (wanted, expected) in [
            (vec![], vec![]),
            (vec![50.0], vec![50.0]),
            (vec![10.0, 90.0], vec![10.0, 90.0]),
            (vec![50.0, 50.0], vec![45.0, 55.0]),
            (vec![52.0, 50.0], vec![56.0, 46.0]),
            (vec![0.0, 0.0], vec![0.0, 10.0]),
            (vec![100.0, 99.0], vec![100.0, 90.0]),
        ] {
            assert_eq!(spread(&wanted, 10.0, 0.0, 100.0), expected, "{wanted:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn none_lies_on_another_and_all_are_within(wanted in prop::collection::vec(-50.0..250.0, 0..15)) {
            let places = spread(&wanted, 13.0, 0.0, 200.0);
            let mut sorted = places.clone();
            sorted.sort_by(f64::total_cmp);
            prop_assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= 13.0 - 1e-6), "{sorted:?}");
            prop_assert!(places.iter().all(|place| (-1e-6..=200.0 + 1e-6).contains(place)), "{places:?}");
            for (one, other) in (0..wanted.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
                prop_assert!(wanted[one] == wanted[other] || (wanted[one] < wanted[other]) == (places[one] < places[other]));
            }
        }
    }
}
