//! Who gets which place: keeps what can stay, then places what is new, group by group. Owns the occupancy of CPUs
//! while a plan is made; the choice among free places is `stability`'s (what stays) and `spread`'s (what is new).

use std::{collections::BTreeMap, rc::Rc};

use super::{
    FaultCause, Layout, LayoutRequest, ShardCount, Sharing, SlotId, fault,
    spread::{Chooser, Wanted},
    stability,
    units::Places,
};
use crate::model::{CpuId, CpuSet, Host};

/// What a plan is made from.
pub(super) struct Input<'a> {
    pub(super) host: &'a Host,
    pub(super) reserved: &'a CpuSet,
    pub(super) requests: &'a [LayoutRequest],
    pub(super) current: &'a [Layout],
    /// Request -> its places; requests with a fault are not here.
    pub(super) candidates: BTreeMap<usize, Rc<Places>>,
}

/// A request's slots: its place among the candidates, and the CPUs it gets there.
pub(super) type Slots = BTreeMap<SlotId, (usize, CpuSet)>;

/// Slots of all requests that were placed, and what the others lack.
pub(super) type Assignments = (BTreeMap<usize, Slots>, Vec<(usize, FaultCause)>);

/// Who holds each CPU, by its rank.
pub(super) struct Occupancy {
    /// The exclusive group (request number) that holds it.
    exclusive: Vec<Option<u32>>,
    /// How many slots of shared groups hold it.
    shared: Vec<u32>,
}

/// Assigns places to all requests that have candidates. A group that falls short holds nothing; where it held
/// something from before, everything is placed anew without it.
pub(super) fn assign(input: &Input<'_>) -> Assignments {
    let mut active: Vec<usize> = input.candidates.keys().copied().collect();
    let mut dropped = Vec::new();
    loop {
        let mut pass = Pass::new(input);
        let short = pass.run(&active);
        // Dropping one at a time, the last first: each may be what the others were short of. Bounded by the requests.
        let Some(at) = short.iter().rposition(|short| short.held) else {
            dropped.extend(short.into_iter().map(|short| (short.request, short.cause)));
            return (pass.slots, dropped);
        };
        let short = &short[at];
        active.retain(|request| *request != short.request);
        dropped.push((short.request, short.cause.clone()));
    }
}

/// A group that could not be placed.
struct Short {
    request: usize,
    cause: FaultCause,
    /// Whether slots of it had kept their places until then.
    held: bool,
}

struct Pass<'a> {
    input: &'a Input<'a>,
    chooser: Chooser<'a>,
    occupancy: Occupancy,
    slots: BTreeMap<usize, Slots>,
}

impl<'a> Pass<'a> {
    fn new(input: &'a Input<'a>) -> Self {
        let chooser = Chooser::new(input.host);
        Self { input, chooser, occupancy: Occupancy::new(input.host.parts().pus.len()), slots: BTreeMap::new() }
    }

    fn run(&mut self, active: &[usize]) -> Vec<Short> {
        // Exclusive groups first: what they keep narrows the shared ones, never the other way round.
        let mut keepers = active.to_vec();
        keepers.sort_by_key(|request| self.input.requests[*request].sharing == Sharing::Shared);
        for request in keepers {
            let kept = stability::keep(self.input, request, &self.occupancy);
            for place in kept.values() {
                self.occupancy.take(self.input, request, &place.1, place.0);
            }
            self.slots.insert(request, kept);
        }
        let mut order = active.to_vec();
        order.sort_by_key(|request| {
            let request = &self.input.requests[*request];
            (request.shards == ShardCount::Auto, request.sharing == Sharing::Shared)
        });
        order.into_iter().filter_map(|request| self.fill(request).err()).collect()
    }

