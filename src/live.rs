//! State that outlives snapshots: statistics and in-flight counts, shared by key.
//!
//! A snapshot is rebuilt on every change; what is here is carried over. The control plane asks the
//! [`Registry`] for an entry when it builds a route or an upstream; sessions then hold the entry
//! itself and touch atomics alone. An entry whose object is gone lives until its last session ends.
//! No I/O, no clock.

pub mod bandwidth;
pub mod ewma;
pub mod limits;
pub mod listen_stats;
pub mod logs;
mod long_keys;
pub mod node_state;
pub mod recent;
pub mod registries;
pub mod series;
pub mod source_status;
pub mod totals;
pub mod turns;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use self::ewma::Ewma;
use self::limits::Limits;
use self::turns::Turns;
use crate::drain::Leash;
use crate::health::{Cell, Down};
use crate::session::{ConnectFailure, End};

mod node;

pub use self::node::{Budget, Counter, Level, LineCounters, NodeCounters, Permit, TlsCounters};

/// Upper bounds of the connect-time histogram, in seconds.
pub const CONNECT_BUCKETS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
/// Upper bounds of the session-duration histogram, in seconds.
pub const DURATION_BUCKETS: [f64; 10] = [0.01, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 1800.0, 7200.0];

/// A histogram of durations in fixed buckets.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64; 10],
    /// Made by the first duration: of 100,000 routes with their nodes most have none.
    buckets: OnceLock<Box<Buckets>>,
}

#[derive(Debug, Default)]
struct Buckets {
    counts: [AtomicU64; 11],
    sum_micros: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [f64; 10]) -> Self {
        Self { bounds, buckets: OnceLock::new() }
    }

    /// Counts one duration.
    pub fn record(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        let buckets = self.buckets.get_or_init(Box::default);
        buckets.counts[bucket].fetch_add(1, Relaxed);
        buckets.sum_micros.fetch_add(u64::try_from(value.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// The upper bounds, in seconds; one more bucket than bounds counts what is above them.
    #[must_use]
    pub fn bounds(&self) -> &'static [f64; 10] {
        self.bounds
    }

    /// Count of each bucket (not cumulated), and the sum in seconds.
    #[must_use]
    pub fn read(&self) -> ([u64; 11], f64) {
        let Some(buckets) = self.buckets.get() else { return ([0; 11], 0.0) };
        #[expect(clippy::cast_precision_loss, reason = "a sum of seconds is a float in Prometheus")]
        let sum = buckets.sum_micros.load(Relaxed) as f64 / 1e6;
        (std::array::from_fn(|i| buckets.counts[i].load(Relaxed)), sum)
    }
}

/// Statistics of one stream_route, or of one node of an upstream.
#[derive(Debug)]
pub struct Stats {
    /// Made by the first ending, as the buckets of histograms are.
    ended: OnceLock<Box<[AtomicU64; End::COUNT]>>,
    /// Made by the first failed attempt.
    failed: OnceLock<Box<[AtomicU64; ConnectFailure::ALL.len()]>>,
    active: AtomicU64,
    in_flight: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// Time to connect to a node, of attempts that worked.
    pub connect: Histogram,
    /// From accept to close.
    pub duration: Histogram,
    /// Of the time to connect, where the balancer is ewma.
    pub ewma: Ewma,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            ended: OnceLock::new(),
            failed: OnceLock::new(),
            active: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            connect: Histogram::new(&CONNECT_BUCKETS),
            duration: Histogram::new(&DURATION_BUCKETS),
            ewma: Ewma::default(),
        }
    }
}

impl Stats {
    /// Counts a session in; the guard counts it out.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> ActiveGuard {
        self.active.fetch_add(1, Relaxed);
        ActiveGuard(self.clone())
    }

    /// Sessions inside.
    #[must_use]
    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    /// Counts in a session that was given this node, connected or not yet.
    #[inline]
    pub fn assign(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Counts out what [`Self::assign`] counted in.
    #[inline]
    pub fn unassign(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Sessions that were given this node and have not ended or moved on to another: what
    /// `least_conn` compares. It lives here, and not in a pool, to survive changes of the upstream.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// Counts one ending.
    #[inline]
    pub fn ended(&self, end: End) {
        let ended = self.ended.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        ended[end.index()].fetch_add(1, Relaxed);
    }

    /// How many sessions ended so.
    #[must_use]
    pub fn ended_count(&self, end: End) -> u64 {
        self.ended.get().map_or(0, |ended| ended[end.index()].load(Relaxed))
    }

    /// Counts an attempt to reach the node that failed.
    pub fn failed(&self, failure: ConnectFailure) {
        let failed = self.failed.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
        failed[failure.index()].fetch_add(1, Relaxed);
    }

    /// How many attempts failed so.
    #[must_use]
    pub fn failed_count(&self, failure: ConnectFailure) -> u64 {
        self.failed.get().map_or(0, |failed| failed[failure.index()].load(Relaxed))
    }

    /// Adds bytes from the client while the session lives.
    #[inline]
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    /// Adds bytes to the client while the session lives.
    #[inline]
    pub fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    /// Bytes from clients and bytes to clients.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.received.load(Relaxed), self.sent.load(Relaxed))
    }
}

