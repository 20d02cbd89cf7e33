//! How a session went, in more detail than its outcome: what lines and formats show, and nobody counts.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::ConnectFailure;

/// How a session went.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Course {
    /// Tells the sessions of this process apart (`$connection`); from 1 on.
    pub serial: u64,
    /// When it ended.
    pub ended: SystemTime,
    /// Attempts that failed, in their order. The one that did not fail is not among them.
    pub failed: Box<[Attempt]>,
    /// From the accept to the last attempt.
    pub attempted: Duration,
    /// From there to the first byte of the node.
    pub first_byte: Option<Duration>,
    /// What the kernel knew of the connections at the end.
    pub measured: Option<Box<Measured>>,
}

/// An attempt to reach a node that failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attempt {
    /// `host:port`.
    pub node: Arc<str>,
    /// Why.
    pub failure: ConnectFailure,
    /// How long it took.
    pub took: Duration,
}

/// What the kernel knew of the connections of a TCP session (tcp(7), `TCP_INFO`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Measured {
    /// The one with the client.
    pub client: Option<Path>,
    /// The one with the node.
    pub upstream: Option<Path>,
}

/// The way to a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Path {
    /// The smoothed round trip time.
    pub rtt: Duration,
    /// Segments that were sent again.
    pub retransmits: u32,
}

impl Default for Course {
    fn default() -> Self {
        Self {
            serial: 0,
            ended: UNIX_EPOCH,
            failed: Box::default(),
            attempted: Duration::ZERO,
            first_byte: None,
            measured: None,
        }
    }
}
