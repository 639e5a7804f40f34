//! Connections of shards that somebody made listen in the host's namespace, where no filter saw it. The kernel has contained
//! them at once (`sherd_lb::guard`); here they end.

use sherd_lb::sockdiag;

use crate::reconcile::Reconciler;

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
        self.contained_seen = contained;
        for listener in listening {
            let owner = sockdiag::owner(listener.inode).map_or_else(|| "nobody".to_owned(), |owner| owner.comm);
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
