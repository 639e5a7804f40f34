//! A steering table in the form the eBPF program reads: Maglev entries and a row of slot masks, nearest level first,
//! for each slot and CPU. Pure; where it is written to is `front::maps`' business.

use super::{Policy, SlotEntry, SlotIndex, SlotMask, SteeringTable, maglev};

/// Levels of a row: own, same L3, same node, same package, any.
pub(crate) const LEVELS: usize = 5;

/// Where to go from one slot or CPU: masks, nearest first. The last holds every slot that takes connections.
pub(crate) type Row = [SlotMask; LEVELS];

/// One generation of what the program reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CompiledTable {
    pub(crate) policy: Policy,
    pub(crate) entries: Vec<u16>,
    pub(crate) weights: Vec<(SlotIndex, u32)>,
    pub(crate) slots: Vec<(SlotIndex, Row)>,
    pub(crate) cpus: Vec<(u32, Row)>,
    /// For a CPU that the table does not name.
    pub(crate) any: Row,
}

impl CompiledTable {
    pub(crate) fn new(table: &SteeringTable) -> Self {
        let weights: Vec<_> = table.slots.iter().map(|slot| (slot.index, slot.weight)).collect();
        let members: SlotMask = table.slots.iter().filter(|slot| slot.weight > 0).map(|slot| slot.index).collect();
        let slot_row = |slot: &SlotEntry| row([vec![slot.index]].iter().chain(&slot.levels), &members);
        Self {
            policy: table.policy,
            entries: maglev::table(&weights, table.table_len),
            slots: table.slots.iter().map(|slot| (slot.index, slot_row(slot))).collect(),
            cpus: table.cpus.iter().map(|cpu| (cpu.cpu, first_level_first(row(&cpu.levels, &members)))).collect(),
            any: first_level_first(row([], &members)),
            weights,
        }
    }
}

fn row<'a>(levels: impl IntoIterator<Item = &'a Vec<SlotIndex>>, members: &SlotMask) -> Row {
    let mut row = Row::default();
    for (mask, level) in row.iter_mut().zip(levels) {
        *mask = level.iter().copied().collect::<SlotMask>().and(members);
    }
    row[LEVELS - 1] = *members;
    row
}

/// A CPU that no slot owns starts at its nearest slots: what it sends there is no fail-over, and is not counted as one.
fn first_level_first(mut row: Row) -> Row {
    if let Some(first) = row.iter().position(|mask| !mask.is_empty()) {
        row[0] = row[first];
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::CpuEntry;

    #[test]
    fn rows_hold_only_slots_that_take_connections() {
        let mut table = SteeringTable::flat(Policy::Local, (0..4).map(SlotIndex));
        table.slots[1].weight = 0;
        table.slots[0].levels = [vec![SlotIndex(0), SlotIndex(1), SlotIndex(9)], vec![], vec![]];
        table.cpus = vec![CpuEntry { cpu: 7, levels: [vec![SlotIndex(1)], vec![SlotIndex(2)], vec![], vec![]] }];
        let compiled = CompiledTable::new(&table);
        let mask = |slots: &[u16]| slots.iter().copied().map(SlotIndex).collect::<SlotMask>();
        let none = SlotMask::default();
        assert_eq!(compiled.slots[0], (SlotIndex(0), [mask(&[0]), mask(&[0]), none, none, mask(&[0, 2, 3])]));
        assert_eq!(compiled.cpus[0], (7, [mask(&[2]), mask(&[2]), none, none, mask(&[0, 2, 3])]));
        assert!(!compiled.entries.contains(&1));
    }
}
