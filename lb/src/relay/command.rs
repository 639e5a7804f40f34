//! What a worker is told. Values only.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

use super::{Backend, BackendError, Drained, Pin, PortKey, Role, WorkerRef, connection::Client, handed::Handed};
use crate::cells::Account;

/// Which connections a drain is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All there are; nothing new is taken.
    All,
    /// Those to backends before the present one.
    Former,
}

pub(super) enum Command {
    Serve {
        port: PortKey,
        listener: OwnedFd,
        role: Role,
        account: Option<Arc<Account>>,
        done: Sender<io::Result<()>>,
    },
    StopServing {
        port: PortKey,
        role: Role,
        done: Sender<()>,
    },
    LeaveAnchor {
        port: PortKey,
        done: Sender<()>,
    },
    SetBackend {
        backend: Option<Backend>,
        done: Sender<Result<(), BackendError>>,
    },
    SetSiblings(Vec<WorkerRef>),
    Adopt {
        client: Client,
        /// It has the options that connections of our own listeners inherit.
        prepared: bool,
    },
    Drain {
        scope: Scope,
        deadline: Instant,
        done: Sender<Drained>,
    },
    CloseFormer {
        done: Sender<Drained>,
    },
    StopTaking {
        done: Sender<()>,
    },
    Release {
        done: Sender<Vec<Handed>>,
    },
    Resume {
        connections: Vec<Handed>,
        done: Sender<u32>,
    },
    Pin {
        pin: Pin,
        done: Sender<io::Result<()>>,
    },
    Shutdown,
}
