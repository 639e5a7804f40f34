//! Steering by a classic BPF program, where bpf(2) is not permitted: rebuilt and attached anew at each change. Owns
//! the record of the kernel's socket order, which a classic program answers in and nobody can ask the kernel for.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

mod program;
mod record;

use record::Record;

use super::AdoptError;
use crate::{
    sys,
    table::{Choice, Flow, Seed, SlotIndex, SlotMask, SteeringTable},
};

/// The name of the record's descriptor.
pub(super) const RECORD: &str = "classic";

/// The classic steering of one address.
#[derive(Debug)]
pub(super) struct Classic {
    record: Record,
    /// None after an adoption, until the table is set: the program of the earlier process goes on.
    table: Option<SteeringTable>,
}

impl Classic {
    pub(super) fn new(table: &SteeringTable, seed: Seed, reason: String) -> io::Result<Self> {
        Ok(Self { record: Record::new(seed, reason)?, table: Some(table.clone()) })
    }

    /// `listening` are the slots whose listener still listens: one may have left without being written down.
    pub(super) fn adopt(fd: OwnedFd, listening: &SlotMask) -> Result<Self, AdoptError> {
        let mut record = Record::read(fd)?;
        let gone: Vec<_> = record.order.iter().flatten().copied().filter(|slot| !listening.contains(*slot)).collect();
        let io = |source| AdoptError::Io { name: RECORD.into(), source };
        for slot in gone {
            record.in_service.remove(slot);
            record.leave(slot).map_err(io)?;
        }
        match listening.iter().find(|slot| !record.order.contains(&Some(*slot))) {
            Some(slot) => Err(AdoptError::OtherSocket { slot }),
            None => Ok(Self { record, table: None }),
        }
    }

    pub(super) fn reason(&self) -> &str {
        &self.record.reason
    }

    pub(super) fn descriptors(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        vec![(RECORD, self.record.as_fd())]
    }

    pub(super) fn in_service(&self) -> SlotMask {
        self.record.in_service
    }

    /// Makes the program that fits the present state choose in the group, at once for the next SYN.
    pub(super) fn attach(&self, anchor: BorrowedFd<'_>) -> io::Result<()> {
        self.attach_with(&self.record.in_service, anchor)
    }

    pub(super) fn before_join(&mut self, slot: SlotIndex) -> io::Result<()> {
        self.record.join(slot)
    }

    /// The kernel puts its last socket into the place of the one that leaves, so for a moment the program may
    /// choose neither.
    pub(super) fn before_leave(&mut self, slot: SlotIndex, anchor: BorrowedFd<'_>) -> io::Result<()> {
        self.record.in_service.remove(slot);
        self.record.write()?;
        let mut choosable = self.record.in_service;
        if let Some(Some(last)) = self.record.order.last() {
            choosable.remove(*last);
        }
        self.attach_with(&choosable, anchor)
    }

    pub(super) fn after_leave(&mut self, slot: SlotIndex, anchor: BorrowedFd<'_>) -> io::Result<()> {
        self.record.leave(slot)?;
        self.attach(anchor)
    }

    pub(super) fn set_in(&mut self, slot: SlotIndex, in_service: bool, anchor: BorrowedFd<'_>) -> io::Result<()> {
        if in_service {
            self.record.in_service.insert(slot);
        } else {
            self.record.in_service.remove(slot);
        }
        self.record.write()?;
        self.attach(anchor)
    }

    pub(super) fn set_table(&mut self, table: &SteeringTable, anchor: BorrowedFd<'_>) -> io::Result<()> {
        let before = self.table.replace(table.clone());
        self.attach(anchor).inspect_err(|_| self.table = before)
    }

    pub(super) fn model(&self, table: &SteeringTable) -> ClassicModel {
        let Record { in_service, order, seed, .. } = &self.record;
        ClassicModel { steps: program::Steps::new(table, in_service, order, *seed), order: order.clone() }
    }

    fn attach_with(&self, choosable: &SlotMask, anchor: BorrowedFd<'_>) -> io::Result<()> {
        let Some(table) = &self.table else {
            return Err(io::Error::other("the steering table is not known yet; set it first after an adoption"));
        };
        let steps = program::Steps::new(table, choosable, &self.record.order, self.record.seed);
        sys::sockopt::attach_reuseport_cbpf(anchor, &steps.assemble())
    }
}

/// What the attached program answers, as a slot.
#[derive(Debug)]
pub(super) struct ClassicModel {
    steps: program::Steps,
    order: Vec<Option<SlotIndex>>,
}

impl ClassicModel {
    pub(super) fn choose(&self, flow: &Flow, cpu: u32) -> Choice {
        let member = self.order.get(self.steps.choose(flow, cpu) as usize).copied().flatten();
        member.map_or(Choice::Anchor, Choice::Slot)
    }
}
