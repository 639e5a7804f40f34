//! The supervisor's side of seccomp user notification, seccomp_unotify(2): one ioctl per function.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr::{self, NonNull},
};

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notification {
    pub(crate) id: u64,
    /// The calling thread, in the PID namespace of this process; 0 when it isn't in it.
    pub(crate) pid: u32,
    /// AUDIT_ARCH_* of <linux/audit.h>: what `system_call` is a number of.
    pub(crate) arch: u32,
    pub(crate) system_call: libc::c_int,
    pub(crate) args: [u64; 6],
}

/// What the caller gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The system call returns 0 and isn't executed.
    Success,
    /// It fails with this errno and isn't executed.
    Failure(i32),
    /// The kernel executes it as if nothing had been.
    Continue,
}

/// Memory of a file that holds one notification, or zeros. The kernel itself writes it there: a process that is killed
/// in the system call that receives leaves it in the file, or leaves it to be received again.
#[derive(Debug)]
pub(crate) struct Record {
    at: NonNull<libc::seccomp_notif>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and only the owner of the record reads and writes it.
unsafe impl Send for Record {}

impl Record {
    /// Bytes that the file must have.
    pub(crate) const LEN: usize = size_of::<libc::seccomp_notif>();

    /// Maps the beginning of `file`.
    pub(crate) fn map(file: BorrowedFd<'_>) -> io::Result<Self> {
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice; nothing of ours is replaced.
        let start = unsafe { libc::mmap(ptr::null_mut(), Self::LEN, protection, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Self { at })
    }

    /// What is there.
    pub(crate) fn read(&self) -> Option<Notification> {
        // SAFETY: mapped, aligned to a page, and integers of any value are valid. Volatile: others have the file.
        let libc::seccomp_notif { id, pid, data, .. } = unsafe { self.at.read_volatile() };
        (id != 0).then_some(Notification { id, pid, arch: data.arch, system_call: data.nr, args: data.args })
    }

    /// Nothing is there any more; the kernel wants zeros before it writes.
    pub(crate) fn clear(&self) {
        // SAFETY: integers only, for which zeros are valid.
        let nothing: libc::seccomp_notif = unsafe { mem::zeroed() };
        // SAFETY: mapped and aligned, as in `read`.
        unsafe { self.at.write_volatile(nothing) };
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, to which no reference exists.
        unsafe { libc::munmap(self.at.as_ptr().cast(), Self::LEN) };
    }
}

/// The next notification, which is in the record then. Blocks until there is one, whatever O_NONBLOCK says: poll first.
///
/// # Errors
/// ENOENT when the caller was killed meanwhile, EINTR on a signal, EINVAL when the record is not clear.
pub(crate) fn receive(notify: BorrowedFd<'_>, record: &Record) -> io::Result<Notification> {
    let argument = record.at.as_ptr();
    // SAFETY: the request's number holds the size of `seccomp_notif`, which is mapped and which the kernel writes.
    ioctl(unsafe { libc::ioctl(notify.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, argument) })?;
    record.read().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether the caller still waits: only then is what was read of it by its pid its own.
pub(crate) fn is_waiting(notify: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the kernel reads 8 bytes of `id`.
    let result = unsafe { libc::ioctl(notify.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) };
    result == 0
}

/// Puts `source` at descriptor `number` of the caller, in place of what is there.
///
/// # Errors
/// ENOENT when the caller no longer waits; EBADF when `number` is above its limit.
pub(crate) fn replace(
    notify: BorrowedFd<'_>,
    id: u64,
    source: BorrowedFd<'_>,
    number: RawFd,
    cloexec: bool,
) -> io::Result<()> {
    let unsigned = |fd: RawFd| u32::try_from(fd).map_err(io::Error::other);
    let request = libc::seccomp_notif_addfd {
        id,
        flags: SECCOMP_ADDFD_FLAG_SETFD,
        srcfd: unsigned(source.as_raw_fd())?,
        newfd: unsigned(number)?,
        newfd_flags: if cloexec { libc::O_CLOEXEC as u32 } else { 0 },
    };
    // SAFETY: the kernel reads `request`, whose size is in the request's number.
    ioctl(unsafe { libc::ioctl(notify.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const request) })
}

/// Lets the caller go on.
///
/// # Errors
/// ENOENT when it no longer waits.
pub(crate) fn answer(notify: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    let (error, flags) = match answer {
        Answer::Success => (0, 0),
        Answer::Failure(errno) => (-errno, 0),
        Answer::Continue => (0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let response = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the kernel reads `response`, whose size is in the request's number.
    ioctl(unsafe { libc::ioctl(notify.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) })
}

const SECCOMP_ADDFD_FLAG_SETFD: u32 = 1;

fn ioctl(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
