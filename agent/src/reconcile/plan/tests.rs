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
        ends_beside: false,
        start_after: None,
        health: Health::Unready,
        overdue: false,
        service: Service::Out,
        open: 0,
        relayed: 0,
        backend: None,
        reconnect: false,
        pinning: Pinning::Unknown,
        equipped: false,
        primary: None,
        next: None,
        former: None,
        overlaps: false,
        unpause_at: None,
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
        primary: Some(ShardId("7".to_owned())),
        ..empty(id, wants)
    }
}

/// The same, and its turn is start-first.
fn overlapping(id: u32, hash: &str, wants: Wanted) -> SlotView {
    SlotView { overlaps: true, ..serving(id, hash, wants) }
}

/// One that comes up: not asked yet where it is.
fn next(id: &ShardId, health: Health) -> NextView {
    NextView { id: id.clone(), health, pinning: Pinning::Unknown, overdue: false }
}

/// Has who is beside the slot's shard take its place, if that is gone, as the loop does.
fn take_place(view: &mut SlotView) {
    let lives = |id: &ShardId| view.shards.iter().any(|shard| shard.id == *id && is_alive(&shard.state));
    if view.primary.as_ref().is_some_and(lives) {
        return;
    }
    (view.health, view.pinning) = (Health::Unready, Pinning::Unknown);
    if let Some(next) = view.next.take() {
        (view.health, view.pinning, view.primary) = (next.health, next.pinning, Some(next.id));
    } else {
        view.primary = view.former.take().map(|former| former.id);
    }
}

/// Does what a step says, as if all went well at once.
fn carry_out(view: &mut SlotView, step: &Step, next_id: &mut u64, now: Instant) {
    match step {
        Step::Equip => view.equipped = true,
        Step::Create => {
            *next_id += 1;
            let Wanted::Run { spec, .. } = &view.wanted else { panic!("a shard is made that nobody wants") };
            let living = view.shards.iter().filter(|shard| is_alive(&shard.state)).count();
            assert!(living < 2, "a third one is made");
            view.shards.push(ShardView { spec: spec.clone(), ..shard(*next_id, "", ShardState::Created) });
        }
        Step::Start(id) => {
            set_state(view, id, running());
            if view.primary.is_some() {
                view.next = Some(next(id, Health::Ready));
            } else {
                (view.primary, view.health, view.pinning) = (Some(id.clone()), Health::Ready, Pinning::Unknown);
            }
        }
        Step::Verify(id) | Step::Repin(id) => {
            let Wanted::Run { slot, .. } = &view.wanted else { panic!("a shard is moved that is to go") };
            let holds = Pinning::Holds(slot.clone());
            match &mut view.next {
                Some(next) if next.id == *id => next.pinning = holds,
                _ => view.pinning = holds,
            }
        }
        Step::Promote(id) => {
            let next = view.next.take().expect("somebody to promote");
            assert!(next.id == *id && next.health == Health::Ready, "promoted before it is ready");
            assert_eq!(view.former, None, "the connections of another are forgotten");
            let former = view.primary.replace(next.id.clone());
            view.former = former.map(|id| FormerView { id, open: 0, until: now + Duration::from_secs(1) });
            (view.health, view.pinning, view.backend) = (next.health, next.pinning, Some(next.id));
        }
        Step::Connect(id) => (view.backend, view.reconnect) = (Some(id.clone()), false),
        Step::Unpause(id) => set_state(view, id, running()),
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
            assert!(view.primary.as_ref() != Some(id) || view.service != Service::In, "stopped in service");
            let finishes = |former: &FormerView| former.id == *id && former.open > 0 && now < former.until;
            assert!(!view.former.as_ref().is_some_and(finishes), "stopped with connections");
            let runs = matches!(&view.wanted, Wanted::Run { spec, .. } if of(view, id).spec == *spec);
            let comes_up = view.next.as_ref().is_some_and(|next| next.id == *id && !next.overdue);
            assert!(!(runs && comes_up), "stopped before it takes over");
            set_state(view, id, ShardState::Exited { code: Some(0), oom: false });
            view.next.take_if(|next| next.id == *id);
            view.former.take_if(|former| former.id == *id);
            view.overdue = false;
            take_place(view);
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

fn of<'a>(view: &'a SlotView, id: &ShardId) -> &'a ShardView {
    view.shards.iter().find(|shard| shard.id == *id).expect("a step names a shard that is there")
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
            empties: false,
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
    take_place(&mut slot);
    check(slot, "TakeOut Disconnect Remove Create Start Verify Connect TakeIn");
}

