//! The immutable state that sessions are routed by.
//!
//! Workers load one pointer a connection; the control plane replaces it as a whole. A snapshot
//! derives from the one before it and shares all that did not change (`snapshot/build.rs`), so one
//! edit among 100,000 routes costs what the edit costs.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::Value;

use crate::balance::Pool;
use crate::certs::Certificates;
use crate::live::Stats;
use crate::matcher::{Explanation, Matcher, Order, Overlaps, Query, Rule, Shadowed};
use crate::persistent::Map;
use crate::plugin::prometheus::Prometheus;
use crate::plugin::traffic_split::Inline;
use crate::plugin::{Choice, Plugin, Plugins, RouteFacts};
use crate::resource::{Key, Kind, Ssl, Upstream};
use crate::session::{End, Host, Inbound, Outcome, Variable, View};
use crate::store::{HeldState, Rejected, Written};

mod build;
mod merge;
mod metadata;
mod names;
mod nodes;
mod plugins;
mod settings;

pub use build::Builder;
pub use settings::UpstreamSettings;

/// A stream_route as sessions see it: merged with its service.
#[derive(Debug)]
pub struct Route {
    /// Its id.
    pub id: Arc<str>,
    /// The revision it was accepted at; of a file, a sum of its content.
    pub revision: i64,
    /// Its name.
    pub name: Option<Arc<str>>,
    /// Id of its service, where one is in force.
    pub service: Option<Arc<str>>,
    /// Name of that service.
    pub service_name: Option<Arc<str>>,
    /// What happened on it.
    pub stats: Arc<Stats>,
    /// Where its sessions go.
    pub target: Target,
    /// In the order they run.
    pub plugins: Plugins,
    /// On a mixed listen: forward undecrypted.
    pub tls_passthrough: bool,
    /// Sentences about what it asks for and does not get; empty for most.
    pub degraded: Arc<[String]>,
}

impl Route {
    /// The `route` label of its `apisix_stream_*` series; `None` without the prometheus plugin.
    #[must_use]
    pub fn apisix_label(&self) -> Option<&Arc<str>> {
        self.plugins.reporting().find_map(|armed| self.label_of(&armed.plugin))
    }

    /// The same for one session, whose variables decide whether the plugin applies.
    #[must_use]
    pub fn apisix_label_of<'a>(&self, variable: &impl Fn(&str) -> Option<Variable<'a>>) -> Option<&Arc<str>> {
        let mut applying = self.plugins.reporting().filter(|armed| armed.applies(variable));
        applying.find_map(|armed| self.label_of(&armed.plugin))
    }

    fn label_of(&self, plugin: &Plugin) -> Option<&Arc<str>> {
        match plugin {
            Plugin::Prometheus(Prometheus { prefer_name: true }) => {
                Some(self.name.as_ref().unwrap_or(&self.id))
            }
            Plugin::Prometheus(_) => Some(&self.id),
            _ => None,
        }
    }

    /// What plugins and formats show of it.
    #[must_use]
    pub fn facts(&self) -> RouteFacts<'_> {
        RouteFacts {
            id: &self.id,
            name: self.name.as_deref(),
            service: self.service.as_deref(),
            service_name: self.service_name.as_deref(),
        }
    }
}

/// A session that is over, with the route it had.
#[derive(Clone, Debug)]
pub struct Ended {
    /// What became of it.
    pub outcome: Outcome,
    /// Its route, where one matched.
    pub route: Option<Arc<Route>>,
}

impl Ended {
    /// The session at its end, as variables show it.
    #[must_use]
    pub fn view<'a>(&'a self, host: &'a Host) -> View<'a> {
        let outcome = &self.outcome;
        View {
            inbound: &outcome.inbound,
            route: self.route.as_ref().map(|route| route.facts()),
            outcome: Some(outcome),
            host,
            time: outcome.course.ended,
        }
    }

    /// The label of its route in APISIX's series, where that has them and its filter lets the session count.
    #[must_use]
    pub fn apisix_label(&self, host: &Host) -> Option<Arc<str>> {
        let route = self.route.as_ref()?;
        route.apisix_label_of(&|name| self.variable(name, host)).cloned()
    }

