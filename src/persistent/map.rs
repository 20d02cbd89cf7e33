//! A hash map whose clones share what was not changed since: a hash-array-mapped trie.
//!
//! Small maps are one list; a list that grows too long is spread over sixteen by the next four bits
//! of the hash. A change copies one list and the branches above it.

use std::borrow::Borrow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// Entries that a list may have before it is spread.
const LIST: usize = 8;
/// Bits of the hash that one branch consumes.
const BITS: u32 = 4;

/// A map whose clone costs one reference count.
#[derive(Clone, Debug)]
pub struct Map<K, V> {
    root: Link<K, V>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Link<K, V> {
    /// Absent where it would be empty.
    List(Option<Arc<Vec<Slot<K, V>>>>),
    Branch(Arc<[Link<K, V>; 1 << BITS]>),
}

#[derive(Clone, Debug)]
struct Slot<K, V> {
    hash: u64,
    key: K,
    value: V,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { root: Link::List(None), len: 0 }
    }
}

impl<K, V> Map<K, V> {
    /// All values, in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// All keys with their values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let mut found = Vec::new();
        self.root.collect(&mut found);
        found.into_iter().map(|slot| (&slot.key, &slot.value))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Reports whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<K: Eq + Hash, V> Map<K, V> {
    /// The value of `key`.
    pub fn get<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let hash = hash_of(key);
        let mut link = &self.root;
        let mut rest = hash;
        loop {
            match link {
                Link::List(slots) => {
                    let mut slots = slots.iter().flat_map(|slots| slots.iter());
                    return slots.find(|slot| slot.is(hash, key)).map(|slot| &slot.value);
                }
                Link::Branch(children) => link = &children[place(rest)],
            }
            rest >>= BITS;
        }
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Map<K, V> {
    /// The value of `key`, its default where there is none, to be changed.
    pub fn entry(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        self.value(key, V::default)
    }

    /// Gives `key` this value.
    pub fn insert(&mut self, key: K, value: V) {
        let place = self.value(key, || value.clone());
        *place = value;
    }

    fn value(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let hash = hash_of(&key);
        let len = &mut self.len;
        let make = || {
            *len += 1;
            make()
        };
        self.root.value((hash, key), 0, make)
    }

    /// Removes `key`.
    pub fn remove<Q: ?Sized + Eq + Hash>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        // Where it is absent nothing has to be copied.
        if self.get(key).is_some() {
            self.remove_if(key, |_| true);
        }
    }

    /// Lets `edit` change the value of `key` where there is one, and removes it if `edit` says so.
    pub fn remove_if<Q: ?Sized + Eq + Hash>(&mut self, key: &Q, edit: impl FnOnce(&mut V) -> bool)
    where
        K: Borrow<Q>,
    {
        let len = &mut self.len;
        let edit = |value: &mut V| {
            let removed = edit(value);
            *len -= usize::from(removed);
            removed
        };
        self.root.remove_if(hash_of(key), key, 0, edit);
    }
}

impl<K: Borrow<Q>, Q: ?Sized + Eq, V> SlotIs<Q> for Slot<K, V> {
    fn is(&self, hash: u64, key: &Q) -> bool {
        self.hash == hash && self.key.borrow() == key
    }
}

/// Whether a slot is the one of a key in borrowed form.
trait SlotIs<Q: ?Sized> {
    fn is(&self, hash: u64, key: &Q) -> bool;
}

impl<K, V> Link<K, V> {
    fn collect<'a>(&'a self, found: &mut Vec<&'a Slot<K, V>>) {
        match self {
            Self::List(slots) => found.extend(slots.iter().flat_map(|slots| slots.iter())),
            Self::Branch(children) => children.iter().for_each(|child| child.collect(found)),
        }
    }
}

impl<K: Clone + Eq, V: Clone> Link<K, V> {
    fn value(&mut self, (hash, key): (u64, K), depth: u32, make: impl FnOnce() -> V) -> &mut V {
        if let Self::List(Some(slots)) = self
            && slots.len() >= LIST
            && depth * BITS < u64::BITS
            && !slots.iter().any(|slot| slot.is(hash, &key))
        {
            *self = Self::spread(slots, depth);
        }
        match self {
            Self::Branch(children) => {
                let child = &mut Arc::make_mut(children)[place(hash >> (depth * BITS))];
                child.value((hash, key), depth + 1, make)
            }
            Self::List(slots) => {
                let slots = Arc::make_mut(slots.get_or_insert_default());
                let at = slots.iter().position(|slot| slot.is(hash, &key)).unwrap_or_else(|| {
                    slots.reserve_exact(1);
                    slots.push(Slot { hash, key, value: make() });
                    slots.len() - 1
                });
                &mut slots[at].value
            }
        }
    }

