//! An allocator that counts, for tests of code that must not allocate. Nothing of the gateway uses it.
//!
//! A test binary makes it its own:
//!
//! ```
//! use streamgate_sys::allocation::{self, CountingAllocator};
//!
//! #[global_allocator]
//! static ALLOCATOR: CountingAllocator = CountingAllocator;
//!
//! let thread = allocation::this_thread();
//! let before = allocation::of(thread).unwrap();
//! let kept = vec![0_u8; 100];
//! let after = allocation::of(thread).unwrap();
//! assert_eq!(after.allocations - before.allocations, 1);
//! assert_eq!(after.allocated - before.allocated, 100);
//! # drop(kept);
//! ```
//!
//! Counts are kept for each thread and can be read from any other. [`record`] tells where the
//! allocations of one thread come from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Threads of a process that are counted. Those that begin to allocate after so many are not.
const THREADS: usize = 1024;

/// The system's allocator, with counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountingAllocator;

/// What a thread has asked of its allocator so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Blocks asked for; a block that was made larger or smaller counts again.
    pub allocations: u64,
    /// Blocks given back, by this thread, whoever asked for them.
    pub frees: u64,
    /// Bytes of the blocks asked for. A block that changed its size adds what it grew by.
    pub allocated: u64,
    /// Bytes of the blocks given back. A block that changed its size adds what it shrank by.
    pub freed: u64,
}

/// An allocation that [`record`] saw.
#[derive(Debug)]
pub struct Recorded {
    /// Bytes asked for.
    pub bytes: usize,
    /// Who asked.
    pub from: Backtrace,
}

struct Slot {
    /// Whose it is: a thread id of the system; 0 for nobody's.
    thread: AtomicU32,
    allocations: AtomicU64,
    frees: AtomicU64,
    allocated: AtomicU64,
    freed: AtomicU64,
}

static SLOTS: [Slot; THREADS] = [const {
    Slot {
        thread: AtomicU32::new(0),
        allocations: AtomicU64::new(0),
        frees: AtomicU64::new(0),
        allocated: AtomicU64::new(0),
        freed: AtomicU64::new(0),
    }
}; THREADS];

/// The thread whose allocations are recorded; 0 for none.
static WATCHED: AtomicU32 = AtomicU32::new(0);
static RECORDED: Mutex<Vec<Recorded>> = Mutex::new(Vec::new());

thread_local! {
    // Without a destructor and made at compile time: asking for it allocates nothing.
    static MINE: Cell<Option<&'static Slot>> = const { Cell::new(None) };
    /// A backtrace is being taken: what that allocates is not counted.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread, as [`of`] and [`record`] name it: its thread id, the names in `/proc/self/task`.
#[must_use]
pub fn this_thread() -> u32 {
    // SAFETY: gettid(2) takes nothing, touches no memory and cannot fail.
    let id = unsafe { libc::gettid() };
    id.unsigned_abs()
}

/// What a thread has done. `None` for one that has not allocated yet, or is not counted.
#[must_use]
pub fn of(thread: u32) -> Option<Counts> {
    let slot = SLOTS.iter().find(|slot| thread > 0 && slot.thread.load(Relaxed) == thread)?;
    Some(Counts {
        allocations: slot.allocations.load(Relaxed),
        frees: slot.frees.load(Relaxed),
        allocated: slot.allocated.load(Relaxed),
        freed: slot.freed.load(Relaxed),
    })
}

/// From now on notes where the allocations of `thread` come from, of no thread where it is `None`,
/// and gives what was noted before. Taking a backtrace is slow: it is for explaining, not for timing.
pub fn record(thread: Option<u32>) -> Vec<Recorded> {
    WATCHED.store(thread.unwrap_or_default(), Relaxed);
    std::mem::take(&mut RECORDED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The slot of the calling thread, taken when it allocates for the first time.
fn mine() -> Option<&'static Slot> {
    let known = MINE.get();
    if known.is_some() {
        return known;
    }
    let id = this_thread();
    let free = |slot: &&Slot| slot.thread.compare_exchange(0, id, Relaxed, Relaxed).is_ok();
    MINE.set(SLOTS.iter().find(free));
    MINE.get()
}

fn allocated(bytes: usize, grown: usize, shrunk: usize) {
    if BUSY.get() {
        return;
    }
    let Some(slot) = mine() else { return };
    slot.allocations.fetch_add(1, Relaxed);
    slot.allocated.fetch_add(grown as u64, Relaxed);
    slot.freed.fetch_add(shrunk as u64, Relaxed);
    if slot.thread.load(Relaxed) == WATCHED.load(Relaxed) {
        BUSY.set(true);
        let from = Backtrace::force_capture();
        RECORDED.lock().unwrap_or_else(PoisonError::into_inner).push(Recorded { bytes, from });
        BUSY.set(false);
    }
}

fn freed(bytes: usize) {
    if BUSY.get() {
        return;
    }
    let Some(slot) = mine() else { return };
    slot.frees.fetch_add(1, Relaxed);
    slot.freed.fetch_add(bytes as u64, Relaxed);
}

// SAFETY: every method hands its arguments unchanged to `System`, which keeps the contract of
// `GlobalAlloc`, and returns what it got. Counting touches atomics and thread-locals that need no
// allocation; recording allocates, but not from within itself, and does not unwind.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size(), layout.size(), 0);
        // SAFETY: the caller keeps to the contract of `GlobalAlloc::alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        allocated(layout.size(), layout.size(), 0);
        // SAFETY: the caller keeps to the contract of `GlobalAlloc::alloc_zeroed`, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        allocated(size, size.saturating_sub(layout.size()), layout.size().saturating_sub(size));
        // SAFETY: the caller keeps to the contract of `GlobalAlloc::realloc`, and `System` made the block.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        freed(layout.size());
        // SAFETY: the caller keeps to the contract of `GlobalAlloc::dealloc`, and `System` made the block.
        unsafe { System.dealloc(block, layout) }
    }
}
