//! Giving memory back to the kernel.

/// Returns what `free` has kept. glibc keeps what lies below the top of a heap, which after a passing large use is
/// most of it.
pub(crate) fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes no pointer, is thread-safe, and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
