//! Counters whose keys are only known when a session ends.
//!
//! A worker that counts takes no lock: it loads a shard's map, finds the counter and adds to it. A
//! key that is new copies the one shard it falls into, which is why there are many shards. Reading
//! and sweeping never make a worker wait.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;

const SHARDS: usize = 64;

type Shard<K> = ArcSwap<HashMap<K, Arc<AtomicU64>>>;

/// A set of counters by key.
#[derive(Debug)]
pub struct Series<K> {
    shards: Box<[Shard<K>]>,
    hasher: RandomState,
    len: AtomicUsize,
}

impl<K> Default for Series<K> {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: RandomState::new(),
            len: AtomicUsize::new(0),
        }
    }
}

impl<K: Clone + Eq + Hash> Series<K> {
    /// Counts one.
    pub fn count(&self, key: &K) {
        if let Some(counter) = self.counter(key) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// The counter of a key, made where there is none; `None` never happens. It is the key's until that is
    /// forgotten.
    pub fn counter(&self, key: &K) -> Option<Arc<AtomicU64>> {
        let shard = self.shard(key)?;
        if let Some(counter) = shard.load().get(key) {
            return Some(counter.clone());
        }
        let counter = Arc::new(AtomicU64::new(0));
        let before = shard.rcu(|map| {
            let mut map = HashMap::clone(map);
            map.entry(key.clone()).or_insert_with(|| counter.clone());
            map
        });
        if !before.contains_key(key) {
            self.len.fetch_add(1, Relaxed);
        }
        shard.load().get(key).cloned()
    }

    /// The count of this key; 0 where there is none.
    #[must_use]
    pub fn get(&self, key: &K) -> u64 {
        let counted = |shard: &Shard<K>| Some(shard.load().get(key)?.load(Relaxed));
        self.shard(key).and_then(counted).unwrap_or_default()
    }

    /// Reports whether there is a counter of this key.
    #[must_use]
    pub fn contains(&self, key: &K) -> bool {
        self.shard(key).is_some_and(|shard| shard.load().contains_key(key))
    }

    /// How many counters there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Reports whether nothing was counted yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every key with its count, in the order of the keys.
    #[must_use]
    pub fn read(&self) -> Vec<(K, u64)>
    where
        K: Ord,
    {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            all.extend(shard.load().iter().map(|(key, counter)| (key.clone(), counter.load(Relaxed))));
        }
        all.sort_unstable();
        all
    }

    /// Forgets the keys that `keep` does not want. Of a session that ends on such a key at this
    /// very moment the count may be lost with it.
    pub fn retain(&self, keep: impl Fn(&K) -> bool) {
        for shard in &self.shards {
            if shard.load().keys().all(&keep) {
                continue;
            }
            let before = shard.rcu(|map| {
                let mut map = HashMap::clone(map);
                map.retain(|key, _| keep(key));
                map
            });
            let gone = before.keys().filter(|key| !keep(key)).count();
            self.len.fetch_sub(gone, Relaxed);
        }
    }

    fn shard(&self, key: &K) -> Option<&Shard<K>> {
        let hash = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).ok()?;
        self.shards.get(hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_reads_in_order_and_forgets() {
        let series = Series::default();
        for key in [3_u32, 1, 3, 2, 3] {
            series.count(&key);
        }
        assert_eq!(series.read(), [(1, 1), (2, 1), (3, 3)]);
        assert_eq!((series.get(&3), series.get(&4)), (3, 0));
        series.retain(|key| *key != 2);
        assert_eq!((series.read(), series.len()), (vec![(1, 1), (3, 3)], 2));
    }

    #[test]
    fn many_threads_lose_no_count() {
        let series = Series::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..2000_u32).for_each(|i| series.count(&(i % 300))));
            }
        });
        assert_eq!(series.len(), 300);
        assert_eq!(series.read().iter().map(|(_, count)| count).sum::<u64>(), 8000);
    }
}
