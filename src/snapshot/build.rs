//! From the store to the next snapshot: only what a change touches is built anew.
//!
//! The builder remembers who uses what, so that a service rebuilds its routes, and a name the
//! upstreams whose nodes carry it. An upstream that no route reaches is never built: the same etcd
//! may hold thousands that belong to HTTP.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::merge::{Merged, Origin, merge};
use super::{Route, Snapshot, Target};
use crate::balance::Pool;
use crate::live::Live;
use crate::matcher::{Order, Rule};
use crate::plugin;
use crate::resource::{Key, Kind, Object, Service, StreamRoute, Upstream};
use crate::store::{Changes, Rejected, Store};

/// What a route uses; noted when it is placed, undone when it is taken out.
#[derive(Debug)]
struct Placed {
    order: Order,
    /// As it was then: the store may have a newer one.
    route: Arc<StreamRoute>,
    service: Option<Arc<str>>,
    upstream: Option<Arc<str>>,
    /// Its sessions go to the upstream written inside the service.
    service_pool: bool,
    /// A subordinate xRPC route is known but matches nothing.
    matches: bool,
}

/// Who holds nodes with names.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Owner {
    Upstream(Arc<str>),
    Service(Arc<str>),
    Route(Arc<str>),
}

impl Owner {
    fn pool_id(&self) -> Arc<str> {
        match self {
            Self::Upstream(id) => id.clone(),
            Self::Service(id) => format!("services/{id}").into(),
            Self::Route(id) => format!("stream_routes/{id}").into(),
        }
    }
}

/// Builds snapshots, each from the one before.
#[derive(Debug)]
pub struct Builder {
    live: Arc<Live>,
    seed: u64,
    snapshot: Snapshot,
    placed: HashMap<Arc<str>, Placed>,
    service_users: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    upstream_users: HashMap<Arc<str>, usize>,
    /// Upstreams whose users changed during this build.
    touched: HashSet<Arc<str>>,
    service_pools: HashMap<Arc<str>, Arc<Pool>>,
    service_pool_users: HashMap<Arc<str>, usize>,
    names: HashMap<Arc<str>, BTreeSet<Owner>>,
    owned_names: HashMap<Owner, Vec<Arc<str>>>,
    names_changed: bool,
}

impl Builder {
    /// A builder of an empty snapshot. `seed` decides where balancers begin their rounds.
    #[must_use]
    pub fn new(live: Arc<Live>, seed: u64) -> Self {
        Self {
            live,
            seed,
            snapshot: Snapshot::default(),
            placed: HashMap::new(),
            service_users: HashMap::new(),
            upstream_users: HashMap::new(),
            touched: HashSet::new(),
            service_pools: HashMap::new(),
            service_pool_users: HashMap::new(),
            names: HashMap::new(),
            owned_names: HashMap::new(),
            names_changed: false,
        }
    }

    /// The snapshot after `changes` of `store`.
    pub fn build(&mut self, store: &Store, changes: &Changes) -> Snapshot {
        let dirty = self.dirty(changes);
        for id in &dirty.services {
            self.drop_service_pool(id);
        }
        // First all out, then all in: two routes may swap their places.
        for id in &dirty.routes {
            self.take_out(id);
        }
        for id in &dirty.routes {
            self.place(id, store);
        }
        for id in &dirty.upstreams {
            self.build_upstream(id, store);
        }
        // Upstreams that a route began or ceased to use.
        for id in std::mem::take(&mut self.touched) {
            if self.upstream_users.contains_key(&id) != self.snapshot.pools.get(&id).is_some() {
                self.build_upstream(&id, store);
            }
        }
        self.snapshot.revision = store.revision();
        self.snapshot.complete = store.is_loaded();
        self.snapshot.counts.clone_from(store.counts());
        self.snapshot.held = store.held();
        self.snapshot.rejected =
            store.rejected().filter(|rejected| self.reaches(rejected)).cloned().collect();
        self.snapshot.clone()
    }

