//! Connections of shards that somebody made listen in the host's namespace, where no filter saw it. The kernel has contained
//! them at once (`sherd_lb::guard`); here they end.

use sherd_lb::sockdiag;

use crate::reconcile::{Reconciler, message::Message};

/// Sockets that are ended in one tick.
const MAX_ENDED: usize = 256;

/// How far this agent has come with them.
#[derive(Debug, Default)]
pub(in crate::reconcile) struct ContainedSockets {
    /// That many had been contained when all of them had been ended.
    ended: u64,
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
        self.contained.is_busy = true;
        let (outbox, before) = (self.outbox.clone(), self.contained.ended);
        tokio::task::spawn_blocking(move || {
            let ended = match end_all() {
                // It is counted before it listens: with nothing to be seen there is another look.
                Ok(0) => before + 1,
                Ok(_) => contained,
                Err(error) => {
                    tracing::warn!("sockets that were made to listen can't be looked for: {error}");
                    before
                }
            };
            // The loop has ended: the next agent looks.
            let _ = outbox.send(Message::ContainedEnded { ended });
        });
    }

    pub(in crate::reconcile) fn on_contained_ended(&mut self, ended: u64) {
        self.contained = ContainedSockets { ended, is_busy: false };
    }
}

/// How many there were.
fn end_all() -> std::io::Result<usize> {
    let listening = sockdiag::contained()?;
    let found = listening.len();
    for (nth, listener) in listening.into_iter().take(MAX_ENDED).enumerate() {
        let owner = if nth == 0 { sockdiag::owner(listener.inode) } else { None };
        let owner = owner.map_or_else(|| "unknown".to_owned(), |owner| owner.comm);
        match sockdiag::destroy(&listener) {
            Ok(()) => {
                tracing::warn!(address = %listener.address, process = owner, "a shard's connection was made to listen on the host: it was out of reach, and was ended");
            }
            // Out of reach it stays.
            Err(error) => {
                tracing::warn!(address = %listener.address, process = owner, "a shard's connection was made to listen on the host: it is out of reach, and can't be ended: {error}");
            }
        }
    }
    Ok(found)
}
