//! A map by id whose clone shares all it does not change.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Changing one entry of 100,000 copies one shard, some 400 entries.
const SHARDS: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct Shards<V> {
    shards: Vec<Arc<HashMap<Arc<str>, V>>>,
    len: usize,
}

impl<V> Default for Shards<V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { shards: vec![empty; SHARDS], len: 0 }
    }
}

impl<V: Clone> Shards<V> {
    pub(super) fn get(&self, id: &str) -> Option<&V> {
        self.shards[shard(id)].get(id)
    }

    pub(super) fn insert(&mut self, id: Arc<str>, value: V) {
        let shard = Arc::make_mut(&mut self.shards[shard(&id)]);
        self.len += usize::from(shard.insert(id, value).is_none());
    }

    pub(super) fn remove(&mut self, id: &str) {
        let shard = &mut self.shards[shard(id)];
        if shard.contains_key(id) {
            Arc::make_mut(shard).remove(id);
            self.len -= 1;
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.values())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

fn shard(id: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
    let low = hasher.finish() as usize;
    low % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_not_touched_by_later_changes() {
        let mut map = Shards::default();
        map.insert("a".into(), 1);
        let before = map.clone();
        map.insert("a".into(), 2);
        map.insert("b".into(), 3);
        map.remove("nope");
        assert_eq!((before.get("a"), before.get("b"), before.len()), (Some(&1), None, 1));
        assert_eq!((map.get("a"), map.get("b"), map.len()), (Some(&2), Some(&3), 2));
        map.remove("a");
        assert_eq!((map.get("a"), map.len(), map.values().count()), (None, 1, 1));
    }
}
