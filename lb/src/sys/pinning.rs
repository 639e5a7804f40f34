//! CPU affinity, memory policy and scheduling policy of the calling thread. Ids of any width: libc's cpu_set_t ends at
//! 1024.

use std::io;

/// The calling thread runs on these CPUs only.
pub(crate) fn sched_setaffinity(mask: &[usize]) -> io::Result<()> {
    // SAFETY: reads `size_of_val(mask)` bytes at `mask`; pid 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The CPUs that the calling thread may run on, into `mask`; returns the bytes written.
pub(crate) fn sched_getaffinity(mask: &mut [usize]) -> io::Result<usize> {
    // SAFETY: writes at most `size_of_val(mask)` bytes at `mask`.
    let result = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(mask), mask.as_mut_ptr()) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// The calling thread takes memory by `mode` (an MPOL_ constant) from the nodes of `mask`.
pub(crate) fn set_mempolicy(mode: libc::c_int, mask: &[usize]) -> io::Result<()> {
    // The kernel reads one bit less than it is told.
    let max_node = if mask.is_empty() { 0 } else { size_of_val(mask) * 8 + 1 };
    let nodes = if mask.is_empty() { std::ptr::null() } else { mask.as_ptr() };
    // SAFETY: reads `max_node - 1` bits at `nodes`, which is the whole mask.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes, max_node) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The calling thread's memory policy: mode, and nodes into `mask`.
pub(crate) fn get_mempolicy(mask: &mut [usize]) -> io::Result<libc::c_int> {
    let mut mode: libc::c_int = 0;
    let (nodes, bits, address) = (mask.as_mut_ptr(), size_of_val(mask) * 8, std::ptr::null::<u8>());
    // SAFETY: writes one int and at most the bits of `mask`.
    let result = unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes, bits, address, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(mode) }
}

/// The calling thread's scheduling policy (a SCHED_ constant).
pub(crate) fn sched_getscheduler() -> io::Result<libc::c_int> {
    // SAFETY: takes no pointer; pid 0 is the calling thread.
    let policy = unsafe { libc::sched_getscheduler(0) };
    if policy < 0 { Err(io::Error::last_os_error()) } else { Ok(policy) }
}

/// The calling thread is scheduled by `policy`, one that has no priority.
pub(crate) fn sched_setscheduler(policy: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads `parameters`; pid 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
