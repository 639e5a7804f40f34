//! What a parcel says of its connections: a short message beside the descriptors, and a record with the bytes that are on their
//! way. Bytes only; knows no descriptor.
//!
//! All numbers are little-endian. The message is a header and how many connections are counted where; the record is an
//! entry after the other. A version reads its own format only: what it can't read is reset, never guessed.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::Hasher,
    io::{self, BufWriter, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use siphasher::sip::SipHasher13;

use super::{super::handed::RelayedState, MAX_CONNECTIONS, Origin, ParcelError, Rest, Role};
use crate::table::{NO_SLOT, SlotIndex};

const MAGIC: [u8; 6] = *b"sherdc";
pub(super) const VERSION: u16 = 1;
const HEADER_BYTES: usize = MAGIC.len() + 2 + 4 + 8 + 8 + 2;
const ADDRESS_BYTES: usize = 1 + 16 + 2;
const COUNTED_BYTES: usize = ADDRESS_BYTES + 2 + 4;

/// The longest message: each connection is counted elsewhere.
pub(super) const MAX_MESSAGE: usize = HEADER_BYTES + MAX_CONNECTIONS * COUNTED_BYTES;

/// What the message says of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) connections: u32,
    /// Of the record.
    pub(super) bytes: u64,
    pub(super) checksum: u64,
}

/// Connections that are counted as open, by address and slot.
pub(super) type Counted = Vec<(SocketAddr, SlotIndex, u32)>;

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) origin: Origin,
    pub(super) age: Duration,
    /// `None`: it is not established.
    pub(super) state: Option<Cow<'a, RelayedState>>,
}

pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Writes the record and returns the message.
pub(super) fn write(entries: &[Entry<'_>], to: impl Write) -> io::Result<Vec<u8>> {
    let mut record = Hashing { to: BufWriter::new(to), hasher: SipHasher13::new(), bytes: 0 };
    let mut counted: BTreeMap<(SocketAddr, SlotIndex), u32> = BTreeMap::new();
    for entry in entries {
        write_entry(entry, &mut record)?;
        if let (Some(address), Some(slot)) = (entry.origin.address, entry.origin.counted) {
            *counted.entry((address, slot)).or_default() += 1;
        }
    }
    record.flush()?;
    let mut message = MAGIC.to_vec();
    message.extend(VERSION.to_le_bytes());
    message.extend((entries.len() as u32).to_le_bytes());
    message.extend(record.bytes.to_le_bytes());
    message.extend(record.hasher.finish().to_le_bytes());
    message.extend((counted.len() as u16).to_le_bytes());
    for ((address, slot), count) in counted {
        message.extend(address_bytes(Some(address)));
        message.extend(slot.0.to_le_bytes());
        message.extend(count.to_le_bytes());
    }
    Ok(message)
}

pub(super) fn read_message(message: &[u8]) -> Result<(Header, Counted), ParcelError> {
    // The sender's end is closed: behind the message there is the end.
    if message.is_empty() {
        return Err(ParcelError::Empty);
    }
    let short = || ParcelError::Damaged { detail: "its header is short" };
    let mut from = Reader(message);
    if from.array().ok_or_else(short)? != MAGIC {
        return Err(ParcelError::Damaged { detail: "it is no parcel" });
    }
    match from.u16().ok_or_else(short)? {
        VERSION => {}
        found => return Err(ParcelError::OtherVersion { found }),
    }
    let connections = from.u32().ok_or_else(short)?;
    if connections as usize > MAX_CONNECTIONS {
        return Err(ParcelError::Damaged { detail: "it has more connections than a message can" });
    }
    let (bytes, checksum) = (from.u64().ok_or_else(short)?, from.u64().ok_or_else(short)?);
    let counted = from.u16().ok_or_else(short)?;
    let counted = (0..counted).map(|_| read_counted(&mut from)).collect::<Option<_>>().ok_or_else(short)?;
    Ok((Header { connections, bytes, checksum }, counted))
}

fn read_counted(from: &mut Reader<'_>) -> Option<(SocketAddr, SlotIndex, u32)> {
    Some((from.address()??, SlotIndex(from.u16()?), from.u32()?))
}

/// Every entry of a record, and nothing behind them.
pub(super) fn read(record: &[u8], connections: u32) -> Result<Vec<Entry<'static>>, ParcelError> {
    let mut from = Reader(record);
    let entries: Option<Vec<_>> = (0..connections).map(|_| read_entry(&mut from)).collect();
    match entries {
        Some(entries) if from.0.is_empty() => Ok(entries),
        _ => Err(ParcelError::Damaged { detail: "its entries do not fit" }),
    }
}

