//! The eBPF program's function, written a second time over lists instead of masks: tests hold the kernel to it, and
//! `explain` answers from it. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use siphasher::sip::SipHasher13;

use super::{Policy, SlotEntry, SlotIndex, SlotMask, SteeringTable, maglev};

/// Key of the hash, random for each published address, so that a client cannot aim at a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub [u64; 2]);

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Where it comes from.
    pub client: SocketAddr,
    /// The address and port that it was sent to.
    pub server: SocketAddr,
}

/// What becomes of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Choice {
    /// The slot's listener gets it.
    Slot(SlotIndex),
    /// It waits at the anchor: no slot is in service.
    Anchor,
    /// It is refused: no slot is in service and the address was opened so.
    Refused,
}

/// What a slot has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Connections that are open or on their way, and what else the agent knows of.
    pub load: u64,
    /// With more than this its connections go to their second choice, under [`Policy::Connection`]; 0: never.
    pub bound: u32,
}

/// Choices that [`Policy::Balanced`] weighs.
const BALANCED_CHOICES: usize = 4;

/// How far a choice is from the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// It is the first: the slot that the table names, or one on the CPU.
    First,
    /// Another slot that the hash names, because it has less to do.
    Lighter,
    /// A slot of the same L3.
    L3,
    /// Of the same NUMA node.
    Node,
    /// Of the same package.
    Package,
    /// Any slot.
    Any,
}

/// A place in a Maglev table and the slot that it names.
pub type TableEntry = (u32, SlotIndex);

/// How a choice came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reasoning {
    /// The choice.
    pub choice: Choice,
    /// The connection's hash.
    pub hash: u64,
    /// The place in the table and the slot that it names; absent where the CPU decides.
    pub entry: Option<TableEntry>,
    /// Where the choice was found; of no meaning where it is no slot.
    pub level: Level,
}

/// The choice of a slot for any connection.
#[derive(Debug, Clone)]
pub struct Model {
    table: SteeringTable,
    entries: Vec<u16>,
    seed: Seed,
    in_service: SlotMask,
    none_in: Choice,
    loads: BTreeMap<SlotIndex, Load>,
}

impl Model {
    /// The model of a table with those slots in service. `none_in` is the answer when no slot is.
    pub fn new(table: &SteeringTable, seed: Seed, in_service: SlotMask, none_in: Choice) -> Self {
        let weights: Vec<_> = table.slots.iter().map(|slot| (slot.index, slot.weight)).collect();
        let entries = maglev::table(&weights, table.table_len);
        Self { table: table.clone(), entries, seed, in_service, none_in, loads: BTreeMap::new() }
    }

    /// The same, with what each slot has to do; without it all are even.
    #[must_use]
    pub fn with_loads(mut self, loads: impl IntoIterator<Item = (SlotIndex, Load)>) -> Self {
        self.loads = loads.into_iter().collect();
        self
    }

    /// The choice for a connection that CPU `cpu` received (only [`Policy::Local`] asks).
    pub fn choose(&self, flow: &Flow, cpu: u32) -> Choice {
        self.reason(flow, cpu).choice
    }

    /// The choice, and how it came about.
    pub fn reason(&self, flow: &Flow, cpu: u32) -> Reasoning {
        let hash = self.hash(flow);
        let (entry, found) = match self.table.policy {
            Policy::Connection | Policy::Client | Policy::Balanced => self.by_table(hash),
            Policy::Local => (None, self.by_cpu(hash, cpu)),
        };
        let (choice, level) = found.map_or((self.none_in, Level::Any), |(slot, level)| (Choice::Slot(slot), level));
        Reasoning { choice, hash, entry, level }
    }

    /// The model with that slot out of service.
    pub fn without(&self, slot: SlotIndex) -> Self {
        let in_service = self.in_service.iter().filter(|other| *other != slot).collect();
        Self { in_service, ..self.clone() }
    }

