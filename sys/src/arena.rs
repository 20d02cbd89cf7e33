//! Memory for datagrams: zeroed at first, whole pages that can be given back while it lives.

use std::fmt;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;

/// A mapping of its own: what is never touched costs no memory, and an allocator that keeps what is
/// freed cannot keep this.
pub(crate) struct Arena {
    start: NonNull<u8>,
    len: usize,
}

impl Arena {
    /// `len` bytes, at least one.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let len = len.max(1);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing there is.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` readable bytes that live as long as `self`; they are initialised
        // (the kernel zeroes pages), and whoever writes them borrows `self` exclusively.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Where a byte is. Bytes may be written there only while `self` is borrowed exclusively.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len, "byte {offset} of {}", self.len);
        // SAFETY: as asserted it lies in the mapping, or just behind it.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Gives the memory back; it reads as zeroes afterwards.
    pub(crate) fn release(&mut self) {
        // SAFETY: the range is our own mapping, borrowed exclusively, and for private anonymous memory
        // the advice only makes the bytes zero (madvise(2)). A refusal leaves them as they were.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_DONTNEED) };
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the arena that take memory (mincore(2) tells it by pages).
    fn resident(arena: &Arena) -> usize {
        const PAGE: usize = 4096;
        let mut pages = vec![0_u8; arena.len.div_ceil(PAGE)];
        // SAFETY: the range is mapped and `pages` has a byte for each of its pages.
        let result = unsafe { libc::mincore(arena.start.as_ptr().cast(), arena.len, pages.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        pages.iter().filter(|page| **page & 1 == 1).count() * PAGE
    }

    #[test]
    fn untouched_memory_costs_nothing_and_released_memory_neither() {
        let mut arena = Arena::new(1 << 20).unwrap();
        assert_eq!(resident(&arena), 0);
        // SAFETY: so many bytes are there, and nothing else refers to them.
        unsafe { arena.at(0).write_bytes(7, 100_000) };
        assert!(resident(&arena) >= 100_000);
        arena.release();
        assert_eq!(resident(&arena), 0);
        assert!(arena.bytes().iter().all(|byte| *byte == 0));
    }
}
