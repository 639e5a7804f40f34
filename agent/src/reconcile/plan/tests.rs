//! The planner of steps against a small world: whatever happens to shards, it converges, and it never cuts off a
//! shard that still gets connections.

use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use sherd_topology::plan::{MemoryBinding, Slot, SlotId};

use super::*;
use crate::{
    reconcile::view::Wanted,
    rollout::{Pace, Rollout, SlotFacts},
    runtime::ShardId,
    spec::RolloutPolicy,
};

fn spec(text: &str) -> SpecHash {
    SpecHash(text.to_owned())
}

fn place(id: u32) -> Slot {
    Slot {
        id: SlotId(id),
        cpus: id.to_string().parse().expect("a CPU list"),
        mems: "0".parse().expect("a node list"),
        memory: MemoryBinding::Bind,
        memory_limit_bytes: None,
    }
}

fn running() -> ShardState {
    ShardState::Running { pid: 1, started: SystemTime::UNIX_EPOCH }
}

fn shard(id: u64, hash: &str, state: ShardState) -> ShardView {
    ShardView { id: ShardId(id.to_string()), spec: spec(hash), generation: id, state }
}

fn empty(id: u32, wanted: Wanted) -> SlotView {
    SlotView {
        id: SlotId(id),
        wanted,
        shards: Vec::new(),
        busy: false,
        start_after: None,
        health: Health::Unready,
        overdue: false,
        service: Service::Out,
        open: 0,
        backend: None,
        reconnect: false,
        pinning: Pinning::Unknown,
        equipped: false,
    }
}

fn wanted(id: u32, hash: &str) -> Wanted {
    Wanted::Run { spec: spec(hash), slot: place(id) }
}

/// A slot that serves.
fn serving(id: u32, hash: &str, wants: Wanted) -> SlotView {
    SlotView {
        shards: vec![shard(7, hash, running())],
        health: Health::Ready,
        service: Service::In,
        backend: Some(ShardId("7".to_owned())),
        pinning: Pinning::Holds(place(id)),
        equipped: true,
        ..empty(id, wants)
    }
}

/// Does what a step says, as if all went well at once.
fn carry_out(view: &mut SlotView, step: &Step, next_id: &mut u64, now: Instant) {
    match step {
        Step::Equip => view.equipped = true,
        Step::Create => {
            *next_id += 1;
            let Wanted::Run { spec, .. } = &view.wanted else { panic!("a shard is made that nobody wants") };
            view.shards.push(ShardView { spec: spec.clone(), ..shard(*next_id, "", ShardState::Created) });
            view.pinning = Pinning::Unknown;
        }
        Step::Start(id) => {
            set_state(view, id, running());
            view.health = Health::Ready;
        }
        Step::Verify(_) | Step::Repin(_) => {
            let Wanted::Run { slot, .. } = &view.wanted else { panic!("a shard is moved that is to go") };
            view.pinning = Pinning::Holds(slot.clone());
        }
        Step::Connect(id) => (view.backend, view.reconnect) = (Some(id.clone()), false),
        Step::TakeIn => view.service = Service::In,
        Step::TakeOut => view.service = Service::Out,
        Step::Drain => {
            view.service = Service::Draining { until: now + Duration::from_secs(1) };
            view.open = 0;
        }
        Step::Disconnect => {
            assert_ne!(view.service, Service::In, "cut off in service");
            (view.backend, view.open) = (None, 0);
        }
        Step::Stop(id) => {
            let sole = view.shards.iter().filter(|shard| is_alive(&shard.state)).count() == 1;
            assert!(!sole || view.service != Service::In, "stopped in service");
            set_state(view, id, ShardState::Exited { code: Some(0), oom: false });
            (view.health, view.overdue) = (Health::Unready, false);
        }
        Step::Remove(id) => {
            let state = view.shards.iter().find(|shard| shard.id == *id).map(|shard| shard.state);
            assert!(state.is_some_and(|state| !is_alive(&state)), "a living shard is removed");
            view.shards.retain(|shard| shard.id != *id);
        }
        Step::Retire => {
            assert_ne!(view.service, Service::In, "dismantled in service");
            view.equipped = false;
        }
    }
}

fn set_state(view: &mut SlotView, id: &ShardId, state: ShardState) {
    view.shards.iter_mut().find(|shard| shard.id == *id).expect("a step names a shard that is there").state = state;
}

