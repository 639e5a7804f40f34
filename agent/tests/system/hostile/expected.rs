//! What each attempt of the hostile program is answered with: tables, in the order in which they are tried.

/// An attempt, and the answer to it.
pub(super) type Expected = (&'static str, &'static str);

/// On any socket that we gave, and at any stage.
const OPTIONS: &[Expected] = &[
    ("SO_DETACH_REUSEPORT_BPF", "EPERM"),
    ("SO_ATTACH_REUSEPORT_CBPF", "EPERM"),
    ("SO_ATTACH_REUSEPORT_EBPF", "EPERM"),
    ("SO_ATTACH_FILTER", "EPERM"),
    ("SO_ATTACH_BPF", "EPERM"),
    ("SO_DETACH_FILTER", "EPERM"),
    ("SO_LOCK_FILTER", "EPERM"),
    ("SO_REUSEPORT=0", "EPERM"),
    ("SO_REUSEADDR=0", "EPERM"),
    ("SO_BINDTODEVICE", "EPERM"),
    ("SO_BINDTOIFINDEX", "EPERM"),
    ("SO_MARK", "EPERM"),
    ("SO_INCOMING_CPU", "EPERM"),
    ("SO_DONTROUTE", "EPERM"),
    ("IP_TRANSPARENT", "EPERM"),
    ("IP_FREEBIND", "EPERM"),
    ("IP_OPTIONS", "EPERM"),
    ("IPV6_TRANSPARENT", "EPERM"),
    ("IPV6_FREEBIND", "EPERM"),
    ("TCP_REPAIR", "EPERM"),
    ("TCP_FASTOPEN_CONNECT", "EPERM"),
    ("TCP_ULP=smc", "EPERM"),
];

/// The kernel itself connects no listener.
const ELSEWHERE_LISTENING: &[Expected] = &[
    ("bind", "EPERM"),
    ("connect-v4", "EISCONN"),
    ("connect-v6", "EISCONN"),
    ("sendto", "EPIPE"),
    ("fastopen-v4", "EISCONN"),
    ("fastopen-v6", "EISCONN"),
];

/// What was disconnected, or shut, is a socket that could go anywhere.
const BIND_AND_CONNECT: &[Expected] = &[("bind", "EPERM"), ("connect-v4", "EPERM"), ("connect-v6", "EPERM")];
const FAST_OPEN: &[Expected] = &[("fastopen-v4", "EPERM"), ("fastopen-v6", "EPERM")];
/// The kernel sends nothing on what is not connected; once it says that a connection ended.
const SEND_DISCONNECTED: &[Expected] = &[("sendto", "ECONNRESET")];
const SEND_SHUT: &[Expected] = &[("sendto", "EPIPE")];
const DISCONNECT: &[Expected] = &[("disconnect", "OK")];

/// A request of the program, and the answers in it.
pub(super) struct Attempts {
    pub(super) request: &'static str,
    pub(super) expected: &'static [&'static [Expected]],
}

const fn attempts(request: &'static str, expected: &'static [&'static [Expected]]) -> Attempts {
    Attempts { request, expected }
}

pub(super) const LISTENER: Attempts = attempts("/listener", &[OPTIONS, ELSEWHERE_LISTENING]);

pub(super) const CONNECTION: Attempts = attempts("/options", &[OPTIONS]);

/// connect(2) to AF_UNSPEC is seen by nobody, so what comes after it has to be refused: listen(2) by the broker.
pub(super) const DISCONNECTED: Attempts = attempts(
    "/connection",
    &[OPTIONS, DISCONNECT, BIND_AND_CONNECT, SEND_DISCONNECTED, FAST_OPEN, &[("listen", "EPERM")], OPTIONS],
);

pub(super) const SHUT: Attempts = attempts(
    "/shut",
    &[&[("shutdown", "OK")], BIND_AND_CONNECT, SEND_SHUT, FAST_OPEN, OPTIONS, &[("listen", "EPERM")]],
);

/// The socket's network namespace is the host's.
pub(super) const NAMESPACE: Attempts = attempts("/namespace", &[&[("SIOCSIFMTU", "EPERM"), ("SIOCGSKNS", "EPERM")]]);

/// No hook sees it either; the anchor keeps the group together.
pub(super) const OWNER: Attempts = attempts("/owner", &[&[("fchown", "OK")]]);

/// It has standard input and output, and no fd by which it could answer its own calls, or get one.
pub(super) const DESCRIPTORS: Attempts =
    attempts("/descriptors", &[&[("born-with", "0,1,2"), ("notify-fds", "0"), ("second-listener", "EBUSY")]]);

/// Nothing is pinned, and the two directories that it sees are read-only.
pub(super) const PINS: Attempts = attempts(
    "/pins",
    &[&[
        ("BPF_OBJ_GET", "EPERM"),
        ("BPF_PROG_GET_NEXT_ID", "EPERM"),
        ("open-pin", "ENOENT"),
        ("mount-bpf", "EPERM"),
        ("unlink-door", "EROFS"),
        ("chmod-door", "EROFS"),
        ("file-at-door", "EROFS"),
        ("write-shim", "EROFS"),
    ]],
);

/// Whoever comes to the door without a notify fd, alone or in a crowd.
pub(super) const TURNED_AWAY: &[Expected] = &[
    ("door-one-byte", "closed"),
    ("door-garbage", "closed"),
    ("door-64k", "closed"),
    ("door-hello-without-fd", "closed"),
    ("door-hello-with-file", "closed"),
    ("door-hello-with-253", "closed"),
    ("door-garbage-with-253", "closed"),
    ("door-version", "closed"),
    ("door-status", "closed"),
    ("door-crowd", "came"),
    ("door-crowd-served", "0"),
];

/// The shim's filter answers these: the kernel would run no guard for them.
#[cfg(target_arch = "x86_64")]
pub(super) const THIRTY_TWO_BIT: Attempts = attempts(
    "/32-bit",
    &[&[
        ("32-SO_DETACH_REUSEPORT_BPF", "ENOSYS"),
        ("32-SO_REUSEPORT=0", "ENOSYS"),
        ("32-socketcall", "ENOSYS"),
        ("32-io_uring_setup", "ENOSYS"),
        // The broker's answer: it is the listener that was given.
        ("32-listen", "OK"),
        ("x32-SO_DETACH_REUSEPORT_BPF", "ENOSYS"),
        ("x32-listen", "ENOSYS"),
    ]],
);

/// By a process without the shim's filter: it can listen, and nobody reaches it.
pub(super) const MADE_TO_LISTEN: &[&[Expected]] =
    &[DISCONNECT, BIND_AND_CONNECT, SEND_DISCONNECTED, FAST_OPEN, &[("listen", "OK")]];

/// The guard needs no filter.
pub(super) const UNFILTERED_OPTIONS: &[&[Expected]] = &[OPTIONS];
