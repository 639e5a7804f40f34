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
        let hash = self.hash(flow);
        let found = match self.table.policy {
            Policy::Connection | Policy::Client | Policy::Balanced => self.by_table(hash),
            Policy::Local => self.by_cpu(hash, cpu),
        };
        found.map_or(self.none_in, Choice::Slot)
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

    fn by_table(&self, hash: u64) -> Option<SlotIndex> {
        let first = self.entry(hash);
        let levels = &self.slot(first)?.levels;
        let is_in = |slot: &SlotIndex| self.in_service.contains(*slot);
        let found = match self.table.policy {
            Policy::Balanced => {
                let hashes = std::iter::successors(Some(hash), |hash| Some(mix(*hash)));
                let choices = hashes.take(BALANCED_CHOICES).map(|hash| self.entry(hash)).filter(is_in);
                choices.reduce(|one, other| self.lighter(one, other))
            }
            Policy::Connection if is_in(&first) && self.is_over_bound(first) => {
                let second = Some(self.entry(mix(hash))).filter(is_in);
                Some(second.map_or(first, |second| self.lighter(first, second)))
            }
            _ => Some(first).filter(is_in),
        };
        found.or_else(|| self.nearest(levels, hash))
    }

    fn entry(&self, hash: u64) -> SlotIndex {
        let index = ((hash & 0xffff_ffff) * self.entries.len() as u64) >> 32;
        SlotIndex(self.entries[index as usize])
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

    fn by_cpu(&self, hash: u64, cpu: u32) -> Option<SlotIndex> {
        let levels = self.table.cpus.iter().find(|entry| entry.cpu == cpu).map_or(&[][..], |entry| &entry.levels);
        self.nearest(levels, hash)
    }

    /// Of the first level that has slots in service, else of all slots, one by the upper half of the hash.
    fn nearest(&self, levels: &[Vec<SlotIndex>], hash: u64) -> Option<SlotIndex> {
        let all: Vec<_> = self.table.slots.iter().map(|slot| slot.index).collect();
        let takes = |index: &SlotIndex| {
            self.in_service.contains(*index) && self.table.slots.iter().any(|s| s.index == *index && s.weight > 0)
        };
        levels.iter().chain([&all]).find_map(|level| {
            let mut candidates: Vec<_> = level.iter().copied().filter(takes).collect();
            candidates.sort_unstable();
            candidates.dedup();
            let j = ((hash >> 32) * candidates.len() as u64) >> 32;
            candidates.get(j as usize).copied()
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
