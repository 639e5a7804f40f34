//! A shard's door: the unix socket in the directory that its container sees, where its shim comes before the program
//! runs. What comes in is a container's, so it is bounded in size, number and time.

use std::{
    fs::{self, Permissions},
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use sherd_lb::graft::is_notify_fd;
use sherd_shim::hello::{self, BadHello, Hello};
use tokio::{net::UnixListener, sync::mpsc, task::JoinHandle};

use super::Generation;
use crate::{reconcile::message::Message, runtime::ShardKey};

/// The socket's name in the door's directory; the container's entrypoint names it too.
const SOCKET: &str = "broker";
/// How long a visitor may take for its 16 bytes. One is heard at a time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// Shims that are heard at one door: each costs a thread until the shard ends. A shim comes again only when the agent died
/// before it answered.
const MAX_SHIMS: u32 = 8;
/// Between two visitors.
const BETWEEN_VISITORS: Duration = Duration::from_millis(10);

/// What a shim brought.
#[derive(Debug)]
pub(in crate::reconcile) struct Greeting {
    /// Where it waits for its answer.
    pub(super) stream: UnixStream,
    pub(super) hello: Hello,
    pub(super) notify: Option<OwnedFd>,
}

/// Why a visitor is no shim.
#[derive(Debug, thiserror::Error)]
enum BadGreeting {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0} bytes instead of a hello")]
    Short(usize),
    #[error(transparent)]
    Hello(#[from] BadHello),
    #[error("its descriptor is no seccomp notify fd")]
    NotNotify,
}

/// See the module. Dropping it closes it; its directory stays for the next agent.
#[derive(Debug)]
pub(in crate::reconcile) struct Door {
    directory: PathBuf,
    serving: JoinHandle<()>,
}

/// The door's directory on the host. Short: a unix socket's path has 108 bytes.
pub(super) fn directory(run_dir: &Path, key: &ShardKey, generation: Generation) -> PathBuf {
    run_dir.join("doors").join(format!("{}.{}.{generation}", key.group, key.slot))
}

impl Door {
    /// Opens it, in place of what an earlier agent left there.
    pub(super) fn open(
        directory: &Path,
        key: ShardKey,
        generation: Generation,
        outbox: mpsc::UnboundedSender<Message>,
    ) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let path = directory.join(SOCKET);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = UnixListener::bind(&path)?;
        // Whatever user the container's program is. Nobody else gets here: the directory above is root's.
        fs::set_permissions(directory, Permissions::from_mode(0o755))?;
        fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        if let Some(above) = directory.parent() {
            fs::set_permissions(above, Permissions::from_mode(0o700))?;
        }
        let serving = tokio::spawn(serve(listener, key, generation, outbox));
        Ok(Self { directory: directory.to_owned(), serving })
    }
}

impl Door {
    /// Closes it for good: its shard is gone.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::debug!(directory = %self.directory.display(), "a door's directory stays: {error}");
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: UnixListener, key: ShardKey, generation: Generation, outbox: mpsc::UnboundedSender<Message>) {
    let (mut shims, mut strangers) = (0, 0_u64);
    while shims < MAX_SHIMS {
        let visitor = match listener.accept().await {
            Ok((visitor, _)) => visitor,
            Err(error) => {
                tracing::warn!(shard = %key, "its shim's door: {error}");
                tokio::time::sleep(HELLO_TIMEOUT).await;
                continue;
            }
        };
        let heard = tokio::task::spawn_blocking(move || visitor.into_std().map_err(BadGreeting::from).and_then(hear));
        match heard.await {
            Ok(Ok(greeting)) => {
                shims += 1;
                if outbox.send(Message::ShimCame { key: key.clone(), generation, greeting }).is_err() {
                    return;
                }
            }
            Ok(Err(error)) => {
                strangers += 1;
                // Whoever comes all the time doesn't fill the log either.
                if strangers.is_power_of_two() {
                    tracing::warn!(shard = %key, strangers, "somebody in the container is not the shim: {error}");
                }
            }
            Err(error) => tracing::error!(shard = %key, "hearing its shim failed: {error}"),
        }
        // A shim comes once; whoever comes all the time is to cost next to nothing.
        tokio::time::sleep(BETWEEN_VISITORS).await;
    }
}

/// Its hello and its descriptor. More than one descriptor can't arrive: there is no room for it.
fn hear(stream: UnixStream) -> Result<Greeting, BadGreeting> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    stream.set_write_timeout(Some(HELLO_TIMEOUT))?;
    let mut bytes = [0; hello::LEN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // A hello is sent whole, on a fresh connection.
    let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let mut descriptors: Vec<OwnedFd> = rights.flatten().collect();
    if received.bytes != hello::LEN {
        return Err(BadGreeting::Short(received.bytes));
    }
    let hello = Hello::decode(&bytes, descriptors.len())?;
    let notify = descriptors.pop();
    if let Some(notify) = &notify
        && !is_notify_fd(notify)?
    {
        return Err(BadGreeting::NotNotify);
    }
    Ok(Greeting { stream, hello, notify })
}
