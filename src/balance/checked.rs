//! The health checks of a pool.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::Extensions;
use crate::health::{Cell, Limits};
use crate::live::CheckedStats;
use crate::resource::Checks;

/// What is checked of a pool, and what is known.
#[derive(Clone, Debug)]
pub struct Checked {
    /// As the object says.
    pub checks: Arc<Checks>,
    /// What is switched on beyond APISIX.
    pub extensions: Extensions,
    /// Every address to probe, once: with `port` of the checks several nodes share one.
    pub targets: Arc<[Target]>,
    /// Counts of the upstream.
    pub stats: Arc<CheckedStats>,
}

/// One address to probe.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where to connect.
    pub addr: SocketAddr,
    /// The name it is called by: `host` of the checks, else the node's as written.
    pub host: Arc<str>,
    /// What is known of it.
    pub cell: Arc<Cell>,
}

impl Target {
    /// Reports whether a probe of the other would be one of this.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.addr == other.addr && self.host == other.host && Arc::ptr_eq(&self.cell, &other.cell)
    }
}

impl Checked {
    /// How many targets are not used.
    #[must_use]
    pub fn down(&self) -> usize {
        self.targets.iter().filter(|target| !target.cell.is_usable()).count()
    }

    /// How many failed connects of sessions take a node out: those of `passive`, or its defaults
    /// (`resty/healthcheck.lua:1506`).
    #[must_use]
    pub fn passive_limits(&self) -> Limits {
        self.checks.passive.unwrap_or(Limits::PASSIVE)
    }
}
