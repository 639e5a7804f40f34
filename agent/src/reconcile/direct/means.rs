//! What grafting needs of the host: the guard and the process that makes listeners in it, proven once before the first
//! graft. Found out when first asked for; owns both.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
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

/// Orders that may wait. Each broker waits for its own, and gives up after a while.
const MAX_ORDERS: usize = 4096;

/// Gets the listener, on the thread that made it.
pub(super) type Take = Box<dyn FnOnce(Result<OwnedFd, String>) + Send>;

/// See the module. What it does blocks, so a thread of its own does it, one thing after the other.
pub(in crate::reconcile) struct Means {
    instance: String,
    /// Where what its listeners accept is counted.
    cells: Option<Arc<Cells>>,
    thread: Option<(SyncSender<Order>, JoinHandle<()>)>,
}

enum Order {
    /// Somebody is going to want a listener.
    Prepare,
    Listener {
        address: SocketAddr,
        v6only: bool,
        cell: Option<u32>,
        take: Take,
    },
}

impl Means {
    /// Nothing is tried yet.
    pub(in crate::reconcile) fn new(instance: String, cells: Option<Arc<Cells>>) -> Self {
        Self { instance, cells, thread: None }
    }

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

    /// Finds out whether there are means, so that the first listener doesn't wait for that.
    pub(super) fn prepare(&mut self) {
        // It does so later where this is refused.
        let _ = self.order(Order::Prepare);
    }

    /// A listener for the address that has been shown to be guarded. Its connections are counted in the cell of that number.
    pub(super) fn listener(&mut self, (address, v6only): (SocketAddr, bool), cell: Option<u32>, take: Take) {
        if let Err((order, reason)) = self.order(Order::Listener { address, v6only, cell, take })
            && let Order::Listener { take, .. } = order
        {
            take(Err(reason));
        }
    }

    fn order(&mut self, order: Order) -> Result<(), (Order, String)> {
        if self.thread.is_none() {
            let (orders, inbox) = sync_channel(MAX_ORDERS);
            let (instance, cells) = (self.instance.clone(), self.cells.clone());
            let thread = thread::Builder::new().name("sherd-means".into());
            match thread.spawn(move || serve(&instance, cells.as_deref(), &inbox)) {
                Ok(thread) => self.thread = Some((orders, thread)),
                Err(error) => return Err((order, format!("no thread to make listeners: {error}"))),
            }
        }
        let Some((orders, _)) = &self.thread else { unreachable!("it was started just now") };
        orders.try_send(order).map_err(|refused| match refused {
            TrySendError::Full(order) => (order, format!("more than {MAX_ORDERS} listeners are being made")),
            TrySendError::Disconnected(order) => (order, "the thread that makes listeners ended".to_owned()),
        })
    }
}

impl Drop for Means {
    fn drop(&mut self) {
        let Some((orders, thread)) = self.thread.take() else { return };
        drop(orders);
        if thread.join().is_err() {
            tracing::error!("the thread that makes listeners panicked: please report this");
        }
    }
}

fn serve(instance: &str, cells: Option<&Cells>, orders: &Receiver<Order>) {
    let mut found = Found::Untried;
    while let Ok(order) = orders.recv() {
        match order {
            Order::Prepare => found.try_if_due(instance, cells),
            Order::Listener { address, v6only, cell, take } => {
                found.try_if_due(instance, cells);
                take(found.listener(address, v6only, cell));
            }
        }
    }
}

/// What was found out about this host.
enum Found {
    Untried,
    Ready {
        guard: Box<Guard>,
        maker: Maker,
    },
    Impossible {
        reason: String,
        /// It may have been a passing want of something.
        retry_after: Instant,
    },
}

impl Found {
    /// Blocks for up to seconds where that is due, which it rarely is.
    fn try_if_due(&mut self, instance: &str, cells: Option<&Cells>) {
        let due = match self {
            Self::Untried => true,
            Self::Ready { .. } => false,
            Self::Impossible { retry_after, .. } => *retry_after <= Instant::now(),
        };
        if !due {
            return;
        }
        *self = match establish(instance, cells) {
            Ok((guard, maker)) => {
                tracing::info!(cgroup = %guard.cgroup().display(), "the guard holds: shards may accept themselves");
                Self::Ready { guard: Box::new(guard), maker }
            }
            Err(reason) => {
                tracing::warn!("shards can't accept their connections themselves, they are relayed: {reason}");
                Self::Impossible { reason, retry_after: Instant::now() + RETRY_AFTER }
            }
        };
    }