/// Bits of an entry's first byte.
mod flag {
    pub(super) const RELAYED: u8 = 1;
    pub(super) const UP_ENDED: u8 = 1 << 1;
    pub(super) const UP_CLOSED: u8 = 1 << 2;
    pub(super) const DOWN_ENDED: u8 = 1 << 3;
    pub(super) const DOWN_CLOSED: u8 = 1 << 4;
    pub(super) const MOVED: u8 = 1 << 5;
    pub(super) const KEPT_ALIVE: u8 = 1 << 6;
    pub(super) const ANSWERED: u8 = 1 << 7;
}

fn write_entry(entry: &Entry<'_>, to: &mut impl Write) -> io::Result<()> {
    let nothing = RelayedState::default();
    let state = entry.state.as_deref().unwrap_or(&nothing);
    let flags = [
        (entry.state.is_some(), flag::RELAYED),
        (state.up.ended, flag::UP_ENDED),
        (state.up.closed, flag::UP_CLOSED),
        (state.down.ended, flag::DOWN_ENDED),
        (state.down.closed, flag::DOWN_CLOSED),
        (state.moved, flag::MOVED),
        (state.kept_alive, flag::KEPT_ALIVE),
        (state.answered, flag::ANSWERED),
    ];
    let flags = flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag);
    to.write_all(&[flags, role_byte(entry.origin.role)])?;
    to.write_all(&address_bytes(entry.origin.address))?;
    to.write_all(&entry.origin.counted.map_or(NO_SLOT, |slot| slot.0).to_le_bytes())?;
    for time in [entry.age, state.age, state.silent] {
        to.write_all(&u64::try_from(time.as_millis()).unwrap_or(u64::MAX).to_le_bytes())?;
    }
    for bytes in [&state.up.bytes, &state.down.bytes] {
        to.write_all(&(bytes.len() as u32).to_le_bytes())?;
        to.write_all(bytes)?;
    }
    Ok(())
}

fn read_entry(from: &mut Reader<'_>) -> Option<Entry<'static>> {
    let [flags, role] = from.array()?;
    let is_set = |flag| flags & flag != 0;
    let role = [Role::Slot, Role::Anchor, Role::Inner].into_iter().find(|known| role_byte(*known) == role)?;
    let (address, slot) = (from.address()?, from.u16()?);
    let (age, relayed_age, silent) = (from.millis()?, from.millis()?, from.millis()?);
    let up = Rest { bytes: from.bytes()?, ended: is_set(flag::UP_ENDED), closed: is_set(flag::UP_CLOSED) };
    let down = Rest { bytes: from.bytes()?, ended: is_set(flag::DOWN_ENDED), closed: is_set(flag::DOWN_CLOSED) };
    let (moved, kept_alive, answered) = (is_set(flag::MOVED), is_set(flag::KEPT_ALIVE), is_set(flag::ANSWERED));
    let state = RelayedState { up, down, moved, kept_alive, answered, age: relayed_age, silent };
    let origin = Origin { address, role, counted: (slot != NO_SLOT).then_some(SlotIndex(slot)) };
    Some(Entry { origin, age, state: is_set(flag::RELAYED).then_some(Cow::Owned(state)) })
}

fn role_byte(role: Role) -> u8 {
    match role {
        Role::Slot => 0,
        Role::Anchor => 1,
        Role::Inner => 2,
    }
}

/// The family (0: there is none), the IP address and the port.
fn address_bytes(address: Option<SocketAddr>) -> [u8; ADDRESS_BYTES] {
    let mut bytes = [0; ADDRESS_BYTES];
    let Some(address) = address else { return bytes };
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes[0] = 4;
            bytes[1..5].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes[0] = 6;
            bytes[1..17].copy_from_slice(&ip.octets());
        }
    }
    bytes[17..].copy_from_slice(&address.port().to_le_bytes());
    bytes
}

