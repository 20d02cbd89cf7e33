//! Which node of an upstream gets a session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::live::Stats;
use crate::resource::{Balancer, Scheme, Timeouts};
use crate::session::Inbound;

/// A node that can be dialled.
#[derive(Clone, Debug)]
pub struct PoolNode {
    /// Where to connect.
    pub addr: SocketAddr,
    /// `host:port` as configured (for a name: with the address it resolved to); chash hashes it.
    pub label: Arc<str>,
    /// Share of new sessions.
    pub weight: u32,
    /// Higher ones are used first.
    pub priority: i64,
    /// What happened on it.
    pub stats: Arc<Stats>,
}

/// How the nodes of a pool are tried and dialled.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Connect and idle limits.
    pub timeouts: Timeouts,
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// No attempt after the first begins later than this.
    pub retry_timeout: Option<Duration>,
    /// What is spoken to nodes.
    pub scheme: Scheme,
}

/// An upstream ready for sessions: its nodes with their addresses, and the state of its balancer.
/// Shared by all workers.
#[derive(Debug)]
pub struct Pool {
    /// Id of the upstream, or of the route or service it is written in.
    pub id: Arc<str>,
    /// How to try and dial.
    pub settings: PoolSettings,
    nodes: Vec<PoolNode>,
}

/// The nodes a session has tried, by index in its pool.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    nodes: Vec<usize>,
}

/// A chosen node. Dropping it ends its session in the balancer's counts.
#[derive(Debug)]
pub struct Picked {
    /// The node.
    pub node: PoolNode,
}

impl Pool {
    /// A pool of these nodes. `seed` decides where a round begins.
    #[must_use]
    pub fn new(
        id: Arc<str>,
        balancer: &Balancer,
        settings: PoolSettings,
        nodes: Vec<PoolNode>,
        seed: u64,
    ) -> Self {
        let _ = (balancer, seed);
        Self { id, settings, nodes }
    }

    /// The nodes in their configured order.
    #[must_use]
    pub fn nodes(&self) -> &[PoolNode] {
        &self.nodes
    }

    /// The node for a session that tried `tried` in vain, which is noted there.
    /// `usable` tells which nodes health checks let through; where none is, all are used.
    pub fn pick(
        &self,
        inbound: &Inbound,
        usable: impl Fn(&PoolNode) -> bool,
        tried: &mut Tried,
    ) -> Option<Picked> {
        let _ = (inbound, usable);
        let index = (0..self.nodes.len()).find(|index| !tried.nodes.contains(index))?;
        tried.nodes.push(index);
        Some(Picked { node: self.nodes[index].clone() })
    }
}
