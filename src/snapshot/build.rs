//! From the store to the next snapshot: only what a change touches is built anew.
//!
//! The builder remembers who uses what, so that a service rebuilds its routes, and a name the pools
//! whose nodes carry it. A pool whose upstream and addresses stay is kept with the state of its
//! balancer. An upstream that no route reaches is never built: the same etcd may hold thousands
//! that belong to HTTP.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

mod splits;
mod ssls;

use self::splits::{SplitOf, Splits};
use super::merge::{Merged, Origin, merge};
use super::names::Names;
use super::nodes::Means;
use super::plugins::Kit;
use super::{Route, Snapshot, Target, UpstreamSettings, metadata};
use crate::balance::Pool;
use crate::certs::Crypto;
use crate::live::Live;
use crate::matcher::{Order, Rule};
use crate::resource::{Discovery, Key, Kind, Object, Scheme, Service, Ssl, StreamRoute, Upstream};
use crate::store::{Changes, Entry, Store};

/// What a route uses; noted when it is placed, undone when it is taken out.
#[derive(Debug)]
struct Placed {
    order: Order,
    /// As it was then: the store may have a newer one.
    route: Arc<StreamRoute>,
    service: Option<Arc<str>>,
    /// The upstream or service whose pool its sessions go to.
    shared: Option<Key>,
    /// A subordinate xRPC route is known but matches nothing.
    matches: bool,
    /// Whose traffic-split it has.
    split: SplitOf,
}

/// Who is merged with a service.
#[derive(Debug)]
struct Merging {
    /// The service as it was when they were placed; a missing one is used too: its arrival rebuilds
    /// its routes.
    service: Option<Arc<Service>>,
    routes: BTreeSet<Arc<str>>,
    /// Its plugins, made once for all of them.
    kit: Kit,
}

/// A pool that several routes share: that of an upstream object, or of one written in a service.
#[derive(Debug, Default)]
struct Shared {
    /// The routes that go there, and entries of traffic-split that lead there.
    users: usize,
    made_of: Option<Arc<Upstream>>,
}

/// The pool that a route had when it was taken out, and what it was made of.
type Former = Option<(Arc<Upstream>, Arc<Pool>)>;

