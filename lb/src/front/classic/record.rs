//! What classic steering must know after a restart, in a memory file that the holder keeps: the order in which the
//! kernel has the group's sockets, the slots in service, the hash key, and why steering is classic.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{super::AdoptError, RECORD};
use crate::table::{MAX_SLOTS, NO_SLOT, Seed, SlotIndex, SlotMask};

const MAGIC: &[u8; 8] = b"sherdcl1";

/// The longest record: the header, every slot and the anchor in the order, and a reason.
const MAX_LEN: usize = 8 + 16 + 128 + 2 + 2 * (MAX_SLOTS as usize + 1) + 4096;

/// The record; what is changed in the fields is kept by `write`.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    pub(super) seed: Seed,
    pub(super) in_service: SlotMask,
    /// The kernel's: by time of joining, and the last takes the place of one that leaves. None is the anchor.
    pub(super) order: Vec<Option<SlotIndex>>,
    pub(super) reason: String,
}

impl Record {
    pub(super) fn new(seed: Seed, reason: String) -> io::Result<Self> {
        let file = File::from(memfd_create(c"sherd-classic", MFdFlags::MFD_CLOEXEC)?);
        let record = Self { file, seed, in_service: SlotMask::default(), order: vec![None], reason };
        record.write()?;
        Ok(record)
    }

    pub(super) fn read(fd: OwnedFd) -> Result<Self, AdoptError> {
        let file = File::from(fd);
        let mut bytes = vec![0; MAX_LEN];
        let len = file.read_at(&mut bytes, 0).map_err(|source| AdoptError::Io { name: RECORD.into(), source })?;
        let other = || AdoptError::OtherMake { name: RECORD, detail: "no record of classic steering".into() };
        decode(&bytes[..len], file).ok_or_else(other)
    }

    /// One write: a reader sees the old or the new, as long as the length is the same or grows.
    pub(super) fn write(&self) -> io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.seed.0.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(self.in_service.words().iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend((self.order.len() as u16).to_le_bytes());
        bytes.extend(self.order.iter().flat_map(|slot| slot.map_or(NO_SLOT, |slot| slot.0).to_le_bytes()));
        bytes.extend(self.reason.as_bytes());
        self.file.write_all_at(&bytes, 0)?;
        self.file.set_len(bytes.len() as u64)
    }

    /// To be called before the kernel is told: a slot that does not listen is left out on adoption.
    pub(super) fn join(&mut self, slot: SlotIndex) -> io::Result<()> {
        self.order.push(Some(slot));
        self.write()
    }

    /// To be called after the kernel was told.
    pub(super) fn leave(&mut self, slot: SlotIndex) -> io::Result<()> {
        if let Some(place) = self.order.iter().position(|member| *member == Some(slot)) {
            self.order.swap_remove(place);
        }
        self.write()
    }
}

impl AsFd for Record {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn decode(bytes: &[u8], file: File) -> Option<Record> {
    let mut rest = bytes.strip_prefix(MAGIC)?;
    let mut take = |len: usize| -> Option<&[u8]> {
        let (taken, left) = rest.split_at_checked(len)?;
        rest = left;
        Some(taken)
    };
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let mut words = |count: usize| Some(take(count * 8)?.chunks(8).map(word).collect::<Vec<_>>());
    let seed = Seed(words(2)?.try_into().ok()?);
    let in_service = SlotMask::from_words(words(SlotMask::WORDS)?.try_into().ok()?);
    let members = word(take(2)?) as usize;
    let order = take(members * 2)?.chunks(2).map(|slot| word(slot) as u16);
    let order = order.map(|slot| (slot != NO_SLOT).then_some(SlotIndex(slot))).collect();
    let reason = String::from_utf8(rest.to_vec()).ok()?;
    Some(Record { file, seed, in_service, order, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_written() {
        let mut record = Record::new(Seed([1, u64::MAX]), "no bpf(2)".into()).expect("memory files exist");
        for slot in [3, 1, 1023] {
            record.join(SlotIndex(slot)).expect("memory files grow");
        }
        record.in_service.insert(SlotIndex(1023));
        record.leave(SlotIndex(3)).expect("memory files shrink");
        let read = Record::read(record.as_fd().try_clone_to_owned().expect("a copy")).expect("it is a record");
        assert_eq!(read.order, [None, Some(SlotIndex(1023)), Some(SlotIndex(1))]);
        assert_eq!((read.seed, read.in_service, &*read.reason), (record.seed, record.in_service, "no bpf(2)"));
    }

    #[test]
    fn another_file_is_no_record() {
        for bytes in [&b""[..], b"sherdcl1", b"something else that is quite a bit longer than the header of a record"] {
            let file = File::from(memfd_create(c"other", MFdFlags::empty()).expect("memory files exist"));
            file.write_all_at(bytes, 0).expect("memory files grow");
            assert!(matches!(Record::read(file.into()), Err(AdoptError::OtherMake { .. })));
        }
    }
}