    fn hash(&self, flow: &Flow) -> u64 {
        let mut bytes = octets(flow.client.ip());
        if self.table.policy != Policy::Client {
            bytes.extend(octets(flow.server.ip()));
            bytes.extend(flow.client.port().to_be_bytes());
            bytes.extend(flow.server.port().to_be_bytes());
        }
        SipHasher13::new_with_keys(self.seed.0[0], self.seed.0[1]).hash(&bytes)
    }

    fn by_table(&self, hash: u64) -> (Option<TableEntry>, Option<(SlotIndex, Level)>) {
        const AFTER_FIRST: [Level; 3] = [Level::L3, Level::Node, Level::Package];
        let (index, first) = self.entry(hash);
        let Some(slot) = self.slot(first) else { return (None, None) };
        let is_in = |slot| self.in_service.contains(slot);
        let chosen = match self.table.policy {
            Policy::Balanced => self.lightest(hash),
            Policy::Connection if is_in(first) && self.is_over_bound(first) => Some(self.deflected(first, hash)),
            _ => Some(first),
        };
        let chosen = chosen.filter(|slot| is_in(*slot));
        let level = |chosen| if chosen == first { Level::First } else { Level::Lighter };
        let found = chosen.map(|chosen| (chosen, level(chosen)));
        (Some((index, first)), found.or_else(|| self.nearest(slot.levels.iter().zip(AFTER_FIRST), hash)))
    }

    /// Of the choices that are in service; `None` where none is.
    fn lightest(&self, hash: u64) -> Option<SlotIndex> {
        let hashes = std::iter::successors(Some(hash), |hash| Some(mix(*hash)));
        let choices = hashes.take(BALANCED_CHOICES).map(|hash| self.entry(hash).1);
        choices.filter(|slot| self.in_service.contains(*slot)).reduce(|one, other| self.lighter(one, other))
    }

    /// The second choice of a slot that has too much to do, unless that has even more, or is out of service.
    fn deflected(&self, first: SlotIndex, hash: u64) -> SlotIndex {
        let second = self.entry(mix(hash)).1;
        if self.in_service.contains(second) { self.lighter(first, second) } else { first }
    }

    fn entry(&self, hash: u64) -> TableEntry {
        let index = (((hash & 0xffff_ffff) * self.entries.len() as u64) >> 32) as u32;
        (index, SlotIndex(self.entries[index as usize]))
    }

    fn slot(&self, index: SlotIndex) -> Option<&SlotEntry> {
        self.table.slots.iter().find(|slot| slot.index == index)
    }

    fn load(&self, slot: SlotIndex) -> Load {
        self.loads.get(&slot).copied().unwrap_or_default()
    }

    fn is_over_bound(&self, slot: SlotIndex) -> bool {
        let Load { load, bound } = self.load(slot);
        bound > 0 && load > u64::from(bound)
    }

    /// The first where they are even.
    fn lighter(&self, one: SlotIndex, other: SlotIndex) -> SlotIndex {
        let weight = |slot| self.slot(slot).map_or(0, |slot| u64::from(slot.weight));
        let heavier = self.load(one).load * weight(other) > self.load(other).load * weight(one);
        if heavier { other } else { one }
    }

    fn by_cpu(&self, hash: u64, cpu: u32) -> Option<(SlotIndex, Level)> {
        const LEVELS: [Level; 4] = [Level::First, Level::L3, Level::Node, Level::Package];
        let levels = self.table.cpus.iter().find(|entry| entry.cpu == cpu).map_or(&[][..], |entry| &entry.levels);
        self.nearest(levels.iter().zip(LEVELS), hash)
    }

