//! The last good version of every object, and what is wrong with the others.
//!
//! Events go in; the store parses each object whole before it commits it, so that building a
//! snapshot cannot fail. A bad object rejects itself alone and its previous version keeps serving.
//! Sans I/O: the caller brings the bytes and the time.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::RulesConfig;
use crate::matcher::Order;
use crate::resource::{Discovery, Key, Kind, Node, Object, Remark, Rules};

mod apply;
mod held;

pub use held::{Held, HeldState};

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
        /// All objects with their revisions, in the order of a file where they come from one.
        objects: Vec<(Key, Bytes, i64)>,
        /// The revision of the read.
        revision: i64,
    },
    /// A registry told which instances a service has.
    Nodes {
        /// The service.
        service: Arc<Discovery>,
        /// Its instances, in an order that is the same for the same ones; a host may be a name.
        nodes: Arc<[Node]>,
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

/// An object that is not served as it was written last.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejected {
    /// Which.
    pub key: Key,
    /// The revision that was refused.
    pub revision: i64,
    /// Why: a sentence for the operator.
    pub reason: Arc<str>,
    /// The id of the difference to APISIX that is behind it, where APISIX would serve it.
    pub rule: Option<&'static str>,
    /// Since when the present refusal stands: milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// A previous version of it keeps serving.
    pub previous_serves: bool,
}

/// An object as it was written: what pages show it from.
#[derive(Clone, Debug)]
pub struct Written {
    /// The revision it was accepted at.
    pub revision: i64,
    /// Its bytes. They may hold secrets: [`crate::resource::shown`] leaves those out.
    pub bytes: Arc<[u8]>,
}

/// An accepted object.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The revision it was accepted at.
    pub revision: i64,
    /// Its place among objects of its kind.
    pub order: Order,
    /// The typed object.
    pub object: Object,
    /// Sentences about parts that were dropped or do nothing.
    pub warnings: Arc<[Remark]>,
    /// Of what pages show, and what another list of enabled plugins parses anew; certificates are neither.
    bytes: Option<Arc<[u8]>>,
    /// Of its bytes: an etcd that was restored or began anew counts the same revisions again.
    digest: u64,
}

impl Entry {
    /// What it was read from; `None` for objects that no page shows: stream_routes, certificates.
    #[must_use]
    pub fn written(&self) -> Option<Written> {
        self.bytes
            .as_ref()
            .filter(|_| apply::is_shown(&self.object))
            .map(|bytes| Written { revision: self.revision, bytes: bytes.clone() })
    }
}

/// A refused version, with what it takes to try it again.
#[derive(Clone, Debug)]
struct Refused {
    rejected: Rejected,
    raw: Bytes,
    order: Order,
}

/// What an application changed: the snapshot rebuilds what depends on it.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Objects that were put, removed, refused or parsed anew.
    pub keys: Vec<Key>,
    /// Names with other addresses.
    pub names: Vec<Arc<str>>,
    /// Services with other instances.
    pub services: Vec<Arc<Discovery>>,
    /// Objects refused by this application, for the log.
    pub refused: Vec<Rejected>,
}

impl Changes {
    /// Nothing a session could notice.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.names.is_empty() && self.services.is_empty()
    }
}

/// All objects.
#[derive(Debug)]
pub struct Store {
    config: RulesConfig,
    rules: Rules,
    /// A full read's order counts, not that of the keys.
    given_order: bool,
    objects: HashMap<Key, Entry>,
    counts: BTreeMap<Kind, usize>,
    /// Another list of enabled plugins may accept them.
    rejected: BTreeMap<Key, Refused>,
    addresses: HashMap<Arc<str>, Arc<[IpAddr]>>,
    services: HashMap<Arc<Discovery>, Arc<[Node]>>,
    held: Option<Held>,
    revision: i64,
    loaded: bool,
}

impl Store {
    /// An empty store that accepts by these rules.
    #[must_use]
    pub fn new(config: RulesConfig) -> Self {
        Self {
            rules: Rules::new(&config),
            given_order: config.standalone,
            config,
            objects: HashMap::new(),
            counts: BTreeMap::new(),
            rejected: BTreeMap::new(),
            addresses: HashMap::new(),
            services: HashMap::new(),
            held: None,
            revision: 0,
            loaded: false,
        }
    }

    /// Orders objects as a full read gives them, not by their keys: the way of files.
    #[must_use]
    pub fn in_given_order(mut self) -> Self {
        self.given_order = true;
        self
    }

    /// The revision of the last event taken in.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// A full state has been taken in since the start.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// The accepted version of an object.
    #[must_use]
    pub fn entry(&self, key: &Key) -> Option<&Entry> {
        self.objects.get(key)
    }

    /// All accepted objects, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.objects.iter()
    }

    /// Accepted objects of each kind there is.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<Kind, usize> {
        &self.counts
    }

    /// How many objects of a kind are accepted.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.counts.get(&kind).copied().unwrap_or_default()
    }

    /// Refused objects, by key.
    pub fn rejected(&self) -> impl Iterator<Item = &Rejected> {
        self.rejected.values().map(|refused| &refused.rejected)
    }

    /// Why an object is refused, where it is.
    #[must_use]
    pub fn rejection(&self, key: &Key) -> Option<&Rejected> {
        self.rejected.get(key).map(|refused| &refused.rejected)
    }

    /// The addresses of a name; `None` before its first answer.
    #[must_use]
    pub fn addresses(&self, name: &str) -> Option<&Arc<[IpAddr]>> {
        self.addresses.get(name)
    }

    /// The instances of a service; `None` before its registry has answered.
    #[must_use]
    pub fn instances(&self, service: &Discovery) -> Option<&Arc<[Node]>> {
        self.services.get(service)
    }

    /// A full read that is held back, waiting for an operator.
    #[must_use]
    pub fn held(&self) -> Option<HeldState> {
        self.held.as_ref().map(Held::state)
    }
}
