//! What waits in the anchors: who serves it once a slot is in service, and its end when none is for too long.

use std::{
    io,
    net::TcpListener,
    os::fd::BorrowedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};
use sherd_lb::relay::Role;
use sherd_topology::plan::SlotId;

use super::{Fronts, Published};
use crate::reconcile::world::Worker;

impl Fronts {
    /// Lets this slot's worker, and no other, serve what waits in the anchors; `None`: nobody does. An address that no slot
    /// serves yet, because it is new and no shard has its port, keeps its connections.
    pub(in crate::reconcile) fn serve_anchors(
        &mut self,
        server: Option<(SlotId, &Arc<Worker>)>,
        former: Option<&Arc<Worker>>,
    ) {
        if self.anchor_server != server.map(|(slot, _)| slot) {
            for published in &mut self.list {
                published.anchor_served = false;
                former.iter().for_each(|former| drop(former.leave_anchor(published.key)));
            }
        }
        self.anchor_server = server.map(|(slot, _)| slot);
        let Some((_, worker)) = server else { return };
        for published in self.list.iter_mut().filter(|published| published.anchor_is_due()) {
            published.age.clear();
            let Ok(front) = &published.front else { continue };
            match front.anchor().try_clone_to_owned() {
                // Its result is of no consequence: what waits there ends at its bound.
                Ok(anchor) => {
                    drop(worker.serve(published.key, anchor, Role::Anchor));
                    published.anchor_served = true;
                }
                Err(error) => {
                    tracing::error!(group = %self.group, address = %published.address, "the anchor can't be served: {error}");
                }
            }
        }
    }

    /// Whether an anchor that can be served isn't.
    pub(in crate::reconcile) fn any_anchor_is_due(&self) -> bool {
        self.anchor_server.is_some() && self.list.iter().any(Published::anchor_is_due)
    }

    /// The slot's worker is gone: if it served the anchors, nobody does.
    pub(in crate::reconcile) fn forget_anchor_server(&mut self, slot: SlotId) {
        if self.anchor_server == Some(slot) {
            self.anchor_server = None;
            self.list.iter_mut().for_each(|published| published.anchor_served = false);
        }
    }

    pub(in crate::reconcile) fn anchor_server(&self) -> Option<SlotId> {
        self.anchor_server
    }

    /// Ends connections that have waited in an anchor for longer than `bound`; returns how many.
    pub(in crate::reconcile) fn end_overdue(&mut self, bound: Duration, now: Instant) -> u64 {
        let mut ended = 0;
        for published in &mut self.list {
            let Ok(front) = &published.front else { continue };
            let Ok(length) = front.queue_len(None) else { continue };
            for _ in 0..published.age.overdue(length, bound, now) {
                match refuse_one(front.anchor()) {
                    Ok(true) => ended += 1,
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(address = %published.address, "a connection that waited too long can't be ended: {error}");
                        break;
                    }
                }
            }
        }
        ended
    }
}

impl Published {
    /// Its anchor isn't served, although some slot serves the address.
    fn anchor_is_due(&self) -> bool {
        !self.anchor_served && self.front.as_ref().is_ok_and(|front| !front.in_service().is_empty())
    }
}

/// Takes the oldest connection out of a queue and resets it; false if there is none.
fn refuse_one(anchor: BorrowedFd<'_>) -> io::Result<bool> {
    let anchor = TcpListener::from(anchor.try_clone_to_owned()?);
    match anchor.accept() {
        Ok((stream, _)) => {
            // A reset, not an end: nobody must take silence for an empty answer.
            setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
