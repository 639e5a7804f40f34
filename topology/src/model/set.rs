//! Ordered sets of CPU and node numbers, written in Linux' list format ("0-3,8"). Owns no meaning beyond the numbers.

use std::{cmp::Ordering, fmt, hash::Hash, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The largest CPU or node number that is read from text. Linux' `NR_CPUS` ends at 8192 on x86; the bound keeps
/// a typing error such as `0-4000000000` from becoming a huge set.
pub const MAX_ID: u32 = 65_535;

/// What a set is made of: a number that the operating system gave.
pub trait Id: Copy + Ord + Hash + fmt::Debug + From<u32> + Into<u32> {}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl From<u32> for $name {
            fn from(number: u32) -> Self {
                Self(number)
            }
        }

        impl From<$name> for u32 {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Id for $name {}
    };
}

id! {
    /// A logical CPU (hwloc's PU) by the number that Linux gives it.
    CpuId
}
id! {
    /// A NUMA node by the number that Linux gives it.
    NodeId
}

/// A set of CPUs.
pub type CpuSet = IdSet<CpuId>;
/// A set of NUMA nodes.
pub type NodeSet = IdSet<NodeId>;

/// An ordered set of numbers. Costs memory for the 64-number words that have a member, wherever they are, so that
/// CPU 5 with its sibling 1029 is two words.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct IdSet<I> {
    /// (number / 64, members), ascending, no empty word.
    words: Vec<(u32, u64)>,
    id: PhantomData<I>,
}

/// Text that is not a list of CPUs or nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// A part is neither a number nor a range.
    #[error("\"{part}\" is neither a number nor a range: write a list like \"0-3,8\"")]
    NotANumber {
        /// The part between two commas.
        part: String,
    },
    /// A range whose end is before its start.
    #[error("the range \"{part}\" ends before it starts: write \"{last}-{first}\"")]
    Backwards {
        /// The part between two commas.
        part: String,
        /// Its first number.
        first: u32,
        /// Its last number.
        last: u32,
    },
    /// A number that no Linux host has.
    #[error("{number} in \"{part}\" is above {MAX_ID}, the largest number accepted")]
    TooLarge {
        /// The part between two commas.
        part: String,
        /// The number.
        number: u64,
    },
}

impl<I: Id> IdSet<I> {
    /// The empty set.
    pub const fn new() -> Self {
        Self { words: Vec::new(), id: PhantomData }
    }

    /// The members, ascending.
    pub fn iter(&self) -> impl Iterator<Item = I> + '_ {
        self.words.iter().flat_map(|&(word, bits)| Bits(bits).map(move |bit| I::from(word * 64 + bit)))
    }

    /// Whether `id` is a member.
    pub fn contains(&self, id: I) -> bool {
        let number: u32 = id.into();
        let found = self.words.binary_search_by_key(&(number / 64), |word| word.0);
        found.is_ok_and(|at| self.words[at].1 & (1 << (number % 64)) != 0)
    }

    /// Adds `id`; true if it was not a member.
    pub fn insert(&mut self, id: I) -> bool {
        let number: u32 = id.into();
        let bit = 1 << (number % 64);
        // Ascending inserts are the rule: look at the end first.
        let at = match self.words.last() {
            Some(last) if last.0 < number / 64 => Err(self.words.len()),
            _ => self.words.binary_search_by_key(&(number / 64), |word| word.0),
        };
        match at {
            Ok(at) => {
                let new = self.words[at].1 & bit == 0;
                self.words[at].1 |= bit;
                new
            }
            Err(at) => {
                self.words.insert(at, (number / 64, bit));
                true
            }
        }
    }

    /// Removes `id`; true if it was a member.
    pub fn remove(&mut self, id: I) -> bool {
        let was = self.contains(id);
        if was {
            *self = self.difference(&Self::from_iter([id]));
        }
        was
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.merge(other, |a, b| a | b)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.merge(other, |a, b| a & b)
    }

    /// What is in `self` and not in `other`.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.merge(other, |a, b| a & !b)
    }

    /// Whether the two have no member in common.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        pairs(&self.words, &other.words).all(|(_, a, b)| a & b == 0)
    }

    /// Whether every member is a member of `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        pairs(&self.words, &other.words).all(|(_, a, b)| a & !b == 0)
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.1.count_ones() as usize).sum()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The smallest member.
    pub fn first(&self) -> Option<I> {
        self.words.first().map(|&(word, bits)| I::from(word * 64 + bits.trailing_zeros()))
    }

    /// The largest member.
    pub fn last(&self) -> Option<I> {
        self.words.last().map(|&(word, bits)| I::from(word * 64 + 63 - bits.leading_zeros()))
    }

    fn merge(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        let words = pairs(&self.words, &other.words).map(|(word, a, b)| (word, combine(a, b)));
        Self { words: words.filter(|word| word.1 != 0).collect(), id: PhantomData }
    }

    fn ranges(&self) -> Vec<(u32, u32)> {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for number in self.iter().map(Into::into) {
            match ranges.last_mut() {
                Some(range) if range.1 + 1 == number => range.1 = number,
                _ => ranges.push((number, number)),
            }
        }
        ranges
    }
}

