//! What holds in every plan, on generated machines: sparse and huge CPU numbers, offline and forbidden CPUs, hybrid
//! cores, nodes without CPUs or without memory, caches that are not there, isolated CPUs.

mod machines;

use std::collections::BTreeSet;

use machines::{Scene, machine, scene};
use proptest::prelude::*;
use sherd_topology::{
    model::{CpuSet, Host, HostParts, Level, Locality},
    plan::{
        Change, ChangeKind, ChangeReason, FaultCause, Layout, LayoutRequest, MemoryBinding, NoteKind, Plan, ShardCount,
        Sharing, Slot, Smt, Unit, plan,
    },
};

fn run(scene: &Scene, current: &[Layout]) -> Plan {
    plan(&scene.host, &scene.reserved, &scene.requests, current)
}

fn request<'a>(scene: &'a Scene, layout: &Layout) -> &'a LayoutRequest {
    scene.requests.iter().find(|request| request.group == layout.group).unwrap()
}

fn slots(plan: &Plan) -> impl Iterator<Item = (&Layout, &Slot)> {
    plan.layouts.iter().flat_map(|layout| layout.slots.iter().map(move |slot| (layout, slot)))
}

fn level(unit: Unit, smt: Smt) -> Option<Level> {
    Some(match (unit, smt) {
        (Unit::Pu, Smt::First) => Level::Core,
        (Unit::Pu, _) | (Unit::Core, Smt::Each) => return None,
        (Unit::Core, _) => Level::Core,
        (Unit::L2, _) => Level::L2,
        (Unit::L3, _) => Level::L3,
        (Unit::Die, _) => Level::Die,
        (Unit::Numa, _) => Level::Node,
        (Unit::Package, _) => Level::Package,
    })
}

/// All that holds for a plan by itself.
fn check_sound(scene: &Scene, plan: &Plan) {
    let Scene { host, reserved, requests } = scene;
    let usable = host.usable().difference(reserved);
    for (at, (layout, slot)) in slots(plan).enumerate() {
        let request = request(scene, layout);
        assert!(!slot.cpus.is_empty(), "{}/{}: no CPU", layout.group, slot.id);
        assert!(slot.cpus.is_subset(&usable), "{}/{}: {} outside {usable}", layout.group, slot.id, slot.cpus);
        if let Some(only) = &request.cpus {
            assert!(slot.cpus.is_subset(only));
        }
        match level(request.unit, request.smt) {
            None => assert_eq!(slot.cpus.len(), 1),
            Some(level) => {
                let parts: BTreeSet<_> = slot.cpus.iter().map(|cpu| host.part_of(level, cpu)).collect();
                assert!(parts.len() == 1 && !parts.contains(&None), "{} spans {level} {parts:?}", slot.cpus);
            }
        }
        let isolated = slot.cpus.intersection(&host.parts().isolated);
        assert!(isolated.is_empty() || slot.cpus.len() == 1, "isolated {isolated} among {}", slot.cpus);
        for (_, (other_layout, other)) in slots(plan).enumerate().filter(|(other, _)| *other > at) {
            let one_group = other_layout.group == layout.group;
            let exclusive = |layout| self::request(scene, layout).sharing == Sharing::Exclusive;
            if one_group || exclusive(layout) || exclusive(other_layout) {
                assert!(slot.cpus.is_disjoint(&other.cpus), "{} and {} overlap", layout.group, other_layout.group);
            }
        }
        check_memory(host, request, slot);
    }
    for layout in &plan.layouts {
        let ids: Vec<u32> = layout.slots.iter().map(|slot| slot.id.0).collect();
        assert_eq!(ids, (0..ids.len() as u32).collect::<Vec<_>>());
        if let ShardCount::Exactly(number) = request(scene, layout).shards {
            assert_eq!(number.get() as usize, ids.len());
        }
    }
    // Every group is either placed or a fault that names it.
    for request in requests {
        let placed = plan.layouts.iter().filter(|layout| layout.group == request.group).count();
        let faults: Vec<_> = plan.faults.iter().filter(|fault| fault.group == request.group).collect();
        assert_eq!(placed + faults.len(), 1);
        assert!(faults.iter().all(|fault| fault.to_string().contains(request.group.as_str())));
    }
}

fn check_memory(host: &Host, request: &LayoutRequest, slot: &Slot) {
    if request.memory == MemoryBinding::None {
        assert!(slot.mems.is_empty());
        return;
    }
    let usable = host.usable_nodes();
    assert!(!slot.mems.is_empty() && slot.mems.is_subset(&usable), "mems {} of {usable}", slot.mems);
    let own = host.nodes_of(&slot.cpus).intersection(&usable);
    if own.is_empty() { assert_eq!(slot.mems.len(), 1) } else { assert_eq!(slot.mems, own) }
}

