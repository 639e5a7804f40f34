//! The places that a group's slots can take: each lies within one unit and follows the rules for hardware threads and
//! isolated CPUs. Owns what a place is; does not know who else wants it.

use std::{collections::HashMap, rc::Rc};

use super::{CoreKind, FaultCause, LayoutRequest, Smt, Unit};
use crate::model::{CpuId, CpuSet, Host, Level};

/// A place for one slot.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// What a slot here gets.
    pub(super) cpus: CpuSet,
    /// What an exclusive slot here keeps from others: `cpus`, and siblings that are to stay idle.
    pub(super) claim: CpuSet,
    /// Isolated CPUs of the unit that a slot here does without.
    pub(super) left_out: CpuSet,
    /// Whether all CPUs of the unit may be used, none is reserved, offline or excluded.
    pub(super) whole: bool,
}

/// All places of a request, in logical order.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    pub(super) list: Vec<Place>,
    /// Rank of a CPU -> the place whose claim it is in.
    of_rank: Vec<u32>,
    /// Isolated CPUs of units that can't be places.
    pub(super) refused: CpuSet,
}

/// Places by what they depend on: many groups ask for the same.
#[derive(Default)]
pub(super) struct Cache(HashMap<Key, Rc<Places>>);

#[derive(PartialEq, Eq, Hash)]
struct Key(Unit, Smt, CoreKind, Option<CpuSet>);

const NO_PLACE: u32 = u32::MAX;

impl Cache {
    pub(super) fn places(
        &mut self,
        host: &Host,
        reserved: &CpuSet,
        request: &LayoutRequest,
    ) -> Result<Rc<Places>, FaultCause> {
        let key = Key(request.unit, request.smt, request.core_kind, request.cpus.clone());
        let places = self.0.entry(key).or_insert_with(|| Rc::new(Places::find(host, reserved, request)));
        if places.list.is_empty() {
            Err(super::fault::no_place(host, reserved, request, places))
        } else {
            Ok(places.clone())
        }
    }
}

impl Places {
    /// Finds the places. There may be none.
    pub(super) fn find(host: &Host, reserved: &CpuSet, request: &LayoutRequest) -> Self {
        let usable = usable(host, reserved, request);
        let mut places = Self { of_rank: vec![NO_PLACE; host.parts().pus.len()], ..Self::default() };
        match unit_level(request.unit, request.smt) {
            None => {
                for cpu in host.parts().pus.iter().filter(|cpu| usable.contains(**cpu)) {
                    let cpus = CpuSet::from_iter([*cpu]);
                    places.add(host, Place { claim: cpus.clone(), cpus, left_out: CpuSet::new(), whole: true });
                }
            }
            Some(level) => {
                for unit in host.parts_at(level) {
                    places.add_unit(host, unit, unit.intersection(&usable), request.smt);
                }
            }
        }
        places
    }

    /// The place that a CPU is claimed by.
    pub(super) fn of(&self, host: &Host, cpu: CpuId) -> Option<usize> {
        let place = self.of_rank[host.rank(cpu)?];
        (place != NO_PLACE).then_some(place as usize)
    }

    fn add(&mut self, host: &Host, place: Place) {
        for rank in place.claim.iter().filter_map(|cpu| host.rank(cpu)) {
            self.of_rank[rank] = self.list.len() as u32;
        }
        self.list.push(place);
    }

    /// The scheduler does not balance on isolated CPUs (Linux, Documentation/admin-guide/kernel-parameters.txt,
    /// `isolcpus=`, flag `domain`: "Isolate from the general SMP balancing and scheduling algorithms"), so all threads
    /// of a shard that had several would pile up on one. Therefore units of several cores leave isolated CPUs out, and
    /// are no places where they have no others; of an isolated core one thread is used.
    fn add_unit(&mut self, host: &Host, unit: &CpuSet, usable: CpuSet, smt: Smt) {
        if usable.is_empty() {
            return;
        }
        let isolated = usable.intersection(&host.parts().isolated);
        let balanced = usable.difference(&isolated);
        let whole = usable == *unit;
        let (cpus, claim, left_out) = if isolated.is_empty() {
            (usable.clone(), usable, isolated)
        } else if !balanced.is_empty() {
            (balanced.clone(), balanced, isolated)
        } else if is_one_core(host, unit) {
            let first: CpuSet = usable.first().into_iter().collect();
            let left_out = isolated.difference(&first);
            (first, usable, left_out)
        } else {
            self.refused.extend(isolated.iter());
            return;
        };
        let cpus = if smt == Smt::First { first_threads(host, &cpus) } else { cpus };
        self.add(host, Place { cpus, claim, left_out, whole });
    }
}

/// The level whose parts are the places, or `None` where each hardware thread is one.
fn unit_level(unit: Unit, smt: Smt) -> Option<Level> {
    match unit {
        // "First thread only" of a thread is the first of its core.
        Unit::Pu => (smt == Smt::First).then_some(Level::Core),
        Unit::Core => (smt != Smt::Each).then_some(Level::Core),
        larger => level_of(larger),
    }
}

/// The level of a unit; hardware threads have none.
pub(super) fn level_of(unit: Unit) -> Option<Level> {
    match unit {
        Unit::Pu => None,
        Unit::Core => Some(Level::Core),
        Unit::L2 => Some(Level::L2),
        Unit::L3 => Some(Level::L3),
        Unit::Die => Some(Level::Die),
        Unit::Numa => Some(Level::Node),
        Unit::Package => Some(Level::Package),
    }
}

/// What the request may use, whoever else wants it.
pub(super) fn usable(host: &Host, reserved: &CpuSet, request: &LayoutRequest) -> CpuSet {
    let mut cpus = host.usable().difference(reserved);
    if let Some(only) = &request.cpus {
        cpus = cpus.intersection(only);
    }
    match of_kind(host, request.core_kind) {
        Some(kind) => cpus.intersection(&kind),
        None => cpus,
    }
}

/// The CPUs of a kind; `None` where every CPU is of that kind.
pub(super) fn of_kind(host: &Host, kind: CoreKind) -> Option<CpuSet> {
    let kinds = &host.parts().core_kinds;
    let strongest = kinds.iter().filter_map(|kind| kind.efficiency).max();
    let weakest = kinds.iter().filter_map(|kind| kind.efficiency).min();
    let collect = |wanted: &dyn Fn(Option<u32>) -> bool| {
        kinds.iter().filter(|kind| wanted(kind.efficiency)).flat_map(|kind| kind.cpus.iter()).collect::<CpuSet>()
    };
    match kind {
        CoreKind::Any => None,
        CoreKind::Performance if strongest == weakest => None,
        CoreKind::Performance => Some(collect(&|rank| rank == strongest)),
        CoreKind::Efficiency => Some(collect(&|rank| rank.is_some() && rank < strongest)),
    }
}

/// Whether these CPUs are threads of one core.
fn is_one_core(host: &Host, cpus: &CpuSet) -> bool {
    let core = cpus.first().and_then(|first| host.part_of(Level::Core, first));
    cpus.iter().all(|cpu| host.part_of(Level::Core, cpu) == core)
}

/// The first of these CPUs in each core.
fn first_threads(host: &Host, cpus: &CpuSet) -> CpuSet {
    let mut seen = vec![false; host.parts_at(Level::Core).len()];
    let mut is_first =
        |cpu| host.part_of(Level::Core, cpu).is_none_or(|core| !std::mem::replace(&mut seen[core], true));
    cpus.iter().filter(|cpu| is_first(*cpu)).collect()
}
