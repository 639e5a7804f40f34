//! What grafting needs of the host: the guard and the process that makes listeners in it, proven once before the first
//! graft. Found out when first asked for; owns both.

use std::{
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use sherd_lb::{
    cells::Cells,
    guard::{Guard, Maker, cgroup2_mount, maker::MakeError},
};

use crate::{runtime::cgroup, systemd};

/// Guards' directories begin so; each start of the agent has one of its own.
const PREFIX: &str = "guard.";

/// When what was not possible is tried again, if somebody asks.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Default)]
pub(in crate::reconcile) enum Means {
    #[default]
    Untried,
    Ready {
        guard: Guard,
        maker: Maker,
    },
    Impossible {
        reason: String,
        /// It may have been a passing want of something.
        retry_after: Instant,
    },
}

impl Means {
    /// Removes what agents left that could not end in order. Their sockets stay guarded; see `sherd_lb::guard`.
    pub(in crate::reconcile) fn remove_former(instance: &str) {
        let Ok(parent) = parent(instance) else { return };
        match Guard::remove_former(&parent, PREFIX, None) {
            Ok(in_use) if in_use.is_empty() => {}
            Ok(in_use) => tracing::debug!(?in_use, "guards whose process has not ended yet"),
            // Without a parent there is none.
            Err(error) => tracing::debug!("former guards can't be looked for: {error}"),
        }
        remove_parents(&parent);
    }

    /// A listener for the address that has been shown to be guarded. Blocks: a millisecond, at the first call up to
    /// seconds.
    /// Its connections are counted in the cell of that number.
    pub(super) fn listener(
        &mut self,
        instance: &str,
        address: SocketAddr,
        v6only: bool,
        cells: Option<&Cells>,
        cell: Option<u32>,
    ) -> Result<OwnedFd, String> {
        let due = match self {
            Self::Untried => true,
            Self::Ready { .. } => false,
            Self::Impossible { retry_after, .. } => *retry_after <= Instant::now(),
        };
        if due {
            *self = match establish(instance, cells) {
                Ok((guard, maker)) => {
                    tracing::info!(cgroup = %guard.cgroup().display(), "the guard holds: shards may accept themselves");
                    Self::Ready { guard, maker }
                }
                Err(reason) => {
                    tracing::warn!("shards can't accept their connections themselves, they are relayed: {reason}");
                    Self::Impossible { reason, retry_after: Instant::now() + RETRY_AFTER }
                }
            };
        }
        let made = match self {
            Self::Ready { guard, maker } => maker.listener(address, v6only).map(|socket| (guard, socket)),
            Self::Impossible { reason, .. } => return Err(reason.clone()),
            Self::Untried => unreachable!("it was tried just now"),
        };
        match made {
            Ok((guard, socket)) => {
                Guard::prove_listener(socket.as_fd()).map_err(|error| crate::reconcile::chain(&error))?;
                guard.mark(socket.as_fd(), cell).map_err(|error| format!("a listener can't be marked: {error}"))?;
                Ok(socket)
            }
            Err(error) => {
                if matches!(error, MakeError::Ended(_)) {
                    // The next call has another one.
                    *self = Self::Untried;
                }
                Err(crate::reconcile::chain(&error))
            }
        }
    }
}

impl Drop for Means {
    fn drop(&mut self) {
        let Self::Ready { guard, maker } = self else { return };
        maker.end();
        // Its sockets stay guarded.
        let _ = fs::remove_dir(guard.cgroup());
        guard.cgroup().parent().into_iter().for_each(remove_parents);
    }
}

/// `sherd/INSTANCE`, and `sherd`, where nobody uses them; a unit's cgroup is in use.
fn remove_parents(parent: &Path) {
    for directory in parent.ancestors().take(2) {
        let _ = fs::remove_dir(directory);
    }
}

fn establish(instance: &str, cells: Option<&Cells>) -> Result<(Guard, Maker), String> {
    let chain = |error: &dyn std::error::Error| crate::reconcile::chain(error);
    let no_cgroup = |error| format!("no cgroup for guarded sockets: {error}");
    let parent = parent(instance).map_err(no_cgroup)?;
    fs::create_dir_all(&parent).map_err(no_cgroup)?;
    let name = format!("{PREFIX}{}", std::process::id());
    let mut guard = Guard::establish(&parent, &name, cells).map_err(|error| chain(&error))?;
    let program = std::env::current_exe().map_err(|error| chain(&error))?;
    let mut command = Command::new(program);
    command.arg("make-listeners");
    let maker = Maker::start(command, guard.cgroup()).map_err(|error| chain(&error))?;
    guard.prove(&maker).map_err(|error| chain(&error))?;
    Ok((guard, maker))
}

/// Under systemd the agent's own delegated cgroup, else one of ours at the top.
fn parent(instance: &str) -> io::Result<PathBuf> {
    let mount = cgroup2_mount().ok_or_else(|| io::Error::other("cgroup v2 is not mounted"))?;
    Ok(own_unit(&mount)?.unwrap_or_else(|| mount.join("sherd").join(instance)))
}

/// The agent sits in a leaf of its unit's cgroup.
fn own_unit(mount: &Path) -> io::Result<Option<PathBuf>> {
    if !systemd::is_unit() {
        return Ok(None);
    }
    let own = cgroup::Membership::of(std::process::id())?.v2;
    let unit = own.as_deref().and_then(Path::parent).map(|unit| unit.strip_prefix("/").unwrap_or(unit));
    Ok(unit.map(|unit| mount.join(unit)))
}