    /// The value of a variable, without its `$`; `None` where the session had none.
    #[must_use]
    pub fn variable<'a>(&'a self, name: &str, host: &'a Host) -> Option<Variable<'a>> {
        self.view(host).variable(name)
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
    /// To the upstream written inside the service of this id, looked up likewise.
    Service(Arc<str>),
    /// To the upstream written inside the route.
    Inline(Arc<Pool>),
    /// Nowhere: the service of this id does not exist.
    MissingService(Arc<str>),
    /// Nowhere: neither the route nor its service names an upstream.
    Nothing,
}

/// The pools of the upstreams written inside a plugin, in their order, each with what it was made of.
type Inside = Arc<[(Arc<Upstream>, Arc<Pool>)]>;

/// One state of the configuration.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The revision it was built at.
    pub revision: i64,
    /// A full state has been read; before that no listen opens.
    pub complete: bool,
    matcher: Matcher<Arc<Route>>,
    routes: Map<Arc<str>, Arc<Route>>,
    /// Of upstream objects that a route reaches.
    pools: Map<Arc<str>, Arc<Pool>>,
    /// Of upstreams written inside services, where a route goes there.
    services: Map<Arc<str>, Arc<Pool>>,
    /// Of upstreams written inside a traffic-split, by the object it is in, each with what it was made of.
    splits: Map<Key, Inside>,
    /// Those of all pools that have health checks.
    checked: Map<Arc<str>, Arc<Pool>>,
    /// Those whose sessions are closed when their node goes down or leaves.
    leashed: Map<Arc<str>, Arc<Pool>>,
    certificates: Certificates,
    /// Certificate objects of type client.
    shown: Map<Arc<str>, Arc<Ssl>>,
    /// Values of `plugin_metadata`, by the plugin.
    metadata: Map<Arc<str>, Arc<Value>>,
    /// Every loaded object that pages show, whether or not a route reaches it.
    written: Map<Key, Written>,
    counts: BTreeMap<Kind, usize>,
    rejected: Map<Key, Rejected>,
    held: Option<HeldState>,
}

impl Snapshot {
    /// A state of these routes, in this order, and the pools of these upstreams.
    #[must_use]
    pub fn from_parts(routes: Vec<(Rule, Route)>, pools: Vec<Pool>) -> Self {
        let mut snapshot = Self { complete: true, ..Self::default() };
        for (place, (rule, route)) in (0_u32..).zip(routes) {
            let route = Arc::new(route);
            snapshot.matcher.insert(Order(place.to_be_bytes().as_slice().into()), rule, route.clone());
            snapshot.routes.insert(route.id.clone(), route);
        }
        for pool in pools {
            snapshot.pools.insert(pool.id.clone(), Arc::new(pool));
        }
        snapshot
    }

    /// The route of a session.
    #[must_use]
    pub fn find(&self, inbound: &Inbound) -> Option<&Arc<Route>> {
        self.matcher.find(&query(inbound))
    }

    /// The certificates that TLS is terminated with, by server name.
    #[must_use]
    pub fn certificates(&self) -> &Certificates {
        &self.certificates
    }

    /// Certificate objects of type client, which nodes may be shown, in no order.
    pub fn shown_certificates(&self) -> impl Iterator<Item = &Arc<Ssl>> {
        self.shown.values()
    }

    /// The pool of a route, or why there is none with the sentence for the log.
    pub fn pool<'a>(&'a self, target: &'a Target) -> Result<&'a Arc<Pool>, (End, String)> {
        match target {
            Target::Inline(pool) => Ok(pool),
            Target::Upstream(id) => {
                self.pools.get(&**id).ok_or_else(|| (End::UpstreamMissing, self.missing(Kind::Upstream, id)))
            }
            Target::Service(id) => {
                self.services.get(&**id).ok_or_else(|| (End::ServiceMissing, self.missing(Kind::Service, id)))
            }
            Target::MissingService(id) => Err((End::ServiceMissing, self.missing(Kind::Service, id))),
            Target::Nothing => {
                let why =
                    "neither the route nor its service names an upstream; give it upstream_id or upstream";
                Err((End::UpstreamMissing, why.into()))
            }
        }
    }

    /// The pool that a plugin chose.
    pub fn chosen<'a>(&'a self, choice: &'a Choice) -> Result<&'a Arc<Pool>, (End, String)> {
        match choice {
            Choice::Inline(inline) => self.inside(inline).ok_or_else(|| {
                let owner = &inline.owner;
                let why = format!("the upstream that traffic-split of {owner} chose is gone since");
                (End::UpstreamMissing, why)
            }),
            Choice::Upstream(id) => self.pools.get(&**id).ok_or_else(|| {
                (End::UpstreamMissing, format!("traffic-split: {}", self.missing(Kind::Upstream, id)))
            }),
        }
    }

    /// The pool of an upstream written in a plugin. Where that was changed while a plugin held the session
    /// up, or between two attempts: of the same upstream in its new place, else of what is in its place now.
    fn inside(&self, inline: &Inline) -> Option<&Arc<Pool>> {
        let pools = self.splits.get(&inline.owner)?;
        let there = pools.get(inline.place);
        let is_it = |(made_of, _): &&(Arc<Upstream>, Arc<Pool>)| {
            Arc::ptr_eq(made_of, &inline.upstream) || *made_of == inline.upstream
        };
        let found = there.filter(is_it).or_else(|| pools.iter().find(is_it)).or(there);
        found.map(|(_, pool)| pool)
    }

    /// What is said of a plugin for all its configurations: `plugin_metadata/<name>`.
    #[must_use]
    pub fn plugin_metadata(&self, plugin: &str) -> Option<&Arc<Value>> {
        self.metadata.get(plugin)
    }

    /// A loaded object as it was written; `None` where there is none, and for certificates and secrets.
    #[must_use]
    pub fn written(&self, key: &Key) -> Option<&Written> {
        self.written.get(key)
    }

