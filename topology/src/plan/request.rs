//! What a group asks for and what it gets, as checked values. Owns their words (`spread`, `exclusive`, …); decides nothing.

use std::{fmt, num::NonZeroU32, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::model::{CpuSet, NodeSet};

/// The name of a group: lowercase letters, digits and inner hyphens, 63 at most (a DNS label).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(String);

/// Text that is not a group name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{name}\" is not a group name: use 1 to 63 lowercase letters, digits and hyphens, with a letter or digit at both ends"
)]
pub struct GroupNameError {
    /// The text.
    pub name: String,
}

impl GroupName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for GroupName {
    type Error = GroupNameError;

    fn try_from(name: String) -> Result<Self, GroupNameError> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let bytes = name.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        let sound = bytes.len() <= 63
            && bytes.iter().all(|byte| inner(*byte))
            && ends.iter().all(|end| end.is_some_and(|byte| *byte != b'-'));
        if sound { Ok(Self(name)) } else { Err(GroupNameError { name }) }
    }
}

impl FromStr for GroupName {
    type Err = GroupNameError;

    fn from_str(name: &str) -> Result<Self, GroupNameError> {
        Self::try_from(name.to_owned())
    }
}

impl From<GroupName> for String {
    fn from(name: GroupName) -> Self {
        name.0
    }
}

impl AsRef<str> for GroupName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A stable place 0..n-1 in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SlotId(pub u32);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A word that a key does not know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{word}\" is not a {what}: use one of {}", .known.join(", "))]
pub struct UnknownWord {
    /// What the word should have been.
    pub what: &'static str,
    /// The word.
    pub word: String,
    /// The words that are known.
    pub known: &'static [&'static str],
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];
            /// The word of every value.
            pub const WORDS: &[&str] = &[$($word),+];

            /// The word in specifications.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                let found = Self::ALL.iter().find(|value| value.as_str() == word);
                found.copied().ok_or_else(|| UnknownWord { what: $what, word: word.to_owned(), known: Self::WORDS })
            }
        }
    };
}

words! {
    /// The part of the machine that a slot gets.
    Unit, "unit" {
        /// One hardware thread.
        Pu = "pu",
        /// A core. A hardware thread that is in no core counts as one.
        Core = "core",
        /// The cores that share an L2 cache.
        L2 = "l2",
        /// The cores that share an L3 cache.
        L3 = "l3",
        /// A die. A package that shows no dies counts as one.
        Die = "die",
        /// The CPUs nearest to a NUMA node.
        Numa = "numa",
        /// A package (socket).
        Package = "package",
    }
}

words! {
    /// How a group's slots lie in the machine.
    Placement, "placement" {
        /// As evenly as possible over packages, nodes, caches and cores.
        Spread = "spread",
        /// In as few packages, nodes, caches and cores as possible.
        Pack = "pack",
    }
}

words! {
    /// What a slot does with a core's hardware threads.
    Smt, "smt setting" {
        /// A slot has all threads of its cores.
        Share = "share",
        /// Each thread is a slot of its own (units pu and core).
        Each = "each",
        /// A slot has the first thread of each of its cores, and nobody else gets the siblings.
        First = "first",
    }
}

words! {
    /// Which cores of a hybrid machine a group may use.
    CoreKind, "core kind" {
        /// All.
        Any = "any",
        /// The strongest kind. On a machine with one kind: all.
        Performance = "performance",
        /// All kinds but the strongest.
        Efficiency = "efficiency",
    }
}

words! {
    /// Whether other groups may use a group's CPUs.
    Sharing, "sharing" {
        /// No other group gets them.
        Exclusive = "exclusive",
        /// Other shared groups may get them.
        Shared = "shared",
    }
}

words! {
    /// How a shard's memory is held to the nodes of its CPUs.
    MemoryBinding, "memory binding" {
        /// It comes from them or not at all.
        Bind = "bind",
        /// It comes from them while they have some.
        Prefer = "prefer",
        /// It comes from where the kernel takes it.
        None = "none",
    }
}

/// How many shards a group has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ShardCount {
    /// One per unit that is free.
    Auto,
    /// That many.
    Exactly(NonZeroU32),
}

impl fmt::Display for ShardCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Exactly(number) => number.fmt(f),
        }
    }
}

impl FromStr for ShardCount {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        const KNOWN: &[&str] = &["auto", "a number from 1"];
        let unknown = |_| UnknownWord { what: "number of shards", word: word.to_owned(), known: KNOWN };
        if word == "auto" { Ok(Self::Auto) } else { word.parse().map(Self::Exactly).map_err(unknown) }
    }
}

impl Serialize for ShardCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Exactly(number) => serializer.serialize_u32(number.get()),
        }
    }
}

impl<'de> Deserialize<'de> for ShardCount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u32),
            Word(String),
        }
        let text = match Raw::deserialize(deserializer)? {
            Raw::Number(number) => number.to_string(),
            Raw::Word(word) => word,
        };
        text.parse().map_err(de::Error::custom)
    }
}

/// What a group asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutRequest {
    /// The group.
    pub group: GroupName,
    /// The part of the machine that each slot gets.
    pub unit: Unit,
    /// How many slots.
    pub shards: ShardCount,
    /// How they lie.
    pub placement: Placement,
    /// What a slot does with hardware threads.
    pub smt: Smt,
    /// Which cores of a hybrid machine.
    pub core_kind: CoreKind,
    /// Prefer what is nearest to this device: a name (`eth0`) or a PCI address (`0000:81:00.0`).
    pub near: Option<String>,
    /// Use no other CPUs than these.
    pub cpus: Option<CpuSet>,
    /// Whether other groups may use the same CPUs.
    pub sharing: Sharing,
    /// How memory is held to the slot's nodes.
    pub memory: MemoryBinding,
    /// Memory limit of the whole group in bytes; each slot gets an equal share.
    pub memory_limit_bytes: Option<u64>,
}

impl LayoutRequest {
    /// One exclusive shard per core, memory bound: what a group gets when its specification says nothing.
    pub fn new(group: GroupName) -> Self {
        Self {
            group,
            unit: Unit::Core,
            shards: ShardCount::Auto,
            placement: Placement::Spread,
            smt: Smt::Share,
            core_kind: CoreKind::Any,
            near: None,
            cpus: None,
            sharing: Sharing::Exclusive,
            memory: MemoryBinding::Bind,
            memory_limit_bytes: None,
        }
    }
}

/// What a slot gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Which slot.
    pub id: SlotId,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// The nodes its memory comes from, all of them with memory; empty where `memory` is `none`.
    pub mems: NodeSet,
    /// How its memory is held to them.
    pub memory: MemoryBinding,
    /// Its share of the group's memory limit in bytes.
    pub memory_limit_bytes: Option<u64>,
}

/// What a group gets: its slots by ascending id, 0..n-1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The group.
    pub group: GroupName,
    /// Its slots.
    pub slots: Vec<Slot>,
}
