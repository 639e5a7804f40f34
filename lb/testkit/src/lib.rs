//! What the tests of every crate share: what a test needs of the machine, a private network namespace for each
//! test, and waiting with a deadline. Nothing here is part of the product.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};

/// Something a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root with CAP_SYS_ADMIN: network namespaces, cgroups.
    Root,
    /// bpf(2) is permitted.
    Bpf,
    /// A Docker Engine answers on its socket (`SHERD_TEST_DOCKER`, else `/var/run/docker.sock`).
    Docker,
    /// Podman's API answers on its socket (`SHERD_TEST_PODMAN`, else `/run/podman/podman.sock`).
    Podman,
    /// A program is on the PATH.
    Program(&'static str),
}

impl Need {
    /// Whether this machine has it.
    pub fn is_met(self) -> bool {
        match self {
            Need::Root => nix::unistd::geteuid().is_root(),
            Need::Bpf => nix::unistd::geteuid().is_root() && Path::new("/sys/kernel/btf/vmlinux").exists(),
            Need::Docker => std::os::unix::net::UnixStream::connect(docker_socket()).is_ok(),
            Need::Podman => std::os::unix::net::UnixStream::connect(podman_socket()).is_ok(),
            Need::Program(name) => Command::new("sh")
                .args(["-c", "command -v \"$0\"", name])
                .stdout(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
        }
    }
}

/// The socket of the Docker Engine that tests use.
pub fn docker_socket() -> String {
    std::env::var("SHERD_TEST_DOCKER").unwrap_or_else(|_| "/var/run/docker.sock".into())
}

/// The socket of the Podman service that tests use.
pub fn podman_socket() -> String {
    std::env::var("SHERD_TEST_PODMAN").unwrap_or_else(|_| "/run/podman/podman.sock".into())
}

/// Whether the test may run. If not, says `SKIPPED` and why; under `SHERD_TEST_STRICT=1` (set in CI) that fails.
///
/// # Panics
/// When a need is not met and `SHERD_TEST_STRICT=1`.
#[must_use]
pub fn needs(test: &str, needs: &[Need]) -> bool {
    let missing: Vec<_> = needs.iter().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var("SHERD_TEST_STRICT").as_deref() != Ok("1"), "{test} must run here, but lacks {missing:?}");
    eprintln!("SKIPPED {test}: lacks {missing:?}");
    false
}

/// Runs `body` on a thread of its own in a new network namespace with loopback up; the namespace ends with it.
/// Child processes started by `body` are in the namespace too.
///
/// # Panics
/// When the namespace can't be made, or when `body` panics.
pub fn in_new_netns<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs CAP_SYS_ADMIN");
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("iproute2 is installed");
        assert!(up.success(), "loopback comes up");
        body()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Asks `condition` until it gives a value, at most `deadline` long.
///
/// # Panics
/// When the deadline passes; the message names `what`.
pub fn eventually<T>(what: &str, deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < deadline, "{what}: not within {deadline:?}");
        thread::sleep(Duration::from_millis(10));
    }
}
