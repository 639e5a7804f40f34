//! What /proc and pidfds tell of the process that made a call. Changes nothing in it.

use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::PathBuf,
};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use socket2::SockRef;

/// PIDFD_THREAD of <linux/pidfd.h> (Linux 6.9).
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// Descriptors of a process that are looked at to find one.
pub(super) const MAX_LOOKED_AT: usize = 16_384;

/// A thread that called, and its process. Valid while the thread waits for an answer: ask before believing anything of it.
#[derive(Debug)]
pub(super) struct Process {
    pid: u32,
    thread: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// The process of `thread`, seen as that thread sees it: it may have a descriptor table of its own, and the first
    /// thread, the only one that pidfd_open(2) takes before 6.9, may have ended.
    pub(super) fn of_thread(thread: u32) -> io::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{thread}/status"))?;
        let field = status.lines().find_map(|line| line.strip_prefix("Tgid:")).map(str::trim);
        let pid: u32 = field.and_then(|pid| pid.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let open = |id: u32, flags| {
            let id = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
            pidfd_open(id, flags)
        };
        let pidfd = match open(thread, PidfdFlags::from_bits_retain(PIDFD_THREAD)) {
            Err(Errno::INVAL) => open(pid, PidfdFlags::empty())?,
            opened => opened?,
        };
        Ok(Self { pid, thread, pidfd })
    }

    /// That it has a listener of this cookie at this number.
    pub(super) fn holds(&self, number: RawFd, cookie: u64) -> Holder {
        Holder { pid: self.pid, number, cookie }
    }

    /// A copy of its descriptor.
    pub(super) fn descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty())?)
    }

    /// Whether the descriptor is closed by exec(2).
    pub(super) fn is_cloexec(&self, number: RawFd) -> io::Result<bool> {
        let info = self.descriptor_info(number)?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
        let flags = flags.and_then(|flags| i32::from_str_radix(flags, 8).ok()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(flags & libc::O_CLOEXEC != 0)
    }

    /// The lines of `/proc/TID/fdinfo/NUMBER`.
    pub(super) fn descriptor_info(&self, number: RawFd) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.thread))
    }

    /// Its descriptors that are `kind` (what their links in /proc say), at most `bound` of all looked at.
    pub(super) fn descriptors_that_are(&self, kind: &str, bound: usize) -> io::Result<Vec<RawFd>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.thread))?.take(bound) {
            let entry = entry?;
            // One that was closed meanwhile is none.
            if fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == kind)
                && let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok())
            {
                found.push(number);
            }
        }
        Ok(found)
    }
}

/// Where a listener of ours is in a shard: the only way back to it, because nobody else keeps it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    pub(super) pid: u32,
    pub(super) number: RawFd,
    pub(super) cookie: u64,
}

impl Holder {
    /// Whether both have one listener, wherever each has it.
    pub fn is_same_listener(&self, other: &Self) -> bool {
        self.cookie == other.cookie
    }

    /// Whether it is about the listener of this SO_COOKIE.
    pub fn is_of(&self, cookie: u64) -> bool {
        self.cookie == cookie
    }

    /// The listener of this inode in one of these processes, wherever it was dup'ed, forked or passed to.
    pub fn find(pids: impl IntoIterator<Item = u32>, inode: u32) -> Option<Self> {
        let kind = format!("socket:[{inode}]");
        pids.into_iter().find_map(|pid| {
            let process = Process::of_thread(pid).ok()?;
            let number = *process.descriptors_that_are(&kind, MAX_LOOKED_AT).ok()?.first()?;
            let cookie = SockRef::from(&process.descriptor(number).ok()?).cookie().ok()?;
            Some(Self { pid, number, cookie })
        })
    }

    /// The listener, if that process still has it there. The copy must not be kept: while there is one, the listener
    /// doesn't end with its shard.
    pub fn listener(&self) -> Option<OwnedFd> {
        let socket = Process::of_thread(self.pid).and_then(|process| process.descriptor(self.number)).ok()?;
        (SockRef::from(&socket).cookie().ok()? == self.cookie).then_some(socket)
    }
}

/// What a descriptor of this process is.
pub(super) fn own_link(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
