//! The counters that a worker used last: a session on a route like the ones before hashes no label.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many a worker remembers; those that share a place take turns in it.
const PLACES: usize = 64;

/// What a session is counted under. Two are the same where their pointers are: labels are shared by all
/// sessions of a route, a listen and a node.
#[derive(Clone, Debug)]
pub(super) struct Labels {
    pub(super) route: Arc<str>,
    pub(super) listen_addr: Arc<str>,
    pub(super) node: Arc<str>,
    pub(super) code: &'static str,
}

/// The two counters of such a session.
#[derive(Debug)]
struct Used {
    /// Held, so that no other label comes to lie where these do.
    labels: Labels,
    counters: [Arc<AtomicU64>; 2],
    /// How often series had been forgotten when they were looked up.
    sweeps: u64,
}

/// One worker's.
#[derive(Debug)]
pub struct Recent(Box<[Option<Used>]>);

impl Default for Recent {
    fn default() -> Self {
        Self((0..PLACES).map(|_| None).collect())
    }
}

impl Recent {
    /// Counts one more of what `labels` say; `look_up` gives the counters that are not remembered.
    pub(super) fn count(
        &mut self,
        labels: &Labels,
        sweeps: u64,
        look_up: impl FnOnce() -> Option<[Arc<AtomicU64>; 2]>,
    ) {
        let Some(place) = self.0.get_mut(labels.place()) else { return };
        let known = place.as_ref().filter(|used| used.sweeps == sweeps && used.labels.are(labels));
        if known.is_none() {
            *place = look_up().map(|counters| Used { labels: labels.clone(), counters, sweeps });
        }
        for counter in place.iter().flat_map(|used| &used.counters) {
            counter.fetch_add(1, Relaxed);
        }
    }
}

impl Labels {
    fn are(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.route, &other.route)
            && Arc::ptr_eq(&self.node, &other.node)
            && Arc::ptr_eq(&self.listen_addr, &other.listen_addr)
            && self.code == other.code
    }

    fn place(&self) -> usize {
        let [route, node] = [&self.route, &self.node].map(|label| Arc::as_ptr(label).addr() / 16);
        (route ^ (node / 8)) % PLACES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_looked_up_once_until_series_are_forgotten() {
        let labels =
            Labels { route: "r1".into(), listen_addr: "0.0.0.0:1".into(), node: "n:1".into(), code: "200" };
        let (mut recent, mut looked_up) = (Recent::default(), Vec::new());
        let mut count = |labels: &Labels, sweeps| {
            recent.count(labels, sweeps, || {
                let counters = [Arc::<AtomicU64>::default(), Arc::default()];
                looked_up.push(counters[0].clone());
                Some(counters)
            });
        };
        (0..3).for_each(|_| count(&labels, 0));
        count(&labels, 1);
        count(&Labels { code: "502", ..labels.clone() }, 1);
        // The same text somewhere else may be another label.
        count(&Labels { route: "r1".into(), ..labels }, 1);
        let counts: Vec<u64> = looked_up.iter().map(|counter| counter.load(Relaxed)).collect();
        assert_eq!(counts, [3, 1, 1, 1]);
    }
}
