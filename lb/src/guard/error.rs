//! Why there is no guard, or no proof of it, said so that an operator knows what to do.

use std::{error::Error, fmt, io, net::SocketAddr, path::PathBuf};

use super::{Operation, maker::MakeError};

/// Why the guard could not be established. Without it no listener may be given away: take the relay path.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The parent is not where cgroup v2 is mounted.
    #[error("{} is not in a cgroup v2 hierarchy; mount one (mount -t cgroup2 none /sys/fs/cgroup/unified)", parent.display())]
    NoCgroup2 {
        /// The directory asked for.
        parent: PathBuf,
    },
    /// The cgroup could not be made.
    #[error("can't make the cgroup {}; is the hierarchy writable (Delegate=yes), and the name new?", path.display())]
    Directory {
        /// The cgroup.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// bpf(2) is not permitted.
    #[error("the kernel permits no eBPF programs on cgroups; run the agent with CAP_BPF and CAP_NET_ADMIN, or as root")]
    NotPermitted(#[source] io::Error),
    /// The kernel does not know the hook.
    #[error("this kernel has no hook cgroup/{hook}; the guard needs Linux 5.14 or later with CONFIG_CGROUP_BPF")]
    TooOld {
        /// The hook.
        hook: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The verifier refused the program.
    #[error("the kernel's verifier refuses the program for cgroup/{hook}; report it with this: {log}")]
    Verifier {
        /// The hook.
        hook: &'static str,
        /// The last lines of its log.
        log: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody above has the hook for himself.
    #[error(
        "a cgroup above has a program on {hook} that admits no other; find it with `bpftool cgroup tree` and detach it"
    )]
    Occupied {
        /// The hook.
        hook: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The program could not be attached.
    #[error("can't attach the program for cgroup/{hook}")]
    Attach {
        /// The hook.
        hook: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The programs could not be loaded, for another reason.
    #[error("can't load the guard's programs")]
    Load(#[source] Box<dyn Error + Send + Sync>),
}

/// What a socket is while something is tried on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Bound, not listening.
    Bound,
    /// Listening.
    Listening,
    /// A listener after shutdown(2).
    Shut,
    /// A connection.
    Accepted,
    /// A connection after connect(2) to AF_UNSPEC.
    Disconnected,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bound => "a bound socket",
            Self::Listening => "a listener",
            Self::Shut => "a listener that was shut down",
            Self::Accepted => "an accepted connection",
            Self::Disconnected => "a connection that was disconnected",
        })
    }
}

/// Why sockets are not known to be guarded. Then none may be given away: take the relay path.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    /// Something went through that must not, or failed for another reason.
    #[error(
        "{operation} on {stage} was not refused by the guard; before Linux 5.15 net_cls and net_prio of cgroup v1 disable it \
         (unmount them), else the socket was made elsewhere"
    )]
    NotRefused {
        /// What was tried.
        operation: Operation,
        /// On what.
        stage: Stage,
        /// The kernel's answer; None when it did it.
        source: Option<io::Error>,
    },
    /// A connection that was disconnected and made to listen was reached.
    #[error(
        "a client reached a connection that was disconnected and made to listen, on {address}; that needs Linux 6.1 or later"
    )]
    Reached {
        /// What it listened on.
        address: SocketAddr,
    },
    /// Something that servers do is refused.
    #[error("{what} on {stage} does not work under the guard; is there another eBPF program on a cgroup above it?")]
    NotAllowed {
        /// What was tried.
        what: &'static str,
        /// On what.
        stage: Stage,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A throw-away socket could not be used.
    #[error("the guard can't be tried on loopback: {step} failed; is lo up?")]
    Loopback {
        /// The system call.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No socket was made.
    #[error("the guard can't be tried: no socket is made in it")]
    Make(#[from] MakeError),
}
