//! Buffers of a thread, lent while bytes are on their way.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// One read takes at most so much.
pub const SIZE: usize = 64 * 1024;
/// Buffers a thread keeps when nobody needs them: 8 MiB.
const KEPT: usize = 128;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of [`SIZE`] bytes that goes back to its thread's pool.
#[derive(Debug)]
pub struct Buffer(Box<[u8]>);

impl Buffer {
    /// One from the pool, or a new one. What it holds is left over from elsewhere.
    #[must_use]
    #[inline]
    pub fn take() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(free.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()))
    }

    /// One that begins with these bytes. `None` where there are none, or more than [`SIZE`].
    #[must_use]
    pub fn holding(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() || bytes.len() > SIZE {
            return None;
        }
        let mut buffer = Self::take();
        buffer.0.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(buffer)
    }
}

impl Drop for Buffer {
    #[inline]
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // The pool may be gone already where a thread ends.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(bytes);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again() {
        let mut buffer = Buffer::take();
        assert_eq!(buffer.len(), SIZE);
        buffer[0] = 7;
        drop(buffer);
        assert_eq!(Buffer::take()[0], 7);
    }
}
