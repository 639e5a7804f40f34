//! Whether a listen(2) is being answered: until it is, the program's own socket may listen, and nobody accepts from it.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// No call.
const NONE: u32 = u32::MAX;
/// A call that a former broker left, of a port that isn't known yet.
const ANY: u32 = u32::MAX - 1;

/// What a broker tells of the call that it answers.
#[derive(Debug, Clone)]
pub struct Answering(Arc<AtomicU32>);

impl Answering {
    pub(super) fn new(open: bool) -> Self {
        Self(Arc::new(AtomicU32::new(if open { ANY } else { NONE })))
    }

    /// Whether a program waits for the answer to a listen(2) that may be on this port. What became of it has been told by
    /// the time it no longer does.
    pub fn is_for(&self, port: u16) -> bool {
        let answered = self.0.load(Ordering::Acquire);
        answered == u32::from(port) || answered == ANY
    }

    pub(super) fn begin(&self, port: u16) {
        self.0.store(u32::from(port), Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.0.store(NONE, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_for_its_port_and_one_that_was_left_for_any() {
        let answering = Answering::new(true);
        assert!(answering.is_for(80) && answering.is_for(81));
        answering.begin(80);
        assert!(answering.is_for(80) && !answering.is_for(81));
        answering.end();
        assert!(!answering.is_for(80));
        assert!(!Answering::new(false).is_for(80));
    }
}
