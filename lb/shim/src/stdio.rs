//! Keeps our descriptors off 0, 1 and 2, of which a container may lack any. Never touches those themselves.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::fcntl_dupfd_cloexec;

/// Standard error, the last of the three.
const LAST: i32 = 2;

/// The same above standard error: a message must not go into a socket that happens to be descriptor 2. Where the
/// table is full it stays: a trap without its descriptor would break every listen(2) of the program (ENOSYS).
pub(crate) fn keep_off(fd: OwnedFd) -> OwnedFd {
    if fd.as_raw_fd() > LAST { fd } else { fcntl_dupfd_cloexec(&fd, LAST + 1).unwrap_or(fd) }
}
