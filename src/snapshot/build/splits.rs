//! What traffic-split reaches: upstreams it names, and the pools of those written in it.
//!
//! A service lends its plugin to all its routes, so what belongs to it is kept once for each object whose
//! plugin it is, as long as a route uses it. Such a pool owns names and certificates like any other, by a
//! key of kind `plugins` and the id of the pool: no object has such a key.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Builder, Merged, Placed};
use crate::plugin::traffic_split::{owner_of, pool_id};
use crate::resource::{Key, Kind, Object, Split};
use crate::store::Store;

/// Whose traffic-split a route has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SplitOf {
    Nobody,
    Route,
    Service,
}

impl SplitOf {
    pub(super) fn of(merged: &Merged<'_>) -> Self {
        match merged.plugins.iter().find(|one| one.conf.split.is_some()).map(|one| one.owner.kind) {
            None => Self::Nobody,
            Some(Kind::Service) => Self::Service,
            Some(_) => Self::Route,
        }
    }
}

/// The plugins that routes use.
#[derive(Debug, Default)]
pub(super) struct Splits {
    used: HashMap<Key, Used>,
    /// Those whose users changed during this build.
    touched: HashSet<Key>,
}

/// A plugin of one object.
#[derive(Debug, Default)]
struct Used {
    routes: usize,
    /// What the snapshot was made of.
    made_of: Option<Arc<Split>>,
}

/// The object whose traffic-split a route has.
fn owner(placed: &Placed, route: &Arc<str>) -> Option<Key> {
    match placed.split {
        SplitOf::Nobody => None,
        SplitOf::Route => Some(Key::new(Kind::StreamRoute, route.clone())),
        SplitOf::Service => placed.service.clone().map(|id| Key::new(Kind::Service, id)),
    }
}

/// What an object's traffic-split says now.
fn split<'a>(owner: &Key, store: &'a Store) -> Option<&'a Arc<Split>> {
    let plugins = match &store.entry(owner)?.object {
        Object::StreamRoute(route) => &route.plugins,
        Object::Service(service) => &service.plugins,
        _ => return None,
    };
    plugins.iter().find_map(|conf| conf.split.as_ref())
}

impl Builder {
    /// A route is placed.
    pub(super) fn enter_split(&mut self, placed: &Placed, route: &Arc<str>) {
        if let Some(owner) = owner(placed, route) {
            self.splits.used.entry(owner.clone()).or_default().routes += 1;
            self.splits.touched.insert(owner);
        }
    }

    /// A route is taken out.
    pub(super) fn leave_split(&mut self, placed: &Placed, route: &Arc<str>) {
        if let Some(owner) = owner(placed, route)
            && let Some(used) = self.splits.used.get_mut(&owner)
        {
            used.routes -= 1;
            self.splits.touched.insert(owner);
        }
    }

    /// Brings pools and what is reached in line with the store and with who uses it; `stale` holds the keys
    /// of pools whose names have other addresses.
    pub(super) fn refresh_splits(&mut self, store: &Store, stale: &HashSet<Key>) {
        let mut touched = std::mem::take(&mut self.splits.touched);
        let of_pools = stale.iter().filter(|key| key.kind == Kind::Plugins);
        touched.extend(of_pools.filter_map(|key| owner_of(&key.id)));
        for owner in touched {
            self.refresh_split(&owner, store, stale);
        }
    }

    fn refresh_split(&mut self, owner: &Key, store: &Store, stale: &HashSet<Key>) {
        let Some(used) = self.splits.used.get_mut(owner) else { return };
        let now = split(owner, store).filter(|_| used.routes > 0).cloned();
        let before = std::mem::replace(&mut used.made_of, now.clone());
        if used.routes == 0 {
            self.splits.used.remove(owner);
        }
        // In first: what stays reached is not forgotten.
        for id in now.iter().flat_map(|split| split.ids()) {
            let key = Key::new(Kind::Upstream, id.clone());
            self.shared.entry(key.clone()).or_default().users += 1;
            self.touched.insert(key);
        }
        for id in before.iter().flat_map(|split| split.ids()) {
            let key = Key::new(Kind::Upstream, id.clone());
            if let Some(shared) = self.shared.get_mut(&key) {
                shared.users -= 1;
            }
            self.touched.insert(key);
        }
        self.refresh_inside(owner, now.as_deref(), store, stale);
    }

    /// The pools of upstreams written in the plugin.
    fn refresh_inside(&mut self, owner: &Key, now: Option<&Split>, store: &Store, stale: &HashSet<Key>) {
        let before = self.snapshot.splits.get(owner).cloned().unwrap_or_default();
        let mut pools = Vec::new();
        for (rule, entry, upstream) in now.into_iter().flat_map(Split::inline) {
            let key = Key::new(Kind::Plugins, pool_id(owner, rule, entry));
            let kept = before.iter().find(|(made_of, pool)| pool.id == key.id && made_of == upstream);
            let pool = match kept.filter(|_| !stale.contains(&key)) {
                Some((_, pool)) => pool.clone(),
                None => self.pool(&key, upstream, store),
            };
            pools.push((upstream.clone(), pool));
        }
        for (_, gone) in before.iter().filter(|(_, old)| pools.iter().all(|(_, pool)| pool.id != old.id)) {
            self.forget(&Key::new(Kind::Plugins, gone.id.clone()));
        }
        if pools.is_empty() {
            self.snapshot.splits.remove(owner);
        } else {
            self.snapshot.splits.insert(owner.clone(), pools.into());
        }
    }
}