    /// Of the first level that has slots in service, else of all slots, one by the upper half of the hash.
    fn nearest<'a>(
        &self,
        levels: impl Iterator<Item = (&'a Vec<SlotIndex>, Level)>,
        hash: u64,
    ) -> Option<(SlotIndex, Level)> {
        let all: Vec<_> = self.table.slots.iter().map(|slot| slot.index).collect();
        let takes = |index: &SlotIndex| {
            self.in_service.contains(*index) && self.table.slots.iter().any(|s| s.index == *index && s.weight > 0)
        };
        let mut by_distance = levels.map(|(slots, level)| (slots.clone(), level)).chain([(all, Level::Any)]);
        by_distance.find_map(|(slots, level)| {
            let mut candidates: Vec<_> = slots.into_iter().filter(takes).collect();
            candidates.sort_unstable();
            candidates.dedup();
            let j = ((hash >> 32) * candidates.len() as u64) >> 32;
            candidates.get(j as usize).map(|slot| (*slot, level))
        })
    }
}

/// Further hashes: the finalizer of MurmurHash3.
fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(client: [u8; 4], port: u16) -> Flow {
        Flow { client: (client, port).into(), server: ([192, 0, 2, 1], 80).into() }
    }

    fn model(policy: Policy, slots: u16, out: &[u16]) -> Model {
        let table = SteeringTable::flat(policy, (0..slots).map(SlotIndex));
        let in_service = (0..slots).filter(|slot| !out.contains(slot)).map(SlotIndex).collect();
        Model::new(&table, Seed([1, 2]), in_service, Choice::Anchor)
    }

    proptest! {
        #[test]
        fn a_slot_that_goes_out_moves_only_its_own(client: [u8; 4], port: u16, out in 0u16..8) {
            let flow = flow(client, port);
            let before = model(Policy::Connection, 8, &[]).choose(&flow, 0);
            let after = model(Policy::Connection, 8, &[out]).choose(&flow, 0);
            prop_assert_ne!(after, Choice::Slot(SlotIndex(out)));
            if before != Choice::Slot(SlotIndex(out)) {
                prop_assert_eq!(before, after);
            }
        }

        #[test]
        fn a_client_keeps_its_slot(client: [u8; 4], ports: [u16; 4]) {
            let model = model(Policy::Client, 8, &[3]);
            let choices: Vec<_> = ports.iter().map(|port| model.choose(&flow(client, *port), 0)).collect();
            prop_assert!(choices.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }

    #[test]
    fn a_choice_says_how_it_came_about() {
        let (flow, all_in) = (flow([10, 0, 0, 1], 7), model(Policy::Connection, 4, &[]));
        let reasoning = all_in.reason(&flow, 0);
        let (entry, slot) = reasoning.entry.expect("the table decides");
        assert!(entry < 65_537);
        assert_eq!((reasoning.choice, reasoning.level), (Choice::Slot(slot), Level::First));
        let without = all_in.without(slot).reason(&flow, 0);
        assert_eq!((without.hash, without.entry), (reasoning.hash, reasoning.entry));
        assert_ne!((without.choice, without.level), (Choice::Slot(slot), Level::First));
        assert_eq!(model(Policy::Local, 4, &[]).reason(&flow, 0).entry, None);
    }

    #[test]
    fn without_a_slot_in_service_the_answer_is_the_given_one() {
        for policy in [Policy::Connection, Policy::Client, Policy::Local, Policy::Balanced] {
            assert_eq!(model(policy, 2, &[0, 1]).choose(&flow([127, 0, 0, 1], 1), 0), Choice::Anchor);
            assert_eq!(model(policy, 0, &[]).choose(&flow([127, 0, 0, 1], 1), 0), Choice::Anchor);
        }
    }

    #[test]
    fn a_slot_that_is_out_spreads_over_all_that_are_in() {
        let (all_in, one_out) = (model(Policy::Connection, 4, &[]), model(Policy::Connection, 4, &[2]));
        let mut got = [0; 4];
        for port in 1..4000 {
            let flow = flow([10, 0, 0, 1], port);
            if all_in.choose(&flow, 0) == Choice::Slot(SlotIndex(2))
                && let Choice::Slot(slot) = one_out.choose(&flow, 0)
            {
                got[usize::from(slot.0)] += 1;
            }
        }
        assert_eq!(got[2], 0);
        assert!([0, 1, 3].iter().all(|slot| got[*slot] > 250), "{got:?}");
    }
}