/// The steps of a group whose slots are replaced one by one, without a trial.
fn steps_of(slots: &[SlotView], rollout: &mut Rollout, now: Instant) -> Vec<(SlotId, Step)> {
    let fact = |slot: &SlotView| {
        let (shard, serving) = (shard_of(slot)?, slot.service == Service::In);
        Some(SlotFacts {
            id: slot.id,
            cache: slot.id.0 as usize,
            shard,
            serving,
            serves_present: serving && shard == Shard::Present,
            failure: None,
            is_worse: None,
        })
    };
    let facts: Vec<SlotFacts> = slots.iter().filter_map(fact).collect();
    let policy = RolloutPolicy { min_healthy: Duration::ZERO, monitor: Duration::ZERO, ..RolloutPolicy::default() };
    // Twice: a trial that takes no time ends with the next look.
    for _ in 0..2 {
        rollout.step(&policy, Pace::Running, &facts, now);
    }
    next_steps(slots, &rollout.turns(), now)
}

/// Runs all steps until there is none; returns them. A shard that a new one replaces starts with unknown pinning.
fn converge(slots: &mut [SlotView], now: Instant) -> Vec<(SlotId, Step)> {
    let (mut done, mut next_id, mut rollout) = (Vec::new(), 100, Rollout::default());
    for _ in 0..200 {
        let steps = steps_of(slots, &mut rollout, now);
        if steps.is_empty() {
            return done;
        }
        for (id, step) in steps {
            let slot = slots.iter_mut().find(|slot| slot.id == id).expect("a step names a slot");
            carry_out(slot, &step, &mut next_id, now);
            done.push((id, step));
        }
    }
    panic!("no end: {:?}", done.iter().rev().take(8).collect::<Vec<_>>());
}

fn names(steps: &[(SlotId, Step)]) -> String {
    let name = |step: &Step| format!("{step:?}").split('(').next().unwrap_or_default().to_owned();
    steps.iter().map(|(_, step)| name(step)).collect::<Vec<_>>().join(" ")
}

fn check(mut slot: SlotView, expected: &str) {
    let steps = converge(std::slice::from_mut(&mut slot), Instant::now());
    assert_eq!(names(&steps), expected);
}

#[test]
fn a_slot_goes_from_nothing_to_service() {
    check(empty(0, wanted(0, "a")), "Equip Create Start Verify Connect TakeIn");
}

#[test]
fn a_serving_slot_needs_nothing() {
    check(serving(0, "a", wanted(0, "a")), "");
}

#[test]
fn a_slot_that_is_not_wanted_is_drained_before_it_is_stopped() {
    check(serving(0, "a", Wanted::Gone), "Drain Disconnect Stop Remove Retire");
    check(serving(0, "a", Wanted::Stopped), "Drain Disconnect Stop Retire");
    // Also when its worker was about to be told of another port.
    check(SlotView { reconnect: true, ..serving(0, "a", Wanted::Gone) }, "Drain Disconnect Stop Remove Retire");
}

#[test]
fn a_dead_shard_is_replaced() {
    let mut slot = serving(0, "a", wanted(0, "a"));
    slot.shards[0].state = ShardState::Exited { code: Some(1), oom: false };
    slot.health = Health::Unready;
    check(slot, "TakeOut Disconnect Remove Create Start Verify Connect TakeIn");
}

#[test]
fn a_moved_slot_is_pinned_again_while_it_serves() {
    let mut slot = serving(0, "a", wanted(0, "a"));
    slot.pinning = Pinning::Holds(place(3));
    check(slot, "Repin");
}

#[test]
fn a_shard_that_is_never_ready_is_stopped_and_made_again() {
    let mut slot = serving(0, "a", wanted(0, "a"));
    (slot.health, slot.service, slot.backend, slot.overdue) = (Health::Unready, Service::Out, None, true);
    check(slot, "Stop Remove Create Start Verify Connect TakeIn");
}

#[test]
fn an_adopted_slot_stays_in_service_until_it_is_reached() {
    let mut slot = serving(0, "a", wanted(0, "a"));
    (slot.health, slot.backend) = (Health::Adopted, None);
    check(slot, "");
}

