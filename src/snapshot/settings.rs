//! What config.yaml says about upstreams.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::certs::towards::Towards;
use crate::config::{Config, Extensions};

/// What pools are made with besides the objects.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// How TLS is spoken to nodes.
    pub towards: Towards,
    /// What is switched on beyond APISIX, by the id of the pool.
    pub extensions: BTreeMap<Arc<str>, Extensions>,
    /// Health checks count: `apisix.disable_upstream_healthcheck` is not set.
    pub checks: bool,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self { towards: Towards::default(), extensions: BTreeMap::new(), checks: true }
    }
}

impl UpstreamSettings {
    /// Those of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            towards: Towards::new(&config.upstream_tls),
            extensions: config.extensions.clone(),
            checks: !config.disable_healthcheck,
        }
    }
}
