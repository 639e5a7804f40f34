//! The agent's end of the holder: what must outlive the agent is given to it here. Finds or starts the holder, and
//! gives it everything again when it was away.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use sherd_lb::{cells::Cells, holder::HolderError};

use super::world::HolderClient;
use crate::clock;

/// How long a holder that was just started may take to answer; a simulated one is there, or isn't.
const START_TIMEOUT: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(5) };
/// How often the holder is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(5);

/// The name of the array that slots' connections are counted in.
const CELLS: &str = "cells";

/// Who starts the holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HolderUnit {
    /// systemd: it has a unit of its own.
    Systemd,
    /// The agent, from this program; the holder ends by itself when nobody needs it.
    Spawned(PathBuf),
}

/// Why there is no holder.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Its unit isn't running.
    #[error("no holder answers on {path}: start it with `systemctl start sherd-holder`")]
    NotRunning {
        /// Where it should listen.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It can't be started.
    #[error("the holder can't be started as `{} holder`", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The way to the holder.
#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    unit: HolderUnit,
    client: Option<HolderClient>,
    known: BTreeSet<String>,
    next_ping: Instant,
    cells: Option<Arc<Cells>>,
    is_unanswered: bool,
}

impl Keeper {
    /// Reaches the holder, starting it where that is the agent's part. Blocks for a few seconds at most.
    ///
    /// # Errors
    /// When there is none: an agent without a holder would break its promise at its first crash.
    pub fn connect(path: &Path, unit: HolderUnit) -> Result<Self, KeeperError> {
        let client = reach(path, &unit)?;
        let mut keeper = Self {
            path: path.to_owned(),
            unit,
            client: Some(client),
            known: BTreeSet::new(),
            next_ping: clock::now() + PING_EVERY,
            cells: None,
            is_unanswered: false,
        };
        keeper.cells = keeper.find_cells();
        Ok(keeper)
    }

    /// What slots' connections are counted in. `None`: bpf(2) is not permitted.
    pub(super) fn cells(&self) -> Option<&Arc<Cells>> {
        self.cells.as_ref()
    }

    /// Keeps the cells while somebody counts in them: a holder that keeps nothing can end.
    pub(super) fn keep_cells(&mut self, in_use: bool) {
        match (self.cells.clone(), self.known.contains(CELLS)) {
            (Some(cells), false) if in_use => self.put(CELLS, cells.descriptor()),
            (_, true) if !in_use => self.remove(CELLS),
            _ => {}
        }
    }

    /// Those that a former agent made, or new ones.
    fn find_cells(&mut self) -> Option<Arc<Cells>> {
        if let Some(kept) = self.take(CELLS) {
            match Cells::adopt(kept) {
                Ok(cells) => {
                    self.note_known(CELLS);
                    return Some(cells);
                }
                Err(error) => tracing::warn!(
                    "what a former agent counted is set aside: {error}. Shards that accept their connections themselves and were \
                     made before count there: until they are replaced their load is not known, and they are not found when they hang"
                ),
            }
        }
        let made = super::world::make_cells();
        made.inspect_err(|error| tracing::warn!("connections are not counted, and not steered by load: {error}")).ok()
    }

    /// Everything whose name starts with `prefix`.
    pub(super) fn take_prefix(&mut self, prefix: &str) -> Vec<(String, OwnedFd)> {
        let found = self.with("get", |client| client.get_prefix(prefix));
        self.is_unanswered |= found.is_none();
        found.unwrap_or_default()
    }

    /// One descriptor.
    pub(super) fn take(&mut self, name: &str) -> Option<OwnedFd> {
        self.take_prefix(name).into_iter().find(|(found, _)| found == name).map(|(_, descriptor)| descriptor)
    }

    /// All names.
    pub(super) fn names(&mut self) -> Vec<String> {
        let names = self.with("list", HolderClient::list);
        self.is_unanswered |= names.is_none();
        names.unwrap_or_default()
    }

    /// Whether it has ever left open what it has: then nobody knows what there is.
    pub(super) fn is_unanswered(&self) -> bool {
        self.is_unanswered
    }

    /// Gives it a descriptor. If it is away, it gets it when it is back ([`Keeper::tend`]).
    pub(super) fn put(&mut self, name: &str, descriptor: BorrowedFd<'_>) {
        if self.with("put", |client| client.put(name, descriptor)).is_some() {
            self.known.insert(name.to_owned());
        }
    }

