//! The immutable state that sessions are routed by.
//!
//! Workers load one pointer a connection; the control plane replaces it as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::balance::Pool;
use crate::live::Stats;
use crate::matcher::{Matcher, Query};
use crate::plugin::Plugin;
use crate::resource::Kind;
use crate::session::{End, Inbound};
use crate::store::Rejected;

/// A stream_route as sessions see it: merged with its service.
#[derive(Debug)]
pub struct Route {
    /// Its id.
    pub id: Arc<str>,
    /// Its name.
    pub name: Option<Arc<str>>,
    /// Id of its service.
    pub service: Option<Arc<str>>,
    /// What happened on it.
    pub stats: Arc<Stats>,
    /// Where its sessions go.
    pub target: Target,
    /// In the order they run.
    pub plugins: Arc<[Plugin]>,
    /// On a mixed listen: forward undecrypted.
    pub tls_passthrough: bool,
}

impl Route {
    /// The `route` label of its `apisix_stream_*` series; `None` without the prometheus plugin.
    #[must_use]
    pub fn apisix_label(&self) -> Option<&Arc<str>> {
        self.plugins.iter().find_map(|plugin| match plugin {
            Plugin::Prometheus { prefer_name: true } => Some(self.name.as_ref().unwrap_or(&self.id)),
            Plugin::Prometheus { prefer_name: false } => Some(&self.id),
            Plugin::Unbuilt { .. } => None,
        })
    }
}

/// A stream_route that is served, but not all of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Degraded {
    /// Its id.
    pub route: Arc<str>,
    /// What is missing: a sentence for the operator.
    pub why: Arc<str>,
}

/// Where the sessions of a route go.
#[derive(Clone, Debug)]
pub enum Target {
    /// To the upstream of this id, looked up in the snapshot for each session.
    Upstream(Arc<str>),
    /// To the upstream written inside the route or its service.
    Inline(Arc<Pool>),
    /// Nowhere: the service of this id does not exist.
    MissingService(Arc<str>),
    /// Nowhere: neither the route nor its service names an upstream.
    Nothing,
}

/// One state of the configuration.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The revision it was built at.
    pub revision: i64,
    matcher: Matcher<Arc<Route>>,
    routes: Vec<Arc<Route>>,
    pools: BTreeMap<Arc<str>, Arc<Pool>>,
    rejected: Arc<[Rejected]>,
    degraded: Vec<Degraded>,
    loaded: BTreeMap<Kind, (usize, i64)>,
}

impl Snapshot {
    /// The route of a session.
    #[must_use]
    pub fn find(&self, inbound: &Inbound) -> Option<&Arc<Route>> {
        let query =
            Query { client: inbound.client.ip(), server: inbound.server, sni: inbound.sni.as_deref() };
        self.matcher.find(&query)
    }

    /// Every route, in the order they are tried.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> + Clone {
        self.routes.iter()
    }

    /// Every pool: those of upstreams, and those written inside routes and services.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> + Clone {
        self.pools.values()
    }

    /// What was not taken, and why.
    #[must_use]
    pub fn rejected(&self) -> &[Rejected] {
        &self.rejected
    }

    /// Routes that are served only in part.
    #[must_use]
    pub fn degraded(&self) -> &[Degraded] {
        &self.degraded
    }

    /// How many objects of a kind are loaded.
    #[must_use]
    pub fn loaded(&self, kind: Kind) -> usize {
        self.loaded.get(&kind).map_or(0, |(count, _)| *count)
    }

    /// The highest modification revision among the objects of a kind; 0 where there is none.
    #[must_use]
    pub fn modify_index(&self, kind: Kind) -> i64 {
        self.loaded.get(&kind).map_or(0, |(_, revision)| *revision)
    }

    /// The pool of a route, or why there is none with the sentence for the log.
    pub fn pool<'a>(&'a self, target: &'a Target) -> Result<&'a Arc<Pool>, (End, String)> {
        match target {
            Target::Inline(pool) => Ok(pool),
            Target::Upstream(id) => self
                .pools
                .get(id)
                .ok_or_else(|| (End::UpstreamMissing, format!("upstream {id} does not exist"))),
            Target::MissingService(id) => Err((End::ServiceMissing, format!("service {id} does not exist"))),
            Target::Nothing => {
                Err((End::UpstreamMissing, "neither the route nor its service names an upstream".into()))
            }
        }
    }
}

/// The pointer that workers read and the control plane replaces.
pub type Published = Arc<ArcSwap<Snapshot>>;