    /// All loaded objects of a kind as they were written, by the bytes of their ids.
    #[must_use]
    pub fn all_written(&self, kind: Kind) -> Vec<(&Key, &Written)> {
        let mut found: Vec<_> = self.written.iter().filter(|(key, _)| key.kind == kind).collect();
        found.sort_unstable_by_key(|(key, _)| *key);
        found
    }

    /// Why a session gets the route it gets; at most `limit` others are listed one by one.
    #[must_use]
    pub fn explain<'a>(&'a self, inbound: &'a Inbound, limit: usize) -> Explanation<'a, Arc<Route>> {
        self.matcher.explain(&query(inbound), limit)
    }

    /// All rules in their order, with the route of each.
    pub fn rules(&self) -> impl Iterator<Item = (&Order, &Rule, &Arc<Route>)> {
        self.matcher.iter()
    }

    /// Rules that can never win, because earlier ones hold wherever they do.
    #[must_use]
    pub fn shadowed(&self) -> Vec<Shadowed<'_>> {
        self.matcher.shadowed()
    }

    /// Pairs of rules between which their order alone decides, among those that `matters` asks for.
    pub fn overlaps(&self, limit: usize, matters: impl Fn(&Route, &Route) -> bool) -> Overlaps<'_> {
        self.matcher.overlaps(limit, |first, second| matters(first, second))
    }

    /// Why an object that a route names is not there.
    fn missing(&self, kind: Kind, id: &Arc<str>) -> String {
        let (what, member) = match kind {
            Kind::Service => ("service", "service_id"),
            _ => ("upstream", "upstream_id"),
        };
        let key = Key::new(kind, id.clone());
        match self.rejection(&key) {
            Some(rejected) => format!("{what} {id} is rejected: {}", rejected.reason),
            None => format!("{what} {id} does not exist; write it or change the {member}"),
        }
    }

    /// Every route, in the order they are tried.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.matcher.iter().map(|(.., route)| route)
    }

    /// A route by its id.
    #[must_use]
    pub fn route(&self, id: &str) -> Option<&Arc<Route>> {
        self.routes.get(id)
    }

    /// How many routes there are.
    #[must_use]
    pub fn route_count(&self) -> usize {
        self.routes.len()
    }

    /// Every pool: those of upstream objects that a route reaches, and those written inside routes,
    /// services and their plugins, in no order.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        let inline = self.routes.values().filter_map(|route| match &route.target {
            Target::Inline(pool) => Some(pool),
            _ => None,
        });
        let inside = self.splits.values().flat_map(|pools| pools.iter().map(|(_, pool)| pool));
        self.pools.values().chain(self.services.values()).chain(inline).chain(inside)
    }

    /// The pools of upstream objects that a route reaches, in no order.
    pub fn upstream_pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.values()
    }

    /// The pools that have health checks, in no order.
    pub fn checked_pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.checked.values()
    }

    /// The pools whose sessions are closed when their node goes down or leaves, in no order.
    pub fn leashed_pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.leashed.values()
    }

    /// Routes that are served only in part, in their order.
    #[must_use]
    pub fn degraded(&self) -> Vec<Degraded> {
        // Walking them in their order sorts them, and mostly there is nothing to tell.
        let quiet =
            |route: &Arc<Route>| route.degraded.is_empty() && route.plugins.choices().next().is_none();
        if self.routes.values().all(quiet) && self.pools().all(|pool| pool.degraded().is_none()) {
            return Vec::new();
        }
        self.routes()
            .flat_map(|route| {
                let pool = self.pool(&route.target).ok().and_then(|pool| pool.degraded());
                let own = route.degraded.iter().map(String::as_str).chain(pool).map(Arc::from);
                let chosen = route.plugins.choices().filter_map(|choice| match self.chosen(choice) {
                    Ok(pool) => pool.degraded().map(Arc::from),
                    Err((_, why)) => Some(why.into()),
                });
                own.chain(chosen).map(|why| Degraded { route: route.id.clone(), why })
            })
            .collect()
    }

    /// How many objects of a kind are loaded.
    #[must_use]
    pub fn loaded(&self, kind: Kind) -> usize {
        self.counts.get(&kind).copied().unwrap_or_default()
    }

    /// Objects that are not served as they were written last, by key.
    #[must_use]
    pub fn rejected(&self) -> Vec<&Rejected> {
        let mut rejected: Vec<_> = self.rejected.values().collect();
        rejected.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        rejected
    }

    /// Why an object is not served as it was written last, where that is so.
    #[must_use]
    pub fn rejection(&self, key: &Key) -> Option<&Rejected> {
        self.rejected.get(key)
    }

    /// A full read that waits for an operator.
    #[must_use]
    pub fn held(&self) -> Option<HeldState> {
        self.held
    }

    /// The pools of upstreams or services.
    fn shared_pools(&mut self, kind: Kind) -> &mut Map<Arc<str>, Arc<Pool>> {
        if kind == Kind::Service { &mut self.services } else { &mut self.pools }
    }
}

fn query(inbound: &Inbound) -> Query<'_> {
    Query { client: inbound.client.ip(), server: inbound.server, sni: inbound.sni.as_deref() }
}

/// The pointer that workers read and the control plane replaces.
pub type Published = Arc<ArcSwap<Snapshot>>;
