//! The classic BPF program for a state of steering, and the same choice in Rust. Pure.
//!
//! A hash of 32 bits falls into a segment as wide as its slot's weight; the segment of a slot that is out is spread
//! by a second hash over all slots that are in at the nearest level.

use std::net::IpAddr;

use crate::{
    sys::sockopt::ClassicInstruction,
    table::{Flow, Policy, Seed, SlotIndex, SlotMask, SteeringTable},
};

/// Ancillary loads of classic BPF (linux/filter.h): negative offsets of their own.
const SKF_AD_OFF: u32 = -0x1000_i32 as u32;
const SKF_AD_PROTOCOL: u32 = 0;
const SKF_AD_CPU: u32 = 36;
const SKF_NET_OFF: u32 = -0x10_0000_i32 as u32;
const ETH_P_IP: u32 = 0x0800;

/// Opcodes (linux/bpf_common.h).
mod op {
    pub(super) const LD_IMM: u16 = 0x00;
    pub(super) const LD_W_ABS: u16 = 0x20;
    pub(super) const LD_W_IND: u16 = 0x40;
    pub(super) const LD_MEM: u16 = 0x60;
    pub(super) const LDX_MEM: u16 = 0x61;
    pub(super) const LDX_B_MSH: u16 = 0xb1;
    pub(super) const ST: u16 = 0x02;
    pub(super) const TAX: u16 = 0x07;
    pub(super) const MUL: u16 = 0x24;
    pub(super) const RSH: u16 = 0x74;
    pub(super) const MOD: u16 = 0x94;
    pub(super) const XOR_X: u16 = 0xac;
    pub(super) const JA: u16 = 0x05;
    pub(super) const JEQ: u16 = 0x15;
    pub(super) const JGE: u16 = 0x35;
    pub(super) const RET: u16 = 0x06;
}

const MULTIPLIER: u32 = 0x2c1b_3c6d;
const SPREAD_WORD: u32 = 0x9e37_79b9;

/// Scratch words of the program.
const HASH: u32 = 0;
const SPREAD_HASH: u32 = 1;

/// Where connections go: indexes of the group's sockets. With several, by the second hash.
type Target = Vec<u32>;

/// The choice, ready to be assembled or made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Steps {
    policy: Policy,
    seed: [u32; 2],
    /// Segments by the first hash after them, ascending; the last has no end.
    segments: Vec<(u32, Target)>,
    cpus: Vec<(u32, Target)>,
    any: Target,
}

impl Steps {
    pub(super) fn new(
        table: &SteeringTable,
        in_service: &SlotMask,
        order: &[Option<SlotIndex>],
        Seed([low, high]): Seed,
    ) -> Self {
        let candidates = Candidates::new(table, in_service, order);
        let mut slots: Vec<_> = table.slots.iter().filter(|slot| slot.weight > 0).collect();
        slots.sort_unstable_by_key(|slot| slot.index);
        let total: u64 = slots.iter().map(|slot| u64::from(slot.weight)).sum();
        let mut before = 0;
        let mut segments = Vec::new();
        for slot in slots {
            before += u64::from(slot.weight);
            let end = (u128::from(before) << 32) / u128::from(total);
            let own = vec![slot.index];
            segments.push((end as u32, candidates.nearest([&own].into_iter().chain(&slot.levels))));
        }
        Self {
            policy: table.policy,
            seed: [(low ^ low >> 32) as u32, (high ^ high >> 32) as u32],
            segments,
            cpus: table.cpus.iter().map(|cpu| (cpu.cpu, candidates.nearest(&cpu.levels))).collect(),
            any: candidates.nearest([]),
        }
    }

    /// The index that the program answers.
    pub(super) fn choose(&self, flow: &Flow, cpu: u32) -> u32 {
        let words = flow_words(flow, self.policy);
        let hash = words.into_iter().chain([self.seed[1]]).fold(self.seed[0], mix);
        let target = match self.policy {
            Policy::Local => self.cpus.iter().find(|(named, _)| *named == cpu).map(|(_, target)| target),
            // It can't read what a slot has to do.
            Policy::Connection | Policy::Client | Policy::Balanced => {
                let last = self.segments.len().saturating_sub(1);
                self.segments.iter().enumerate().find(|(i, (end, _))| *i == last || hash < *end).map(|(_, (_, t))| t)
            }
        };
        let target = target.unwrap_or(&self.any);
        target[mix(hash, SPREAD_WORD) as usize % target.len()]
    }

