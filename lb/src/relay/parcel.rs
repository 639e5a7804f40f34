//! Connections on their way to the next process: the receiving end of a socket pair, in which one message with the sockets
//! and a memory file waits. Owns that message; knows no worker and nobody who keeps it.
//!
//! - **One or the other.** A message is taken once, by whoever is first: no two processes ever have the same connection.
//! - **All or nothing.** Until the descriptor is somewhere else, the message ends with this process, and its sockets are reset;
//!   from then on it is whole.
//! - **No room.** What is in a message counts for nobody's limit of descriptors (`too_many_unix_fds` excepts CAP_SYS_ADMIN): a
//!   holder needs one for [`MAX_CONNECTIONS`] connections.

mod record;

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    net::SocketAddr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{AddressFamily, SockFlag, SockType, socketpair},
};

use self::record::{Entry, Header};
use super::{
    PortKey, Role,
    direction::Rest,
    handed::{Handed, Relayed},
};
use crate::{cells::OpenConnection, sys::scm, table::SlotIndex};

/// Connections in one parcel, at most: two descriptors each, and the memory file's.
pub const MAX_CONNECTIONS: usize = (scm::MAX_FDS - 1) / 2;

/// Bytes on their way in one parcel, beyond which the next connection goes into another. One connection has at most what two
/// pipes hold.
const FULL_BYTES: usize = 16 << 20;

/// The longest record that is read: a full parcel and one more connection.
const MAX_RECORD_BYTES: u64 = (FULL_BYTES + (4 << 20)) as u64;

/// Where a connection came from, in words that the next process knows too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// What the sender called the address of the listener; see [`Parcel::pack`].
    pub address: Option<SocketAddr>,
    /// Whose connections come from that listener.
    pub role: Role,
    /// The slot that it is counted for at that address. `None`: it is not counted.
    pub counted: Option<SlotIndex>,
}

/// What a connection is to the receiver.
#[derive(Debug)]
pub struct Identity {
    /// Its port, as the receiver numbers them.
    pub port: PortKey,
    /// Where it is counted as open.
    pub open: Option<OpenConnection>,
}

/// What a parcel has, without taking it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// How many connections.
    pub connections: u32,
    /// How many of them are counted, by address and slot.
    pub counted: Vec<(SocketAddr, SlotIndex, u32)>,
}

/// What was in a parcel.
#[derive(Debug)]
pub struct Opened {
    /// Whole connections.
    pub connections: Vec<Handed>,
    /// Those that could not be had: no descriptor was left, or the receiver knows no port to dial them to.
    pub lost: u32,
}

/// Why there is nothing in a parcel.
#[derive(Debug, thiserror::Error)]
pub enum ParcelError {
    /// The kernel refused.
    #[error("the message can't be received")]
    Io(#[from] io::Error),
    /// Somebody took it.
    #[error("the parcel is empty: another agent took it")]
    Empty,
    /// Another version of sherd packed it.
    #[error("it was packed by another version of sherd (format {found}, this one reads {})", record::VERSION)]
    OtherVersion {
        /// The format's version.
        found: u16,
    },
    /// What came is not what was sent.
    #[error("its record is damaged: {detail}")]
    Damaged {
        /// In what way.
        detail: &'static str,
    },
}

/// Connections that could not be packed; they are as they were.
#[derive(Debug, thiserror::Error)]
#[error("{} connections can't be packed", connections.len())]
pub struct Unpacked {
    /// All of them.
    pub connections: Vec<Handed>,
    /// What the kernel refused.
    pub source: io::Error,
}

/// See the module. Dropped before it is committed, it resets its connections.
#[derive(Debug)]
pub struct Parcel {
    receiver: OwnedFd,
    connections: Vec<Handed>,
}

impl Parcel {
    /// Connections by parcels, in order.
    pub fn split(connections: Vec<Handed>) -> Vec<Vec<Handed>> {
        let mut parcels: Vec<Vec<Handed>> = Vec::new();
        let mut bytes = 0;
        for connection in connections {
            bytes += connection.held_bytes();
            match parcels.last_mut() {
                Some(last) if last.len() < MAX_CONNECTIONS && bytes <= FULL_BYTES => last.push(connection),
                _ => {
                    bytes = connection.held_bytes();
                    parcels.push(vec![connection]);
                }
            }
        }
        parcels
    }

    /// Packs one of [`split`](Self::split)'s. `address_of` says what the next process knows a port by.
    ///
    /// # Errors
    /// When descriptors or memory ran out.
    pub fn pack(
        connections: Vec<Handed>,
        address_of: impl Fn(PortKey, Role) -> Option<SocketAddr>,
    ) -> Result<Self, Unpacked> {
        match send(&connections, address_of) {
            Ok(receiver) => Ok(Self { receiver, connections }),
            Err(source) => Err(Unpacked { connections, source }),
        }
    }

    /// What to keep: whoever has it can [`open`](Self::open) it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }

    /// It is kept elsewhere: this process has nothing to do with its connections any more. How many there are.
    pub fn commit(self) -> usize {
        let count = self.connections.len();
        for connection in self.connections {
            connection.open.into_iter().for_each(OpenConnection::hand_over);
        }
        count
    }

