//! The machine by hand-made facts, and against worlds that do what they like.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> RolloutPolicy {
    RolloutPolicy { monitor: 2 * SECOND, min_healthy: SECOND, deadline: 60 * SECOND, ..RolloutPolicy::default() }
}

/// A letter for each slot: `o` old, `O` old and in service, `n` new, `N` new and in service, `-` without a shard.
fn facts(text: &str) -> Vec<SlotFacts> {
    let fact = |(id, letter): (usize, char)| SlotFacts {
        id: SlotId(id as u32),
        cache: id / 2,
        shard: match letter {
            'o' | 'O' => Shard::Former,
            'n' | 'N' => Shard::Present,
            _ => Shard::None,
        },
        serving: letter.is_ascii_uppercase(),
        serves_present: letter == 'N',
        failure: None,
        empties: false,
        is_worse: None,
    };
    text.chars().enumerate().map(fact).collect()
}

fn turns_of(rollout: &Rollout) -> Vec<u32> {
    rollout.turns().into_iter().map(|slot| slot.0).collect()
}

fn check_begins(policy: &RolloutPolicy, slots: &str, expected: &[u32]) {
    let mut rollout = Rollout::default();
    assert_eq!(rollout.step(policy, Pace::Running, &facts(slots), Instant::now()), []);
    assert_eq!(turns_of(&rollout), expected, "{slots}");
}

#[test]
fn who_begins() {
    let one = policy();
    check_begins(&one, "OOOO", &[0]);
    check_begins(&one, "NOOO", &[1]);
    check_begins(&one, "NNNN", &[]);
    // Nothing to lose there.
    check_begins(&one, "OOoO", &[2]);
    check_begins(&one, "oooo", &[0]);
    // Somebody else is missing: what comes up there is on trial first.
    check_begins(&one, "O-OO", &[1]);
    check_begins(&one, "nOOO", &[0]);
    // A group of one slot has nobody else.
    check_begins(&one, "O", &[0]);
}

#[test]
fn two_at_once_are_of_two_caches_and_somebody_always_serves() {
    let two = RolloutPolicy { parallelism: 2, ..policy() };
    check_begins(&two, "OOOO", &[0, 2]);
    check_begins(&two, "NOON", &[1, 2]);
    check_begins(&two, "NNOO", &[2]);
    check_begins(&two, "OO", &[0]);
    let many = RolloutPolicy { parallelism: 9, ..policy() };
    check_begins(&many, "OOOO", &[0, 2]);
    check_begins(&many, "oooo", &[0, 1, 2, 3]);
}

#[test]
fn a_slot_is_good_when_it_has_served_for_its_trial() {
    let (mut rollout, start) = (Rollout::default(), Instant::now());
    let mut step = |seconds: u32, slots: &str| {
        let found = rollout.step(&policy(), Pace::Running, &facts(slots), start + seconds * SECOND);
        (found, turns_of(&rollout))
    };
    assert_eq!(step(0, "OO"), (vec![], vec![0]));
    assert_eq!(step(1, "oO"), (vec![], vec![0]));
    assert_eq!(step(2, "-O"), (vec![], vec![0]));
    assert_eq!(step(3, "nO"), (vec![], vec![0]));
    assert_eq!(step(4, "NO"), (vec![], vec![0]));
    assert_eq!(step(5, "NO"), (vec![], vec![0]));
    assert_eq!(step(6, "NO"), (vec![Finding::Good(SlotId(0))], vec![1]));
}

#[test]
fn a_delay_lies_between_two_slots() {
    let policy = RolloutPolicy { delay: 5 * SECOND, monitor: Duration::ZERO, min_healthy: Duration::ZERO, ..policy() };
    let (mut rollout, start) = (Rollout::default(), Instant::now());
    let mut step = |seconds: u32, slots: &str| {
        rollout.step(&policy, Pace::Running, &facts(slots), start + seconds * SECOND);
        turns_of(&rollout)
    };
    assert_eq!(step(0, "OO"), [0]);
    assert!(step(1, "NO").is_empty());
    assert!(step(5, "NO").is_empty());
    assert_eq!(step(6, "NO"), [1]);
}

