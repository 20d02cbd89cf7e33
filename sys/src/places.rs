//! An array that stays where it is: the kernel is given pointers into it again and again, which must
//! not be made anew for each call.

use std::ptr::{self, NonNull};

/// So many values, reached through pointers alone.
pub(crate) struct Places<T> {
    start: NonNull<T>,
    len: usize,
}

impl<T: Copy> Places<T> {
    /// `len` times `value`.
    pub(crate) fn new(value: T, len: usize) -> Self {
        let values = Box::leak(vec![value; len].into_boxed_slice());
        Self { start: NonNull::from(values).cast(), len }
    }
}

impl<T> Places<T> {
    /// Where a value is, initialised, for as long as `self` lives. Panics where there is none.
    pub(crate) fn at(&self, place: usize) -> *mut T {
        assert!(place < self.len, "place {place} of {}", self.len);
        // SAFETY: as asserted it lies in the allocation.
        unsafe { self.start.as_ptr().add(place) }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl<T> Drop for Places<T> {
    fn drop(&mut self) {
        // SAFETY: pointer and length are those of the box that `new` leaked.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_where_they_are() {
        let places = Places::new(7_u64, 3);
        // SAFETY: the places are initialised and nothing else refers to them.
        unsafe {
            places.at(1).write(8);
            let values = (0..places.len()).map(|place| places.at(place).read());
            assert_eq!(values.collect::<Vec<_>>(), [7, 8, 7]);
        }
    }

    #[test]
    #[should_panic(expected = "place 3 of 3")]
    fn there_is_none_behind_the_last() {
        Places::new(0_u8, 3).at(3);
    }
}