#[test]
fn draining_waits_for_connections_until_its_deadline() {
    let now = Instant::now();
    let mut slot = serving(0, "a", Wanted::Gone);
    (slot.service, slot.open) = (Service::Draining { until: now + Duration::from_secs(5) }, 3);
    let steps = |now| next_steps(std::slice::from_ref(&slot), &BTreeSet::new(), now);
    assert_eq!(steps(now), []);
    let late = steps(now + Duration::from_secs(5));
    assert_eq!(names(&late), "Disconnect");
}

#[test]
fn a_new_specification_replaces_slot_by_slot() {
    let mut slots: Vec<SlotView> = (0..4).map(|id| serving(id, "old", wanted(id, "new"))).collect();
    let now = Instant::now();
    let (mut next_id, mut rollout) = (100, Rollout::default());
    for _ in 0..100 {
        let out = slots.iter().filter(|slot| slot.service != Service::In).count();
        assert!(out <= 1, "{out} slots out of service at once");
        let steps = steps_of(&slots, &mut rollout, now);
        if steps.is_empty() {
            break;
        }
        for (id, step) in steps {
            carry_out(&mut slots[id.0 as usize], &step, &mut next_id, now);
        }
    }
    assert!(slots.iter().all(|slot| slot.service == Service::In && slot.shards[0].spec == spec("new")));
}

#[test]
fn a_new_specification_that_does_not_come_up_stops_at_the_first_slot() {
    let mut slots: Vec<SlotView> = (0..3).map(|id| serving(id, "old", wanted(id, "new"))).collect();
    slots[0].shards[0] = shard(8, "new", running());
    (slots[0].service, slots[0].health, slots[0].backend) = (Service::Out, Health::Unready, None);
    assert_eq!(steps_of(&slots, &mut Rollout::default(), Instant::now()), []);
}

fn any_state() -> impl Strategy<Value = ShardState> {
    prop_oneof![
        Just(ShardState::Created),
        Just(running()),
        Just(ShardState::Paused { pid: 1 }),
        Just(ShardState::Exited { code: Some(1), oom: false }),
        Just(ShardState::Dead),
    ]
}

fn any_slot(id: u32) -> impl Strategy<Value = SlotView> {
    let wants = prop_oneof![Just(wanted(id, "a")), Just(Wanted::Gone), Just(Wanted::Stopped)];
    let shards = proptest::collection::vec((any_state(), prop_oneof![Just("a"), Just("b")]), 0..4);
    (wants, shards, any::<bool>(), any::<bool>(), any::<bool>(), 0u64..3).prop_map(
        move |(wants, shards, equipped, in_service, ready, open)| {
            let shards: Vec<ShardView> =
                shards.into_iter().enumerate().map(|(n, (state, hash))| shard(n as u64 + 1, hash, state)).collect();
            let alive = shards.iter().find(|shard| is_alive(&shard.state));
            SlotView {
                backend: alive.filter(|_| equipped).map(|shard| shard.id.clone()),
                health: if ready { Health::Ready } else { Health::Unready },
                service: if in_service && equipped { Service::In } else { Service::Out },
                open,
                equipped,
                shards: shards.clone(),
                ..empty(id, wants)
            }
        },
    )
}

proptest! {
    /// From whatever a crash left, every slot ends as wanted, in a bounded number of steps, and `carry_out`'s
    /// assertions hold on the way.
    #[test]
    fn every_state_converges(mut slots in (any_slot(0), any_slot(1), any_slot(2)).prop_map(|(a, b, c)| vec![a, b, c])) {
        // Two living shards in one slot are a crash's; nothing says then which of them the worker serves.
        for slot in &mut slots {
            if slot.shards.iter().filter(|shard| is_alive(&shard.state)).count() > 1 {
                slot.service = Service::Out;
            }
        }
        converge(&mut slots, Instant::now());
        for slot in &slots {
            let alive = slot.shards.iter().filter(|shard| is_alive(&shard.state)).count();
            match &slot.wanted {
                Wanted::Gone => prop_assert!(slot.shards.is_empty() && !slot.equipped),
                Wanted::Stopped => prop_assert!(alive == 0 && !slot.equipped),
                Wanted::Run { .. } => prop_assert!(alive == 1 && slot.shards.len() == 1),
            }
        }
    }
}
