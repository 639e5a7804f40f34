//! The planner's rules one by one, on small machines that hwloc makes from a description.

use sherd_topology::{
    discover,
    model::{CoreKindInfo, CpuSet, Device, DeviceKind, Host, HostParts, NodeId},
    plan::{
        ChangeReason, CoreKind, FaultCause, Layout, LayoutRequest, MemoryBinding, NoteKind, Placement, Plan,
        ShardCount, Sharing, Smt, Unit, plan,
    },
};

/// Two packages with a node each, two L3 of two cores, two threads: CPUs 0-7 and 8-15.
const TWO_SOCKETS: &str = "package:2 [numa] l3:2 core:2 pu:2";

fn machine(description: &str) -> Host {
    discover::synthetic(description).unwrap()
}

fn altered(description: &str, alter: impl FnOnce(&mut HostParts)) -> Host {
    let mut parts: HostParts = machine(description).into();
    alter(&mut parts);
    Host::new(parts).unwrap()
}

fn cpus(list: &str) -> CpuSet {
    list.parse().unwrap()
}

fn web() -> LayoutRequest {
    LayoutRequest::new("web".parse().unwrap())
}

fn exactly(number: u32) -> ShardCount {
    ShardCount::Exactly(number.try_into().unwrap())
}

fn alone(host: &Host, request: LayoutRequest) -> Plan {
    plan(host, &CpuSet::new(), &[request], &[])
}

fn slots(plan: &Plan) -> Vec<Vec<String>> {
    let of = |layout: &Layout| layout.slots.iter().map(|slot| slot.cpus.to_string()).collect();
    plan.layouts.iter().map(of).collect()
}

#[track_caller]
fn check(host: &Host, request: LayoutRequest, expected: &[&str]) {
    let plan = alone(host, request);
    assert_eq!(plan.faults, []);
    assert_eq!(slots(&plan), [expected]);
}

