//! The relay path: one worker thread per slot accepts from the slot's listeners, connects inside the shard's network
//! namespace and copies bytes both ways. Knows sockets and namespaces; knows no steering table and no container.
//!
//! A worker is one thread with one epoll instance. It takes no lock on the data path and writes no cache line that
//! another worker writes. Everything it has is bounded: connections, the queue of those that wait for one, what a
//! direction holds while its sink is behind, pipes, and the work between two looks at the other connections.
//!
//! - **Namespace.** The thread lives in its shard's namespace while it has a [`Backend`], so there is no bridge, no
//!   veth and no NAT. A listener keeps the namespace it was made in.
//! - **Direct listeners.** A shard that accepts from the host is connected to from the host, by [`Target::force`]: the
//!   thread goes home for that, and back for the next connection inside.
//! - **Back-pressure.** A direction that can't write stops reading.
//! - **Ends.** A FIN is passed on as a FIN, a reset as a reset. A deadline that cuts bytes off resets, so that nobody
//!   takes a part for the whole.
//! - **Hand-over.** A worker can give up all that it has ([`Worker::release`]), each connection with what was read and not
//!   yet written, and another go on with it ([`Worker::resume`]), also one of the next process ([`Parcel`]).
//! - **Failed connects.** The client, of whom no byte was read, goes to the nearest sibling that is open; when none
//!   is, it waits and is tried again, at most [`Limits::pending_timeout`] after it was accepted. One from an inner door
//!   always waits: it means this shard.
//! - **System calls.** A request and its answer are two receives and two sends, and their share of an epoll_wait.
//!   Sockets are put into epoll once, for edges.

mod command;
mod connection;
mod dialer;
mod direction;
mod doors;
mod epochs;
mod handed;
mod handle;
mod namespace;
mod parcel;
mod pipes;
mod slab;
mod socket;
mod stats;
mod timers;
mod worker;

use std::{fmt, io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use crate::front::Force;

pub use self::{
    handed::Handed,
    handle::{Worker, WorkerRef},
    parcel::{Identity, MAX_CONNECTIONS, Opened, Origin, Parcel, ParcelError, Summary, Unpacked},
    stats::{Cause, Counter, LATENCY_BOUNDS_MICROS, Latencies, Standing, WorkerStats},
};

/// Which published port a listener and its connections belong to; the caller's numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortKey(pub u32);

/// Whose connections come from a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The slot's own.
    Slot,
    /// Anyone's: they are dealt in turn to this worker and its siblings.
    Anchor,
    /// The slot's alone: they came to the shard's own socket, inside its network namespace, and never go to a sibling.
    Inner,
}

/// Where a worker connects to.
#[derive(Debug)]
pub struct Backend {
    /// The shard's network namespace. `None`: the one the worker was born in.
    pub netns: Option<OwnedFd>,
    /// Where connections of each port go.
    pub ports: Vec<(PortKey, Target)>,
}

/// Where the connections of a port go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The shard's address in its namespace; with `force` the published one, as an address of this host.
    pub address: SocketAddr,
    /// To the slot's direct listener, from the namespace the worker was born in and from `address` itself: the shard
    /// sees the host, and loopback only where that is what is published.
    pub force: Option<Force>,
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, force: None }
    }
}

/// Why a worker could not take a backend. It has none then, and is in the namespace it was born in.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The thread could not enter the shard's network namespace.
    #[error("slot {slot}: cannot enter the shard's network namespace; the agent needs CAP_SYS_ADMIN for that")]
    Enter {
        /// The worker's slot.
        slot: u16,
        /// What setns(2) said.
        source: io::Error,
    },
    /// The thread could not leave the former shard's network namespace, and keeps it alive.
    #[error("slot {slot}: cannot leave the former shard's network namespace; end this worker and start another")]
    Leave {
        /// The worker's slot.
        slot: u16,
        /// What setns(2) said.
        source: io::Error,
    },
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that were open when it began.
    pub connections: u32,
    /// How many of them had to be reset.
    pub reset: u32,
}

/// Runs on the new thread before anything else: affinity, memory policy.
pub type Pin = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// What a worker is made with.
pub struct WorkerConfig {
    /// The slot it serves; siblings are told apart by it.
    pub slot: u16,
    /// The thread's name; the kernel shows 15 bytes of it.
    pub name: String,
    /// See [`Pin`].
    pub pin: Pin,
    /// Its bounds.
    pub limits: Limits,
}

impl fmt::Debug for WorkerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerConfig").field("slot", &self.slot).field("name", &self.name).finish_non_exhaustive()
    }
}

/// The bounds of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections connecting or relayed at a time. Each needs two descriptors.
    pub max_connections: u32,
    /// Accepted clients that wait for one of those. When they are full too, accepting stops, and clients wait in the
    /// kernel's queue.
    pub max_pending: u32,
    /// How long a client may wait, from its accept, for a shard that takes it; it is reset then.
    pub pending_timeout: Duration,
    /// How long one connect to the shard may take.
    pub connect_timeout: Duration,
    /// How long a connection may be silent both ways.
    pub idle_timeout: Option<Duration>,
    /// Silence after which the kernel asks either side whether it is still there.
    pub keepalive: Option<Duration>,
    /// Siblings a client is handed to, after a failed connect, before it waits. At most 3.
    pub retries: u8,
    /// A receive that brings this many bytes begins a transfer that is spliced; smaller payloads are copied.
    /// `None`: everything is copied.
    pub splice_above: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 65_536,
            max_pending: 1_024,
            pending_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            idle_timeout: None,
            keepalive: Some(Duration::from_secs(60)),
            retries: 2,
            splice_above: Some(SPLICE_ABOVE),
        }
    }
}

/// Bytes in one receive from which splicing costs less than copying.
///
/// `cargo run --release -p sherd-lb --example relay_copy`, 2 shared cores of an AMD EPYC 9004 virtual machine, Linux
/// 6.18, 2026-11-22: answers of 64 KiB cost 0.63 CPU seconds per GB copied and 0.44 to 0.59 with splice, of 256 KiB
/// 0.39 and 0.21, of 1 MiB 0.38 and 0.22. Below 64 KiB thresholds differ by less than the rounds do (20 %), and a
/// pipe gains nothing; so one receive this long tells a bulk transfer from a small answer.
const SPLICE_ABOVE: u32 = 64 << 10;
