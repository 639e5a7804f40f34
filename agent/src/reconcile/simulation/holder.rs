//! The simulated holder: names, each with a descriptor that stands for whatever was given. What a name is of, the simulated kernel
//! knows by the name itself.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::LazyLock,
    time::Duration,
};

use sherd_lb::holder::HolderError;

use super::state::with;

/// Every simulated socket and map.
static DESCRIPTOR: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").expect("/dev/null is there"));

pub(super) fn descriptor() -> BorrowedFd<'static> {
    DESCRIPTOR.as_fd()
}

/// The process; it outlives the agent, and may be away for a while.
#[derive(Debug, Default)]
pub(super) struct Holder {
    pub(super) names: BTreeSet<String>,
    pub(super) is_away: bool,
    /// Which of its lives this is: a connection to a former one is broken.
    pub(super) life: u32,
}

impl Holder {
    /// It ends, with what it has.
    pub(super) fn end(&mut self) {
        self.names.clear();
        self.is_away = true;
        self.life += 1;
    }
}

/// See [`sherd_lb::holder::HolderClient`].
#[derive(Debug)]
pub(crate) struct HolderClient {
    life: u32,
}

impl HolderClient {
    pub(in crate::reconcile) fn connect(path: &Path) -> Result<Self, HolderError> {
        with(|world| match world.holder.is_away {
            true => {
                Err(HolderError::Connect { path: path.to_owned(), source: io::ErrorKind::ConnectionRefused.into() })
            }
            false => Ok(Self { life: world.holder.life }),
        })
    }

    fn ask<T>(&self, answer: impl FnOnce(&mut BTreeSet<String>) -> T) -> Result<T, HolderError> {
        with(|world| {
            if world.holder.is_away || world.holder.life != self.life {
                return Err(HolderError::Io(io::ErrorKind::BrokenPipe.into()));
            }
            // What was asked may have been done all the same.
            let (lost, reply) = (world.faults.strike(&mut world.chance, 3), world.chance.per_mille(500));
            if lost {
                world.seen.holder_trouble = world.now();
            }
            if lost && reply {
                return Err(HolderError::Io(io::ErrorKind::TimedOut.into()));
            }
            let answer = answer(&mut world.holder.names);
            world.kernel.sweep(&world.holder.names);
            if lost { Err(HolderError::Io(io::ErrorKind::TimedOut.into())) } else { Ok(answer) }
        })
    }

    pub(in crate::reconcile) fn ping(&mut self) -> Result<(), HolderError> {
        self.ask(|_| ())
    }

    pub(in crate::reconcile) fn put(&mut self, name: &str, _: BorrowedFd<'_>) -> Result<(), HolderError> {
        if with(|world| world.forgets_descriptors()) {
            return Ok(());
        }
        self.ask(|names| names.insert(name.to_owned())).map(drop)
    }

    pub(in crate::reconcile) fn put_for(
        &mut self,
        name: &str,
        descriptor: BorrowedFd<'_>,
        _: Duration,
    ) -> Result<(), HolderError> {
        self.put(name, descriptor)
    }

    pub(in crate::reconcile) fn list(&mut self) -> Result<Vec<String>, HolderError> {
        self.ask(|names| names.iter().cloned().collect())
    }

    pub(in crate::reconcile) fn get_prefix(&mut self, prefix: &str) -> Result<Vec<(String, OwnedFd)>, HolderError> {
        let names =
            self.ask(|names| names.iter().filter(|name| name.starts_with(prefix)).cloned().collect::<Vec<_>>())?;
        let pair = |name| Ok((name, descriptor().try_clone_to_owned().map_err(HolderError::Io)?));
        names.into_iter().map(pair).collect()
    }

    pub(in crate::reconcile) fn remove(&mut self, name: &str) -> Result<(), HolderError> {
        match self.ask(|names| names.remove(name))? {
            true => Ok(()),
            false => Err(HolderError::NotFound { name: name.to_owned() }),
        }
    }

    pub(in crate::reconcile) fn remove_prefix(&mut self, prefix: &str) -> Result<(), HolderError> {
        self.ask(|names| names.retain(|name| !name.starts_with(prefix)))
    }
}
