//! Connections that shards have accepted themselves, counted while their slots are emptied: the kernel knows them, the
//! agent has none of them.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use sherd_lb::sockdiag;

use crate::{
    reconcile::{Reconciler, group::SlotRun, message::Message, view::Service, world},
    runtime::{ShardKey, procfs},
};

/// How long the handshake of a connection that was steered already may take, on a network that loses no packet of it.
const HANDSHAKE: Duration = Duration::from_millis(500);

impl Reconciler {
    /// Has counted what the shards that are being emptied, or were taken over from, have accepted themselves: off the loop, one count at a time.
    pub(in crate::reconcile) fn count_direct(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (name, group) in &mut self.groups {
            let ports = group.fronts.addresses();
            for (id, slot) in &mut group.slots {
                let key = ShardKey { group: name.clone(), slot: *id };
                if let Some(former) = slot.former.as_ref().filter(|former| former.direct_open > 0)
                    && former.counted_from <= now
                {
                    due.push((key.clone(), former.pid, ports.clone()));
                }
                let drains = matches!(slot.service(), Service::Draining { .. }) && !slot.directs.is_empty();
                let Some(live) = slot.live.as_ref().filter(|_| drains) else {
                    slot.direct_open = 0;
                    continue;
                };
                if slot.direct_counted_from.is_none_or(|from| from <= now) {
                    due.push((key, live.pid, ports.clone()));
                }
            }
        }
        if self.counting_direct || due.is_empty() {
            return;
        }
        self.counting_direct = true;
        let outbox = self.outbox.clone();
        world::blocking(move || {
            let count = |(key, pid, ports): (ShardKey, u32, Vec<SocketAddr>)| match accepted_by(pid, &ports) {
                Ok(open) => Some((key, pid, open)),
                Err(error) => {
                    // As many as before, until the kernel says.
                    tracing::warn!(shard = %key, "its connections can't be counted: {error}");
                    None
                }
            };
            let counts = due.into_iter().filter_map(count).collect();
            // The loop has ended: nobody drains any more.
            let _ = outbox.send(Message::DirectCounted { began: now, counts });
        });
    }

    /// What was counted, unless it was before the slot was drained.
    pub(in crate::reconcile) fn on_direct_counted(&mut self, began: Instant, counts: Vec<(ShardKey, u32, u64)>) {
        self.counting_direct = false;
        for (key, pid, open) in counts {
            let Some(slot) = self.slot_mut(&key.group, key.slot) else { continue };
            if let Some(former) =
                slot.former.as_mut().filter(|former| former.pid == pid && former.counted_from <= began)
            {
                former.direct_open = open;
            }
            let is_live = slot.live.as_ref().is_some_and(|live| live.pid == pid);
            let drains = matches!(slot.service(), Service::Draining { .. });
            if is_live && drains && slot.direct_counted_from.is_none_or(|from| from <= began) {
                slot.direct_open = open;
            }
        }
    }
}

impl SlotRun {
    /// The slot has just been taken out of the table: what was steered to its shard may still be in a handshake.
    pub(in crate::reconcile) fn expect_direct(&mut self, now: Instant) {
        if !self.directs.is_empty() {
            (self.direct_open, self.direct_counted_from) = (1, Some(handshake_end(now)));
        }
    }
}

/// When every connection that was steered to a shard before `now` is on some list.
pub(in crate::reconcile) fn handshake_end(now: Instant) -> Instant {
    now + HANDSHAKE
}

/// Connections to the addresses that a process or its descendants have open, or have yet to accept. Queues are looked at
/// before connections, and those before whose they are: one that is accepted meanwhile is counted at one place at least.
fn accepted_by(pid: u32, addresses: &[SocketAddr]) -> io::Result<u64> {
    let ports: BTreeSet<u16> = addresses.iter().map(SocketAddr::port).collect();
    let (mut listeners, mut open) = (Vec::new(), Vec::new());
    for port in &ports {
        listeners.extend(sockdiag::listeners(*port)?);
    }
    for port in &ports {
        open.extend(sockdiag::connections(*port)?);
    }
    let sockets = procfs::sockets(pid);
    let own = listeners.iter().filter(|listener| sockets.contains(&listener.inode));
    let queued: u64 = own.map(|listener| u64::from(listener.queued)).sum();
    Ok(queued + open.iter().filter(|inode| sockets.contains(inode)).count() as u64)
}
