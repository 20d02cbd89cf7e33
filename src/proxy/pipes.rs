//! Pipes of a worker: bytes go through them from socket to socket without being copied (splice(2)).
//!
//! A pipe costs two descriptors and counts against what the kernel lets a user's pipes hold
//! (pipe(7), `pipe-user-pages-soft`), so there is a bound, and a flow that gets none is copied.
//! Pipes are lent while bytes are inside and kept for the next flow; those nobody wanted for a while
//! are closed.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

use crate::live::{Budget, Permit};

/// Bytes a pipe is to hold.
pub const SIZE: usize = 256 * 1024;
/// A pipe that holds less is not worth its system calls: over its limit the kernel gives a user two
/// pages.
const SMALLEST: usize = 64 * 1024;

/// The pipes of one worker.
#[derive(Debug)]
pub(super) struct Pipes {
    #[expect(clippy::vec_box, reason = "lending one allocates nothing, and a session holds a pointer")]
    free: RefCell<Vec<Box<Pipe>>>,
    /// The fewest that were free since the last [`Pipes::sweep`].
    unused: Cell<usize>,
    budget: Arc<Budget>,
}

/// An empty pipe, or the only way to what is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    _permit: Permit,
}

impl Pipes {
    /// None yet, and at most as many as the budget has.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { free: RefCell::default(), unused: Cell::new(0), budget }
    }

    /// An empty pipe; `None` where there may be no more.
    pub(super) fn take(&self) -> Option<Box<Pipe>> {
        let mut free = self.free.borrow_mut();
        if let Some(pipe) = free.pop() {
            self.unused.set(self.unused.get().min(free.len()));
            return Some(pipe);
        }
        self.make()
    }

    /// Takes a pipe back. It must be empty; one that is not is to be dropped.
    pub(super) fn put(&self, pipe: Box<Pipe>) {
        self.free.borrow_mut().push(pipe);
    }

    /// Closes those that were not needed since the last time.
    pub(super) fn sweep(&self) {
        let mut free = self.free.borrow_mut();
        let needed = free.len().saturating_sub(self.unused.get());
        free.truncate(needed);
        free.shrink_to_fit();
        self.unused.set(needed);
    }

    fn make(&self) -> Option<Box<Pipe>> {
        let permit = self.budget.take(1)?;
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).ok()?;
        let capacity = enlarge(write.as_fd()).ok().filter(|capacity| *capacity >= SMALLEST)?;
        Some(Box::new(Pipe { read, write, capacity, _permit: permit }))
    }
}

/// How much it holds in the end: the size a pipe is made with, where the kernel refuses more.
fn enlarge(pipe: BorrowedFd<'_>) -> io::Result<usize> {
    fcntl_setpipe_size(pipe, SIZE).or_else(|_| fcntl_getpipe_size(pipe))
}

impl Pipe {
    /// Where bytes come out.
    pub(super) fn outlet(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }

    /// Where bytes go in.
    pub(super) fn inlet(&self) -> BorrowedFd<'_> {
        self.write.as_fd()
    }

    /// How many bytes it holds at most.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_lent_again_and_closed_when_unused() {
        let pipes = Pipes::new(Budget::new(10));
        let lent: Vec<_> = (0..3).filter_map(|_| pipes.take()).collect();
        assert_eq!((lent.len(), pipes.budget.used()), (3, 3));
        assert!(lent.iter().all(|pipe| pipe.capacity() >= SMALLEST));
        for pipe in lent {
            pipes.put(pipe);
        }
        pipes.sweep();
        assert_eq!(pipes.budget.used(), 3, "they were in use since the last sweep");
        let pipe = pipes.take().unwrap();
        pipes.put(pipe);
        pipes.sweep();
        assert_eq!(pipes.budget.used(), 1, "one was in use");
        pipes.sweep();
        assert_eq!(pipes.budget.used(), 0);
    }

    #[test]
    fn there_are_no_more_than_the_budget_has() {
        let pipes = Pipes::new(Budget::new(1));
        let _first = pipes.take().unwrap();
        assert!(pipes.take().is_none());
        assert_eq!(pipes.budget.used(), 1, "a refusal takes nothing");
    }
}