#[track_caller]
fn check_fault(host: &Host, reserved: &str, requests: &[LayoutRequest], expected: &str) {
    let plan = plan(host, &cpus(reserved), requests, &[]);
    assert_eq!(plan.faults.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
}

#[test]
fn each_unit_is_a_slot() {
    let host = machine(TWO_SOCKETS);
    let of = |unit| LayoutRequest { unit, ..web() };
    check(&host, of(Unit::Core), &["0-1", "2-3", "4-5", "6-7", "8-9", "10-11", "12-13", "14-15"]);
    check(&host, of(Unit::L3), &["0-3", "4-7", "8-11", "12-15"]);
    check(&host, of(Unit::Numa), &["0-7", "8-15"]);
    check(&host, of(Unit::Package), &["0-7", "8-15"]);
    check(&host, of(Unit::Die), &["0-7", "8-15"]);
    assert_eq!(alone(&host, of(Unit::Pu)).layouts[0].slots.len(), 16);
}

#[test]
fn threads_are_shared_apart_or_idle() {
    let host = machine("package:1 core:2 pu:2");
    let of = |unit, smt| LayoutRequest { unit, smt, ..web() };
    check(&host, of(Unit::Core, Smt::Share), &["0-1", "2-3"]);
    check(&host, of(Unit::Core, Smt::Each), &["0", "1", "2", "3"]);
    check(&host, of(Unit::Core, Smt::First), &["0", "2"]);
    check(&host, of(Unit::Pu, Smt::First), &["0", "2"]);
    check(&host, of(Unit::Package, Smt::First), &["0,2"]);
    // The siblings of `first` stay idle: they are nobody else's.
    let rest = LayoutRequest { unit: Unit::Pu, ..LayoutRequest::new("rest".parse().unwrap()) };
    let both =
        plan(&host, &CpuSet::new(), &[LayoutRequest { shards: exactly(1), ..of(Unit::Core, Smt::First) }, rest], &[]);
    assert_eq!(slots(&both), [vec!["0"], vec!["2", "3"]]);
}

#[test]
fn spread_is_even_and_pack_is_close() {
    let host = machine(TWO_SOCKETS);
    let of = |placement, shards| LayoutRequest { placement, shards: exactly(shards), ..web() };
    check(&host, of(Placement::Spread, 2), &["0-1", "8-9"]);
    check(&host, of(Placement::Spread, 4), &["0-1", "4-5", "8-9", "12-13"]);
    check(&host, of(Placement::Spread, 5), &["0-1", "2-3", "4-5", "8-9", "12-13"]);
    check(&host, of(Placement::Pack, 2), &["0-1", "2-3"]);
    check(&host, of(Placement::Pack, 4), &["0-1", "2-3", "4-5", "6-7"]);
    check(&host, of(Placement::Pack, 5), &["0-1", "2-3", "4-5", "6-7", "8-9"]);
    // Threads of one core come last when spreading and first when packing.
    let threads = |placement| LayoutRequest { unit: Unit::Pu, ..of(placement, 3) };
    check(&host, threads(Placement::Spread), &["0", "4", "8"]);
    check(&host, threads(Placement::Pack), &["0", "1", "2"]);
}

#[test]
fn packages_inside_nodes_spread_over_nodes_first() {
    let host = machine("numa:2 package:2 core:2 pu:1");
    check(&host, LayoutRequest { shards: exactly(2), ..web() }, &["0", "4"]);
}

#[test]
fn the_other_package_is_free_for_the_second_group() {
    let host = machine(TWO_SOCKETS);
    let one = |name: &str| LayoutRequest { shards: exactly(1), ..LayoutRequest::new(name.parse().unwrap()) };
    let plan = plan(&host, &CpuSet::new(), &[one("a"), one("b"), one("c")], &[]);
    assert_eq!(slots(&plan), [["0-1"], ["8-9"], ["4-5"]]);
}

#[test]
fn near_a_device_comes_first() {
    let device = |names: &str, pci: &str, near: &str| Device {
        kind: DeviceKind::Network,
        names: vec![names.to_owned()],
        pci: Some(pci.to_owned()),
        cpus: cpus(near),
    };
    let host = altered(TWO_SOCKETS, |parts| {
        parts.devices = vec![device("eth0", "0000:01:00.0", "0-7"), device("eth1", "0000:81:00.0", "12-15")];
    });
    let of = |near: &str, shards| LayoutRequest { near: Some(near.to_owned()), shards: exactly(shards), ..web() };
    check(&host, of("eth1", 2), &["12-13", "14-15"]);
    check(&host, of("0000:81:00.0", 3), &["8-9", "12-13", "14-15"]);
    check(&host, of("81:00.0", 1), &["12-13"]);
    check(&host, of("eth0", 2), &["0-1", "4-5"]);
    let expected = "group web wants to be near \"eth7\", which this machine doesn't have: use one of eth0, eth1";
    check_fault(&host, "", &[of("eth7", 1)], expected);
}

#[test]
fn kinds_of_cores() {
    let kind = |list: &str, efficiency| CoreKindInfo {
        cpus: cpus(list),
        efficiency: Some(efficiency),
        info: Default::default(),
    };
    let host = altered("package:1 core:6 pu:1", |parts| {
        parts.core_kinds = vec![kind("4-5", 0), kind("2-3", 1), kind("0-1", 2)];
    });
    let of = |core_kind| LayoutRequest { core_kind, ..web() };
    check(&host, of(CoreKind::Any), &["0", "1", "2", "3", "4", "5"]);
    check(&host, of(CoreKind::Performance), &["0", "1"]);
    check(&host, of(CoreKind::Efficiency), &["2", "3", "4", "5"]);
    let same = machine("package:1 core:2 pu:1");
    check(&same, of(CoreKind::Performance), &["0", "1"]);
    let expected = "group web asks for efficiency cores, and this machine has one kind of core: leave core_kind out";
    let unranked = altered("package:1 core:2 pu:1", |parts| parts.core_kinds = vec![kind("0-1", 0)]);
    check_fault(&unranked, "", &[of(CoreKind::Efficiency)], expected);
}

#[test]
fn a_slot_never_has_several_isolated_cpus() {
    let host = |isolated: &str| altered(TWO_SOCKETS, |parts| parts.isolated = cpus(isolated));
    let of = |unit| LayoutRequest { unit, shards: exactly(1), cpus: Some(cpus("0-3")), ..web() };
    // An isolated core: one of its threads, and the note says so.
    let core = alone(&host("0-3"), of(Unit::Core));
    assert_eq!(slots(&core), [["0"]]);
    assert!(matches!(&core.notes[0].kind, NoteKind::IsolatedLeftOut { cpus } if *cpus == self::cpus("1")));
    // A unit that has others too: those.
    check(&host("0-1"), of(Unit::L3), &["2-3"]);
    // A larger unit of isolated CPUs alone is no place.
    let l3 = alone(&host("0-3"), of(Unit::L3));
    assert_eq!(
        l3.faults[0].to_string(),
        "group web asks for 1 shard of one L3 cache; no L3 cache is free (CPUs 0-3 are isolated, and the kernel does not \
         balance a shard's threads over several such; limited to CPUs 0-3): use unit = \"pu\" or \"core\" on isolated CPUs"
    );
    // Also where it could use but one: it would move as soon as it could use another.
    let one = alone(&host("0-3"), LayoutRequest { cpus: Some(cpus("2")), ..of(Unit::L3) });
    assert!(matches!(&one.faults[0].cause, FaultCause::Short(short) if short.isolated == cpus("2")));
    // Single hardware threads are always fine.
    check(&host("0-15"), LayoutRequest { unit: Unit::Pu, ..of(Unit::Pu) }, &["0"]);
}

#[test]
fn memory_follows_the_cpus() {
    let host = machine(TWO_SOCKETS);
    let of = |memory| LayoutRequest { unit: Unit::Package, memory, memory_limit_bytes: Some(1001), ..web() };
    let mems = |plan: &Plan| plan.layouts[0].slots.iter().map(|slot| slot.mems.to_string()).collect::<Vec<_>>();
    let bound = alone(&host, of(MemoryBinding::Bind));
    assert_eq!(mems(&bound), ["0", "1"]);
    assert_eq!(bound.layouts[0].slots[1].memory_limit_bytes, Some(500));
    assert_eq!(mems(&alone(&host, of(MemoryBinding::None))), ["", ""]);
    // A memory-less node: the nearest that has some, by distance, and a note.
    let host = altered("package:3 [numa(memory=1GB)] core:1 pu:1", |parts| {
        parts.nodes[0].memory_bytes = 0;
        parts.nodes[0].distances = [(NodeId(0), 10), (NodeId(1), 30), (NodeId(2), 20)].into();
    });
    let plan = alone(&host, LayoutRequest { ..web() });
    assert_eq!(mems(&plan), ["2", "1", "2"]);
    assert_eq!(
        plan.notes[0].to_string(),
        "group web, slot 0: node 0 has no usable memory; it comes from node 2, the nearest"
    );
}

#[test]
fn shared_groups_share_and_keep_away_from_exclusive_ones() {
    let host = machine("package:1 core:4 pu:1");
    let named = |name: &str, unit, shards, sharing| LayoutRequest {
        unit,
        shards,
        sharing,
        ..LayoutRequest::new(name.parse().unwrap())
    };
    let batch = |name| named(name, Unit::Package, exactly(1), Sharing::Shared);
    let web = named("web", Unit::Core, exactly(2), Sharing::Exclusive);
    let fresh = plan(&host, &CpuSet::new(), &[batch("b1"), web.clone(), batch("b2")], &[]);
    assert_eq!(slots(&fresh), [vec!["2-3"], vec!["0", "1"], vec!["2-3"]]);
    // Least used first.
    let one = |name| named(name, Unit::Core, exactly(2), Sharing::Shared);
    let three = plan(&host, &CpuSet::new(), &[one("a"), one("b"), one("c")], &[]);
    assert_eq!(slots(&three), [["0", "1"], ["2", "3"], ["0", "1"]]);
    // What a shared group has stays its own; an exclusive one can't push it away.
    let running = plan(&host, &CpuSet::new(), &[batch("b1")], &[]).layouts;
    let late = plan(&host, &CpuSet::new(), &[web, batch("b1")], &running);
    assert_eq!(slots(&late), [["0-3"]]);
    assert!(matches!(&late.faults[0].cause, FaultCause::Short(short) if short.held.len() == 1));
}

#[test]
fn numbers_go_before_auto() {
    let host = machine("package:1 core:4 pu:1");
    let all = LayoutRequest::new("all".parse().unwrap());
    let plan = plan(&host, &CpuSet::new(), &[all, LayoutRequest { shards: exactly(1), ..web() }], &[]);
    assert_eq!(slots(&plan), [vec!["1", "2", "3"], vec!["0"]]);
}

#[test]
fn faults_say_what_is_short_and_what_to_do() {
    let host = machine("package:1 core:10 pu:2");
    let of = |shards| LayoutRequest { shards: exactly(shards), ..web() };
    check_fault(
        &host,
        "0-3",
        &[of(9)],
        "group web asks for 9 shards of one core each; 8 cores are free (4 reserved: 0-3): ask for 8, or use unit = \"pu\" (16 are free)",
    );
    let other = LayoutRequest { shards: exactly(10), ..LayoutRequest::new("api".parse().unwrap()) };
    check_fault(
        &host,
        "",
        &[other.clone(), of(1)],
        "group web asks for 1 shard of one core; no core is free (group api holds 10): give group api fewer shards or other CPUs",
    );
    check_fault(&host, "", &[other.clone(), other], "group api is asked for twice: give one of the two another name");
    check_fault(
        &host,
        "",
        &[LayoutRequest { cpus: Some(cpus("18-21")), ..web() }],
        "group web lists CPUs 20-21, which this machine doesn't have (it has 0-19): take them out of `cpus`",
    );
    check_fault(
        &host,
        "",
        &[LayoutRequest { unit: Unit::L3, ..web() }],
        "group web asks for one shard per L3 cache, and this machine shows none: use unit = \"pu\" (20), \"core\" (10), \
         \"die\" (1), \"numa\" (1), \"package\" (1)",
    );
    check_fault(
        &host,
        "",
        &[LayoutRequest { unit: Unit::Numa, smt: Smt::Each, ..web() }],
        "group web asks for one shard per hardware thread (smt = \"each\") and one per NUMA node at once: use unit = \
         \"core\", or smt = \"share\"",
    );
    check_fault(
        &host,
        "0-19",
        &[web()],
        "group web asks for shards on all free cores; no core is free (20 reserved: 0-19): reserve fewer CPUs",
    );
}

/// A group that had places and can't be placed any more does not keep them from others.
#[test]
fn a_faulty_group_holds_nothing() {
    let host = machine("package:1 core:8 pu:1");
    let named =
        |name: &str, shards| LayoutRequest { shards: exactly(shards), ..LayoutRequest::new(name.parse().unwrap()) };
    let before = plan(&host, &CpuSet::new(), &[named("b", 5)], &[]).layouts;
    let after = plan(&host, &CpuSet::new(), &[named("a", 6), named("b", 9)], &before);
    assert_eq!(after.layouts.len(), 1);
    assert_eq!((after.layouts[0].group.as_str(), after.layouts[0].slots.len()), ("a", 6));
    assert_eq!((after.faults.len(), after.faults[0].group.as_str()), (1, "b"));
}

#[track_caller]
fn check_change(host: &Host, reserved: &str, request: LayoutRequest, current: &[Layout], expected: &[&str]) -> Plan {
    let plan = plan(host, &cpus(reserved), &[request], current);
    assert_eq!(plan.changes.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    plan
}

#[test]
fn slots_stay_and_changes_say_why() {
    let host = machine(TWO_SOCKETS);
    let of = |shards| LayoutRequest { shards: exactly(shards), ..web() };
    let current = alone(&host, of(2)).layouts;
    check_change(&host, "", of(2), &current, &[]);
    check_change(&host, "", of(3), &current, &["web/2: added on CPUs 4-5: the group asks for more shards"]);
    check_change(&host, "", of(1), &current, &["web/1: removed from CPUs 8-9: the group asks for fewer shards"]);
    // Its core is reserved: the slot moves near to where others are few; the other stays.
    check_change(&host, "0-1", of(2), &current, &["web/0: moved from CPUs 0-1 to 2-3: CPUs 0-1 are reserved now"]);
    // One thread is reserved: the slot stays on its core.
    check_change(&host, "0", of(2), &current, &["web/0: moved from CPUs 0-1 to 1: CPUs 0 are reserved now"]);
    let other = LayoutRequest { unit: Unit::L3, ..of(2) };
    let wider = [
        "web/0: moved from CPUs 0-1 to 0-3: CPUs 2-3 of its unit can be used now",
        "web/1: moved from CPUs 8-9 to 8-11: CPUs 10-11 of its unit can be used now",
    ];
    check_change(&host, "", other.clone(), &current, &wider);
    let narrow = check_change(
        &host,
        "",
        of(2),
        &alone(&host, other).layouts,
        &[
            "web/0: moved from CPUs 0-3 to 0-1: the group asks for another unit",
            "web/1: moved from CPUs 8-11 to 8-9: the group asks for another unit",
        ],
    );
    assert!(narrow.changes.iter().all(|change| change.in_place()));
    let gone = plan(&host, &CpuSet::new(), &[], &current);
    assert!(gone.changes.iter().all(|change| change.reason == ChangeReason::GroupRemoved) && gone.changes.len() == 2);
}

#[test]
fn a_lost_core_costs_the_last_slot_of_an_auto_group() {
    let whole = machine("package:1 core:4 pu:1");
    let current = alone(&whole, web()).layouts;
    let less = altered("package:1 core:4 pu:1", |parts| {
        parts.pus.retain(|cpu| cpu.0 != 1);
        parts.online = cpus("0,2-3");
    });
    check_change(
        &less,
        "",
        web(),
        &current,
        &[
            "web/1: moved from CPUs 1 to 3: CPUs 1 are offline",
            "web/3: removed from CPUs 3: shards = \"auto\", and fewer units are left",
        ],
    );
    let expected = "group web asks for 4 shards of one core each; 3 cores are free (1 offline: 1): ask for 3";
    check_fault(&less, "", &[LayoutRequest { shards: exactly(4), ..web() }], expected);
}
