//! Keeps descriptors under names while the agent is away, some of them for a while only: a tiny server on a unix socket,
//! and its client. It knows nothing of what the descriptors are.

mod client;
mod server;
mod wire;

pub use client::{HolderClient, HolderError};
pub use server::{Idle, serve};

/// The longest that a holder keeps what it is given for a while.
pub const MAX_TIME: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// What `ping` answers: the protocol's version and the program's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderVersion {
    /// Of the protocol. A client talks to its own and refuses others.
    pub protocol: u8,
    /// Of the holder's program, for a person.
    pub program: String,
}

#[cfg(test)]
mod tests;