/// Holds a session in [`Stats::active`] until dropped.
#[derive(Debug)]
pub struct ActiveGuard(Arc<Stats>);

impl Deref for ActiveGuard {
    type Target = Stats;

    #[inline]
    fn deref(&self) -> &Stats {
        &self.0
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// All that outlives snapshots.
#[derive(Debug, Default)]
pub struct Live {
    /// Statistics of stream_routes, by id.
    pub routes: Registry<Arc<str>, Stats>,
    /// Statistics of nodes, by pool id and `host:port`.
    pub nodes: Registry<(Arc<str>, Arc<str>), Stats>,
    /// Upstreams with health checks, by pool id.
    pub checked: Registry<Arc<str>, CheckedStats>,
    /// What is known of their targets, by pool id and probed address.
    pub targets: Registry<(Arc<str>, SocketAddr), Cell>,
    /// Leashes of nodes whose sessions may have to end, by pool id and `host:port`.
    pub leashes: Registry<(Arc<str>, Arc<str>), Leash>,
    /// What limits of plugins remember of their keys.
    pub limits: Limits,
    /// Keys of limit-bandwidth, by the object with its configuration.
    pub bandwidth: Registry<Box<str>, bandwidth::Table>,
    /// Turns of traffic-split, by rule and its weights.
    pub turns: Registry<(Arc<str>, Box<[u32]>), Turns>,
}

/// What is counted of an upstream with health checks.
#[derive(Debug, Default)]
pub struct CheckedStats {
    /// Its targets that are not usable.
    pub down: Arc<Down>,
    /// Sessions that were sent to a node that is down, because no node was left that is not.
    pub all_down: Counter,
}

/// Entries by key, each kept as long as somebody holds it.
#[derive(Debug)]
pub struct Registry<K, V> {
    entries: Mutex<Entries<K, V>>,
}

/// A dead entry keeps its memory until it is swept. So a table that has doubled since its last
/// sweep is swept before it grows, which costs nothing worth mentioning an entry.
#[derive(Debug)]
struct Entries<K, V> {
    map: HashMap<K, Weak<V>>,
    sweep_at: usize,
}

/// Smaller tables are not worth a sweep.
const LEAST_TO_SWEEP: usize = 256;

impl<K, V> Default for Registry<K, V> {
    fn default() -> Self {
        Self { entries: Mutex::new(Entries { map: HashMap::new(), sweep_at: LEAST_TO_SWEEP }) }
    }
}

impl<K: Eq + Hash, V> Entries<K, V> {
    fn sweep(&mut self) {
        self.map.retain(|_, value| value.strong_count() > 0);
        self.sweep_at = LEAST_TO_SWEEP.max(self.map.len() * 2);
    }
}

impl<K: Eq + Hash, V> Registry<K, V> {
    /// The entry of `key`, made by `make` where nobody holds one.
    pub fn entry(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = entries.map.get(&key).and_then(Weak::upgrade) {
            return value;
        }
        if entries.map.len() >= entries.sweep_at {
            entries.sweep();
        }
        let value = Arc::new(make());
        entries.map.insert(key, Arc::downgrade(&value));
        value
    }

    /// The entry of `key`, where somebody holds it.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.map.get(key).and_then(Weak::upgrade)
    }

    /// The keys of entries that somebody holds, of those that `matters` asks for, in no order.
    pub fn held_keys(&self, matters: impl Fn(&K) -> bool) -> Vec<K>
    where
        K: Clone,
    {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let held = entries.map.iter().filter(|(key, value)| value.strong_count() > 0 && matters(key));
        held.map(|(key, _)| key.clone()).collect()
    }

    /// The entries that somebody holds, in no order.
    pub fn held(&self) -> Vec<Arc<V>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.map.values().filter_map(Weak::upgrade).collect()
    }

    /// Forgets keys that nobody holds any more.
    pub fn sweep(&self) {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).sweep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_counts_at_its_bounds() {
        let histogram = Histogram::new(&CONNECT_BUCKETS);
        for micros in [1_000, 1_001, 9_000_000] {
            histogram.record(Duration::from_micros(micros));
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[10]), (1, 1, 1));
        assert!((sum - 9.002_001).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn registry_keeps_what_is_held_and_forgets_the_rest() {
        let registry = Registry::<u32, Stats>::default();
        let first = registry.entry(1, Stats::default);
        first.ended(End::NoRoute);
        assert_eq!(registry.entry(1, Stats::default).ended_count(End::NoRoute), 1);
        drop(first);
        assert_eq!(registry.entry(1, Stats::default).ended_count(End::NoRoute), 0);
    }

    #[test]
    fn keys_that_come_and_go_do_not_add_up() {
        let registry = Registry::<usize, Stats>::default();
        let kept = registry.entry(0, Stats::default);
        for key in 1..10_000 {
            drop(registry.entry(key, Stats::default));
        }
        assert!(registry.entries.lock().unwrap().map.len() <= LEAST_TO_SWEEP);
        assert!(Arc::ptr_eq(&kept, &registry.entry(0, Stats::default)));
    }

    #[test]
    fn guard_counts_out() {
        let stats = Arc::new(Stats::default());
        let guard = stats.enter();
        assert_eq!(stats.active(), 1);
        drop(guard);
        assert_eq!(stats.active(), 0);
    }
}