    fn listener(&mut self, address: SocketAddr, v6only: bool, cell: Option<u32>) -> Result<OwnedFd, String> {
        let made = match self {
            Self::Ready { guard, maker } => {
                let made = match cell {
                    None => maker.listener(address, v6only),
                    Some(cell) => {
                        let room = guard.count_in(cell);
                        room.map_err(|error| format!("no cgroup for the listeners of one slot: {error}"))?;
                        maker.counted_listener(address, v6only, cell)
                    }
                };
                made.map(|socket| (guard, socket))
            }
            Self::Impossible { reason, .. } => return Err(reason.clone()),
            Self::Untried => unreachable!("it was tried just now"),
        };
        match made {
            Ok((guard, socket)) => {
                Guard::prove_listener(socket.as_fd()).map_err(|error| crate::reconcile::chain(&error))?;
                guard.mark(socket.as_fd()).map_err(|error| format!("a listener can't be marked: {error}"))?;
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

impl Drop for Found {
    fn drop(&mut self) {
        let Self::Ready { guard, maker } = self else { return };
        maker.end();
        // Its sockets stay guarded.
        let _ = guard.remove();
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
    let no_cgroup = |error| format!("no cgroup for guarded sockets: {error}");
    let parent = parent(instance).map_err(no_cgroup)?;
    fs::create_dir_all(&parent).map_err(no_cgroup)?;
    // This very program, whatever an upgrade has put in its place.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("sherd").arg("make-listeners");
    establish_in(&parent, cells, command)
}

/// On an error nothing is left of it, so it can be tried again.
fn establish_in(parent: &Path, cells: Option<&Cells>, maker: Command) -> Result<(Guard, Maker), String> {
    let chain = |error: &dyn std::error::Error| crate::reconcile::chain(error);
    let name = format!("{PREFIX}{}", std::process::id());
    let mut guard = Guard::establish(parent, &name, cells).map_err(|error| chain(&error))?;
    let started = Maker::start(maker, guard.cgroup()).map_err(|error| chain(&error));
    let proven = started.and_then(|maker| guard.prove(&maker).map(|()| maker).map_err(|error| chain(&error)));
    if proven.is_err()
        && let Err(error) = guard.remove()
    {
        tracing::warn!(cgroup = %guard.cgroup().display(), "a guard that was not proven stays: {error}");
    }
    proven.map(|maker| (guard, maker))
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

#[cfg(test)]
mod tests {
    use std::{env, process::Stdio};

    use sherd_lb::guard::maker;
    use sherd_testkit::{Need, in_new_netns, needs};

    use super::*;

    const IS_MAKER: &str = "SHERD_TEST_IS_MAKER";

    /// This program again, as the process that makes listeners; the cgroup is its last argument, to libtest the name of no test.
    #[test]
    fn maker_process() {
        if env::var_os(IS_MAKER).is_some() {
            let cgroup = env::args_os().next_back().expect("an argument");
            maker::serve(io::stdin().as_fd(), cgroup.as_ref()).expect("it joins, and serves until the end");
        }
    }

    #[test]
    fn what_could_not_be_proven_is_tried_again() {
        let test = "what_could_not_be_proven_is_tried_again";
        if !needs(test, &[Need::Root, Need::Bpf]) {
            return;
        }
        in_new_netns(|| {
            let parent =
                cgroup2_mount().expect("cgroup v2 is mounted").join(format!("sherd-test-{}", std::process::id()));
            fs::create_dir(&parent).expect("the hierarchy is writable");
            for _ in 0..2 {
                let error = establish_in(&parent, None, Command::new("false")).expect_err("it makes nothing");
                assert!(error.contains("ended at once"), "{error}");
            }
            let mut command = Command::new("/proc/self/exe");
            let test = "reconcile::direct::means::tests::maker_process";
            command.args(["--exact", test, "--nocapture"]).env(IS_MAKER, "1").stdout(Stdio::null());
            let (guard, mut maker) = establish_in(&parent, None, command).expect("it makes listeners");
            maker.end();
            guard.remove().expect("its maker has ended");
            fs::remove_dir(&parent).expect("nothing is left in it");
        });
    }
}