    /// It could not be kept: the connections, unless somebody has taken them after all.
    pub fn take_back(self) -> Vec<Handed> {
        match scm::discard(self.receiver.as_fd()) {
            Ok(true) => self.connections,
            Ok(false) | Err(_) => {
                self.commit();
                Vec::new()
            }
        }
    }

    /// What is in a parcel, which stays as it is.
    ///
    /// # Errors
    /// When it is empty, or not one of this version.
    pub fn summary(parcel: BorrowedFd<'_>) -> Result<Summary, ParcelError> {
        let mut message = vec![0; record::MAX_MESSAGE];
        let len = scm::peek(parcel, &mut message)?;
        let (header, counted) = record::read_message(&message[..len])?;
        Ok(Summary { connections: header.connections, counted })
    }

    /// Takes what is in a parcel: from now on it is empty. `identify` says what each connection is here; one that is not
    /// established and is nothing here is lost.
    ///
    /// # Errors
    /// When it is empty, or what is in it can't be read: its connections are reset then.
    pub fn open(parcel: &OwnedFd, mut identify: impl FnMut(Origin) -> Option<Identity>) -> Result<Opened, ParcelError> {
        let mut message = vec![0; record::MAX_MESSAGE];
        let received = scm::receive_many(parcel.as_fd(), &mut message)?;
        let mut fds = received.fds.into_iter();
        let (header, _) = record::read_message(&message[..received.bytes])?;
        let record = read_record(&header, fds.next())?;
        let entries = record::read(&record, header.connections)?;
        let mut opened = Opened { connections: Vec::new(), lost: 0 };
        for entry in entries {
            match unpack(entry, &mut fds, &mut identify) {
                Some(connection) => opened.connections.push(connection),
                None => opened.lost += 1,
            }
        }
        Ok(opened)
    }
}

/// The receiving end of a new pair, with the message in it.
fn send(connections: &[Handed], address_of: impl Fn(PortKey, Role) -> Option<SocketAddr>) -> io::Result<OwnedFd> {
    let entries: Vec<Entry<'_>> = connections.iter().map(|connection| entry(connection, &address_of)).collect();
    let mut memory = File::from(memfd_create(c"sherd-connections", MFdFlags::MFD_CLOEXEC)?);
    let message = record::write(&entries, &mut memory)?;
    memory.flush()?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let (sender, receiver) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let sockets = connections.iter().flat_map(|connection| {
        [Some(connection.client.as_fd()), connection.relayed.as_ref().map(|relayed| relayed.shard.as_fd())]
    });
    let fds: Vec<BorrowedFd<'_>> = [memory.as_fd()].into_iter().chain(sockets.flatten()).collect();
    // A message goes whole or not at all.
    scm::send_many(sender.as_fd(), &message, &fds)?;
    Ok(receiver)
}

fn entry<'a>(connection: &'a Handed, address_of: impl Fn(PortKey, Role) -> Option<SocketAddr>) -> Entry<'a> {
    let origin = Origin {
        address: address_of(connection.port, connection.role),
        role: connection.role,
        counted: connection.open.as_ref().and_then(OpenConnection::slot),
    };
    let state = connection.relayed.as_ref().map(|relayed| std::borrow::Cow::Borrowed(&relayed.state));
    Entry { origin, age: connection.age, state }
}

fn read_record(header: &Header, memory: Option<OwnedFd>) -> Result<Vec<u8>, ParcelError> {
    let Some(memory) = memory else { return Err(ParcelError::Io(io::Error::from_raw_os_error(libc::EMFILE))) };
    let mut memory = File::from(memory);
    if header.bytes > MAX_RECORD_BYTES || memory.seek(SeekFrom::End(0))? != header.bytes {
        return Err(ParcelError::Damaged { detail: "its length is not the one in its header" });
    }
    let mut record = vec![0; header.bytes as usize];
    memory.read_exact_at(&mut record, 0)?;
    if record::checksum(&record) != header.checksum {
        return Err(ParcelError::Damaged { detail: "its checksum differs" });
    }
    Ok(record)
}

/// Descriptors come in the order of the entries; where the kernel could not make all, the last ones are missing.
fn unpack(
    entry: Entry<'_>,
    fds: &mut impl Iterator<Item = OwnedFd>,
    identify: impl FnOnce(Origin) -> Option<Identity>,
) -> Option<Handed> {
    let Entry { origin, age, state } = entry;
    let client = fds.next()?;
    let relayed = match state {
        Some(state) => Some(Relayed { shard: fds.next()?, state: state.into_owned() }),
        None => None,
    };
    // An established one needs its port no more, unless its shard resets it before its first byte.
    let identity = match (identify(origin), &relayed) {
        (Some(identity), _) => identity,
        (None, Some(_)) => Identity { port: NOWHERE, open: None },
        (None, None) => return None,
    };
    Some(Handed { client, port: identity.port, role: origin.role, open: identity.open, age, relayed })
}

/// A port that no backend has.
const NOWHERE: PortKey = PortKey(u32::MAX);
