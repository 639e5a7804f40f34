//! Connections of shards that somebody made listen in the host's namespace, where no filter saw it. The kernel has contained
//! them at once (`sherd_lb::guard`); here they end.

use sherd_lb::sockdiag;

use crate::reconcile::Reconciler;

/// Sockets that are ended in one tick.
const MAX_ENDED: usize = 256;

impl Reconciler {
    /// Ends what was contained since the last look, and before this agent.
    pub(in crate::reconcile) fn end_contained(&mut self) {
        let Some(contained) = self.keeper.cells().map(|cells| cells.contained()) else { return };
        if self.contained_seen == contained {
            return;
        }
        let listening = match sockdiag::contained() {
            Ok(listening) => listening,
            Err(error) => return tracing::warn!("sockets that were made to listen can't be looked for: {error}"),
        };
        // It is counted before it listens: with nothing to be seen there is another look.
        self.contained_seen = if listening.is_empty() { self.contained_seen + 1 } else { contained };
        for (nth, listener) in listening.into_iter().take(MAX_ENDED).enumerate() {
            // To find whose it is costs a look at every process.
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
    }
}
