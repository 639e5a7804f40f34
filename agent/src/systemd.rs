//! The agent as a unit of systemd: what it tells the service manager, and its place in the delegated cgroup. Does
//! nothing where systemd did not start this process.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::{control, runtime::cgroup};

/// How systemd says where it listens; not for our children, whose notifications would be taken for ours.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
/// The cgroup below the unit's own that the agent sits in.
const LEAF: &str = "agent";

/// Whether systemd started this process as a unit that notifies.
pub fn is_unit() -> bool {
    std::env::var_os(NOTIFY_SOCKET).is_some()
}

/// The unit has started: what ran has been adopted.
pub fn notify_ready() {
    notify(sd_notify::NotifyState::Ready);
}

/// The unit is ending.
pub fn notify_stopping() {
    notify(sd_notify::NotifyState::Stopping);
}

fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd can't be told");
    }
}

/// Tells systemd that the agent lives, as long as its loop answers.
pub async fn feed_watchdog(requests: mpsc::Sender<control::Request>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    feed(requests, limit / 3, || notify(sd_notify::NotifyState::Watchdog)).await;
}

/// Asks the loop, again and again, and tells of each answer.
async fn feed(requests: mpsc::Sender<control::Request>, every: Duration, tell: impl Fn()) {
    let mut interval = tokio::time::interval(every);
    loop {
        interval.tick().await;
        let (reply, answer) = oneshot::channel();
        let asked = requests.send(control::Request::Subscribe { reply }).await;
        if asked.is_ok() && answer.await.is_ok() {
            tell();
        }
    }
}

/// Moves this process into a leaf below its unit's cgroup: a cgroup v2 that passes controllers on may hold no process
/// itself ("no internal processes", cgroup-v2.rst). From systemd 254 on `DelegateSubgroup=` does it.
///
/// # Errors
/// When the cgroup is not delegated to this process.
pub fn enter_leaf() -> io::Result<Option<PathBuf>> {
    if !is_unit() {
        return Ok(None);
    }
    let (mounts, own) = (cgroup::Mounts::read()?, cgroup::Membership::of(std::process::id())?);
    let (Some(mount), Some(own)) = (mounts.v2, own.v2) else { return Ok(None) };
    if own.file_name().is_some_and(|name| name == LEAF) {
        return Ok(Some(own));
    }
    let leaf = own.join(LEAF);
    enter(&mount.directory(&leaf))?;
    Ok(Some(leaf))
}

fn enter(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("cgroup.procs"), std::process::id().to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::broadcast;

    use super::*;

    #[tokio::test]
    async fn only_a_loop_that_answers_feeds_the_watchdog() {
        const EVERY: Duration = Duration::from_millis(2);
        let (requests, mut inbox) = mpsc::channel(control::REQUEST_QUEUE_LEN);
        let (events, _) = broadcast::channel(1);
        let fed = AtomicUsize::new(0);
        let answering = async {
            for _ in 0..3 {
                let Some(control::Request::Subscribe { reply }) = inbox.recv().await else { panic!("another request") };
                assert!(reply.send(events.subscribe()).is_ok());
            }
            // From here on it hangs: it takes the question, and does not come to answering.
            let _unanswered = inbox.recv().await;
            tokio::time::sleep(EVERY * 50).await;
        };
        let feeding = feed(requests, EVERY, || {
            fed.fetch_add(1, Ordering::Relaxed);
        });
        tokio::select! {
            () = answering => {}
            () = feeding => {}
        }
        assert_eq!(fed.load(Ordering::Relaxed), 3);
    }
}
