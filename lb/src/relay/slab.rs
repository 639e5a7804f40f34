//! Where connections live: slots of a growing array, reused, each known by a token that a reused slot doesn't answer
//! to. Owns memory only; knows no socket.

use std::mem;

/// The name of one stored value: its index, and how often that place was reused before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// Values by [`Token`]. Places are reused last-freed first, so that a steady load stays in the same cache lines.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

/// Generations wrap here, so that no token has the bits of [`u32::MAX`], which epoll tokens use for themselves.
const GENERATIONS: u32 = u32::MAX;

impl<T> Slab<T> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// One above the highest index ever used: a sweep goes through `0..places()`.
    pub(super) fn places(&self) -> u32 {
        u32::try_from(self.places.len()).expect("insert keeps indexes within u32")
    }

    pub(super) fn insert(&mut self, value: T) -> Token {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.value = Some(value);
            return Token { index, generation: place.generation };
        }
        let index = self.places();
        self.places.push(Place { generation: 0, value: Some(value) });
        Token { index, generation: 0 }
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let place = self.places.get_mut(token.index as usize)?;
        if place.generation == token.generation { place.value.as_mut() } else { None }
    }

    pub(super) fn get(&self, token: Token) -> Option<&T> {
        let place = self.places.get(token.index as usize)?;
        if place.generation == token.generation { place.value.as_ref() } else { None }
    }

    /// The token of what is stored at `index` now.
    pub(super) fn at(&self, index: u32) -> Option<Token> {
        let place = self.places.get(index as usize)?;
        place.value.as_ref().map(|_| Token { index, generation: place.generation })
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        let place = self.places.get_mut(token.index as usize)?;
        if place.generation != token.generation {
            return None;
        }
        let value = mem::take(&mut place.value)?;
        place.generation = (place.generation + 1) % GENERATIONS;
        self.free.push(token.index);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_names_what_was_stored_under_it_and_nothing_after(steps in prop::collection::vec(any::<(bool, u8)>(), 1..300)) {
            let mut slab = Slab::new();
            let mut model: HashMap<(u32, u32), usize> = HashMap::new();
            let mut tokens: Vec<Token> = Vec::new();
            for (step, (insert, pick)) in steps.into_iter().enumerate() {
                if insert || tokens.is_empty() {
                    let token = slab.insert(step);
                    prop_assert!(model.insert((token.index, token.generation), step).is_none());
                    tokens.push(token);
                } else {
                    let token = tokens[pick as usize % tokens.len()];
                    prop_assert_eq!(slab.remove(token), model.remove(&(token.index, token.generation)));
                }
                prop_assert_eq!(slab.len(), model.len());
                for token in &tokens {
                    prop_assert_eq!(slab.get(*token).copied(), model.get(&(token.index, token.generation)).copied());
                }
            }
        }
    }
}