/// What is left to read; each part is `None` when there is less.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn millis(&mut self) -> Option<Duration> {
        self.u64().map(Duration::from_millis)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let len = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes.to_vec())
    }

    fn address(&mut self) -> Option<Option<SocketAddr>> {
        let family: [u8; 1] = self.array()?;
        let ip: [u8; 16] = self.array()?;
        let port = self.u16()?;
        let ip = match family {
            [0] => return Some(None),
            [4] => IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3])),
            [6] => IpAddr::V6(Ipv6Addr::from(ip)),
            _ => return None,
        };
        Some(Some(SocketAddr::new(ip, port)))
    }
}

/// Counts and hashes what is written.
struct Hashing<W: Write> {
    to: BufWriter<W>,
    hasher: SipHasher13,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.write(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry<'static>> {
        let rest = (prop::collection::vec(any::<u8>(), 0..300), any::<bool>(), any::<bool>())
            .prop_map(|(bytes, ended, closed)| Rest { bytes, ended, closed });
        let state = (rest.clone(), rest, any::<[bool; 3]>(), any::<u32>(), any::<u32>());
        let state = state.prop_map(|(up, down, [moved, kept_alive, answered], age, silent)| {
            let time = |millis: u32| Duration::from_millis(millis.into());
            Cow::Owned(RelayedState { up, down, moved, kept_alive, answered, age: time(age), silent: time(silent) })
        });
        let address = prop::option::of((any::<[u8; 16]>(), any::<bool>(), any::<u16>())).prop_map(|address| {
            address.map(|(ip, is_v4, port)| match is_v4 {
                true => SocketAddr::from(([ip[0], ip[1], ip[2], ip[3]], port)),
                false => SocketAddr::from((ip, port)),
            })
        });
        let role = prop::sample::select(vec![Role::Slot, Role::Anchor, Role::Inner]);
        let counted = prop::option::of((0..4095u16).prop_map(SlotIndex));
        (address, role, counted, any::<u32>(), prop::option::of(state)).prop_map(
            |(address, role, counted, age, state)| {
                let age = Duration::from_millis(age.into());
                Entry { origin: Origin { address, role, counted }, age, state }
            },
        )
    }

    proptest! {
        #[test]
        fn connections_are_read_as_written(entries in prop::collection::vec(entry(), 0..20), flip in any::<prop::sample::Index>()) {
            let mut record = Vec::new();
            let message = write(&entries, &mut record).unwrap();
            prop_assert!(message.len() <= MAX_MESSAGE);
            let (header, counted) = read_message(&message).unwrap();
            prop_assert_eq!((header.bytes, header.checksum), (record.len() as u64, checksum(&record)));
            prop_assert_eq!(read(&record, header.connections).unwrap(), entries.clone());
            let of = |entry: &&Entry<'_>| entry.origin.address.is_some() && entry.origin.counted.is_some();
            let sum: u32 = counted.iter().map(|(_, _, count)| count).sum();
            prop_assert_eq!(sum as usize, entries.iter().filter(of).count());
            for cut in 0..message.len() {
                prop_assert!(read_message(&message[..cut]).is_err());
            }
            if !record.is_empty() {
                prop_assert!(read(&record[..record.len() - 1], header.connections).is_err());
                let at = flip.index(record.len());
                record[at] ^= 0x10;
                prop_assert_ne!(checksum(&record), header.checksum);
            }
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200), connections in 0u32..200) {
            let _ = read_message(&bytes);
            let _ = read(&bytes, connections);
        }
    }

    #[test]
    fn another_version_is_told_apart() {
        let mut message = write(&[], Vec::new()).unwrap();
        message[MAGIC.len()] += 1;
        assert!(matches!(read_message(&message), Err(ParcelError::OtherVersion { found: 2 })));
        message[0] = b'?';
        assert!(matches!(read_message(&message), Err(ParcelError::Damaged { .. })));
    }
}
