//! The memory of a BPF_F_MMAPABLE array, shared with the eBPF program. Every access is atomic, because the program
//! reads at any time.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
};

/// A mapped array. Offsets are in bytes from its first element.
#[derive(Debug)]
pub(crate) struct SharedMap {
    start: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and all access is atomic.
unsafe impl Send for SharedMap {}
// SAFETY: as above.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps `len_bytes` of the map.
    pub(crate) fn new(map: BorrowedFd<'_>, len_bytes: usize) -> io::Result<Self> {
        Self::part(map, 0, len_bytes)
    }

    /// Maps a part of the map that begins at a page; offsets are from there.
    pub(crate) fn part(map: BorrowedFd<'_>, from_bytes: usize, len_bytes: usize) -> io::Result<Self> {
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_raw_fd());
        let from_bytes = libc::off_t::try_from(from_bytes).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice; nothing of ours is replaced.
        let start = unsafe { libc::mmap(ptr::null_mut(), len_bytes, protection, libc::MAP_SHARED, fd, from_bytes) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Self { start, len_bytes })
    }

    pub(crate) fn load_u32(&self, offset: usize) -> u32 {
        self.u32(offset).load(Ordering::Acquire)
    }

    pub(crate) fn store_u32(&self, offset: usize, value: u32) {
        self.u32(offset).store(value, Ordering::Release);
    }

    /// Adds, wrapping.
    pub(crate) fn add_u32(&self, offset: usize, addend: u32) {
        self.u32(offset).fetch_add(addend, Ordering::SeqCst);
    }

    pub(crate) fn load_u64(&self, offset: usize) -> u64 {
        self.u64(offset).load(Ordering::Acquire)
    }

    pub(crate) fn store_u64s(&self, offset: usize, values: &[u64]) {
        for (i, value) in values.iter().enumerate() {
            self.u64(offset + i * size_of::<u64>()).store(*value, Ordering::Relaxed);
        }
    }

    /// Adds, wrapping.
    pub(crate) fn add_u64(&self, offset: usize, addend: u64) {
        self.u64(offset).fetch_add(addend, Ordering::Relaxed);
    }

    pub(crate) fn load_u16(&self, offset: usize) -> u16 {
        self.u16(offset).load(Ordering::Acquire)
    }

    pub(crate) fn store_u16s(&self, offset: usize, values: &[u16]) {
        for (i, value) in values.iter().enumerate() {
            self.u16(offset + i * size_of::<u16>()).store(*value, Ordering::Relaxed);
        }
    }

    pub(crate) fn set_bits(&self, offset: usize, bits: u64) {
        self.u64(offset).fetch_or(bits, Ordering::SeqCst);
    }

    pub(crate) fn clear_bits(&self, offset: usize, bits: u64) {
        self.u64(offset).fetch_and(!bits, Ordering::SeqCst);
    }

    fn u16(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: `at` gives an aligned address within the mapping, which lives as long as `self`.
        unsafe { AtomicU16::from_ptr(self.at(offset)) }
    }

    fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u16`.
        unsafe { AtomicU32::from_ptr(self.at(offset)) }
    }

    fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u16`.
        unsafe { AtomicU64::from_ptr(self.at(offset)) }
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        assert!(offset.is_multiple_of(align_of::<T>()) && offset + size_of::<T>() <= self.len_bytes, "offset {offset}");
        // SAFETY: within the mapping, as just checked.
        unsafe { self.start.as_ptr().add(offset).cast() }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which no reference outlives.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len_bytes) };
    }
}