/// No slot leaves its place: what changes stays on CPUs that the slot has.
fn check_nothing_left(changes: &[Change]) {
    for change in changes {
        let moved = matches!(change.kind, ChangeKind::Moved { .. });
        assert!(!moved || (change.in_place() && matches!(change.reason, ChangeReason::UnitGrew { .. })), "{change}");
    }
}

/// Puts one CPU more into the machine: online and allowed, in a core of its own in the parts of another CPU. That one
/// is not isolated: a unit that had isolated CPUs alone would change its nature.
fn with_one_more_cpu(host: &Host) -> Option<Host> {
    let mut parts: HostParts = host.clone().into();
    let beside = *parts.pus.iter().find(|cpu| !parts.isolated.contains(**cpu))?;
    let new = parts.present.last().unwrap().0 + 1;
    let grow = |set: &mut CpuSet| {
        if set.contains(beside) {
            set.insert(new.into());
        }
    };
    parts.packages.iter_mut().for_each(|package| grow(&mut package.cpus));
    parts.dies.iter_mut().for_each(|die| grow(&mut die.cpus));
    parts.nodes.iter_mut().for_each(|node| grow(&mut node.cpus));
    parts.caches.iter_mut().filter(|cache| cache.level == 3).for_each(|cache| grow(&mut cache.cpus));
    parts.pus.push(new.into());
    for set in [&mut parts.present, &mut parts.online, &mut parts.allowed] {
        set.insert(new.into());
    }
    Some(Host::new(parts).unwrap())
}

