//! A balancer with containers of its own behind it: not sherd's, which are reached at their own addresses through sherd's worker.

use std::net::SocketAddr;

use nix::unistd::Pid;

use super::{Contestant, Facts, Peer, containers::Containers};

/// Both; dropping it ends them.
#[derive(Debug)]
pub struct Fronted {
    balancer: Peer,
    _containers: Containers,
}

impl Fronted {
    /// Puts `balancer`, which knows their addresses, in front of `containers`.
    pub fn new(balancer: Peer, containers: Containers) -> Self {
        Self { balancer, _containers: containers }
    }
}

impl Contestant for Fronted {
    fn facts(&self) -> &Facts {
        self.balancer.facts()
    }

    fn addresses(&self) -> &[SocketAddr] {
        self.balancer.addresses()
    }

    fn balancer(&self) -> Vec<Pid> {
        self.balancer.balancer()
    }
}