    pub(super) fn assemble(&self) -> Vec<ClassicInstruction> {
        let mut program = Assembler::default();
        program.hash(self.policy, self.seed);
        if self.policy == Policy::Local {
            program.plain(op::LD_W_ABS, SKF_AD_OFF.wrapping_add(SKF_AD_CPU));
            for (cpu, target) in &self.cpus {
                program.jump(op::JEQ, *cpu, 0, 1);
                program.go(target);
            }
        } else if let Some((_, all_but_last)) = self.segments.split_last() {
            program.plain(op::LD_MEM, HASH);
            for (end, target) in all_but_last {
                program.jump(op::JGE, *end, 1, 0);
                program.go(target);
            }
        }
        match self.segments.last() {
            Some((_, target)) if self.policy != Policy::Local => program.go(target),
            _ => program.go(&self.any),
        }
        program.finish()
    }
}

/// The slots that can take connections, as indexes of the kernel's order.
struct Candidates {
    /// By slot, ascending.
    index_of: Vec<(SlotIndex, u32)>,
    anchor: u32,
}

impl Candidates {
    fn new(table: &SteeringTable, in_service: &SlotMask, order: &[Option<SlotIndex>]) -> Self {
        let place = |member| order.iter().position(|m| *m == member).map(|place| place as u32);
        let takes = table.slots.iter().filter(|slot| slot.weight > 0 && in_service.contains(slot.index));
        let mut index_of: Vec<_> = takes.filter_map(|slot| Some((slot.index, place(Some(slot.index))?))).collect();
        index_of.sort_unstable();
        Self { index_of, anchor: place(None).unwrap_or(0) }
    }

    /// All at the first level that has any, else all there are, else the anchor.
    fn nearest<'a>(&self, levels: impl IntoIterator<Item = &'a Vec<SlotIndex>>) -> Target {
        let at = |level: &Vec<SlotIndex>| -> Target {
            self.index_of.iter().filter(|(slot, _)| level.contains(slot)).map(|(_, index)| *index).collect()
        };
        let all = || match &self.index_of[..] {
            [] => vec![self.anchor],
            some => some.iter().map(|(_, index)| *index).collect(),
        };
        levels.into_iter().map(at).find(|target| !target.is_empty()).unwrap_or_else(all)
    }
}

fn mix(hash: u32, word: u32) -> u32 {
    let mixed = (hash ^ word).wrapping_mul(MULTIPLIER);
    mixed ^ mixed >> 15
}

fn flow_words(flow: &Flow, policy: Policy) -> Vec<u32> {
    let mut words = ip_words(flow.client.ip());
    if policy != Policy::Client {
        words.extend(ip_words(flow.server.ip()));
        words.push(u32::from(flow.client.port()) << 16 | u32::from(flow.server.port()));
    }
    words
}

fn ip_words(ip: IpAddr) -> Vec<u32> {
    match ip {
        IpAddr::V4(ip) => vec![ip.to_bits()],
        IpAddr::V6(ip) => [96, 64, 32, 0].map(|shift| (ip.to_bits() >> shift) as u32).to_vec(),
    }
}

#[derive(Default)]
struct Assembler {
    code: Vec<ClassicInstruction>,
    /// Blocks that spread, each once, and the jumps to them that wait for their place.
    blocks: Vec<Target>,
    jumps: Vec<(usize, usize)>,
}

impl Assembler {
    fn plain(&mut self, code: u16, k: u32) {
        self.jump(code, k, 0, 0);
    }

    fn jump(&mut self, code: u16, k: u32, if_true: u8, if_false: u8) {
        self.code.push(ClassicInstruction { code, if_true, if_false, k });
    }

    /// Leaves the first hash in scratch word HASH, the second in SPREAD_HASH.
    fn hash(&mut self, policy: Policy, seed: [u32; 2]) {
        self.plain(op::LD_IMM, seed[0]);
        self.plain(op::ST, HASH);
        self.plain(op::LD_W_ABS, SKF_AD_OFF.wrapping_add(SKF_AD_PROTOCOL));
        let branch = self.code.len();
        self.jump(op::JEQ, ETH_P_IP, 0, 0);
        self.hash_addresses(policy, &[12], &[16]);
        if policy != Policy::Client {
            // The header's length, for options.
            self.plain(op::LDX_B_MSH, SKF_NET_OFF);
            self.plain(op::LD_W_IND, SKF_NET_OFF);
            self.mix(HASH);
        }
        let v4_end = self.code.len();
        self.plain(op::JA, 0);
        self.code[branch].if_false = (self.code.len() - branch - 1) as u8;
        self.hash_addresses(policy, &[8, 12, 16, 20], &[24, 28, 32, 36]);
        if policy != Policy::Client {
            // No extension header before TCP's is looked for: such a client's hash is another, and as good.
            self.mix_packet(40);
        }
        self.code[v4_end].k = (self.code.len() - v4_end - 1) as u32;
        self.plain(op::LD_IMM, seed[1]);
        self.mix(HASH);
        self.plain(op::LD_IMM, SPREAD_WORD);
        self.mix(SPREAD_HASH);
    }

