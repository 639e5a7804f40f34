//! The API's unix socket file: made with its final owner and mode, in place of a dead agent's, never of a live one's.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, chown};
use thiserror::Error;
use tokio::net::UnixListener;
use tracing::{info, warn};

/// Who may use the API beside root, where the group exists.
const GROUP: &str = "sherd";
const MODE: u32 = 0o660;

/// Why the API has no socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// Another agent answers there.
    #[error("another sherd agent listens on {}: stop it, or give this one its own --run-dir", path.display())]
    Alive {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is in its place.
    #[error("{} is there and is not a socket: remove it, or choose another --run-dir", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// Making it failed.
    #[error("the socket {} can't be made: check that its directory exists and is writable, and that the path has at most 90 characters", path.display())]
    Make {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The API's socket, bound.
#[derive(Debug)]
pub struct ApiSocket {
    pub(super) listener: UnixListener,
    /// Where clients find it; the kernel still knows it by the name under which it was bound.
    pub(super) path: PathBuf,
}

/// Binds the API's socket.
pub fn bind(path: &Path) -> Result<ApiSocket, BindError> {
    check_place(path)?;
    let made = make(path).map(|listener| ApiSocket { listener, path: path.to_owned() });
    made.map_err(|source| BindError::Make { path: path.to_owned(), source })
}

/// Removes the socket's file.
pub(super) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        warn!(path = %path.display(), %error, "the API's socket can't be removed");
    }
}

fn check_place(path: &Path) -> Result<(), BindError> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(BindError::Alive { path: path.to_owned() }),
        Err(error) => {
            info!(path = %path.display(), %error, "the socket of an agent that is gone is replaced");
            Ok(())
        }
    }
}

/// The socket gets its owner and mode under another name: between bind and chmod it has whatever the umask says.
fn make(path: &Path) -> io::Result<UnixListener> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let unfinished = path.with_file_name(name);
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&unfinished)?;
    finish(&unfinished, path).inspect_err(|_| drop(std::fs::remove_file(&unfinished)))?;
    Ok(listener)
}

fn finish(unfinished: &Path, path: &Path) -> io::Result<()> {
    if let Ok(Some(group)) = Group::from_name(GROUP) {
        match chown(unfinished, None, Some(group.gid)) {
            Ok(()) => {}
            // An agent without privileges serves its own user.
            Err(error) if !nix::unistd::geteuid().is_root() => info!(%error, "the API is for this user only"),
            Err(error) => return Err(error.into()),
        }
    }
    std::fs::set_permissions(unfinished, std::fs::Permissions::from_mode(MODE))?;
    std::fs::rename(unfinished, path)
}