    fn spread(slots: &[Slot<K, V>], depth: u32) -> Self {
        let mut lists: [Vec<Slot<K, V>>; 1 << BITS] = Default::default();
        for slot in slots {
            lists[place(slot.hash >> (depth * BITS))].push(slot.clone());
        }
        Self::Branch(Arc::new(lists.map(Self::list)))
    }

    fn list(mut slots: Vec<Slot<K, V>>) -> Self {
        slots.shrink_to_fit();
        Self::List((!slots.is_empty()).then(|| Arc::new(slots)))
    }

    fn remove_if<Q: ?Sized + Eq>(&mut self, hash: u64, key: &Q, depth: u32, edit: impl FnOnce(&mut V) -> bool)
    where
        K: Borrow<Q>,
    {
        match self {
            Self::List(None) => {}
            Self::List(Some(slots)) => {
                let slots = Arc::make_mut(slots);
                let found = slots.iter().position(|slot| slot.is(hash, key));
                if let Some(at) = found.filter(|at| edit(&mut slots[*at].value)) {
                    slots.swap_remove(at);
                    *self = Self::list(std::mem::take(slots));
                }
            }
            Self::Branch(children) => {
                let children = Arc::make_mut(children);
                children[place(hash >> (depth * BITS))].remove_if(hash, key, depth + 1, edit);
                if let Some(list) = Self::gathered(children) {
                    *self = list;
                }
            }
        }
    }

    /// The one list that holds all of `children`, where they have become that few.
    fn gathered(children: &[Self]) -> Option<Self> {
        let mut count = 0;
        for child in children {
            match child {
                Self::List(slots) => count += slots.as_ref().map_or(0, |slots| slots.len()),
                Self::Branch(_) => return None,
            }
        }
        // Half of what would spread again, so that a map at the limit does not flap.
        (count <= LIST / 2).then(|| {
            let mut found = Vec::with_capacity(count);
            for child in children {
                child.collect(&mut found);
            }
            Self::list(found.into_iter().cloned().collect())
        })
    }
}

fn place(hash: u64) -> usize {
    usize::from((hash & ((1 << BITS) - 1)) as u8)
}

/// Unkeyed: what is stored comes from the configuration, clients only look up.
fn hash_of<Q: ?Sized + Hash>(key: &Q) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// A key of which many have the same hash.
    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    struct Clash(u16);

    impl Hash for Clash {
        fn hash<H: Hasher>(&self, state: &mut H) {
            (self.0 % 7).hash(state);
        }
    }

    #[track_caller]
    fn check<K: Clone + Copy + Eq + Hash + std::fmt::Debug>(steps: &[(K, Option<u32>)]) {
        let mut map = Map::<K, u32>::default();
        let mut model = HashMap::new();
        let mut clones = Vec::new();
        for (index, (key, value)) in steps.iter().enumerate() {
            if index % 16 == 0 {
                clones.push((map.clone(), model.clone()));
            }
            if let Some(value) = value {
                map.insert(*key, *value);
                model.insert(*key, *value);
            } else {
                map.remove(key);
                model.remove(key);
            }
        }
        clones.push((map.clone(), model.clone()));
        for (map, model) in clones {
            assert_eq!(map.iter().map(|(key, value)| (*key, *value)).collect::<HashMap<_, _>>(), model);
            assert_eq!(map.values().count(), model.len());
            assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
            for (key, _) in steps {
                assert_eq!(map.get(key), model.get(key), "{key:?}");
            }
        }
        for key in model.keys() {
            map.remove(key);
        }
        assert!(matches!(map.root, Link::List(None)), "branches are left over");
    }

    proptest! {
        #[test]
        fn behaves_as_a_hash_map(steps in prop::collection::vec((0..300u16, any::<Option<u32>>()), 0..600)) {
            check(&steps);
        }

        #[test]
        fn survives_equal_hashes(steps in prop::collection::vec((0..60u16, any::<Option<u32>>()), 0..200)) {
            let steps: Vec<_> = steps.into_iter().map(|(key, value)| (Clash(key), value)).collect();
            check(&steps);
        }
    }

    #[test]
    fn edit_may_keep_the_entry() {
        let mut map = Map::<u8, u32>::default();
        *map.entry(1) = 5;
        map.remove_if(&1, |value| {
            *value += 1;
            false
        });
        assert_eq!(map.get(&1), Some(&6));
    }
}
