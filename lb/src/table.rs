//! What steering decides from: the slots of a published address with their weights and neighbours, Maglev tables
//! made of them, and a model of the eBPF program. Pure values; no system call here.

use std::{fmt, str::FromStr};

pub mod maglev;
mod mask;
mod model;
mod rows;

pub use mask::SlotMask;
pub use model::{Choice, Flow, Level, Load, Model, Reasoning, Seed, TableEntry};
pub(crate) use rows::{CompiledTable, LEVELS, Row};

/// Most slots of one published address.
pub const MAX_SLOTS: u16 = 1024;

/// The shortest that a Maglev table is by default: 20 slots' hundred entries each, in one page. Where a connection's entry is,
/// nobody can foresee: in a table of 128 KiB that one load took two thirds of the steering program's time.
const LEAST_DEFAULT_LEN: u32 = 2000;

/// The longest that any table needs to be by default; every address has room for so long a one, for what may be asked for
/// later. Prime.
pub const ROOMY_TABLE_LEN: u32 = 65537;

/// Longest Maglev table; bounds the kernel memory of a published address.
pub const MAX_TABLE_LEN: u32 = 1 << 20;

/// No slot, in a table's entry.
pub const NO_SLOT: u16 = u16::MAX;

/// A slot of the published address, below [`MAX_SLOTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotIndex(pub u16);

impl fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a new connection is steered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// A hash of both addresses and ports. A slot that has far more to do than the others passes some on, each to the slot
    /// that a second hash names.
    #[default]
    Connection,
    /// A hash of the client's address: one client, one slot.
    Client,
    /// The CPU that received the connection.
    Local,
    /// The slot with the least to do for its weight, of four that the hash names. (Two, which is the classic choice, leave
    /// the fullest slot up to four connections above the mean; four leave it at most two.)
    Balanced,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::Connection => "connection",
            Policy::Client => "client",
            Policy::Local => "local",
            Policy::Balanced => "balanced",
        })
    }
}

/// A policy's name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown steering policy {0:?}: use connection, client, local or balanced")]
pub struct UnknownPolicy(pub String);

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "connection" => Ok(Policy::Connection),
            "client" => Ok(Policy::Client),
            "local" => Ok(Policy::Local),
            "balanced" => Ok(Policy::Balanced),
            other => Err(UnknownPolicy(other.into())),
        }
    }
}

/// A slot and where its connections go while it is out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotEntry {
    /// The slot.
    pub index: SlotIndex,
    /// Its share of connections relative to the other slots. 0: none, not even as a fail-over.
    pub weight: u32,
    /// The slots that share its L3, its NUMA node, its package; each includes itself.
    pub levels: [Vec<SlotIndex>; 3],
}

/// A CPU and where connections that it received go under [`Policy::Local`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuEntry {
    /// The CPU, as Linux numbers it.
    pub cpu: u32,
    /// The slots that own it, then those of the same L3, NUMA node, package.
    pub levels: [Vec<SlotIndex>; 4],
}

/// Everything steering knows of a published address except which slots are in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SteeringTable {
    /// What connections are steered by.
    pub policy: Policy,
    /// All slots; the order is of no consequence.
    pub slots: Vec<SlotEntry>,
    /// For [`Policy::Local`]; a CPU that is not named spreads over all slots.
    pub cpus: Vec<CpuEntry>,
    /// Prime and at least 100 entries for each slot.
    pub table_len: u32,
}

impl SteeringTable {
    /// A table without any slot: connections wait at the anchor or are refused.
    pub fn empty(policy: Policy) -> Self {
        Self { policy, slots: Vec::new(), cpus: Vec::new(), table_len: default_len(0) }
    }

    /// Slots of equal weight that are no nearer to one than to another.
    pub fn flat(policy: Policy, slots: impl IntoIterator<Item = SlotIndex>) -> Self {
        let entry = |index| SlotEntry { index, weight: 1, levels: Default::default() };
        let slots: Vec<_> = slots.into_iter().map(entry).collect();
        let table_len = default_len(slots.len());
        Self { policy, slots, cpus: Vec::new(), table_len }
    }

