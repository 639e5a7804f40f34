//! The choice between eBPF and classic steering, and what both can do.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::BorrowedFd,
};

use super::{
    FrontConfig, OpenError, SlotError, SteeringMode, Totals, Unready,
    classic::{Classic, ClassicModel},
    ebpf::Ebpf,
};
use crate::table::{Choice, Flow, Model, Reasoning, Seed, SlotIndex, SlotMask, SteeringTable};

/// The steering of one address.
#[derive(Debug)]
pub(super) enum Steering {
    Ebpf(Ebpf),
    Classic(Classic),
}

impl Steering {
    /// eBPF where it can be had, else classic with the reason.
    pub(super) fn new(config: &FrontConfig, table: &SteeringTable) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Attach { address: config.address, source };
        let seed = random_seed().map_err(failed)?;
        let reason = if config.force_classic {
            "the configuration asks for it".to_owned()
        } else {
            match Ebpf::load(config.max_slots, table, seed, config.cells.as_ref()) {
                Ok(ebpf) => {
                    ebpf.set_refuse(config.unready == Unready::Refuse);
                    return Ok(Self::Ebpf(ebpf));
                }
                Err(error) => chain(&*error),
            }
        };
        Classic::new(table, seed, reason).map(Self::Classic).map_err(failed)
    }

    /// Before the anchor's first listen.
    pub(super) fn attach(&self, anchor: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Ebpf(ebpf) => ebpf.attach(anchor),
            Self::Classic(classic) => classic.attach(anchor),
        }
    }

    /// Right after it: without a place in the array the anchor can't be chosen.
    pub(super) fn enter_anchor(&self, anchor: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Ebpf(ebpf) => ebpf.enter(None, anchor),
            Self::Classic(_) => Ok(()),
        }
    }

    pub(super) fn mode(&self) -> SteeringMode {
        match self {
            Self::Ebpf(_) => SteeringMode::Ebpf,
            Self::Classic(classic) => SteeringMode::Classic { reason: classic.reason().to_owned() },
        }
    }

    pub(super) fn descriptors(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        match self {
            Self::Ebpf(ebpf) => ebpf.descriptors(),
            Self::Classic(classic) => classic.descriptors(),
        }
    }

    /// Before the slot's listener listens: classic steering writes down the kernel's order ahead.
    pub(super) fn before_join(&mut self, slot: SlotIndex) -> io::Result<()> {
        match self {
            Self::Ebpf(_) => Ok(()),
            Self::Classic(classic) => classic.before_join(slot),
        }
    }

    /// The slot's listener listens.
    pub(super) fn enter(&mut self, slot: SlotIndex, socket: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Ebpf(ebpf) => ebpf.enter(Some(slot), socket),
            Self::Classic(_) => Ok(()),
        }
    }

    /// Out of service, and safe to stop listening.
    pub(super) fn before_leave(&mut self, slot: SlotIndex, anchor: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Ebpf(ebpf) => ebpf.leave(slot),
            Self::Classic(classic) => classic.before_leave(slot, anchor),
        }
    }

    /// It no longer listens.
    pub(super) fn after_leave(&mut self, slot: SlotIndex, anchor: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Ebpf(_) => Ok(()),
            Self::Classic(classic) => classic.after_leave(slot, anchor),
        }
    }

    /// # Errors
    /// Unsupported with classic steering, which has no array to put a second listener in.
    pub(super) fn ebpf(&self) -> io::Result<&Ebpf> {
        match self {
            Self::Ebpf(ebpf) => Ok(ebpf),
            Self::Classic(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    pub(super) fn set_in(&mut self, slot: SlotIndex, in_service: bool, anchor: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Self::Ebpf(ebpf) => {
                ebpf.set_in(slot, in_service);
                Ok(())
            }
            Self::Classic(classic) => classic.set_in(slot, in_service, anchor),
        }
    }

    pub(super) fn in_service(&self) -> SlotMask {
        match self {
            Self::Ebpf(ebpf) => ebpf.in_service(),
            Self::Classic(classic) => classic.in_service(),
        }
    }

    pub(super) fn set_table(&mut self, table: &SteeringTable, anchor: BorrowedFd<'_>) -> Result<(), SlotError> {
        match self {
            Self::Ebpf(ebpf) => ebpf.set_table(table),
            Self::Classic(classic) => classic.set_table(table, anchor).map_err(SlotError::PutTable),
        }
    }

    pub(super) fn picks(&self, slots: u16) -> Vec<u64> {
        match self {
            Self::Ebpf(ebpf) => ebpf.picks(slots),
            Self::Classic(_) => vec![0; usize::from(slots)],
        }
    }

    pub(super) fn totals(&self) -> Totals {
        match self {
            Self::Ebpf(ebpf) => ebpf.totals(),
            Self::Classic(_) => Totals::default(),
        }
    }

    pub(super) fn explain(&self, table: &SteeringTable, unready: Unready) -> Explanation {
        let none_in = if unready == Unready::Refuse { Choice::Refused } else { Choice::Anchor };
        Explanation(match self {
            Self::Ebpf(ebpf) => Explained::Ebpf(ebpf.model(table, none_in)),
            Self::Classic(classic) => Explained::Classic(classic.model(table)),
        })
    }
}

/// The steering of one moment, to ask where a connection goes.
#[derive(Debug)]
pub struct Explanation(Explained);

#[derive(Debug)]
enum Explained {
    Ebpf(Model),
    Classic(ClassicModel),
}

impl Explanation {
    /// Where the connection goes if CPU `cpu` receives it (which only the policy `local` looks at).
    pub fn choose(&self, flow: &Flow, cpu: u32) -> Choice {
        match &self.0 {
            Explained::Ebpf(model) => model.choose(flow, cpu),
            Explained::Classic(model) => model.choose(flow, cpu),
        }
    }

    /// How the choice comes about; absent with classic steering, which keeps no such record.
    pub fn reason(&self, flow: &Flow, cpu: u32) -> Option<Reasoning> {
        match &self.0 {
            Explained::Ebpf(model) => Some(model.reason(flow, cpu)),
            Explained::Classic(_) => None,
        }
    }

    /// The same with that slot out of service; absent with classic steering.
    pub fn without(&self, slot: SlotIndex) -> Option<Self> {
        match &self.0 {
            Explained::Ebpf(model) => Some(Self(Explained::Ebpf(model.without(slot)))),
            Explained::Classic(_) => None,
        }
    }
}

fn random_seed() -> io::Result<Seed> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let half = |range: std::ops::Range<usize>| bytes[range].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    Ok(Seed([half(0..8), half(8..16)]))
}

/// The error with its causes: the reason is shown on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    let text = causes.collect::<Vec<_>>().join(": ");
    // A verifier's log can be long, and its end says what was wrong.
    let start = text.char_indices().rev().nth(600).map_or(0, |(at, _)| at);
    text[start..].to_owned()
}
