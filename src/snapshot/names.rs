//! Which objects depend on which names: of hosts, of services, of certificates.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::resource::Key;

/// Names of one kind with the objects whose upstreams carry them.
#[derive(Debug)]
pub(super) struct Names<T: ?Sized = str> {
    owners: HashMap<Arc<T>, BTreeSet<Key>>,
    owned: HashMap<Key, BTreeSet<Arc<T>>>,
    changed: bool,
}

impl<T: ?Sized> Default for Names<T> {
    fn default() -> Self {
        Self { owners: HashMap::new(), owned: HashMap::new(), changed: false }
    }
}

impl<T: ?Sized + Hash + Ord> Names<T> {
    /// Every name.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<T>> {
        self.owners.keys()
    }

    /// The objects that carry a name.
    pub(super) fn owners(&self, name: &T) -> impl Iterator<Item = &Key> {
        self.owners.get(name).into_iter().flatten()
    }

    /// Reports whether [`Self::all`] may differ from what it was at the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Says which names `owner` carries from now on.
    pub(super) fn set(&mut self, owner: &Key, names: impl Iterator<Item = Arc<T>>) {
        let names: BTreeSet<Arc<T>> = names.map(|name| self.known(name)).collect();
        if names.is_empty() {
            return self.forget(owner);
        }
        let before = self.owned.insert(owner.clone(), names.clone()).unwrap_or_default();
        for name in before.difference(&names) {
            self.leave(owner, name);
        }
        for name in names.difference(&before) {
            self.changed |= !self.owners.contains_key(name);
            self.owners.entry(name.clone()).or_default().insert(owner.clone());
        }
    }

    /// `owner` carries no names any more.
    pub(super) fn forget(&mut self, owner: &Key) {
        for name in self.owned.remove(owner).unwrap_or_default() {
            self.leave(owner, &name);
        }
    }

    /// The one allocation of a name.
    fn known(&self, name: Arc<T>) -> Arc<T> {
        self.owners.get_key_value(&*name).map_or(name, |(known, _)| known.clone())
    }

    fn leave(&mut self, owner: &Key, name: &Arc<T>) {
        if let Some(owners) = self.owners.get_mut(name) {
            owners.remove(owner);
            if owners.is_empty() {
                self.owners.remove(name);
                self.changed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Kind;

    #[test]
    fn a_change_is_told_when_a_name_comes_or_goes() {
        let mut names = Names::<str>::default();
        let [a, b] = ["a", "b"].map(|id| Key::new(Kind::Upstream, id));
        let mut check = |owner: &Key, carried: &[&str], changed: bool, all: &[&str]| {
            names.set(owner, carried.iter().map(|name| Arc::from(*name)));
            assert_eq!(names.take_changed(), changed, "{carried:?}");
            let mut found: Vec<_> = names.all().map(|name| &**name).collect();
            found.sort_unstable();
            assert_eq!(found, all);
        };
        check(&a, &["x", "y", "x"], true, &["x", "y"]);
        check(&a, &["y", "x"], false, &["x", "y"]);
        check(&b, &["x"], false, &["x", "y"]);
        check(&a, &[], true, &["x"]);
        check(&b, &["x", "z"], true, &["x", "z"]);
        assert_eq!(names.owners("x").collect::<Vec<_>>(), [&b]);
        assert_eq!(names.owners("y").count(), 0);
    }
}