    fn hash_addresses(&mut self, policy: Policy, client: &[u32], server: &[u32]) {
        client.iter().for_each(|offset| self.mix_packet(*offset));
        if policy != Policy::Client {
            server.iter().for_each(|offset| self.mix_packet(*offset));
        }
    }

    fn mix_packet(&mut self, offset: u32) {
        self.plain(op::LD_W_ABS, SKF_NET_OFF.wrapping_add(offset));
        self.mix(HASH);
    }

    /// Mixes the accumulator into HASH, result in `to`.
    fn mix(&mut self, to: u32) {
        self.plain(op::LDX_MEM, HASH);
        self.plain(op::XOR_X, 0);
        self.plain(op::MUL, MULTIPLIER);
        self.plain(op::TAX, 0);
        self.plain(op::RSH, 15);
        self.plain(op::XOR_X, 0);
        self.plain(op::ST, to);
    }

    /// One instruction that ends at the target.
    fn go(&mut self, target: &Target) {
        if let [only] = target[..] {
            return self.plain(op::RET, only);
        }
        let block = self.blocks.iter().position(|block| block == target).unwrap_or_else(|| {
            self.blocks.push(target.clone());
            self.blocks.len() - 1
        });
        self.jumps.push((self.code.len(), block));
        self.plain(op::JA, 0);
    }

    fn finish(mut self) -> Vec<ClassicInstruction> {
        let mut starts = Vec::new();
        for block in std::mem::take(&mut self.blocks) {
            starts.push(self.code.len());
            self.plain(op::LD_MEM, SPREAD_HASH);
            self.plain(op::MOD, block.len() as u32);
            for (i, index) in block.iter().enumerate().skip(1) {
                self.jump(op::JEQ, i as u32, 0, 1);
                self.plain(op::RET, *index);
            }
            self.plain(op::RET, block[0]);
        }
        for (jump, block) in &self.jumps {
            self.code[*jump].k = (starts[*block] - jump - 1) as u32;
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn order(slots: u16) -> Vec<Option<SlotIndex>> {
        [None].into_iter().chain((0..slots).map(|slot| Some(SlotIndex(slot)))).collect()
    }

    proptest! {
        #[test]
        fn only_slots_in_service_are_chosen(out in prop::collection::btree_set(0u16..6, 0..=6), client: [u8; 4], port: u16) {
            let in_service: SlotMask = (0..6).filter(|slot| !out.contains(slot)).map(SlotIndex).collect();
            let flow = Flow { client: (client, port).into(), server: ([10, 0, 0, 1], 80).into() };
            for policy in [Policy::Connection, Policy::Client, Policy::Local] {
                let table = SteeringTable::flat(policy, (0..6).map(SlotIndex));
                let steps = Steps::new(&table, &in_service, &order(6), Seed([7, 9]));
                let chosen = order(6)[steps.choose(&flow, 0) as usize];
                prop_assert_eq!(chosen.is_none(), in_service.is_empty());
                prop_assert!(chosen.is_none_or(|slot| in_service.contains(slot)));
            }
        }
    }

    #[test]
    fn segments_are_as_wide_as_weights() {
        let mut table = SteeringTable::flat(Policy::Connection, (0..3).map(SlotIndex));
        [1, 0, 3].into_iter().zip(&mut table.slots).for_each(|(weight, slot)| slot.weight = weight);
        let in_service = (0..3).map(SlotIndex).collect();
        let steps = Steps::new(&table, &in_service, &order(3), Seed([7, 9]));
        assert_eq!(steps.segments, [(1 << 30, vec![1]), (0, vec![3])]);
    }

    #[test]
    fn the_largest_address_fits_the_kernel() {
        let slots = || (0..1024).map(SlotIndex);
        let mut table = SteeringTable::flat(Policy::Connection, slots());
        for slot in &mut table.slots {
            let first = slot.index.0 / 8 * 8;
            slot.levels[0] = (first..first + 8).map(SlotIndex).collect();
        }
        let in_service = slots().filter(|slot| slot.0 % 4 != 0).collect();
        let len = Steps::new(&table, &in_service, &order(1024), Seed([7, 9])).assemble().len();
        assert!(len <= 4096, "BPF_MAXINSNS is 4096, the program has {len}");
    }
}
