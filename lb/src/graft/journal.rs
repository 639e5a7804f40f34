//! The call that a broker is about to answer, where the next one finds it: the kernel gives a notification once, and its
//! caller waits for ever for the answer of a broker that was killed. Owns that memory; knows nothing of what is done.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::fstat,
    },
    unistd::ftruncate,
};

use crate::sys::seccomp::{Notification, Record, is_waiting};

/// See the module. It is for one notify fd: keep a copy of its descriptor where that one is kept.
#[derive(Debug)]
pub struct Journal {
    memory: OwnedFd,
    record: Record,
    original: Option<OwnedFd>,
}

impl Journal {
    /// An empty one.
    ///
    /// # Errors
    /// When no memory or descriptor can be had.
    pub fn new() -> io::Result<Self> {
        let memory = memfd_create(c"sherd-call", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&memory, i64::try_from(Record::LEN).map_err(io::Error::other)?)?;
        let record = Record::map(memory.as_fd())?;
        // The page is there from now on, so that the kernel need not find one.
        record.clear();
        Ok(Self { memory, record, original: None })
    }

    /// What a former broker left: [`Broker::journal`](super::Broker::journal).
    ///
    /// # Errors
    /// When it is none.
    pub fn adopt(memory: OwnedFd) -> io::Result<Self> {
        if usize::try_from(fstat(&memory)?.st_size).is_ok_and(|size| size < Record::LEN) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let record = Record::map(memory.as_fd())?;
        Ok(Self { memory, record, original: None })
    }

    /// Whether a program still waits for the answer of a former broker.
    pub fn is_open(&self, notify: impl AsFd) -> bool {
        self.open_call().is_some_and(|call| is_waiting(notify.as_fd(), call.id))
    }

    /// The program's socket that the open call may be for: what [`Listener::listen`](super::Listener) was told of last.
    #[must_use]
    pub fn with_original(mut self, original: OwnedFd) -> Self {
        self.original = Some(original);
        self
    }

    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// The call that was not answered, as far as is known.
    pub(super) fn open_call(&self) -> Option<Notification> {
        self.record.read()
    }

    /// The socket that may be the open call's.
    pub(super) fn take_original(&mut self) -> Option<OwnedFd> {
        self.original.take()
    }

    /// The call is answered.
    pub(super) fn close_call(&mut self) {
        self.original = None;
        self.record.clear();
    }
}
