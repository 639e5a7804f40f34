//! What can go wrong with a published address, said so that an operator knows what to do.

use std::{fmt, io, net::SocketAddr};

use super::{listener::ListenerError, places::Place};
use crate::{
    sockdiag::{Listening, Owner},
    table::{SlotIndex, TableError},
};

/// Who listens on an address that we wanted for ourselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners(pub Vec<(Listening, Option<Owner>)>);

impl fmt::Display for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("a socket that does not listen is bound to it");
        }
        for (i, (listening, owner)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            match owner {
                Some(Owner { pid, comm }) => write!(f, "{separator}{comm} (pid {pid}, uid {})", listening.uid)?,
                None => write!(f, "{separator}a process that can't be seen from here (uid {})", listening.uid)?,
            }
            write!(f, " listens on {}", listening.address)?;
        }
        Ok(())
    }
}

/// Why an address could not be published.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Somebody else listens there.
    #[error("{address} is taken: {by}; stop that or publish another port")]
    PortTaken {
        /// The address asked for.
        address: SocketAddr,
        /// Who has it.
        by: Owners,
    },
    /// A number of slots that steering can't hold.
    #[error("{max_slots} slots: a published address has 1 to 1024")]
    BadMaxSlots {
        /// The number asked for.
        max_slots: u16,
    },
    /// A faulty steering table.
    #[error("the steering table is faulty")]
    Table(#[from] TableError),
    /// Who listens could not be found out, so nothing was bound.
    #[error("can't ask the kernel who listens on {address} (sock_diag); is the module tcp_diag there?")]
    LookForListeners {
        /// The address asked for.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The anchor could not be made.
    #[error("can't listen on {address}: {step} failed")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The system call or option.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Neither steering program could be attached.
    #[error("can't attach steering to {address}")]
    Attach {
        /// The address asked for.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Why a slot of a published address could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Beyond what the address was opened for.
    #[error("slot {slot} is beyond the {max_slots} slots that the address was opened for; open it with more")]
    TooHigh {
        /// The slot.
        slot: SlotIndex,
        /// What the address was opened for.
        max_slots: u16,
    },
    /// The array of sockets was made by an older version, with one direct place for each slot or none.
    #[error(
        "slot {slot} has no place {place:?} for a shard's listener: {address} was opened by an older version of sherd, and \
         its array of sockets can't grow; end the slot's shard before the next one starts, or publish the address anew"
    )]
    NoPlace {
        /// The published address.
        address: SocketAddr,
        /// The slot.
        slot: SlotIndex,
        /// The place asked for.
        place: Place,
    },
    /// It has a listener already.
    #[error("slot {slot} has a listener already")]
    Exists {
        /// The slot.
        slot: SlotIndex,
    },
    /// It has no listener.
    #[error("slot {slot} has no listener; add it first")]
    Missing {
        /// The slot.
        slot: SlotIndex,
    },
    /// A faulty steering table; the old one stays.
    #[error("the steering table is faulty")]
    Table(#[from] TableError),
    /// Somebody else has begun to listen there.
    #[error("{address} is no longer ours alone: {by}; stop that, it gets connections of ours")]
    PortTaken {
        /// The published address.
        address: SocketAddr,
        /// Who has it.
        by: Owners,
    },
    /// The kernel put the listener into another SO_REUSEPORT group than the anchor's, where no steering reaches it.
    #[error("the new listener on {address} is not in the anchor's group: {difference}; it was closed again")]
    NotJoined {
        /// The published address.
        address: SocketAddr,
        /// In what the kernel tells the two apart.
        difference: String,
    },
    /// Who listens could not be found out.
    #[error("can't ask the kernel who listens on {address} (sock_diag)")]
    LookForListeners {
        /// The published address.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The listener could not be made.
    #[error("can't make a listener on {address}: {step} failed")]
    Listen {
        /// The published address.
        address: SocketAddr,
        /// The system call or option.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The steering state could not be changed.
    #[error("can't change the steering of slot {slot}")]
    Steer {
        /// The slot.
        slot: SlotIndex,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The table could not be put in force.
    #[error("can't put the steering table in force")]
    PutTable(#[source] io::Error),
}

/// Why a published address could not be taken over from the descriptors that the holder kept.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// A descriptor that must be there is not.
    #[error("the holder has no {name:?} of this address; publish it anew")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// A name that no front gives.
    #[error("the holder has {name:?}, which is nothing of a published address")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// A listener that is none.
    #[error("{name:?} is not a listening TCP socket; publish the address anew")]
    NotListening {
        /// Its name.
        name: String,
    },
    /// A listener on another address.
    #[error("{name:?} is bound to {found}, not to {wanted}; publish the address anew")]
    OtherAddress {
        /// Its name.
        name: String,
        /// What it is bound to.
        found: SocketAddr,
        /// What the configuration says.
        wanted: SocketAddr,
    },
    /// A map of another make: of another version of sherd, or of somebody else.
    #[error("{name:?} is not what this version of sherd steers by ({detail}); publish the address anew")]
    OtherMake {
        /// Its name.
        name: &'static str,
        /// What differs.
        detail: String,
    },
    /// This version's program could not take the place of another's, which goes on steering.
    #[error("steering of version {version} can't be taken over ({detail}); publish the address anew")]
    Succeed {
        /// Of the maps that were there.
        version: u32,
        /// Why.
        detail: String,
    },
    /// The place of a slot in the sockarray belongs to another socket.
    #[error("the listener of slot {slot} is not the one that connections are steered to; publish the address anew")]
    OtherSocket {
        /// The slot.
        slot: SlotIndex,
    },
    /// The kernel refused.
    #[error("can't take over {name:?}")]
    Io {
        /// What was looked at.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl From<ListenerError> for OpenError {
    fn from(error: ListenerError) -> Self {
        match error {
            ListenerError::Taken { address, by } => Self::PortTaken { address, by },
            ListenerError::Look { address, source } => Self::LookForListeners { address, source },
            ListenerError::Step { address, step, source } => Self::Listen { address, step, source },
        }
    }
}

impl From<ListenerError> for SlotError {
    fn from(error: ListenerError) -> Self {
        match error {
            ListenerError::Taken { address, by } => Self::PortTaken { address, by },
            ListenerError::Look { address, source } => Self::LookForListeners { address, source },
            ListenerError::Step { address, step, source } => Self::Listen { address, step, source },
        }
    }
}
