//! The slot that accepts is the slot the model says.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sherd_lb::{
    front::Front,
    table::{Choice, Policy, SlotIndex, SteeringTable},
};
use sherd_testkit::{Need, in_new_netns, needs};

use super::traffic::{Listeners, Mode, add_v6_clients, check, connect, connections_of_a_check, flow, publish, table};

const POLICIES: [Policy; 4] = [Policy::Connection, Policy::Client, Policy::Local, Policy::Balanced];

const WEIGHTS: [u32; 12] = [3, 1, 2, 1, 5, 1, 1, 1, 0, 2, 1, 1];

/// Slots that are out, so that fail-over happens at each level: nowhere, same L3, same node, same package, any.
const OUT: [&[u16]; 6] =
    [&[], &[0, 4, 7], &[0, 1, 6, 7], &[0, 1, 2, 3], &[0, 1, 2, 3, 4, 5, 6, 7], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11]];

fn set_out(front: &mut Front, slots: u16, out: &[u16]) {
    for slot in 0..slots {
        front.set_in(SlotIndex(slot), !out.contains(&slot)).expect("it has a listener");
    }
}

fn check_policies(mode: Mode, v6: bool, weights: &'static [u32]) {
    in_new_netns(move || {
        if v6 {
            add_v6_clients();
        }
        let slots = weights.len() as u16;
        let mut total = 0;
        let mut front = publish(mode, v6, &table(Policy::Connection, weights));
        for policy in POLICIES {
            let table = table(policy, weights);
            front.set_table(&table).expect("a good table");
            for (i, out) in OUT.iter().enumerate() {
                set_out(&mut front, slots, out);
                let count = connections_of_a_check();
                let got = check(&front, &table, count, i as u32 % 2);
                total += count;
                assert!(got.keys().all(|choice| matches!(choice, Choice::Slot(s) if !out.contains(&s.0))), "{got:?}");
            }
        }
        if mode == Mode::Ebpf {
            assert_eq!(front.picks().iter().sum::<u64>(), total as u64);
            let totals = front.totals();
            assert!(totals.failovers > 0 && totals.failovers < total as u64, "{totals:?}");
            let faults = (totals.anchored, totals.dropped, totals.retries, totals.foreign, totals.unread);
            assert_eq!(faults, (0, 0, 0, 0, 0));
        }
    });
}

#[test]
fn ebpf_steers_as_the_model_says() {
    if needs("ebpf_steers_as_the_model_says", &[Need::Root, Need::Bpf]) {
        check_policies(Mode::Ebpf, false, &WEIGHTS);
        check_policies(Mode::Ebpf, true, &WEIGHTS);
    }
}

#[test]
fn classic_steers_as_its_model_says() {
    if needs("classic_steers_as_its_model_says", &[Need::Root]) {
        check_policies(Mode::Classic, false, &WEIGHTS);
        check_policies(Mode::Classic, true, &WEIGHTS);
    }
}

/// More than a word of slots, so that the masks' later words are used.
#[test]
fn many_slots_fail_over_to_each_other() {
    if !needs("many_slots_fail_over_to_each_other", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let table = SteeringTable::flat(Policy::Connection, (0..200).map(SlotIndex));
        let config = sherd_lb::front::FrontConfig {
            max_slots: 200,
            ..sherd_lb::front::FrontConfig::new(([127, 0, 0, 1], 0).into())
        };
        let mut front = Front::open(&config, &table).expect("a free port");
        for slot in (0..200).map(SlotIndex) {
            front.add_slot(slot).expect("the address is ours");
            front.set_in(slot, slot.0 % 3 != 0).expect("it has a listener");
        }
        let got = check(&front, &table, 2000, 0);
        // All that are in share in it: 133 slots, 15 connections each.
        assert!(got.len() > 125, "{} slots got some", got.len());
    });
}

#[test]
fn a_flip_shows_one_table_or_the_other() {
    if !needs("a_flip_shows_one_table_or_the_other", &[Need::Root, Need::Bpf]) {
        return;
    }
    in_new_netns(|| {
        let tables = [table(Policy::Connection, &WEIGHTS), table(Policy::Client, &[1; 12])];
        let mut front = publish(Mode::Ebpf, false, &tables[0]);
        for slot in [2, 5, 8] {
            front.set_in(SlotIndex(slot), false).expect("it has a listener");
        }
        let (listeners, address, done) = (Listeners::of(&front), front.address(), AtomicBool::new(false));
        let flips = AtomicUsize::new(0);
        let mut got = Vec::new();
        std::thread::scope(|scope| {
            let flipper = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let flip = flips.fetch_add(1, Ordering::Relaxed);
                    front.set_table(&tables[flip % 2]).expect("a good table");
                }
            });
            // How fast tables change is the machine's: on until there were enough changes, within a bound.
            let rounds = connections_of_a_check() / 30;
            for round in 0..100 * rounds {
                if round >= rounds && flips.load(Ordering::Relaxed) > 20 {
                    break;
                }
                let clients: Vec<_> = (0..100).map(|n| connect(n, address).expect("it is published")).collect();
                let accepted = listeners.accept(clients.len());
                got.extend(clients.iter().map(flow).map(|flow| (flow, accepted[&flow.client].0)));
            }
            done.store(true, Ordering::Relaxed);
            flipper.join().expect("tables are put");
        });
        let flips = flips.into_inner();
        assert!(flips > 20, "{flips} flips during {} connections", got.len());
        let explanations = tables.each_ref().map(|table| front.explain(table));
        for (flow, choice) in got {
            let answers = explanations.each_ref().map(|explanation| explanation.choose(&flow, 0));
            assert!(answers.contains(&choice), "{flow:?} went to {choice:?}, the tables say {answers:?}");
        }
    });
}

#[test]
fn classic_follows_the_kernels_order() {
    if !needs("classic_follows_the_kernels_order", &[Need::Root]) {
        return;
    }
    in_new_netns(|| {
        let table = table(Policy::Connection, &[1; 6]);
        let mut front = publish(Mode::Classic, false, &table);
        // The last takes the place of the one that leaves.
        for (leaves, comes_back) in [(1, false), (5, false), (0, true), (1, true), (3, false)] {
            let _ = front.remove_slot(SlotIndex(leaves));
            if comes_back {
                front.add_slot(SlotIndex(leaves)).expect("the address is ours");
                front.set_in(SlotIndex(leaves), true).expect("it has a listener");
            }
            check(&front, &table, 300, 0);
        }
    });
}