#[test]
fn a_shard_that_somebody_paused_is_out_at_once_and_goes_on_when_its_time_is_up() {
    let now = Instant::now();
    let paused = |at: Option<Duration>, service| {
        let mut slot = SlotView { service, unpause_at: at.map(|at| now + at), ..serving(0, "a", wanted(0, "a")) };
        slot.shards[0].state = ShardState::Paused { pid: 1 };
        names(&converge(std::slice::from_mut(&mut slot), now))
    };
    assert_eq!(paused(None, Service::In), "TakeOut");
    assert_eq!(paused(Some(Duration::from_secs(1)), Service::In), "TakeOut");
    assert_eq!(paused(Some(Duration::from_secs(1)), Service::Out), "");
    assert_eq!(paused(Some(Duration::ZERO), Service::In), "TakeOut Unpause TakeIn");
}

#[test]
fn a_new_shard_takes_over_from_the_one_that_serves() {
    let all = "Create Start Verify Promote Stop Remove";
    check(overlapping(0, "a", wanted(0, "b")), all);
    check(serving(0, "a", wanted(0, "b")), "Drain Disconnect Stop TakeOut Remove Create Start Verify Connect TakeIn");
    // A slot that doesn't serve has nothing to lose.
    let out = SlotView { service: Service::Out, ..overlapping(0, "a", wanted(0, "b")) };
    check(out, "Drain Disconnect Stop TakeOut Remove Create Start Verify Connect TakeIn");
    // It was made, and the agent was killed then.
    let mut made = overlapping(0, "a", wanted(0, "b"));
    made.shards.push(shard(8, "b", ShardState::Created));
    check(made.clone(), "Start Verify Promote Stop Remove");
    let without_room = SlotView { overlaps: false, ..made };
    check(without_room, "Remove Drain Disconnect Stop TakeOut Remove Create Start Verify Connect TakeIn");
}

/// A slot that serves, with a shard beside.
fn with_next(hash: &str, wants: Wanted, health: Health) -> SlotView {
    let mut slot = overlapping(0, "a", wants);
    slot.shards.push(shard(8, hash, running()));
    slot.next = Some(next(&ShardId("8".to_owned()), health));
    slot
}

#[test]
fn what_comes_up_in_vain_goes_and_the_slot_serves_on() {
    check(with_next("b", wanted(0, "a"), Health::Ready), "Stop Remove");
    check(with_next("b", wanted(0, "b"), Health::Ready), "Verify Promote Stop Remove");
    let mut overdue = with_next("b", wanted(0, "b"), Health::Unready);
    overdue.start_after = Some(Instant::now() + Duration::from_secs(60));
    if let Some(next) = &mut overdue.next {
        (next.overdue, next.pinning) = (true, Pinning::Holds(place(0)));
    }
    check(overdue, "Stop Remove");
    check(with_next("b", Wanted::Gone, Health::Ready), "Stop Drain Disconnect Stop Remove Remove Retire");
    // The one that serves goes on as if nobody were beside it.
    check(SlotView { reconnect: true, ..with_next("b", wanted(0, "b"), Health::Unready) }, "Connect Verify");
    check(SlotView { health: Health::Unready, ..with_next("b", wanted(0, "b"), Health::Unready) }, "TakeOut Verify");
}

