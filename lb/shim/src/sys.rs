//! The only home of `unsafe` in this crate: the C entry point, seccomp(2) and execve(2), each behind a safe function.
//! Decides nothing.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_char, c_ulong},
    os::fd::{FromRawFd, OwnedFd, RawFd},
    ptr,
};

use rustix::io::Errno;

/// What the C library calls. Not Rust's own entry point, whose runtime ignores SIGPIPE and opens /dev/null for closed
/// standard descriptors first (library/std/src/sys/pal/unix/mod.rs, `init`): the program would inherit both.
#[cfg(not(test))]
#[unsafe(no_mangle)]
extern "C" fn main(
    _: std::ffi::c_int,
    words: *const *const c_char,
    environment: *const *const c_char,
) -> std::ffi::c_int {
    // SAFETY: the C library hands over the two arrays that execve(2) left on this process' stack: NULL-terminated, of
    // strings that stay until it ends, and nothing here changes them.
    let (words, environment) = unsafe { (strings(words), strings(environment)) };
    crate::run(&words, &environment)
}

/// # Safety
/// `array` is NULL-terminated, of strings that neither change nor end.
#[cfg(not(test))]
unsafe fn strings(array: *const *const c_char) -> Vec<&'static CStr> {
    // SAFETY: all elements up to the first NULL are there, as the caller says.
    let pointers = (0..).map(|i| unsafe { *array.add(i) }).take_while(|pointer| !pointer.is_null());
    // SAFETY: each is a string for good, as the caller says.
    pointers.map(|pointer| unsafe { CStr::from_ptr(pointer) }).collect()
}

/// Installs a filter in this thread and gives its notify descriptor.
pub(crate) fn seccomp_new_listener(flags: c_ulong, program: &[libc::sock_filter]) -> Result<OwnedFd, Errno> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let flags = flags | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // The kernel only reads; the type has no const form.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` points to `len` instructions, which outlive the call; it touches no other memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: with that flag a success is a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Becomes the file `path`; returns only if it can't.
pub(crate) fn execve(path: &CStr, words: &[&CStr], environment: &[&CStr]) -> Errno {
    let (words, environment) = (pointers(words), pointers(environment));
    // SAFETY: both arrays are NULL-terminated, of strings that are borrowed until the call is over.
    unsafe { libc::execve(path.as_ptr(), words.as_ptr(), environment.as_ptr()) };
    errno()
}

fn pointers(strings: &[&CStr]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

fn errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