    /// Gives it a descriptor for a while; no other is given in its place when the holder was away.
    ///
    /// # Errors
    /// [`HolderError::Malformed`] by a holder of a version that keeps nothing for a while. It may have the descriptor also where
    /// it didn't answer.
    pub(super) fn put_for(
        &mut self,
        name: &str,
        descriptor: BorrowedFd<'_>,
        time: Duration,
    ) -> Result<(), HolderError> {
        let away = || HolderError::Io(io::ErrorKind::NotConnected.into());
        let put = self.client.as_mut().ok_or_else(away)?.put_for(name, descriptor, time);
        if put.as_ref().is_err_and(|error| !matches!(error, HolderError::Full { .. })) {
            // What didn't answer may still do so, and what doesn't know this has hung up.
            (self.client, self.next_ping) = (None, clock::now());
        }
        put
    }

    /// The same, unless it has it; whether it hadn't.
    pub(super) fn put_once(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> bool {
        let is_new = !self.known.contains(name);
        if is_new {
            self.put(name, descriptor);
        }
        is_new
    }

    /// What is in the holder already, by a former agent.
    pub(super) fn note_known(&mut self, name: &str) {
        self.known.insert(name.to_owned());
    }

    /// Whether it has something whose name starts with `prefix`, as far as it was put or noted.
    pub(super) fn knows(&self, prefix: &str) -> bool {
        self.known.range(prefix.to_owned()..).next().is_some_and(|name| name.starts_with(prefix))
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.known.remove(name);
        self.with("remove", |client| client.remove(name));
    }

    pub(super) fn remove_prefix(&mut self, prefix: &str) {
        self.known.retain(|name| !name.starts_with(prefix));
        self.with("remove", |client| client.remove_prefix(prefix));
    }

    /// How many descriptors it keeps; `None`: it doesn't answer.
    pub(super) fn held(&mut self) -> Option<u64> {
        self.with("list", HolderClient::list).map(|names| names.len() as u64)
    }

    /// Looks after the holder: when it was away, it is started and gets everything again.
    pub(super) fn tend<'a>(&mut self, now: Instant, all: impl FnOnce() -> Vec<(String, BorrowedFd<'a>)>) {
        if now < self.next_ping {
            return;
        }
        self.next_ping = now + PING_EVERY;
        if self.with("ping", HolderClient::ping).is_some() {
            return;
        }
        match reach(&self.path, &self.unit) {
            Ok(client) => {
                tracing::warn!("the holder was away: giving it everything again");
                self.client = Some(client);
                self.known.clear();
                let mut wanted = BTreeSet::new();
                for (name, descriptor) in all() {
                    self.put(&name, descriptor);
                    wanted.insert(name);
                }
                // What it was told to let go of while it didn't answer: it would go on listening there.
                let is_left = |name: &String| is_of_address(name) && !wanted.contains(name);
                self.names().iter().filter(|name| is_left(name)).for_each(|name| self.remove(name));
            }
            Err(error) => tracing::error!(
                error = super::chain(&error),
                "no holder: if the agent died now, connections would be refused"
            ),
        }
    }

    fn with<T>(
        &mut self,
        action: &'static str,
        ask: impl FnOnce(&mut HolderClient) -> Result<T, HolderError>,
    ) -> Option<T> {
        match ask(self.client.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(HolderError::NotFound { .. }) => None,
            Err(error) => {
                tracing::warn!(action, "the holder did not do it: {}", super::chain(&error));
                // After a time-out the answer may still come, and would be taken for the next one's.
                (self.client, self.next_ping) = (None, clock::now());
                None
            }
        }
    }
}

/// Whether that is the name of something that every agent takes up, or lets go of, at its start.
fn is_of_address(name: &str) -> bool {
    name.starts_with("front/") || name.starts_with("leaving/")
}

fn reach(path: &Path, unit: &HolderUnit) -> Result<HolderClient, KeeperError> {
    if let Ok(client) = HolderClient::connect(path) {
        return Ok(client);
    }
    let HolderUnit::Spawned(program) = unit else {
        // Its unit may just be starting.
        return connect_in_time(path)
            .map_err(|error| KeeperError::NotRunning { path: path.to_owned(), source: io::Error::other(error) });
    };
    let spawn_error = |source| KeeperError::Spawn { program: program.clone(), source };
    // `--detach` starts it in a session of its own and ends: the holder is nobody's child.
    let status = Command::new(program)
        .args(["holder", "--detach", "--exit-when-idle", "--socket"])
        .arg(path)
        .stdin(Stdio::null())
        .status()
        .map_err(spawn_error)?;
    if !status.success() {
        return Err(spawn_error(io::Error::other(format!("it ended with {status}"))));
    }
    connect_in_time(path).map_err(|error| spawn_error(io::Error::other(error)))
}

fn connect_in_time(path: &Path) -> Result<HolderClient, HolderError> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        match HolderClient::connect(path) {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() >= deadline => return Err(error),
            // The socket is being bound; there is nothing to wait on before it exists.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
