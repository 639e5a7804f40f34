//! Epoll registrations of a socket that a program made before listen(2), moved to the listener that takes its place:
//! else the program would wait for events of a socket that gets none.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::sys::stat::fstat;

use super::process::{MAX_LOOKED_AT, Process};
use crate::sys;

/// One line of an epoll instance's fdinfo, proc_pid_fdinfo(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Registration {
    number: RawFd,
    events: u32,
    data: u64,
    inode: u64,
}

/// Moves them from `original` to `listener`, both known to the program as `number`; returns how many there were. Call it
/// after the listener is in place and before the program goes on.
///
/// # Errors
/// What was moved by then is moved back.
pub(super) fn move_registrations(
    process: &Process,
    number: RawFd,
    original: BorrowedFd<'_>,
    listener: BorrowedFd<'_>,
) -> io::Result<usize> {
    let found = find(process, number, fstat(original)?.st_ino)?;
    for (done, (instance, registration)) in found.iter().enumerate() {
        if let Err(error) = exchange(instance.as_fd(), registration, original, listener) {
            for (instance, registration) in &found[..done] {
                // It has just worked the other way.
                let _ = exchange(instance.as_fd(), registration, listener, original);
            }
            return Err(error);
        }
    }
    Ok(found.len())
}

fn exchange(instance: BorrowedFd<'_>, of: &Registration, old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    sys::epoll::exchange(instance, of.number, old, new, of.events, of.data)
}

/// Where the socket, known as `number`, is registered.
fn find(process: &Process, number: RawFd, inode: u64) -> io::Result<Vec<(OwnedFd, Registration)>> {
    let mut found = Vec::new();
    for epoll in process.descriptors_that_are("anon_inode:[eventpoll]", MAX_LOOKED_AT)? {
        let info = process.descriptor_info(epoll)?;
        for registration in info.lines().filter_map(parse) {
            if (registration.number, registration.inode) == (number, inode) {
                found.push((process.descriptor(epoll)?, registration));
            }
        }
    }
    Ok(found)
}

/// `tfd:        5 events:       19 data:                5  pos:0 ino:1f2c sdev:9`, all but tfd in hexadecimal.
fn parse(line: &str) -> Option<Registration> {
    let field = |name: &str| line.split_once(name).and_then(|(_, rest)| rest.split_whitespace().next());
    let hexadecimal = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
    Some(Registration {
        number: line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok()?,
        events: u32::try_from(hexadecimal("events:")?).ok()?,
        data: hexadecimal("data:")?,
        inode: hexadecimal("ino:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_epoll_instance_are_read() {
        let line = "tfd:       11 events: 80000019 data: ffffffff0000000b  pos:0 ino:1a2b sdev:9";
        let expected = Registration { number: 11, events: 0x8000_0019, data: 0xffff_ffff_0000_000b, inode: 0x1a2b };
        assert_eq!(parse(line), Some(expected));
        for other in ["pos:\t0", "flags:\t02000002", "tfd: x events: 1 data: 1 pos:0 ino:1 sdev:1", ""] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
