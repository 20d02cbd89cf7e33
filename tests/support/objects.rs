//! Objects as etcd holds them, and the snapshots that follow from them: no sockets, no clock.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use streamgate::balance::Pool;
use streamgate::config::RulesConfig;
use streamgate::health::Cell;
use streamgate::live::Live;
use streamgate::resource::{Key, Kind};
use streamgate::snapshot::{Builder, Snapshot, UpstreamSettings};
use streamgate::store::{Batch, Event, Store};

/// The state of a control plane, changed by events.
#[derive(Debug)]
pub struct Objects {
    store: Store,
    builder: Builder,
    /// What outlives snapshots.
    pub live: Arc<Live>,
    revision: i64,
    /// After the last event.
    pub snapshot: Arc<Snapshot>,
}

impl Objects {
    /// These objects, loaded at once. `seed` decides where balancers begin.
    pub fn new(seed: u64, settings: UpstreamSettings, objects: &[(Kind, &str, Value)]) -> Self {
        let store = Store::new(RulesConfig::everything());
        let live = Arc::<Live>::default();
        let builder = Builder::new(live.clone(), seed).with_settings(settings);
        let mut new = Self { store, builder, live, revision: 0, snapshot: Arc::default() };
        let bytes = |value: &Value| Bytes::from(value.to_string());
        let objects =
            objects.iter().map(|(kind, id, value)| (Key::new(*kind, *id), bytes(value), 1)).collect();
        new.apply(|revision| Event::Resync { objects, revision });
        new
    }

    /// One route from everywhere, `r1`, to this upstream, `u1`.
    pub fn to(seed: u64, upstream: &Value) -> Self {
        Self::new(seed, UpstreamSettings::default(), &to(upstream))
    }

    /// Writes an object, which has to be accepted.
    #[track_caller]
    pub fn put(&mut self, kind: Kind, id: &str, value: &Value) {
        let (key, value) = (Key::new(kind, id), Bytes::from(value.to_string()));
        self.apply(|revision| Event::Put { key, value, revision });
    }

    pub fn delete(&mut self, kind: Kind, id: &str) {
        let key = Key::new(kind, id);
        self.apply(|revision| Event::Delete { key, revision });
    }

    /// A name has these addresses now.
    pub fn resolve(&mut self, name: &str, addresses: &[IpAddr]) {
        let (name, addresses) = (name.into(), addresses.into());
        self.apply(|_| Event::Addresses { name, addresses, ttl: Duration::from_secs(1) });
    }

    #[track_caller]
    fn apply(&mut self, event: impl FnOnce(i64) -> Event) {
        self.revision += 1;
        let batch = Batch { events: vec![event(self.revision)], revision: self.revision };
        let changes = self.store.apply(batch, 0);
        self.snapshot = Arc::new(self.builder.build(&self.store, &changes));
        let rejected = self.snapshot.rejected();
        assert!(rejected.is_empty(), "{rejected:?}");
    }

    /// The pool that the sessions of a route get.
    #[track_caller]
    pub fn pool_of(&self, route: &str) -> Arc<Pool> {
        let route = self.snapshot.route(route).unwrap();
        self.snapshot.pool(&route.target).unwrap().clone()
    }

    /// That of `r1`.
    #[track_caller]
    pub fn pool(&self) -> Arc<Pool> {
        self.pool_of("r1")
    }

    /// What is known of a target of `r1`'s upstream.
    #[track_caller]
    pub fn cell(&self, addr: SocketAddr) -> Arc<Cell> {
        cell(&self.pool(), addr)
    }
}

/// What is known of a target of a pool.
#[track_caller]
pub fn cell(pool: &Pool, addr: SocketAddr) -> Arc<Cell> {
    let checked = pool.checked().unwrap();
    let target = checked.targets.iter().find(|target| target.addr == addr);
    target.unwrap_or_else(|| panic!("{addr} is no target: {:?}", checked.targets)).cell.clone()
}

/// A route `r1` from everywhere to an upstream `u1`.
pub fn to(upstream: &Value) -> [(Kind, &'static str, Value); 2] {
    [(Kind::StreamRoute, "r1", json!({"upstream_id": "u1"})), (Kind::Upstream, "u1", upstream.clone())]
}

/// Nodes of weight 1.
pub fn nodes(addrs: &[SocketAddr]) -> Value {
    addrs.iter().map(|addr| json!({"host": addr.ip(), "port": addr.port(), "weight": 1})).collect()
}
