//! Inner doors: the program's own socket, which goes on listening in its namespace, and whose connections are relayed to
//! the listener that took its place. Owns those sockets.

use std::{net::Shutdown, os::fd::OwnedFd};

use sherd_lb::{
    graft::{Grafted, Holder},
    relay::{PortKey, Role, Target},
};
use socket2::SockRef;

use super::DirectRun;
use crate::{reconcile::world::Worker, spec::ContainerPort};

/// A listener in the shard's hands, and the program's own socket.
pub(in crate::reconcile) struct Graft {
    pub(in crate::reconcile) container: ContainerPort,
    /// The inner door's, in the slot's worker.
    pub(in crate::reconcile) key: PortKey,
    pub(super) original: OwnedFd,
    /// Absent after a restart of the agent.
    pub(super) holder: Option<Holder>,
    /// The slot's worker accepts from the program's own socket.
    pub(super) inner_served: bool,
}

/// The program's own socket listens in its namespace, from before its call returns: its neighbours there, and whoever has
/// another descriptor of it, find nothing changed.
pub(super) fn keep_listening(grafted: &Grafted) {
    if let Err(error) = SockRef::from(&grafted.original).listen(grafted.backlog) {
        tracing::warn!("what listens inside the shard's namespace can't be kept: {error}");
    }
}

/// Keeps what was grafted; gives it back when its original socket is a new inner door.
pub(super) fn note_graft<'a>(
    direct: &'a mut DirectRun,
    worker: Option<&Worker>,
    container: ContainerPort,
    grafted: Grafted,
    new_key: impl FnOnce() -> PortKey,
) -> Option<&'a Graft> {
    match direct.grafts.iter().position(|graft| graft.container == container) {
        // A second process of the shard: its own socket ends here, the first one's is the inner door.
        // It may end at once, so the first one stays the way to the listener for as long as it has it.
        Some(at) if direct.grafts[at].shares(&grafted) => {
            if direct.grafts[at].holder().and_then(Holder::listener).is_none() {
                direct.grafts[at].holder = Some(grafted.holder);
            }
            None
        }
        // A former agent kept it, and was killed before it could answer the program.
        Some(at) if is_same_socket(&direct.grafts[at].original, &grafted.original) => {
            direct.grafts[at].holder = Some(grafted.holder);
            None
        }
        Some(at) => {
            direct.grafts[at].close_inner(worker);
            direct.grafts[at].original = grafted.original;
            direct.grafts[at].holder = Some(grafted.holder);
            direct.grafts[at].inner_served = false;
            Some(&direct.grafts[at])
        }
        None => {
            let (original, holder) = (grafted.original, Some(grafted.holder));
            direct.grafts.push(Graft { container, key: new_key(), original, holder, inner_served: false });
            direct.grafts.last()
        }
    }
}

fn is_same_socket(one: &OwnedFd, other: &OwnedFd) -> bool {
    let cookie = |socket| SockRef::from(socket).cookie().ok();
    cookie(one).is_some() && cookie(one) == cookie(other)
}

impl DirectRun {
    /// Where connections of the inner doors go.
    pub(in crate::reconcile) fn inner_targets(&self, reach: &[(ContainerPort, Target)]) -> Vec<(PortKey, Target)> {
        let target = |graft: &Graft| {
            let (_, target) = reach.iter().find(|(container, _)| *container == graft.container)?;
            target.force.is_some().then(|| (graft.key, target.clone()))
        };
        self.grafts.iter().filter_map(target).collect()
    }

    /// The program has shown that it accepts from its listener: what comes to its own socket is relayed there. Before
    /// that the program alone may accept from its own socket: one that has a second descriptor of it does, and expects it
    /// to block as it made it. `reached` are the doors whose listener is.
    pub(in crate::reconcile) fn serve_inner(&mut self, worker: &Worker, reached: &[PortKey]) {
        let due = |graft: &&mut Graft| !graft.inner_served && reached.contains(&graft.key);
        for graft in self.grafts.iter_mut().filter(due) {
            match graft.original.try_clone() {
                Ok(listener) => {
                    drop(worker.serve(graft.key, listener, Role::Inner));
                    graft.inner_served = true;
                }
                Err(error) => tracing::warn!("no descriptor for an inner door: {error}"),
            }
        }
    }

    /// Its worker is another one.
    pub(in crate::reconcile) fn forget_inner(&mut self) {
        self.grafts.iter_mut().for_each(|graft| graft.inner_served = false);
    }
}

impl Graft {
    fn shares(&self, grafted: &Grafted) -> bool {
        self.holder.is_some_and(|holder| holder.is_same_listener(&grafted.holder))
    }

    pub(in crate::reconcile) fn holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }

    /// The program's own socket listens no longer, so that the program can bind its port again.
    pub(super) fn close_inner(&self, worker: Option<&Worker>) {
        if let Some(worker) = worker.filter(|_| self.inner_served) {
            drop(worker.stop_serving(self.key, Role::Inner));
        }
        // Copies of it are in the worker, for a moment, and in the holder.
        let _ = SockRef::from(&self.original).shutdown(Shutdown::Both);
    }
}