fn check_fails(change: impl Fn(&mut SlotFacts), seconds: u32, expected: &str) {
    let (mut rollout, start) = (Rollout::default(), Instant::now());
    rollout.step(&policy(), Pace::Running, &facts("OO"), start);
    rollout.step(&policy(), Pace::Running, &facts("NO"), start + SECOND);
    let mut slots = facts("NO");
    change(&mut slots[0]);
    let found = rollout.step(&policy(), Pace::Running, &slots, start + seconds * SECOND);
    let [Finding::Failed(SlotId(0), reason)] = &found[..] else { panic!("{found:?}") };
    assert!(reason.contains(expected), "{reason}");
    // What follows is decided first.
    assert_eq!(turns_of(&rollout), [] as [u32; 0]);
}

#[test]
fn what_fails_a_slot() {
    check_fails(|slot| slot.failure = Some("it exited with code 1".into()), 2, "code 1");
    check_fails(|slot| slot.is_worse = Some("5 % of its connections fail".into()), 2, "5 %");
    check_fails(|slot| (slot.serving, slot.serves_present) = (false, false), 2, "1.0s after");
}

#[test]
fn a_slot_has_its_deadline() {
    let (mut rollout, start) = (Rollout::default(), Instant::now());
    rollout.step(&policy(), Pace::Running, &facts("OO"), start);
    assert_eq!(rollout.step(&policy(), Pace::Running, &facts("nO"), start + 59 * SECOND), []);
    let found = rollout.step(&policy(), Pace::Running, &facts("nO"), start + 60 * SECOND);
    assert_eq!(found, [Finding::Failed(SlotId(0), "not replaced within 60s".into())]);
}

#[test]
fn a_paused_rollout_ends_what_is_under_way_and_begins_nothing() {
    let (mut rollout, start) = (Rollout::default(), Instant::now());
    rollout.step(&policy(), Pace::Running, &facts("OOO"), start);
    rollout.step(&policy(), Pace::Paused, &facts("oOO"), start + SECOND);
    assert_eq!(turns_of(&rollout), [0]);
    rollout.step(&policy(), Pace::Paused, &facts("NOO"), start + 2 * SECOND);
    let found = rollout.step(&policy(), Pace::Paused, &facts("NOO"), start + 4 * SECOND);
    assert_eq!((found, turns_of(&rollout)), (vec![Finding::Good(SlotId(0))], vec![]));
    rollout.step(&policy(), Pace::Running, &facts("NOO"), start + 5 * SECOND);
    assert_eq!(turns_of(&rollout), [1]);
}

#[test]
fn with_continue_a_failed_slot_does_not_hold_up_the_others_but_the_last_one_stays() {
    let policy = RolloutPolicy { failure_action: FailureAction::Continue, ..policy() };
    let (mut rollout, start) = (Rollout::default(), Instant::now());
    rollout.step(&policy, Pace::Running, &facts("OOO"), start);
    let mut slots = facts("nOO");
    slots[0].failure = Some("it ended".into());
    rollout.step(&policy, Pace::Running, &slots, start + SECOND);
    assert_eq!(turns_of(&rollout), [1]);
    let mut slots = facts("nnO");
    slots[1].failure = Some("it ended".into());
    rollout.step(&policy, Pace::Running, &slots, start + 2 * SECOND);
    assert_eq!(turns_of(&rollout), [] as [u32; 0]);
    // As long as they don't serve, that is its end.
    assert!(rollout.is_over(&facts("nnO")) && rollout.has_given_up());
    assert!(!rollout.is_over(&facts("nNO")) && !rollout.is_over(&facts("nno")));
    rollout.step(&policy, Pace::Idle, &facts("NNO"), start + 3 * SECOND);
    assert_eq!(turns_of(&rollout), [2]);
}

#[test]
fn a_slot_that_failed_and_serves_on_by_its_former_shard_is_done_with() {
    let policy = RolloutPolicy { failure_action: FailureAction::Continue, ..policy() };
    let (mut rollout, start) = (Rollout::default(), Instant::now());
    rollout.step(&policy, Pace::Running, &facts("OO"), start);
    let mut slots = facts("OO");
    slots[0].failure = Some("it ended".into());
    rollout.step(&policy, Pace::Running, &slots, start + SECOND);
    assert_eq!(turns_of(&rollout), [1]);
    slots[1].failure = Some("it ended".into());
    assert_eq!(rollout.step(&policy, Pace::Running, &slots, start + 2 * SECOND).len(), 1);
    assert_eq!(rollout.step(&policy, Pace::Running, &slots, start + 3 * SECOND), []);
    assert!(rollout.is_over(&slots) && rollout.has_given_up());
}

