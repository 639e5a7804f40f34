//! The agent's side for tests: a socket in a folder of its own, shims run against it, and every wait has a deadline.

use std::{
    fs::{self, Permissions},
    io::{ErrorKind, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use sherd_shim::hello::{self, Answer, Hello};
use sherd_testkit::eventually;
use tempfile::TempDir;

pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const SHIM: &str = env!("CARGO_BIN_EXE_sherd-shim");

/// A folder as a container would see it.
pub(crate) struct Folder(TempDir);

/// A broker that listens.
pub(crate) struct Broker(UnixListener);

/// A shim that has said its hello.
pub(crate) struct Guest {
    pub(crate) stream: UnixStream,
    pub(crate) hello: Hello,
    pub(crate) trap: Option<OwnedFd>,
}

/// A process that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Folder {
    pub(crate) fn new() -> Folder {
        let folder = tempfile::tempdir().expect("a folder");
        // Other users' shims come here too.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("it is ours");
        Folder(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("broker")
    }

    /// In place of what a former broker left there.
    pub(crate) fn broker(&self) -> Broker {
        let _ = fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).expect("a short path");
        fs::set_permissions(self.socket(), Permissions::from_mode(0o777)).expect("it is ours");
        listener.set_nonblocking(true).expect("a socket");
        Broker(listener)
    }

    /// The shim in front of `program`.
    pub(crate) fn shim(&self, program: &[&str]) -> Command {
        let mut command = Command::new(SHIM);
        command.arg("--socket").arg(self.socket()).arg("--").args(program);
        command
    }
}

impl Broker {
    pub(crate) fn accept(&self) -> Guest {
        let stream = eventually("a shim comes", SOON, || match self.0.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        });
        stream.set_nonblocking(false).expect("a socket");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        let mut bytes = [0; hello::LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
        assert_eq!(received.expect("a hello").bytes, hello::LEN);
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let hello = Hello::decode(&bytes, descriptors.len()).expect("a good hello");
        Guest { stream, hello, trap: descriptors.pop() }
    }

    /// Lets one shim go; gives its notify descriptor.
    pub(crate) fn let_go(&self) -> Option<OwnedFd> {
        self.accept().answer(Answer::Go.to_byte())
    }
}

impl Guest {
    pub(crate) fn answer(mut self, byte: u8) -> Option<OwnedFd> {
        self.stream.write_all(&[byte]).expect("the shim waits");
        let mut rest = Vec::new();
        // An end without more shows that nothing of the shim's stays open or is written into it.
        self.stream.read_to_end(&mut rest).expect("the shim goes on");
        assert_eq!(rest, b"");
        self.trap
    }
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Running {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().expect("it can be executed"))
    }

    pub(crate) fn finish(mut self) -> Output {
        let status = eventually("the process ends", SOON, || self.0.try_wait().expect("a child of ours"));
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.0.stdout.take().expect("a pipe").read_to_end(&mut stdout).expect("its output");
        self.0.stderr.take().expect("a pipe").read_to_end(&mut stderr).expect("its output");
        Output { status, stdout, stderr }
    }

    /// Until it has its filter, so that it has come to the broker's door.
    pub(crate) fn is_filtered(&self) {
        let status = PathBuf::from(format!("/proc/{}/status", self.0.id()));
        eventually("the filter is installed", SOON, || (field(&status, "Seccomp_filters") != "0").then_some(()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A line of a file like /proc/PID/status.
pub(crate) fn field(path: &Path, name: &str) -> String {
    let text = fs::read_to_string(path).expect("a process of ours");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.expect("a field of the kernel's").trim().to_owned()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