/// Every word that at least one of the two has, with the bits of both.
fn pairs<'a>(a: &'a [(u32, u64)], b: &'a [(u32, u64)]) -> impl Iterator<Item = (u32, u64, u64)> + 'a {
    let (mut i, mut j) = (0, 0);
    std::iter::from_fn(move || {
        let order = match (a.get(i), b.get(j)) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(x), Some(y)) => x.0.cmp(&y.0),
        };
        let left = if order.is_le() { a[i].1 } else { 0 };
        let right = if order.is_ge() { b[j].1 } else { 0 };
        let word = if order.is_le() { a[i].0 } else { b[j].0 };
        i += usize::from(order.is_le());
        j += usize::from(order.is_ge());
        Some((word, left, right))
    })
}

/// The set bits of one word, ascending.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let bit = (self.0 != 0).then(|| self.0.trailing_zeros())?;
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

impl<I: Id> Default for IdSet<I> {
    fn default() -> Self {
        Self::new()
    }
}

impl<I: Id> FromIterator<I> for IdSet<I> {
    fn from_iter<T: IntoIterator<Item = I>>(ids: T) -> Self {
        let mut set = Self::new();
        set.extend(ids);
        set
    }
}

impl<I: Id> Extend<I> for IdSet<I> {
    fn extend<T: IntoIterator<Item = I>>(&mut self, ids: T) {
        for id in ids {
            self.insert(id);
        }
    }
}

impl<I: Id> PartialOrd for IdSet<I> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// By members, smallest first, as lists compare.
impl<I: Id> Ord for IdSet<I> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

/// Linux' list format: "0-3,8"; the empty set is the empty string.
impl<I: Id> fmt::Display for IdSet<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Vec<String> = self
            .ranges()
            .into_iter()
            .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
            .collect();
        f.pad(&text.join(","))
    }
}

impl<I: Id> fmt::Debug for IdSet<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl<I: Id> FromStr for IdSet<I> {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        let mut set = Self::new();
        if text.trim().is_empty() {
            return Ok(set);
        }
        for part in text.trim().split(',') {
            let part = part.trim();
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(part, first)?, number(part, last)?);
            if last < first {
                return Err(ListError::Backwards { part: part.to_owned(), first, last });
            }
            set.extend((first..=last).map(I::from));
        }
        Ok(set)
    }
}

fn number(part: &str, text: &str) -> Result<u32, ListError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX));
    match number {
        None => Err(ListError::NotANumber { part: part.to_owned() }),
        Some(number) if number > u64::from(MAX_ID) => Err(ListError::TooLarge { part: part.to_owned(), number }),
        Some(number) => Ok(number as u32),
    }
}

impl<I: Id> Serialize for IdSet<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, I: Id> Deserialize<'de> for IdSet<I> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, members: &[u32], printed: &str) {
        let set: CpuSet = text.parse().unwrap();
        assert_eq!(set.iter().map(|cpu| cpu.0).collect::<Vec<_>>(), members, "{text}");
        assert_eq!(set.to_string(), printed);
    }

    #[test]
    fn lists_are_linux_lists() {
        check("", &[], "");
        check(" 0-3,8\n", &[0, 1, 2, 3, 8], "0-3,8");
        check("8,0,1,1-2", &[0, 1, 2, 8], "0-2,8");
        check("62-66,1029", &[62, 63, 64, 65, 66, 1029], "62-66,1029");
        check("65535", &[65_535], "65535");
    }

    #[test]
    fn what_is_not_a_list_is_refused() {
        let parse = |text: &str| text.parse::<CpuSet>().unwrap_err();
        for text in ["a", "1,,2", "1-", "-1", "1-2-3", "+1", "0x3", ",", "1;2"] {
            assert!(matches!(parse(text), ListError::NotANumber { .. }), "{text}");
        }
        assert!(matches!(parse("3-1"), ListError::Backwards { first: 3, last: 1, .. }));
        assert!(matches!(parse("0-4000000000"), ListError::TooLarge { number: 4_000_000_000, .. }));
        assert!(matches!(parse("99999999999999999999999"), ListError::TooLarge { .. }));
    }

    proptest! {
        #[test]
        fn behaves_as_a_set(a in prop::collection::btree_set(0u32..4000, 0..80), b in prop::collection::btree_set(0u32..4000, 0..80)) {
            let set = |of: &BTreeSet<u32>| of.iter().rev().map(|id| CpuId(*id)).collect::<CpuSet>();
            let back = |of: &CpuSet| of.iter().map(|id| id.0).collect::<BTreeSet<u32>>();
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(back(&x.union(&y)), &a | &b);
            prop_assert_eq!(back(&x.intersection(&y)), &a & &b);
            prop_assert_eq!(back(&x.difference(&y)), &a - &b);
            prop_assert_eq!(x.is_subset(&y), a.is_subset(&b));
            prop_assert_eq!(x.is_disjoint(&y), a.is_disjoint(&b));
            prop_assert_eq!(x.len(), a.len());
            prop_assert_eq!(x.first().map(|id| id.0), a.first().copied());
            prop_assert_eq!(x.last().map(|id| id.0), a.last().copied());
            prop_assert_eq!(x.to_string().parse::<CpuSet>().unwrap(), x.clone());
            prop_assert!(a.iter().all(|id| x.contains(CpuId(*id))));
        }
    }
}
