//! The counting allocator, as the allocator of this binary.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;

use streamgate_sys::allocation::{self, CountingAllocator, Counts};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// What `work` asks of the allocator.
#[track_caller]
fn check(expected: Counts, work: impl FnOnce()) {
    let thread = allocation::this_thread();
    let before = allocation::of(thread).unwrap_or_default();
    work();
    let after = allocation::of(thread).unwrap();
    let done = Counts {
        allocations: after.allocations - before.allocations,
        frees: after.frees - before.frees,
        allocated: after.allocated - before.allocated,
        freed: after.freed - before.freed,
    };
    assert_eq!(done, expected);
}

#[test]
fn every_way_to_a_block_is_counted() {
    drop(Box::new(0_u8));
    check(Counts::default(), || {});
    check(Counts { allocations: 1, frees: 1, allocated: 8, freed: 8 }, || drop(Box::new(1_u64)));
    check(Counts { allocations: 1, frees: 1, allocated: 64, freed: 64 }, || drop(vec![0_u8; 64]));
    let grown = Counts { allocations: 2, frees: 1, allocated: 100, freed: 100 };
    check(grown, || {
        let mut bytes = Vec::<u8>::with_capacity(10);
        bytes.reserve_exact(100);
    });
    let shrunk = Counts { allocations: 2, frees: 1, allocated: 100, freed: 100 };
    check(shrunk, || {
        let mut bytes = Vec::<u8>::with_capacity(100);
        bytes.push(1);
        bytes.shrink_to(10);
    });
}

#[test]
fn blocks_of_another_thread_are_its_own() {
    let (ask, asked) = channel::<()>();
    let (tell, told) = channel();
    let other = thread::spawn(move || {
        tell.send(allocation::this_thread()).unwrap();
        while asked.recv().is_ok() {
            drop(Box::new([0_u8; 1000]));
            tell.send(0).unwrap();
        }
    });
    let thread = told.recv().unwrap();
    let round = || {
        ask.send(()).unwrap();
        told.recv().unwrap();
        allocation::of(thread).unwrap()
    };
    let (first, second) = (round(), round());
    assert_eq!(second.allocations, first.allocations + 1);
    assert_eq!(second.allocated, first.allocated + 1000);
    drop(ask);
    other.join().unwrap();
    assert_eq!(allocation::of(0), None);
}

#[inline(never)]
fn somebody_who_allocates() -> Box<[u8; 777]> {
    Box::new([1; 777])
}

#[test]
fn a_record_names_who_allocated() {
    // One record at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap();
    allocation::record(Some(allocation::this_thread()));
    drop(somebody_who_allocates());
    let recorded = allocation::record(None);
    let found = recorded.iter().find(|recorded| recorded.bytes == 777).unwrap();
    assert!(found.from.to_string().contains("somebody_who_allocates"), "{}", found.from);
    drop(somebody_who_allocates());
    assert!(allocation::record(None).is_empty());
}
