//! Collections whose clones share what was not changed since.
//!
//! A clone costs one reference count, a change copies a few nodes, and dropping a clone frees what
//! it alone still had. So a snapshot of 100,000 routes is derived from the one before it, and freed,
//! at the cost of what differs.

mod map;
mod sorted;

pub use map::Map;
pub use sorted::Sorted;
