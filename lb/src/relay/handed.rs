//! A connection that no worker has: given up whole by one, for another to go on with, in this process or the next.
//! Plain values; owns the sockets.

use std::{os::fd::OwnedFd, time::Duration};

use super::{PortKey, Role, direction::Rest};
use crate::cells::OpenConnection;

/// See the module. Its sockets are set to reset when they are closed, until a worker goes on with them: a connection that
/// gets lost on its way is never taken for one that ended.
#[derive(Debug)]
pub struct Handed {
    pub(super) client: OwnedFd,
    pub(super) port: PortKey,
    pub(super) role: Role,
    pub(super) open: Option<OpenConnection>,
    /// Since it was accepted, as long as a worker had it.
    pub(super) age: Duration,
    /// `None`: its shard was not reached yet, and no byte of it was read. It is dialled anew.
    pub(super) relayed: Option<Relayed>,
}

/// The part of a connection that has been established.
#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) shard: OwnedFd,
    pub(super) state: RelayedState,
}

/// Where it stands. Times are counted as long as a worker had it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RelayedState {
    /// From the client to the shard.
    pub(super) up: Rest,
    /// From the shard to the client.
    pub(super) down: Rest,
    pub(super) moved: bool,
    pub(super) kept_alive: bool,
    /// The shard has sent something.
    pub(super) answered: bool,
    /// Since connecting began.
    pub(super) age: Duration,
    /// Since anything last happened.
    pub(super) silent: Duration,
}

impl Handed {
    /// Bytes that were read from one side and not yet written to the other.
    pub(super) fn held_bytes(&self) -> usize {
        self.relayed.as_ref().map_or(0, |relayed| relayed.state.up.bytes.len() + relayed.state.down.bytes.len())
    }
}
