//! A full read that would take away most stream_routes is held back.
//!
//! etcd restored from an old backup, pointed at the wrong prefix or wiped looks like a wish to
//! delete everything. The state that serves goes on until an operator accepts the new one or its
//! time is over. Events of the watch apply to both, so a delete that somebody really made counts.

use std::collections::HashMap;

use bytes::Bytes;

use crate::resource::{Key, Kind};

/// How long a full read is held at most, in milliseconds.
pub(super) const HOLD_MS: u64 = 10 * 60 * 1000;

/// Fewer loaded stream_routes than this are never worth a hold.
const LEAST_ROUTES: usize = 10;

/// The read that waits.
#[derive(Debug)]
pub struct Held {
    objects: HashMap<Key, (usize, Bytes, i64)>,
    revision: i64,
    since_unix_ms: u64,
    would_remove: usize,
}

/// What an operator sees of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HeldState {
    /// The revision of the read.
    pub revision: i64,
    /// Since when it waits: milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// When it is accepted by itself.
    pub until_unix_ms: u64,
    /// Loaded stream_routes that are not in it.
    pub would_remove: usize,
}

impl Held {
    pub(super) fn new(objects: Vec<(Key, Bytes, i64)>, revision: i64, now: u64) -> Self {
        let objects = objects
            .into_iter()
            .enumerate()
            .map(|(position, (key, value, revision))| (key, (position, value, revision)))
            .collect();
        Self { objects, revision, since_unix_ms: now, would_remove: 0 }
    }

    /// Reports whether more than half of the loaded stream_routes, of at least ten, would go.
    pub(super) fn is_drastic<'a>(&mut self, loaded: impl Iterator<Item = &'a Key>) -> bool {
        let (mut routes, mut missing) = (0, 0);
        for key in loaded.filter(|key| key.kind == Kind::StreamRoute) {
            routes += 1;
            missing += usize::from(!self.objects.contains_key(key));
        }
        self.would_remove = missing;
        routes >= LEAST_ROUTES && missing * 2 > routes
    }

    pub(super) fn put(&mut self, key: Key, value: Bytes, revision: i64) {
        let position = self.objects.get(&key).map_or(self.objects.len(), |(position, ..)| *position);
        self.objects.insert(key, (position, value, revision));
    }

    pub(super) fn delete(&mut self, key: &Key) {
        self.objects.remove(key);
    }

    /// The objects in the order they were read.
    pub(super) fn into_objects(self) -> Vec<(Key, Bytes, i64)> {
        let mut objects: Vec<_> = self.objects.into_iter().collect();
        objects.sort_by_key(|(_, (position, ..))| *position);
        objects.into_iter().map(|(key, (_, value, revision))| (key, value, revision)).collect()
    }

    pub(super) fn state(&self) -> HeldState {
        HeldState {
            revision: self.revision,
            since_unix_ms: self.since_unix_ms,
            until_unix_ms: self.since_unix_ms + HOLD_MS,
            would_remove: self.would_remove,
        }
    }
}
