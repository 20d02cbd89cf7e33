//! The last good version of every object, and what is wrong with the others.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::resource::Key;

/// One change, from a source or from name resolution.
#[derive(Clone, Debug)]
pub enum Event {
    /// An object was written.
    Put {
        /// Which.
        key: Key,
        /// Its bytes.
        value: Bytes,
        /// etcd's mod revision; in a file, a number that differs when the object does.
        revision: i64,
    },
    /// An object was removed.
    Delete {
        /// Which.
        key: Key,
        /// The revision of the removal.
        revision: i64,
    },
    /// Everything there is: objects that are not in it are gone.
    Resync {
        /// All objects with their revisions.
        objects: Vec<(Key, Bytes, i64)>,
        /// The revision of the read.
        revision: i64,
    },
    /// A name was resolved.
    Addresses {
        /// The name as the node writes it.
        name: Arc<str>,
        /// Its addresses; empty: the name does not exist.
        addresses: Arc<[IpAddr]>,
        /// How long they are good.
        ttl: Duration,
    },
}

/// Events that took effect together, such as those of one etcd transaction.
#[derive(Clone, Debug)]
pub struct Batch {
    /// In their order.
    pub events: Vec<Event>,
    /// The revision after them; 0 where the source has none.
    pub revision: i64,
}

/// An object version that was not taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejected {
    /// Which object.
    pub key: Key,
    /// The revision that was refused.
    pub revision: i64,
    /// A sentence for the operator.
    pub reason: Arc<str>,
    /// When this was first found, in milliseconds since 1970.
    pub since_unix_ms: u64,
    /// An earlier version of the object serves on.
    pub previous_serves: bool,
}
