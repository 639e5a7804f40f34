//! An epoll instance of another process, changed as that process would see it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    thread,
};

use nix::sched::{CloneFlags, unshare};

/// In `epoll`, puts `new` in the place of `old`, both known to it as descriptor `number`.
///
/// An epoll entry is a file *and* the number it had, so both have to be at that number while it is changed
/// (`ep_find`, `ep_insert`). That is done on a thread with a descriptor table of its own, where nothing is in the way.
pub(crate) fn exchange(
    epoll: BorrowedFd<'_>,
    number: RawFd,
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    events: u32,
    data: u64,
) -> io::Result<()> {
    thread::scope(|scope| {
        let work = || {
            unshare(CloneFlags::CLONE_FILES)?;
            let [epoll, old, new] = [epoll, old, new].map(|fd| above(fd.as_raw_fd(), number));
            let (epoll, old, new) = (epoll?, old?, new?);
            let mut event = libc::epoll_event { events, u64: data };
            place(old, number)?;
            control(epoll, libc::EPOLL_CTL_DEL, number, &mut event)?;
            place(new, number)?;
            control(epoll, libc::EPOLL_CTL_ADD, number, &mut event)
        };
        let thread = thread::Builder::new().name("sherd-epoll".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A copy with a higher number, which what is put at `number` doesn't overwrite. The thread's end closes it.
fn above(fd: RawFd, number: RawFd) -> io::Result<RawFd> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, number.saturating_add(1)) })
}

fn place(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: the calling thread's descriptor table is its own: nobody owns what this closes.
    check(unsafe { libc::dup3(fd, number, libc::O_CLOEXEC) }).map(drop)
}

fn control(epoll: RawFd, operation: libc::c_int, number: RawFd, event: &mut libc::epoll_event) -> io::Result<()> {
    // SAFETY: the kernel reads `event`.
    check(unsafe { libc::epoll_ctl(epoll, operation, number, event) }).map(drop)
}

fn check(result: libc::c_int) -> io::Result<RawFd> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