/// Builds snapshots, each from the one before.
#[derive(Debug)]
pub struct Builder {
    live: Arc<Live>,
    seed: u64,
    snapshot: Snapshot,
    placed: HashMap<Arc<str>, Placed>,
    services: HashMap<Arc<str>, Merging>,
    shared: HashMap<Key, Shared>,
    splits: Splits,
    /// Upstreams and services whose users changed during this build.
    touched: HashSet<Key>,
    names: Names,
    discovered: Names<Discovery>,
    crypto: Crypto,
    settings: UpstreamSettings,
    /// What has been listed as rejected since it was last told.
    refused: Vec<Key>,
    /// Certificate objects as they were placed.
    ssls: HashMap<Arc<str>, (Order, Arc<Ssl>)>,
    /// Which upstreams show which of them to their nodes.
    shown: Names,
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
            services: HashMap::new(),
            shared: HashMap::new(),
            splits: Splits::default(),
            touched: HashSet::new(),
            names: Names::default(),
            discovered: Names::default(),
            crypto: Crypto::default(),
            settings: UpstreamSettings::default(),
            refused: Vec::new(),
            ssls: HashMap::new(),
            shown: Names::default(),
        }
    }

    /// The same, with what config.yaml says about upstreams.
    #[must_use]
    pub fn with_settings(self, settings: UpstreamSettings) -> Self {
        Self { settings, ..self }
    }

    /// The snapshot after `changes` of `store`.
    pub fn build(&mut self, store: &Store, changes: &Changes) -> Snapshot {
        let mut stale: HashSet<Key> =
            changes.names.iter().flat_map(|name| self.names.owners(name)).cloned().collect();
        let services = changes.services.iter().flat_map(|service| self.discovered.owners(service));
        stale.extend(services.cloned());
        for key in changes.keys.iter().filter(|key| key.kind == Kind::Ssl) {
            if self.place_ssl(key, store) {
                stale.extend(self.shown.owners(&key.id).cloned());
            }
        }
        let routes = self.dirty(store, changes, &stale);
        // First all out, then all in: two routes may swap their places.
        let former: Vec<Former> = routes.iter().map(|id| self.take_out(id)).collect();
        for (id, former) in routes.iter().zip(former) {
            let key = Key::new(Kind::StreamRoute, id.clone());
            self.place(&key, store, former.filter(|_| !stale.contains(&key)));
        }
        self.refresh_splits(store, &stale);
        let mut touched = std::mem::take(&mut self.touched);
        touched.extend(changes.keys.iter().chain(&stale).filter(|key| is_shared(key)).cloned());
        for key in &touched {
            self.refresh(key, store, stale.contains(key));
        }
        for key in changes.keys.iter().chain(&touched) {
            self.review(key, store);
        }
        for key in &changes.keys {
            self.keep_written(key, store);
            metadata::keep(&mut self.snapshot.metadata, key, store);
        }
        self.snapshot.revision = store.revision();
        self.snapshot.complete = store.is_loaded();
        self.snapshot.counts.clone_from(store.counts());
        self.snapshot.held = store.held();
        self.snapshot.clone()
    }

    /// What has been listed as rejected since the last call: refused then, or reached by a stream_route
    /// then.
    pub fn take_refused(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.refused)
    }

    /// Names that nodes of reached upstreams carry: what is worth resolving.
    pub fn wanted_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.all()
    }

    /// Reports whether a node of a reached upstream carries this name.
    #[must_use]
    pub fn wants_name(&self, name: &str) -> bool {
        self.names.owners(name).next().is_some()
    }

    /// Services whose instances reached upstreams have as nodes.
    pub fn wanted_services(&self) -> impl Iterator<Item = &Arc<Discovery>> {
        self.discovered.all()
    }

    /// Reports whether a reached upstream names this service.
    #[must_use]
    pub fn wants_service(&self, service: &Discovery) -> bool {
        self.discovered.owners(service).next().is_some()
    }

    /// Reports whether [`Self::wanted_services`] may differ from those at the last call.
    pub fn services_changed(&mut self) -> bool {
        self.discovered.take_changed()
    }

    /// Reports whether [`Self::wanted_names`] may differ from those at the last call.
    pub fn names_changed(&mut self) -> bool {
        self.names.take_changed()
    }

    /// Routes to build anew. A refused object is among the changes, but what serves is as before.
    fn dirty(&self, store: &Store, changes: &Changes, stale: &HashSet<Key>) -> BTreeSet<Arc<str>> {
        let mut routes = BTreeSet::new();
        for key in &changes.keys {
            match key.kind {
                Kind::StreamRoute if !self.is_placed(key, store) => _ = routes.insert(key.id.clone()),
                Kind::Service => {
                    let users = self.services.get(&key.id);
                    let now = service(store, &key.id);
                    if let Some(users) = users.filter(|users| !same(users.service.as_ref(), now)) {
                        routes.extend(users.routes.iter().cloned());
                    }
                }
                _ => {}
            }
        }
        let own = stale.iter().filter(|key| key.kind == Kind::StreamRoute);
        routes.extend(own.map(|key| key.id.clone()));
        routes
    }

    /// Reports whether the route is in its place just as the store has it.
    fn is_placed(&self, key: &Key, store: &Store) -> bool {
        match (self.placed.get(&key.id), store.entry(key)) {
            (Some(placed), Some(entry)) => {
                let Object::StreamRoute(route) = &entry.object else { return false };
                Arc::ptr_eq(&placed.route, route) && placed.order == entry.order
            }
            (None, None) => true,
            _ => false,
        }
    }

    fn take_out(&mut self, id: &Arc<str>) -> Former {
        let placed = self.placed.remove(id)?;
        let mut former = None;
        if placed.matches {
            if let Some(Target::Inline(pool)) = self.snapshot.routes.get(id).map(|route| &route.target) {
                former = placed.route.upstream.clone().zip(Some(pool.clone()));
            }
            self.snapshot.matcher.remove(&placed.order, &rule(&placed.route));
            self.snapshot.routes.remove(id);
        }
        self.leave_split(&placed, id);
        if let Some(service) = placed.service
            && let Some(users) = self.services.get_mut(&service)
        {
            users.routes.remove(id);
            if users.routes.is_empty() {
                self.services.remove(&service);
            }
            self.touched.insert(Key::new(Kind::Service, service));
        }
        if let Some(key) = placed.shared
            && let Some(shared) = self.shared.get_mut(&key)
        {
            shared.users -= 1;
            self.touched.insert(key);
        }
        former
    }

    fn place(&mut self, key: &Key, store: &Store, former: Former) {
        let entry = store.entry(key);
        let Some((entry, Object::StreamRoute(route))) = entry.map(|entry| (entry, &entry.object)) else {
            return self.forget(key);
        };
        let service = route.service_id.as_ref().and_then(|id| service(store, id));
        let merged = merge(route, service);
        let matches = route.protocol.as_ref().is_none_or(|protocol| protocol.superior_id.is_none());
        let shared = match merged.origin {
            Origin::Id(id) => Some(Key::new(Kind::Upstream, id.clone())),
            Origin::Service(id) => Some(Key::new(Kind::Service, id.clone())),
            Origin::Route(_) | Origin::MissingService(_) | Origin::Nothing => None,
        };
        let placed = Placed {
            order: entry.order.clone(),
            route: route.clone(),
            service: route.service_id.clone().filter(|_| route.upstream_id.is_none()),
            shared: shared.filter(|_| matches),
            matches,
            split: if matches { SplitOf::of(&merged) } else { SplitOf::Nobody },
        };
        self.enter_split(&placed, &key.id);
        if let Some(id) = &placed.service {
            let kit = || service.map(|service| Kit::new(service, &self.live)).unwrap_or_default();
            let merging = || Merging { service: service.cloned(), routes: BTreeSet::new(), kit: kit() };
            self.services.entry(id.clone()).or_insert_with(merging).routes.insert(key.id.clone());
            self.touched.insert(Key::new(Kind::Service, id.clone()));
        }
        if let Some(key) = &placed.shared {
            self.shared.entry(key.clone()).or_default().users += 1;
            self.touched.insert(key.clone());
        }
        if matches {
            let target = self.target(key, &merged, store, former);
            let built = Arc::new(self.route((route, entry.revision), &merged, target));
            self.snapshot.matcher.insert(placed.order.clone(), rule(route), built.clone());
            self.snapshot.routes.insert(key.id.clone(), built);
        } else {
            self.forget(key);
        }
        self.placed.insert(key.id.clone(), placed);
    }

    fn target(&mut self, key: &Key, merged: &Merged<'_>, store: &Store, former: Former) -> Target {
        if let Origin::Route(upstream) = merged.origin {
            let kept = former.filter(|(made_of, _)| made_of == upstream);
            return Target::Inline(kept.map_or_else(|| self.pool(key, upstream, store), |(_, pool)| pool));
        }
        self.forget(key);
        match merged.origin {
            Origin::Id(id) => Target::Upstream(id.clone()),
            Origin::Service(id) => Target::Service(id.clone()),
            Origin::MissingService(id) => Target::MissingService(id.clone()),
            Origin::Route(_) | Origin::Nothing => Target::Nothing,
        }
    }

    fn route(&self, (route, revision): (&StreamRoute, i64), merged: &Merged<'_>, target: Target) -> Route {
        let mut degraded = Vec::new();
        let kit = merged.service.and_then(|service| self.services.get(&service.id)).map(|users| &users.kit);
        let plugins = super::plugins::of(merged, kit, &self.live, &mut degraded);
        if let Some(protocol) = &route.protocol {
            degraded
                .push(format!("protocol {}: forwarded as plain TCP, commands are not read", protocol.name));
        }
        Route {
            id: route.id.clone(),
            revision,
            name: route.name.as_deref().map(Arc::from),
            service: merged.service.map(|service| service.id.clone()),
            service_name: merged.service.and_then(|service| service.name.as_deref()).map(Arc::from),
            stats: self.live.routes.entry(route.id.clone(), Default::default),
            target,
            plugins,
            tls_passthrough: route.tls_passthrough,
            // Of nothing, one for all: a conversion would allocate for each route.
            degraded: if degraded.is_empty() { Arc::default() } else { degraded.into() },
        }
    }

    /// Brings the pool of an upstream or a service in line with the store and with who uses it.
    /// `stale`: names of its nodes have other addresses.
    fn refresh(&mut self, key: &Key, store: &Store, stale: bool) {
        if self.shared.get(key).is_some_and(|shared| shared.users == 0) {
            self.shared.remove(key);
        }
        let shared = self.shared.get_mut(key);
        let upstream = shared_upstream(key, store).filter(|_| shared.is_some());
        let former = shared.and_then(|shared| std::mem::replace(&mut shared.made_of, upstream.cloned()));
        let Some(upstream) = upstream else {
            self.forget(key);
            return self.snapshot.shared_pools(key.kind).remove(&key.id);
        };
        if stale || former.as_ref() != Some(upstream) {
            let pool = self.pool(key, upstream, store);
            self.snapshot.shared_pools(key.kind).insert(key.id.clone(), pool);
        }
    }

    fn pool(&mut self, owner: &Key, upstream: &Upstream, store: &Store) -> Arc<Pool> {
        let written = super::nodes::written(upstream, store).unwrap_or_default();
        self.names.set(owner, super::nodes::names(written).map(Arc::from));
        self.discovered.set(owner, upstream.discovery.iter().cloned());
        let shown = upstream.tls.as_ref().filter(|_| upstream.scheme == Scheme::Tls);
        self.shown.set(owner, shown.and_then(|tls| tls.client_cert_id.clone()).into_iter());
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let means = Means { store, live: &self.live, settings: &self.settings };
        let pool = Arc::new(super::nodes::pool(pool_id(owner), upstream, &means, self.seed));
        let watched = [pool.checked().is_some(), pool.settings.close_on_down > 0];
        for (list, watched) in
            [&mut self.snapshot.checked, &mut self.snapshot.leashed].into_iter().zip(watched)
        {
            if watched {
                list.insert(pool.id.clone(), pool.clone());
            } else {
                list.remove(&pool.id);
            }
        }
        pool
    }

    /// `owner` has no upstream of its own any more.
    fn forget(&mut self, owner: &Key) {
        self.names.forget(owner);
        self.discovered.forget(owner);
        self.shown.forget(owner);
        if !(self.snapshot.checked.is_empty() && self.snapshot.leashed.is_empty()) {
            let id = pool_id(owner);
            self.snapshot.checked.remove(&id);
            self.snapshot.leashed.remove(&id);
        }
    }

    /// Keeps what an object was read from, for pages. Of a refused version nothing changes.
    fn keep_written(&mut self, key: &Key, store: &Store) {
        let kept = &mut self.snapshot.written;
        match store.entry(key).and_then(Entry::written) {
            Some(now) if kept.get(key).is_some_and(|old| Arc::ptr_eq(&old.bytes, &now.bytes)) => {}
            Some(now) => kept.insert(key.clone(), now),
            None => kept.remove(key),
        }
    }

    /// Lists an object as rejected, or no longer.
    fn review(&mut self, key: &Key, store: &Store) {
        let refused = store.rejection(key).filter(|_| self.reaches(key));
        let listed = &mut self.snapshot.rejected;
        match refused {
            Some(refused) if listed.get(key) == Some(refused) => {}
            Some(refused) => {
                listed.insert(key.clone(), refused.clone());
                self.refused.push(key.clone());
            }
            None => listed.remove(key),
        }
    }

    /// Objects that only HTTP uses are listed by `check`, and count nowhere.
    fn reaches(&self, key: &Key) -> bool {
        match key.kind {
            Kind::Upstream => self.shared.contains_key(key),
            Kind::Service => self.services.contains_key(&key.id),
            _ => true,
        }
    }
}

/// The id of the pool of an object.
fn pool_id(owner: &Key) -> Arc<str> {
    match owner.kind {
        // What is written in a plugin goes by the id of its pool (`build/splits.rs`).
        Kind::Upstream | Kind::Plugins => owner.id.clone(),
        _ => owner.to_string().into(),
    }
}

fn is_shared(key: &Key) -> bool {
    matches!(key.kind, Kind::Upstream | Kind::Service)
}

fn service<'a>(store: &'a Store, id: &Arc<str>) -> Option<&'a Arc<Service>> {
    match &store.entry(&Key::new(Kind::Service, id.clone()))?.object {
        Object::Service(service) => Some(service),
        _ => None,
    }
}

/// The upstream that an object is, or that is written in it.
fn shared_upstream<'a>(key: &Key, store: &'a Store) -> Option<&'a Arc<Upstream>> {
    match &store.entry(key)?.object {
        Object::Upstream(upstream) => Some(upstream),
        Object::Service(service) => service.upstream.as_ref(),
        _ => None,
    }
}

/// Reports whether two services are one object, or both are missing.
fn same(one: Option<&Arc<Service>>, other: Option<&Arc<Service>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (one, other) => one.is_none() && other.is_none(),
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
