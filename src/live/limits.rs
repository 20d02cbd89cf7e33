//! What limits remember of their keys: sessions that live, and when the next may begin.
//!
//! All workers count together, so sessions take a lock: one of 64, chosen by the key, held for a look
//! into a map. The control path takes none of them. What is remembered belongs to a *limit*: one
//! configuration of one object. The object may be read again or changed elsewhere, its limit stays;
//! another configuration is another limit and begins anew, as in APISIX
//! (`apisix/plugins/limit-conn/init.lua`). No I/O, no clock.

mod counts;
mod rates;

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::counts::Counts;
use self::rates::Buckets;
use crate::live::long_keys::{self, LONG};
use crate::live::{Counter, Registry};

pub use self::counts::{CountLimit, Place};
pub use self::rates::{MOST_KEYS, Pace, RateLimit};

/// The limits of the process.
#[derive(Debug, Default)]
pub struct Limits {
    next: AtomicU64,
    counting: Registry<Box<str>, CountLimit>,
    counts: Arc<Counts>,
    rating: Registry<Box<str>, RateLimit>,
    buckets: Arc<Buckets>,
}

impl Limits {
    /// Limits that count in `forgotten` the keys of rates that were forgotten too early.
    #[must_use]
    pub fn new(forgotten: Arc<Counter>) -> Self {
        Self { buckets: Arc::new(Buckets::new(forgotten)), ..Self::default() }
    }

    /// The limit on sessions at the same time that `identity` names: an object and its configuration.
    pub fn count(&self, identity: &str) -> Arc<CountLimit> {
        self.counting.entry(identity.into(), || CountLimit { id: self.id(), counts: self.counts.clone() })
    }

    /// The limit on sessions a second that `identity` names.
    pub fn rate(&self, identity: &str) -> Arc<RateLimit> {
        self.rating.entry(identity.into(), || RateLimit { id: self.id(), buckets: self.buckets.clone() })
    }

    /// Keys that are remembered: of counts, and of rates.
    #[must_use]
    pub fn remembered(&self) -> (usize, usize) {
        (self.counts.len(), self.buckets.len())
    }

    fn id(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }
}

/// What a limit counts a session under. Written to like a text.
#[derive(Debug)]
pub struct LimitKey {
    /// One table has the keys of all limits, so the number of the limit comes first.
    text: String,
    start: usize,
}

impl LimitKey {
    fn of(limit: u64) -> Self {
        let text = format!("{limit}:");
        Self { start: text.len(), text }
    }

    /// As it was written, for a sentence: at most its first 128 bytes.
    #[must_use]
    pub fn shown(&self) -> &str {
        let end = self.text.floor_char_boundary(self.start + LONG);
        self.text.get(self.start..end).unwrap_or_default()
    }

    /// Takes back what was written.
    pub fn clear(&mut self) {
        self.text.truncate(self.start);
    }
}

impl fmt::Write for LimitKey {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text.write_str(text)
    }
}

/// How many locks there are.
const PARTS: usize = 64;

/// A table by key, in parts with a lock each.
#[derive(Debug)]
struct Table<P> {
    hasher: RandomState,
    parts: Box<[Part<P>]>,
}

/// A cache line of its own: two workers at two parts do not wait for each other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Part<P>(Mutex<P>);

impl<P: Default> Default for Table<P> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), parts: (0..PARTS).map(|_| Part::default()).collect() }
    }
}

impl<P> Table<P> {
    /// What stands for a key.
    fn name<'a>(&self, key: &'a LimitKey) -> Cow<'a, str> {
        long_keys::short(&key.text, &self.hasher)
    }

    /// The part of `key`; `None` never happens.
    fn part(&self, key: &str) -> Option<MutexGuard<'_, P>> {
        let place = self.hasher.hash_one(key) % PARTS as u64;
        let part = self.parts.get(usize::try_from(place).unwrap_or_default())?;
        Some(part.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What `measure` says of all parts together.
    fn sum(&self, measure: impl Fn(&P) -> usize) -> usize {
        let locked = self.parts.iter().map(|part| part.0.lock().unwrap_or_else(PoisonError::into_inner));
        locked.map(|part| measure(&part)).sum()
    }
}