    /// Whether it can steer a published address of `max_slots`.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self, max_slots: u16) -> Result<(), TableError> {
        let mut seen = SlotMask::default();
        for slot in &self.slots {
            if slot.index.0 >= max_slots.min(MAX_SLOTS) {
                return Err(TableError::SlotTooHigh { slot: slot.index, max_slots });
            }
            if seen.contains(slot.index) {
                return Err(TableError::SlotTwice { slot: slot.index });
            }
            seen.insert(slot.index);
        }
        if self.table_len > MAX_TABLE_LEN {
            return Err(TableError::TooLong { table_len: self.table_len });
        }
        let least = shortest_len(self.slots.len());
        if self.table_len < least || !maglev::is_prime(self.table_len) {
            return Err(TableError::BadLen { table_len: self.table_len, suggested: maglev::prime_from(least) });
        }
        Ok(())
    }
}

/// The table length for a number of slots where nobody asks for another.
pub fn default_len(slots: usize) -> u32 {
    maglev::prime_from(shortest_len(slots).max(LEAST_DEFAULT_LEN))
}

fn shortest_len(slots: usize) -> u32 {
    100 * u32::try_from(slots.max(1)).unwrap_or(u32::MAX / 100)
}

/// Why a [`SteeringTable`] cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A slot beyond what the address was opened for.
    #[error("slot {slot} is beyond the {max_slots} slots that the address was opened for; open it with more")]
    SlotTooHigh {
        /// The slot.
        slot: SlotIndex,
        /// What the address was opened for.
        max_slots: u16,
    },
    /// A slot is named twice.
    #[error("slot {slot} is in the steering table twice")]
    SlotTwice {
        /// The slot.
        slot: SlotIndex,
    },
    /// Not a prime, or too short to be even.
    #[error("table length {table_len} must be prime and at least 100 x slots; {suggested} would do")]
    BadLen {
        /// The length asked for.
        table_len: u32,
        /// One that would do.
        suggested: u32,
    },
    /// Longer than [`MAX_TABLE_LEN`], or than the memory the address was opened with.
    #[error("table length {table_len} is longer than the address has memory for; open it with the longer table")]
    TooLong {
        /// The length asked for.
        table_len: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl Fn(&mut SteeringTable)) -> Result<(), TableError> {
        let mut table = SteeringTable::flat(Policy::Connection, (0..4).map(SlotIndex));
        change(&mut table);
        table.check(8)
    }

    #[test]
    fn a_table_is_checked() {
        assert_eq!(check(|_| {}), Ok(()));
        assert_eq!(check(|t| t.slots.clear()), Ok(()));
        assert_eq!(check(|t| t.table_len = 401), Ok(()));
        assert_eq!(check(|t| t.table_len = 402), Err(TableError::BadLen { table_len: 402, suggested: 401 }));
        assert_eq!(check(|t| t.table_len = 397), Err(TableError::BadLen { table_len: 397, suggested: 401 }));
        assert_eq!(check(|t| t.table_len = 1 << 21), Err(TableError::TooLong { table_len: 1 << 21 }));
        let too_high = TableError::SlotTooHigh { slot: SlotIndex(8), max_slots: 8 };
        assert_eq!(check(|t| t.slots[0].index = SlotIndex(8)), Err(too_high));
        assert_eq!(check(|t| t.slots[0].index = SlotIndex(1)), Err(TableError::SlotTwice { slot: SlotIndex(1) }));
    }

    #[test]
    fn default_lengths_hold_a_hundred_entries_for_each_slot() {
        for slots in [0, 1, 655, 656, 1024] {
            let len = default_len(slots);
            assert!(maglev::is_prime(len) && len as usize >= 100 * slots, "{slots} slots: {len}");
        }
    }

    #[test]
    fn policies_have_names() {
        for policy in [Policy::Connection, Policy::Client, Policy::Local, Policy::Balanced] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!("Connection".parse::<Policy>(), Err(UnknownPolicy("Connection".into())));
    }
}
