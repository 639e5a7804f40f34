//! Giving memory back to the kernel, for whoever knows that a passing large use is over.

/// Returns to the kernel what `free` has kept. glibc keeps what lies below the top of a heap, which after a large use is
/// most of it. Takes milliseconds.
pub fn return_free_memory() {
    crate::sys::heap::return_free_memory();
}