    /// Gives the group the slots that it still lacks, or takes from it the ones that it has.
    fn fill(&mut self, request: usize) -> Result<(), Short> {
        let mut slots = self.slots.remove(&request).unwrap_or_default();
        let held = !slots.is_empty();
        let mut free = self.free(request, &slots);
        let wanted = match self.input.requests[request].shards {
            ShardCount::Exactly(number) => number.get() as usize,
            ShardCount::Auto => slots.len() + free.len(),
        };
        if wanted == 0 || wanted > slots.len() + free.len() {
            let cause = fault::short(self.input, request, &self.occupancy, slots.len() + free.len(), &self.slots);
            for (place, cpus) in slots.values() {
                self.occupancy.release(self.input, request, cpus, *place);
            }
            return Err(Short { request, cause, held });
        }
        for (_, (place, cpus)) in slots.split_off(&SlotId(wanted as u32)) {
            self.occupancy.release(self.input, request, &cpus, place);
            free.push(place);
        }
        free.sort_unstable();
        let kept: Vec<usize> = slots.values().map(|(place, _)| *place).collect();
        let need = wanted - slots.len();
        let want = Wanted { request: &self.input.requests[request], places: &self.input.candidates[&request], need };
        let chosen = self.chooser.choose(&want, &free, &kept, &self.occupancy);
        let vacant: Vec<SlotId> = (0..wanted as u32).map(SlotId).filter(|id| !slots.contains_key(id)).collect();
        for (id, place) in vacant.into_iter().zip(chosen) {
            let cpus = self.occupancy.left(self.input, request, place);
            self.occupancy.take(self.input, request, &cpus, place);
            slots.insert(id, (place, cpus));
        }
        self.slots.insert(request, slots);
        Ok(())
    }

    /// The places that the group could still take, in logical order.
    fn free(&self, request: usize, slots: &Slots) -> Vec<usize> {
        let places = &self.input.candidates[&request].list;
        let mut own = vec![false; places.len()];
        slots.values().for_each(|(place, _)| own[*place] = true);
        (0..places.len()).filter(|at| !own[*at] && self.occupancy.admits(self.input, request, *at)).collect()
    }
}

impl Occupancy {
    fn new(cpus: usize) -> Self {
        Self { exclusive: vec![None; cpus], shared: vec![0; cpus] }
    }

    /// Whether the group may take the place: for an exclusive one nobody else is there; for a shared one something
    /// is left beside the exclusive groups.
    pub(super) fn admits(&self, input: &Input<'_>, request: usize, place: usize) -> bool {
        let place = &input.candidates[&request].list[place];
        let ranks =
            |of: &CpuSet, test: &dyn Fn(usize) -> bool| of.iter().filter_map(|cpu| input.host.rank(cpu)).any(test);
        match input.requests[request].sharing {
            Sharing::Exclusive => !ranks(&place.claim, &|rank| self.exclusive[rank].is_some() || self.shared[rank] > 0),
            Sharing::Shared => ranks(&place.cpus, &|rank| self.exclusive[rank].is_none()),
        }
    }

    /// What the group would get in the place: all of it, or for a shared group what exclusive ones leave.
    pub(super) fn left(&self, input: &Input<'_>, request: usize, place: usize) -> CpuSet {
        let place = &input.candidates[&request].list[place];
        let taken = |cpu: &CpuId| input.host.rank(*cpu).is_some_and(|rank| self.exclusive[rank].is_some());
        if input.requests[request].sharing == Sharing::Exclusive || !place.cpus.iter().any(|cpu| taken(&cpu)) {
            return place.cpus.clone();
        }
        place.cpus.iter().filter(|cpu| !taken(cpu)).collect()
    }

    /// The exclusive group that holds a CPU.
    pub(super) fn holder(&self, host: &Host, cpu: CpuId) -> Option<usize> {
        self.exclusive[host.rank(cpu)?].map(|request| request as usize)
    }

    /// How many slots of other groups hold a CPU.
    pub(super) fn load(&self, rank: usize) -> u32 {
        self.shared[rank] + u32::from(self.exclusive[rank].is_some())
    }

    fn take(&mut self, input: &Input<'_>, request: usize, cpus: &CpuSet, place: usize) {
        let shared = input.requests[request].sharing == Sharing::Shared;
        let claim = if shared { cpus } else { &input.candidates[&request].list[place].claim };
        for rank in claim.iter().filter_map(|cpu| input.host.rank(cpu)) {
            if shared {
                self.shared[rank] += 1;
            } else {
                self.exclusive[rank] = Some(request as u32);
            }
        }
    }

    fn release(&mut self, input: &Input<'_>, request: usize, cpus: &CpuSet, place: usize) {
        let shared = input.requests[request].sharing == Sharing::Shared;
        let claim = if shared { cpus } else { &input.candidates[&request].list[place].claim };
        for rank in claim.iter().filter_map(|cpu| input.host.rank(cpu)) {
            if shared {
                self.shared[rank] -= 1;
            } else {
                self.exclusive[rank] = None;
            }
        }
    }
}