/// The generated scenes reach what the properties are about.
#[test]
fn scenes_are_varied() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut current: Vec<Layout> = Vec::new();
    for _ in 0..150 {
        let scene = scene().new_tree(&mut runner).unwrap().current();
        let plan = run(&scene, &current);
        let parts = scene.host.parts();
        let one_of = |slot: &Slot| !slot.cpus.is_disjoint(&parts.isolated);
        let sharing = |wanted| plan.layouts.iter().any(|layout| request(&scene, layout).sharing == wanted);
        let reason = |test: fn(&ChangeReason) -> bool| plan.changes.iter().any(|change| test(&change.reason));
        let note = |test: fn(&NoteKind) -> bool| plan.notes.iter().any(|note| test(&note.kind));
        let found = [
            ("several groups placed", plan.layouts.len() > 2),
            ("a fault", !plan.faults.is_empty()),
            (
                "a shortage that others cause",
                plan.faults
                    .iter()
                    .any(|fault| matches!(&fault.cause, FaultCause::Short(short) if !short.held.is_empty())),
            ),
            ("an isolated slot", slots(&plan).any(|(_, slot)| one_of(slot))),
            ("isolated CPUs left idle", note(|kind| matches!(kind, NoteKind::IsolatedLeftOut { .. }))),
            ("memory from elsewhere", note(|kind| matches!(kind, NoteKind::MemoryElsewhere { .. }))),
            ("a narrowed shared slot", note(|kind| matches!(kind, NoteKind::Narrowed { .. }))),
            ("exclusive beside shared", sharing(Sharing::Exclusive) && sharing(Sharing::Shared)),
            ("CPUs above 1024", parts.present.last().is_some_and(|cpu| cpu.0 > 1024)),
            ("offline CPUs", parts.online != parts.present),
            ("two kinds of cores", parts.core_kinds.len() > 1),
            ("a change for offline CPUs", reason(|reason| matches!(reason, ChangeReason::Offline { .. }))),
            ("a change for reserved CPUs", reason(|reason| matches!(reason, ChangeReason::Reserved { .. }))),
            ("a change for another group", reason(|reason| matches!(reason, ChangeReason::TakenBy { .. }))),
            ("a change in place", plan.changes.iter().any(Change::in_place)),
        ];
        seen.extend(found.iter().filter(|found| found.1).map(|found| found.0));
        current = plan.layouts;
    }
    assert_eq!(seen.len(), 15, "{seen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: machines::cases(), ..ProptestConfig::default() })]

    #[test]
    fn every_plan_is_sound(scene in scene()) {
        check_sound(&scene, &run(&scene, &[]));
    }

    #[test]
    fn the_same_inputs_give_the_same_plan(scene in scene()) {
        prop_assert_eq!(run(&scene, &[]), run(&scene, &[]));
    }

    #[test]
    fn a_replan_of_the_same_changes_nothing(scene in scene()) {
        let first = run(&scene, &[]);
        let again = run(&scene, &first.layouts);
        prop_assert_eq!(&again.changes, &Vec::new());
        prop_assert_eq!(again.layouts, first.layouts);
        prop_assert_eq!(again.faults.len(), first.faults.len());
    }

    #[test]
    fn a_group_that_goes_moves_no_other(scene in scene(), which in any::<prop::sample::Index>()) {
        let before = run(&scene, &[]);
        let mut rest = scene.clone();
        let gone = rest.requests.remove(which.index(rest.requests.len()));
        let after = run(&rest, &before.layouts);
        check_sound(&rest, &after);
        let others: Vec<Change> = after.changes.iter().filter(|change| change.group != gone.group).cloned().collect();
        check_nothing_left(&others);
    }

    #[test]
    fn a_cpu_more_moves_nothing(scene in scene()) {
        let before = run(&scene, &[]);
        let Some(host) = with_one_more_cpu(&scene.host) else { return Ok(()) };
        let grown = Scene { host, ..scene };
        let after = run(&grown, &before.layouts);
        check_sound(&grown, &after);
        check_nothing_left(&after.changes);
    }

    /// Whatever ran before, also under other requests, the plan is sound, and its changes lead from there to it.
    #[test]
    fn any_past_leads_to_a_sound_plan(before in scene(), after in scene()) {
        let current = run(&before, &[]).layouts;
        let plan = run(&after, &current);
        check_sound(&after, &plan);
        let again = run(&after, &plan.layouts);
        check_nothing_left(&again.changes.iter().filter(|c| plan.layouts.iter().any(|l| l.group == c.group)).cloned().collect::<Vec<_>>());
        for (layout, slot) in slots(&plan) {
            let old = current.iter().find(|old| old.group == layout.group);
            let old = old.and_then(|old| old.slots.iter().find(|old| old.id == slot.id));
            let change = plan.changes.iter().find(|change| change.group == layout.group && change.slot == slot.id);
            prop_assert_eq!(change.is_some(), old.is_none_or(|old| old.cpus != slot.cpus));
        }
    }

    /// Slots of a spread group differ by one at most between packages that had room for more.
    #[test]
    fn spread_is_even(host in machine(), number in 1u32..40) {
        let shards = ShardCount::Exactly(number.try_into().unwrap());
        let request = LayoutRequest { shards, unit: Unit::Pu, memory: MemoryBinding::None, ..LayoutRequest::new("web".parse().unwrap()) };
        let plan = plan(&host, &CpuSet::new(), &[request], &[]);
        let usable = host.usable();
        let levels: Vec<Level> = [Level::Package, Level::Node].into_iter().collect();
        let coarsest = levels.into_iter().min_by_key(|level| host.parts_at(*level).len()).unwrap();
        let counts: Vec<(usize, usize)> = host.parts_at(coarsest).iter().map(|part| {
            let room = part.intersection(&usable).len();
            (slots(&plan).filter(|(_, slot)| slot.cpus.is_subset(part)).count(), room)
        }).collect();
        let most = counts.iter().map(|count| count.0).max().unwrap_or(0);
        prop_assert!(counts.iter().all(|(count, room)| count == room || count + 1 >= most), "{counts:?}");
    }

    #[test]
    fn locality_is_the_same_by_sets_and_by_cpus(host in machine()) {
        let pus = &host.parts().pus;
        for a in pus.iter().step_by(pus.len() / 7 + 1) {
            for b in pus.iter().step_by(pus.len() / 11 + 1) {
                let sets = host.locality(&CpuSet::from_iter([*a]), &CpuSet::from_iter([*b]));
                prop_assert_eq!(sets, host.locality_of(*a, *b));
                prop_assert_eq!(sets, host.locality_of(*b, *a));
            }
        }
        prop_assert_eq!(host.locality(&host.usable(), &CpuSet::new()), Locality::Host);
    }

    #[test]
    fn a_machine_survives_its_json(host in machine()) {
        let json = serde_json::to_string(&host).unwrap();
        prop_assert_eq!(serde_json::from_str::<Host>(&json).unwrap(), host);
    }

    /// Pictures draw every machine and plan; no line is wider than asked.
    #[test]
    fn every_plan_can_be_drawn(scene in scene(), width in 60usize..200) {
        let plan = run(&scene, &[]);
        let text = sherd_topology::draw::text(&scene.host, &plan, sherd_topology::draw::TextStyle { width, color: false });
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        prop_assert!(widest <= width, "{widest} of {width}\n{text}");
        let svg = sherd_topology::draw::svg(&scene.host, &plan);
        prop_assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
