//! The agent's side of the shim for tests: a shard's directory with the broker's socket in it. Lets programs go and
//! grafts nothing.

use std::{
    fs::{self, Permissions},
    io::{ErrorKind, IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::Path,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use sherd_shim::hello::{self, Answer, Hello};

use crate::support::{PATIENCE, eventually};

pub(crate) struct Door {
    directory: tempfile::TempDir,
    broker: UnixListener,
}

impl Door {
    /// Open to every user that a container may have.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        let socket = directory.path().join("broker");
        let broker = UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
        broker.set_nonblocking(true).unwrap();
        Self { directory, broker }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Waits for a shim and lets its program run: gives what it said, and the trap if it has one.
    pub(crate) async fn let_go(&self) -> (Hello, Option<OwnedFd>) {
        let mut stream = eventually("a shim comes", async || match self.broker.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        })
        .await;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = [0; hello::LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
        assert_eq!(received.unwrap().bytes, hello::LEN);
        let rights = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        });
        let mut descriptors: Vec<OwnedFd> = rights.flatten().collect();
        let hello = Hello::decode(&bytes, descriptors.len()).unwrap();
        stream.write_all(&[Answer::Go.to_byte()]).unwrap();
        (hello, descriptors.pop())
    }
}
