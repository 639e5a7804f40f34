//! Connections of shards that somebody made listen in the host's namespace, where no filter saw it. The kernel has contained
//! them at once (`sherd_lb::guard`); here they end.

use sherd_lb::sockdiag;

use crate::reconcile::{Reconciler, message::Message, world};

/// Sockets that are ended in one tick.
const MAX_ENDED: usize = 256;
const MORE: usize = MAX_ENDED + 1;

/// How far this agent has come with them.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct ContainedSockets {
    /// That many had been contained when all of them had been ended.
    ended: u64,
    /// That many had been contained at the last look.
    seen: u64,
    /// They are being looked for.
    is_busy: bool,
}

impl Reconciler {
    /// Has ended what was contained since the last look, and before this agent: off the loop, because to find whose it is
    /// costs a look at every process.
    pub(in crate::reconcile) fn end_contained(&mut self) {
        let Some(contained) = self.keeper.cells().map(|cells| cells.contained()) else { return };
        if self.contained.is_busy || self.contained.ended == contained {
            return;
        }
        let before = std::mem::replace(&mut self.contained.seen, contained);
        self.contained.is_busy = true;
        let (outbox, ended) = (self.outbox.clone(), self.contained.ended);
        world::blocking(move || {
            let ended = match end_some() {
                Ok(look) => ended.max(look.ended(before, contained)),
                Err(error) => {
                    tracing::warn!("sockets that were made to listen can't be looked for: {error}");
                    ended
                }
            };
            // The loop has ended: the next agent looks.
            let _ = outbox.send(Message::ContainedEnded { ended });
        });
    }

    pub(in crate::reconcile) fn on_contained_ended(&mut self, ended: u64) {
        self.contained.ended = ended;
        self.contained.is_busy = false;
    }
}

/// What one look came to.
#[derive(Debug, Clone, Copy)]
struct Look {
    found: usize,
    ended: usize,
}

impl Look {
    /// Of how many that were contained there is nothing left to end: `contained` there had been when the look began, `before`
    /// when the one before it did.
    fn ended(self, before: u64, contained: u64) -> u64 {
        match self.found {
            // They are counted before they listen. What had been counted at the last look listens by now, or never will.
            0 => before,
            // The rest has its turn at the next look, unless this kernel ends none.
            MORE.. if self.ended > 0 => 0,
            _ => contained,
        }
    }
}

/// Ends those that there are, or as many as one tick may.
fn end_some() -> std::io::Result<Look> {
    let listening = sockdiag::contained()?;
    let mut look = Look { found: listening.len(), ended: 0 };
    for (nth, listener) in listening.into_iter().take(MAX_ENDED).enumerate() {
        let owner = if nth == 0 { sockdiag::owner(listener.inode) } else { None };
        let owner = owner.map_or_else(|| "unknown".to_owned(), |owner| owner.comm);
        match sockdiag::destroy(&listener) {
            Ok(()) => {
                look.ended += 1;
                tracing::warn!(address = %listener.address, process = owner, "a shard's connection was made to listen on the host: it was out of reach, and was ended");
            }
            // Out of reach it stays.
            Err(error) => {
                tracing::warn!(address = %listener.address, process = owner, "a shard's connection was made to listen on the host: it is out of reach, and can't be ended: {error}");
            }
        }
    }
    Ok(look)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks until all is ended, at so many sockets that were contained, of which the kernel lets an agent end some or none;
    /// how many looks it takes, and what is left.
    fn check(contained: u64, listening: usize, may_end: bool, expected: (usize, usize)) {
        let (mut left, mut looks, mut ended, mut before) = (listening, 0, 0, 0);
        while ended != contained {
            let found = left;
            left -= if may_end { found.min(MAX_ENDED) } else { 0 };
            ended = ended.max(Look { found, ended: found - left }.ended(before, contained));
            (before, looks) = (contained, looks + 1);
        }
        assert_eq!((looks, left), expected, "{contained} {listening} {may_end}");
    }

    #[test]
    fn the_rest_is_ended_at_the_next_look() {
        check(1, 1, true, (1, 0));
        check(256, 256, true, (1, 0));
        check(300, 300, true, (2, 0));
        check(10_000, 9_000, true, (36, 0));
        // Of a former agent's nothing may be left.
        check(5_000, 0, true, (2, 0));
        check(300, 300, false, (1, 300));
    }

    #[test]
    fn what_does_not_listen_yet_is_looked_for_again() {
        // One was counted since the last look.
        assert_eq!(Look { found: 0, ended: 0 }.ended(6, 7), 6);
    }
}
