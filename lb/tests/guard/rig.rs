//! What the tests stand on: a guard with a maker, connections to it, and this very program run again as another process.

use std::{
    cell::RefCell,
    env, fs, io,
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sherd_lb::guard::{Guard, Maker, cgroup2_mount, maker};
use sherd_testkit::{Need, in_new_netns, needs};
use socket2::SockRef;

pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The begin of every guard's name.
pub(crate) const PREFIX: &str = "guard-";

const ROLE: &str = "SHERD_TEST_ROLE";

/// Runs `body` in a network namespace of its own, if this machine can.
pub(crate) fn alone(test: &str, body: impl FnOnce() + Send + 'static) {
    if needs(test, &[Need::Root, Need::Bpf]) {
        in_new_netns(body);
    }
}

/// One address of each family.
pub(crate) fn loopbacks() -> [SocketAddr; 2] {
    ["127.0.0.1:0", "[::1]:0"].map(|address| address.parse().expect("an address"))
}

/// A cgroup for a test's guards; goes with the test.
pub(crate) struct Parent(pub(crate) PathBuf);

impl Parent {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mount = cgroup2_mount().expect("cgroup v2 is mounted");
        let name = format!("sherd-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        fs::create_dir(mount.join(&name)).expect("the hierarchy is writable");
        Self(mount.join(name))
    }

    pub(crate) fn guard(&self, number: u32) -> Guard {
        Guard::establish(&self.0, &format!("{PREFIX}{number}"), None).expect("this kernel has the hooks")
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let in_use = Guard::remove_former(&self.0, PREFIX, None).expect("it is there");
        assert!(in_use.is_empty() || std::thread::panicking(), "{in_use:?} have processes left");
        let _ = fs::remove_dir(&self.0);
    }
}

/// A guard, and a maker in it.
pub(crate) struct World {
    pub(crate) maker: Maker,
    pub(crate) guard: RefCell<Guard>,
    pub(crate) parent: Parent,
}

impl World {
    pub(crate) fn new() -> Self {
        let parent = Parent::new();
        let guard = parent.guard(1);
        let maker = start_maker(guard.cgroup());
        Self { maker, guard: guard.into(), parent }
    }

    /// Without it nothing reaches what the maker has made.
    pub(crate) fn mark(&self, listener: &OwnedFd) {
        self.guard.borrow_mut().mark(listener.as_fd()).expect("the map is there");
    }

    /// Listening, with what it listens on.
    pub(crate) fn listener(&self, address: SocketAddr) -> (OwnedFd, SocketAddr) {
        let listener = self.maker.listener(address, true).expect("the address is free");
        self.mark(&listener);
        SockRef::from(&listener).listen(16).expect("it is bound");
        let address = local_address(listener.as_fd());
        (listener, address)
    }
}

pub(crate) fn local_address(socket: BorrowedFd<'_>) -> SocketAddr {
    SockRef::from(&socket).local_addr().expect("it is a socket").as_socket().expect("of a family with ports")
}

/// A client, and the connection as it is accepted.
pub(crate) fn connection(listener: BorrowedFd<'_>) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect_timeout(&local_address(listener), SOON).expect("it listens");
    let timeout = PollTimeout::try_from(SOON).expect("a short time");
    poll(&mut [PollFd::new(listener, PollFlags::POLLIN)], timeout).expect("it waits");
    let (accepted, _) = SockRef::from(&listener).accept().expect("a connection waits");
    (client, accepted.into())
}

pub(crate) fn start_maker(cgroup: &Path) -> Maker {
    Maker::start(this_program("rig::maker_process", "maker"), cgroup).expect("it joins")
}

/// Runs the test `test` of this program in another process, which finds its part by [`is_role`].
pub(crate) fn this_program(test: &str, role: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("a path"));
    // An argument that is added later is one more name of a test to libtest: of none.
    command.args(["--exact", test, "--nocapture"]).env(ROLE, role).stdout(Stdio::null());
    command
}

/// Whether this process was started for the part.
pub(crate) fn is_role(role: &str) -> bool {
    env::var(ROLE).as_deref() == Ok(role)
}

/// The descriptor that [`this_program`] was given as its standard input.
pub(crate) fn given() -> OwnedFd {
    io::stdin().as_fd().try_clone_to_owned().expect("it was given one")
}

/// The cgroup that was added to the arguments of [`this_program`].
pub(crate) fn given_cgroup() -> PathBuf {
    env::args_os().next_back().expect("an argument").into()
}

#[test]
fn maker_process() {
    if is_role("maker") {
        maker::serve(io::stdin().as_fd(), &given_cgroup()).expect("it joins, and serves until the end");
    }
}
