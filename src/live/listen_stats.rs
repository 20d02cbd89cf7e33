//! What happens on one listen: the live numbers behind `apisix_stream_active_connections` and
//! `apisix_stream_bandwidth`, whatever route its sessions take.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::session::Transport;

/// The counters of one listen, touched while sessions live.
#[derive(Debug)]
pub struct ListenStats {
    /// The concrete address with its port.
    pub addr: Arc<str>,
    /// As written in config.yaml.
    pub written: Arc<str>,
    /// TCP or UDP.
    pub transport: Transport,
    active: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    upstream_received: AtomicU64,
    upstream_sent: AtomicU64,
}

/// Bytes of a listen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Bandwidth {
    /// From clients.
    pub received: u64,
    /// To clients.
    pub sent: u64,
    /// From nodes.
    pub upstream_received: u64,
    /// To nodes.
    pub upstream_sent: u64,
}

impl ListenStats {
    /// Counters at 0.
    #[must_use]
    pub fn new(addr: Arc<str>, written: Arc<str>, transport: Transport) -> Self {
        Self {
            addr,
            written,
            transport,
            active: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            upstream_received: AtomicU64::new(0),
            upstream_sent: AtomicU64::new(0),
        }
    }

    /// Counts a session in; the guard counts it out.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> ListenGuard {
        self.active.fetch_add(1, Relaxed);
        ListenGuard(self.clone())
    }

    /// Sessions inside.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Adds bytes read from a client.
    #[inline]
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    /// Adds bytes written to a client.
    #[inline]
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    /// Adds bytes read from a node.
    #[inline]
    pub fn add_upstream_received(&self, bytes: u64) {
        self.upstream_received.fetch_add(bytes, Relaxed);
    }

    /// Adds bytes written to a node.
    #[inline]
    pub fn add_upstream_sent(&self, bytes: u64) {
        self.upstream_sent.fetch_add(bytes, Relaxed);
    }

    /// All bytes so far.
    #[must_use]
    pub fn bandwidth(&self) -> Bandwidth {
        Bandwidth {
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            upstream_received: self.upstream_received.load(Relaxed),
            upstream_sent: self.upstream_sent.load(Relaxed),
        }
    }
}

/// Holds a session in [`ListenStats::active`] until dropped.
#[derive(Debug)]
pub struct ListenGuard(Arc<ListenStats>);

impl Deref for ListenGuard {
    type Target = ListenStats;

    #[inline]
    fn deref(&self) -> &ListenStats {
        &self.0
    }
}

impl Drop for ListenGuard {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}
