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
use crate::session::{End, Inbound};

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
    pools: BTreeMap<Arc<str>, Arc<Pool>>,
}

impl Snapshot {
    /// The route of a session.
    #[must_use]
    pub fn find(&self, inbound: &Inbound) -> Option<&Arc<Route>> {
        let query =
            Query { client: inbound.client.ip(), server: inbound.server, sni: inbound.sni.as_deref() };
        self.matcher.find(&query)
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