    /// Names that nodes of reached upstreams carry: what is worth resolving.
    pub fn wanted_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.keys()
    }

    /// Reports whether [`Self::wanted_names`] may differ from those at the last call.
    pub fn names_changed(&mut self) -> bool {
        std::mem::take(&mut self.names_changed)
    }

    fn dirty(&self, changes: &Changes) -> Dirty {
        let mut dirty = Dirty::default();
        for key in &changes.keys {
            match key.kind {
                Kind::StreamRoute => _ = dirty.routes.insert(key.id.clone()),
                Kind::Service => _ = dirty.services.insert(key.id.clone()),
                Kind::Upstream => _ = dirty.upstreams.insert(key.id.clone()),
                Kind::Ssl | Kind::PluginMetadata | Kind::Secret | Kind::Plugins => {}
            }
        }
        for owner in changes.names.iter().filter_map(|name| self.names.get(name)).flatten() {
            match owner {
                Owner::Upstream(id) => _ = dirty.upstreams.insert(id.clone()),
                Owner::Service(id) => _ = dirty.services.insert(id.clone()),
                Owner::Route(id) => _ = dirty.routes.insert(id.clone()),
            }
        }
        for users in dirty.services.iter().filter_map(|id| self.service_users.get(id)) {
            dirty.routes.extend(users.iter().cloned());
        }
        dirty
    }

    fn take_out(&mut self, id: &Arc<str>) {
        let Some(placed) = self.placed.remove(id) else { return };
        if placed.matches {
            self.snapshot.matcher.remove(&placed.order, &rule(&placed.route));
            self.snapshot.routes.remove(id);
        }
        if let Some(service) = placed.service
            && let Some(users) = self.service_users.get_mut(&service)
        {
            users.remove(id);
            if users.is_empty() {
                self.service_users.remove(&service);
            }
            if placed.service_pool {
                self.release_service_pool(&service);
            }
        }
        if let Some(upstream) = placed.upstream
            && let Some(count) = self.upstream_users.get_mut(&upstream)
        {
            *count -= 1;
            if *count == 0 {
                self.upstream_users.remove(&upstream);
            }
            self.touched.insert(upstream);
        }
        let owner = Owner::Route(id.clone());
        self.snapshot.inline.remove(&owner.pool_id());
        self.forget_names(&owner);
    }

    /// One route less goes to the service's own upstream; the last one takes it away.
    fn release_service_pool(&mut self, id: &Arc<str>) {
        let users = self.service_pool_users.entry(id.clone()).or_default();
        *users = users.saturating_sub(1);
        if *users == 0 {
            self.service_pool_users.remove(id);
            self.drop_service_pool(id);
        }
    }

    fn drop_service_pool(&mut self, id: &Arc<str>) {
        if let Some(pool) = self.service_pools.remove(id) {
            self.snapshot.inline.remove(&pool.id);
            self.forget_names(&Owner::Service(id.clone()));
        }
    }

    fn place(&mut self, id: &Arc<str>, store: &Store) {
        let Some(entry) = store.entry(&Key::new(Kind::StreamRoute, id.clone())) else { return };
        let Object::StreamRoute(route) = &entry.object else { return };
        let service = route.service_id.as_ref().and_then(|id| service(store, id));
        let merged = merge(route, service);
        let matches = route.protocol.as_ref().is_none_or(|protocol| protocol.superior_id.is_none());
        let placed = Placed {
            order: entry.order.clone(),
            route: route.clone(),
            // A missing service is used too: its arrival rebuilds the route.
            service: route.service_id.clone().filter(|_| route.upstream_id.is_none()),
            upstream: if let Origin::Id(id) = merged.origin { Some(id.clone()) } else { None },
            service_pool: matches && matches!(merged.origin, Origin::Service(_)),
            matches,
        };
        if let Some(service) = &placed.service {
            self.service_users.entry(service.clone()).or_default().insert(id.clone());
        }
        if placed.service_pool
            && let Some(service) = &placed.service
        {
            *self.service_pool_users.entry(service.clone()).or_default() += 1;
        }
        if placed.matches {
            if let Some(upstream) = &placed.upstream {
                *self.upstream_users.entry(upstream.clone()).or_default() += 1;
                self.touched.insert(upstream.clone());
            }
            let built = Arc::new(self.route(route, &merged, store));
            self.snapshot.matcher.insert(placed.order.clone(), rule(route), built.clone());
            self.snapshot.routes.insert(id.clone(), built);
        }
        let placed = Placed { upstream: placed.upstream.filter(|_| placed.matches), ..placed };
        self.placed.insert(id.clone(), placed);
    }

    fn route(&mut self, route: &StreamRoute, merged: &Merged<'_>, store: &Store) -> Route {
        let target = match merged.origin {
            Origin::Id(id) => Target::Upstream(id.clone()),
            Origin::Route(upstream) => {
                Target::Inline(self.inline(&Owner::Route(route.id.clone()), upstream, store))
            }
            Origin::Service(upstream) => Target::Inline(self.service_pool(merged.service, upstream, store)),
            Origin::MissingService(id) => Target::MissingService(id.clone()),
            Origin::Nothing => Target::Nothing,
        };
        let (plugins, mut degraded) = plugin::compile(&merged.plugins);
        if let Some(protocol) = &route.protocol {
            degraded
                .push(format!("protocol {}: forwarded as plain TCP, commands are not read", protocol.name));
        }
        Route {
            id: route.id.clone(),
            name: route.name.as_deref().map(Arc::from),
            service: merged.service.map(|service| service.id.clone()),
            stats: self.live.routes.entry(route.id.clone(), Default::default),
            target,
            plugins,
            tls_passthrough: route.tls_passthrough,
            // Of nothing, one for all: a conversion would allocate for each route.
            degraded: if degraded.is_empty() { Arc::default() } else { degraded.into() },
        }
    }

    /// The pool of a service's own upstream, shared by all its routes.
    fn service_pool(
        &mut self,
        service: Option<&Arc<Service>>,
        upstream: &Arc<Upstream>,
        store: &Store,
    ) -> Arc<Pool> {
        let id = service.map(|service| service.id.clone()).unwrap_or_default();
        if let Some(pool) = self.service_pools.get(&id) {
            return pool.clone();
        }
        let pool = self.inline(&Owner::Service(id.clone()), upstream, store);
        self.service_pools.insert(id, pool.clone());
        pool
    }

    fn build_upstream(&mut self, id: &Arc<str>, store: &Store) {
        let owner = Owner::Upstream(id.clone());
        self.forget_names(&owner);
        let used = self.upstream_users.contains_key(id);
        let entry = store.entry(&Key::new(Kind::Upstream, id.clone()));
        match entry.map(|entry| &entry.object) {
            Some(Object::Upstream(upstream)) if used => {
                let pool = self.pool(&owner, upstream, store);
                self.snapshot.pools.insert(id.clone(), pool);
            }
            _ => self.snapshot.pools.remove(id),
        }
    }

    fn pool(&mut self, owner: &Owner, upstream: &Upstream, store: &Store) -> Arc<Pool> {
        let names: BTreeSet<Arc<str>> = super::nodes::names(upstream).map(Arc::from).collect();
        for name in &names {
            self.names.entry(name.clone()).or_default().insert(owner.clone());
        }
        if !names.is_empty() {
            self.names_changed = true;
            self.owned_names.insert(owner.clone(), names.into_iter().collect());
        }
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Arc::new(super::nodes::pool(owner.pool_id(), upstream, store, &self.live, self.seed))
    }

    /// A pool that is written inside another object.
    fn inline(&mut self, owner: &Owner, upstream: &Upstream, store: &Store) -> Arc<Pool> {
        let pool = self.pool(owner, upstream, store);
        self.snapshot.inline.insert(pool.id.clone(), pool.clone());
        pool
    }

    fn forget_names(&mut self, owner: &Owner) {
        for name in self.owned_names.remove(owner).unwrap_or_default() {
            self.names_changed = true;
            if let Some(owners) = self.names.get_mut(&name) {
                owners.remove(owner);
                if owners.is_empty() {
                    self.names.remove(&name);
                }
            }
        }
    }

    /// Objects that only HTTP uses are listed by `check`, and count nowhere.
    fn reaches(&self, rejected: &Rejected) -> bool {
        match rejected.key.kind {
            Kind::Upstream => self.upstream_users.contains_key(&rejected.key.id),
            Kind::Service => self.service_users.contains_key(&rejected.key.id),
            _ => true,
        }
    }
}

/// Ids whose parts of the snapshot are built anew.
#[derive(Debug, Default)]
struct Dirty {
    routes: BTreeSet<Arc<str>>,
    services: HashSet<Arc<str>>,
    upstreams: HashSet<Arc<str>>,
}

fn service<'a>(store: &'a Store, id: &Arc<str>) -> Option<&'a Arc<Service>> {
    match &store.entry(&Key::new(Kind::Service, id.clone()))?.object {
        Object::Service(service) => Some(service),
        _ => None,
    }
}

fn rule(route: &StreamRoute) -> Rule {
    Rule {
        remote_addr: route.remote_addr,
        server_addr: route.server_addr,
        server_port: route.server_port,
        snis: route.snis.clone(),
    }
}