#[test]
fn what_a_former_shard_takes_to_finish_is_no_delay_of_the_new_one() {
    let (policy, mut rollout, start) = (policy(), Rollout::default(), Instant::now());
    rollout.step(&policy, Pace::Running, &facts("OO"), start);
    let mut slots = facts("OO");
    slots[0].empties = true;
    assert_eq!(rollout.step(&policy, Pace::Running, &slots, start + 3600 * SECOND), []);
    slots[0].empties = false;
    assert_eq!(rollout.step(&policy, Pace::Running, &slots, start + 3659 * SECOND), []);
    assert_eq!(rollout.step(&policy, Pace::Running, &slots, start + 3660 * SECOND).len(), 1);
}

#[test]
fn what_is_tried_again_is_on_trial_again() {
    let (policy, mut rollout, start) = (policy(), Rollout::default(), Instant::now());
    rollout.step(&policy, Pace::Running, &facts("OO"), start);
    let mut slots = facts("nO");
    slots[0].failure = Some("it ended".into());
    assert_eq!(rollout.step(&policy, Pace::Running, &slots, start + SECOND).len(), 1);
    assert_eq!(rollout.step(&policy, Pace::Paused, &facts("nO"), start + 2 * SECOND), []);
    rollout.retry();
    rollout.step(&policy, Pace::Running, &facts("nO"), start + 3 * SECOND);
    assert_eq!(turns_of(&rollout), [0]);
    assert!(!rollout.is_over(&facts("nN")));
    // A group without a place has nothing that could be over.
    assert!(!Rollout::default().is_over(&[]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever shards do, the machine never has more turns than it may, never takes the last slot that serves, and begins
    /// with nobody while another slot is missing.
    #[test]
    fn turns_are_bounded(parallelism in 1u32..4, worlds in prop::collection::vec("[oOnN-]{4}", 1..40)) {
        let policy = RolloutPolicy { parallelism, monitor: SECOND, min_healthy: SECOND, ..policy() };
        let (mut rollout, mut now) = (Rollout::default(), Instant::now());
        for world in &worlds {
            let (slots, before) = (facts(world), rollout.turns());
            rollout.step(&policy, Pace::Running, &slots, now);
            now += SECOND;
            let turns = rollout.turns();
            let serves = |slot: &&SlotFacts| slot.serving;
            let taken: Vec<_> = slots.iter().filter(|slot| turns.contains(&slot.id) && !before.contains(&slot.id)).collect();
            // Whatever comes up has a turn at once, and keeps others from theirs.
            let replaced = taken.iter().filter(|slot| slot.shard == Shard::Former).count();
            prop_assert!(replaced == 0 || turns.len() <= parallelism as usize);
            if taken.iter().any(|slot| slot.serving) {
                prop_assert!(slots.iter().filter(serves).any(|slot| !turns.contains(&slot.id)), "{world}: {turns:?}");
            }
        }
    }

    /// Where each slot does what it is told, the rollout ends, with every slot good, in a bounded number of steps.
    #[test]
    fn it_comes_to_its_end(count in 1usize..12, parallelism in 1u32..5, lag in 1u32..4) {
        let policy = RolloutPolicy { parallelism, monitor: SECOND, min_healthy: SECOND, ..policy() };
        let (mut rollout, mut now) = (Rollout::default(), Instant::now());
        let mut stage = vec![0u32; count];
        for _ in 0..count * (lag as usize + 3) + 2 {
            let text: String = stage.iter().map(|stage| if *stage == 0 { 'O' } else if *stage <= lag { '-' } else { 'N' }).collect();
            let slots = facts(&text);
            for finding in rollout.step(&policy, Pace::Running, &slots, now) {
                prop_assert!(matches!(finding, Finding::Good(_)), "{finding:?}");
            }
            if rollout.is_over(&slots) {
                prop_assert!(stage.iter().all(|stage| *stage > lag));
                return Ok(());
            }
            for slot in rollout.turns() {
                stage[slot.0 as usize] += 1;
            }
            now += SECOND;
        }
        prop_assert!(false, "no end: {stage:?}");
    }
}