#[test]
fn who_was_taken_over_from_has_time_to_finish() {
    let now = Instant::now();
    let mut slot = with_next("b", wanted(0, "b"), Health::Ready);
    (slot.next, slot.primary, slot.backend) = (None, Some(ShardId("8".to_owned())), Some(ShardId("8".to_owned())));
    slot.former = Some(FormerView { id: ShardId("7".to_owned()), open: 2, until: now + Duration::from_secs(5) });
    let steps = |slot: &SlotView, now| names(&next_steps(std::slice::from_ref(slot), &BTreeSet::from([slot.id]), now));
    assert_eq!(steps(&slot, now), "");
    assert_eq!(steps(&slot, now + Duration::from_secs(5)), "Stop");
    // The next change waits for it too.
    let changed = SlotView { wanted: wanted(0, "c"), ..slot.clone() };
    assert_eq!(steps(&changed, now), "");
    let gone = SlotView { wanted: Wanted::Gone, service: Service::Out, backend: None, ..slot };
    assert_eq!(steps(&gone, now), "Stop");
    let down = ShardState::Exited { code: Some(0), oom: false };
    let down = SlotView { shards: vec![gone.shards[0].clone(), shard(8, "b", down)], ..gone };
    assert_eq!(steps(&down, now), "");
    assert_eq!(steps(&down, now + Duration::from_secs(5)), "Stop");
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
fn what_a_former_agent_handed_over_may_finish() {
    let now = Instant::now();
    let slot =
        SlotView { service: Service::Out, backend: None, relayed: 3, open: 3, ..serving(0, "a", Wanted::Stopped) };
    assert_eq!(names(&next_steps(std::slice::from_ref(&slot), &BTreeSet::new(), now)), "Drain");
    let emptied = SlotView { relayed: 0, open: 0, ..slot };
    assert!(names(&next_steps(&[emptied], &BTreeSet::new(), now)).starts_with("Stop"));
}

/// A shard that was taken over from may take its whole grace to end.
#[test]
fn a_shard_that_fails_while_another_ends_is_taken_out() {
    let now = Instant::now();
    let busy = SlotView { busy: true, health: Health::Unready, ..serving(0, "a", wanted(0, "a")) };
    assert_eq!(next_steps(std::slice::from_ref(&busy), &BTreeSet::new(), now), []);
    let beside = SlotView { ends_beside: true, ..busy };
    assert_eq!(names(&next_steps(std::slice::from_ref(&beside), &BTreeSet::new(), now)), "TakeOut");
    let out = SlotView { service: Service::Out, ..beside.clone() };
    assert_eq!(next_steps(&[out], &BTreeSet::new(), now), []);
    let ready = SlotView { health: Health::Ready, ..beside };
    assert_eq!(next_steps(&[ready], &BTreeSet::new(), now), []);
}

#[test]
fn a_new_specification_replaces_slot_by_slot() {
    check_replaced((0..4).map(|id| serving(id, "old", wanted(id, "new"))).collect(), 1);
    check_replaced((0..4).map(|id| overlapping(id, "old", wanted(id, "new"))).collect(), 0);
    check_replaced(vec![overlapping(0, "old", wanted(0, "new"))], 0);
}

fn check_replaced(mut slots: Vec<SlotView>, most_out: usize) {
    let now = Instant::now();
    let (mut next_id, mut rollout) = (100, Rollout::default());
    for _ in 0..100 {
        let out = slots.iter().filter(|slot| slot.service != Service::In).count();
        assert!(out <= most_out, "{out} slots out of service at once");
        let doubled = slots.iter().filter(|slot| slot.next.is_some() || slot.former.is_some()).count();
        assert!(doubled <= 2, "{doubled} slots with two shards at once");
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
    slots[0].primary = Some(ShardId("8".to_owned()));
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
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    // Who serves of those that live, and what the one beside it is.
    let roles = (0usize..4, any::<bool>());
    (wants, shards, flags, roles, 0u64..3).prop_map(
        move |(wants, shards, (equipped, in_service, ready, overlaps, comes_up), (serves, is_ready), open)| {
            let shards: Vec<ShardView> =
                shards.into_iter().enumerate().map(|(n, (state, hash))| shard(n as u64 + 1, hash, state)).collect();
            let mut alive: Vec<&ShardView> = shards.iter().filter(|shard| is_alive(&shard.state)).collect();
            let serves = serves % alive.len().max(1);
            let primary = (!alive.is_empty()).then(|| alive.remove(serves).id.clone());
            let beside = alive.first().map(|shard| shard.id.clone());
            let (coming, going) = if comes_up { (beside, None) } else { (None, beside) };
            let health = |ready| if ready { Health::Ready } else { Health::Unready };
            SlotView {
                backend: primary.clone().filter(|_| equipped),
                health: health(ready),
                service: if in_service && equipped { Service::In } else { Service::Out },
                open,
                equipped,
                primary,
                next: coming.map(|id| next(&id, health(is_ready))),
                former: going.map(|id| FormerView { id, open, until: Instant::now() + Duration::from_secs(1) }),
                overlaps,
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
        converge(&mut slots, Instant::now());
        // Whoever was taken over from has had its time, and whoever comes up has become ready or been late.
        let later = Instant::now() + Duration::from_secs(5);
        for _ in 0..2 {
            for slot in &mut slots {
                slot.next.iter_mut().for_each(|next| next.health = Health::Ready);
                slot.open = 0;
            }
            converge(&mut slots, later);
        }
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
