//! No balancer: the load goes to the shards themselves, to each in turn. What a balancer costs is told against this.

use std::net::SocketAddr;

use nix::unistd::Pid;

use super::{Contestant, Facts};

/// Its name in tables.
pub(super) const NAME: &str = "direct";

/// The shards themselves.
#[derive(Debug)]
pub struct Direct {
    facts: Facts,
    shards: Vec<SocketAddr>,
}

impl Direct {
    /// Stands for `shards`.
    pub fn new(shards: &[SocketAddr]) -> Self {
        Self::named(NAME, shards)
    }

    /// The same under another name.
    pub fn named(name: &str, shards: &[SocketAddr]) -> Self {
        let facts = Facts {
            name: name.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            program: None,
            configuration: format!("{shards:?}"),
        };
        Self { facts, shards: shards.to_vec() }
    }
}

impl Contestant for Direct {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.shards
    }

    fn balancer(&self) -> Vec<Pid> {
        Vec::new()
    }
}
