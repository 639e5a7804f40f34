//! What stays where it is: which current slots keep their places. Owns that rule alone.

use super::{
    ShardCount,
    place::{Input, Occupancy, Slots},
};

/// The slots of the group that stay: those that still find their place among the candidates, nobody else in it and no
/// slot of a lower number there before them. A slot stays at the place of its first CPU that has one, so that it
/// also stays near when its unit changes or loses a CPU.
pub(super) fn keep(input: &Input<'_>, request: usize, occupancy: &Occupancy) -> Slots {
    let wanted = &input.requests[request];
    let places = &input.candidates[&request];
    let Some(current) = input.current.iter().find(|layout| layout.group == wanted.group) else {
        return Slots::new();
    };
    let bound = match wanted.shards {
        ShardCount::Exactly(number) => number.get(),
        ShardCount::Auto => u32::MAX,
    };
    let mut taken = vec![false; places.list.len()];
    let mut kept = Slots::new();
    let mut slots: Vec<_> = current.slots.iter().filter(|slot| slot.id.0 < bound).collect();
    slots.sort_by_key(|slot| slot.id);
    for slot in slots {
        let mut candidates = slot.cpus.iter().filter_map(|cpu| places.of(input.host, cpu));
        let free = |place: &usize| !taken[*place] && occupancy.admits(input, request, *place);
        if let Some(place) = candidates.find(free) {
            taken[place] = true;
            kept.insert(slot.id, (place, occupancy.left(input, request, place)));
        }
    }
    kept
}
