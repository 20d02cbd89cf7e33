//! Bytes a second: of one session, and of all sessions that have a key in common.
//!
//! A [`Rate`] is a queue in time. Who wants to move bytes reserves their place at its end, moves them when
//! the place has come, and gives back what it did not use. So sessions of a key take turns, whatever worker
//! they live on, and nobody has to divide anything among them. A rate that nobody uses gathers a burst.
//! No I/O, no clock: `now` is an argument.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::live::long_keys::short;

const SECOND: u128 = 1_000_000_000;
/// The burst where none is set, and the least: what a second has divided by this. A thread that wakes late
/// catches up within it.
pub const BURST_DIVISOR: u64 = 10;
/// One turn is what a second has divided by this: bytes move 40 times a second,
const TURNS: u64 = 40;
/// or in whole packets, as long as one takes no more than a second divided by this.
const PACKETS: u64 = 20;
/// What a packet of Ethernet holds.
const PACKET: u64 = 1500;
/// Keys without a session that a table keeps for what they still owe.
const MOST_IDLE: usize = 65_536;
/// Smaller tables are not worth a sweep.
const LEAST_TO_SWEEP: usize = 256;

/// A number of bytes a second.
#[derive(Debug)]
pub struct Rate {
    /// Bytes a second.
    bytes: u64,
    /// How far ahead of its time a place may be used, in nanoseconds: the burst.
    ahead: u64,
    began: Instant,
    /// Where the queue ends, in nanoseconds after `began`.
    end: AtomicU64,
    /// Reservations whose time has not come.
    waiting: AtomicU32,
}

impl Rate {
    /// `bytes` a second, of which at least a tenth of a second's worth, or `burst`, may come at once.
    #[must_use]
    pub fn new(bytes: u64, burst: Option<u64>, now: Instant) -> Self {
        let bytes = bytes.max(1);
        let burst = burst.unwrap_or_default().max(bytes / BURST_DIVISOR);
        let (end, waiting) = (AtomicU64::new(0), AtomicU32::new(0));
        // A century is for ever, and leaves room for sums.
        let ahead = cost(burst, bytes).min(u64::MAX / 8);
        Self { bytes, ahead, began: now, end, waiting }
    }

    /// How many bytes one turn should have at most: a part of a second's worth, or what may come at once.
    /// Where many sessions wait each has smaller turns, but at least as much as it gets in a second.
    #[must_use]
    pub fn turn(&self, now: Instant) -> usize {
        let share = self.bytes / (u64::from(self.waiting.load(Relaxed)) + 1);
        let packet = PACKET.min(self.bytes / PACKETS).min(share);
        let time = self.time(now);
        let early = time.saturating_add(self.ahead).saturating_sub(self.end.load(Relaxed).max(time));
        let burst = u64::try_from(u128::from(early) * u128::from(self.bytes) / SECOND).unwrap_or(u64::MAX);
        usize::try_from((share / TURNS).max(packet).max(burst).max(1)).unwrap_or(usize::MAX)
    }

    /// Reserves the place of so many bytes; how long to wait for it.
    pub fn reserve(&self, bytes: usize, now: Instant) -> Duration {
        let (now, cost) = (self.time(now), cost(bytes as u64, self.bytes));
        let start = self.update(|end| {
            let start = end.max(now);
            (start, start.saturating_add(cost))
        });
        Duration::from_nanos(start.saturating_sub(now.saturating_add(self.ahead)))
    }

    /// Gives back what was reserved and not used.
    pub fn give_back(&self, bytes: usize) {
        let cost = cost(bytes as u64, self.bytes);
        self.update(|end| ((), end.saturating_sub(cost)));
    }

    /// Reports whether bytes may move at once.
    #[must_use]
    pub fn allows(&self, now: Instant) -> bool {
        self.end.load(Relaxed) <= self.time(now).saturating_add(self.ahead)
    }

    /// Reports whether nothing is owed: a new one would be no other.
    fn is_full(&self, now: Instant) -> bool {
        self.end.load(Relaxed) <= self.time(now)
    }

    fn time(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    fn update<T>(&self, change: impl Fn(u64) -> (T, u64)) -> T {
        let mut end = self.end.load(Relaxed);
        loop {
            let (answer, changed) = change(end);
            match self.end.compare_exchange_weak(end, changed, Relaxed, Relaxed) {
                Ok(_) => return answer,
                Err(other) => end = other,
            }
        }
    }
}

/// The time that so many bytes take, in nanoseconds.
fn cost(bytes: u64, rate: u64) -> u64 {
    u64::try_from((u128::from(bytes) * SECOND).div_ceil(u128::from(rate))).unwrap_or(u64::MAX)
}

/// What bounds one direction of a session.
#[derive(Debug, Default)]
pub struct Bounds {
    /// Of the session alone.
    own: Option<Rate>,
    /// Of all sessions of its key.
    shared: Option<Arc<Rates>>,
    /// Which of the two of the key.
    way: Way,
    /// It is counted as one that waits.
    waits: bool,
}

/// A direction.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Way {
    /// From the client to the node.
    #[default]
    Up,
    /// From the node to the client.
    Down,
}

impl Bounds {
    /// Reports whether there is no bound.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.rates().next().is_none()
    }

    /// How many bytes one turn should have at most.
    #[must_use]
    pub fn turn(&self, now: Instant) -> usize {
        self.rates().map(|rate| rate.turn(now)).min().unwrap_or(usize::MAX)
    }

    /// Reserves the place of so many bytes; how long to wait for it.
    pub fn reserve(&mut self, bytes: usize, now: Instant) -> Duration {
        let wait = self.rates().map(|rate| rate.reserve(bytes, now)).max().unwrap_or_default();
        self.count(!wait.is_zero());
        wait
    }

    /// Settles a reservation of which so many bytes were used.
    pub fn settle(&mut self, reserved: usize, used: usize, now: Instant) {
        self.count(false);
        for rate in self.rates() {
            if used > reserved {
                rate.reserve(used - reserved, now);
            } else {
                rate.give_back(reserved - used);
            }
        }
    }

    /// Takes so many bytes at once, or none where they are too many for the moment.
    pub fn take(&self, bytes: usize, now: Instant) -> bool {
        let allowed = self.rates().all(|rate| rate.allows(now));
        if allowed {
            for rate in self.rates() {
                rate.reserve(bytes, now);
            }
        }
        allowed
    }

    fn rates(&self) -> impl Iterator<Item = &Rate> {
        let shared = self.shared.as_ref().and_then(|rates| rates.of(self.way));
        self.own.iter().chain(shared)
    }

    /// Notes whether it waits for its turn.
    fn count(&mut self, waits: bool) {
        if self.waits == waits {
            return;
        }
        self.waits = waits;
        for rate in self.rates() {
            if waits {
                rate.waiting.fetch_add(1, Relaxed);
            } else {
                rate.waiting.fetch_sub(1, Relaxed);
            }
        }
    }
}

impl Drop for Bounds {
    fn drop(&mut self) {
        self.count(false);
    }
}

/// What bounds a session.
#[derive(Debug, Default)]
pub struct Bandwidth {
    /// From the client to the node.
    pub up: Bounds,
    /// From the node to the client.
    pub down: Bounds,
}

/// Bytes a second as configured; absent: any number.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    /// From clients to nodes.
    pub up: Option<u64>,
    /// From nodes to clients.
    pub down: Option<u64>,
    /// Bytes that may come at once.
    pub burst: Option<u64>,
}

impl Wanted {
    /// Reports whether nothing is bounded.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.up.is_none() && self.down.is_none()
    }

    fn rates(&self, now: Instant) -> Rates {
        let rate = |bytes: Option<u64>| bytes.map(|bytes| Rate::new(bytes, self.burst, now));
        Rates { up: rate(self.up), down: rate(self.down) }
    }

    /// What bounds a session: itself, and the rates of its key.
    #[must_use]
    pub fn bandwidth(&self, shared: Option<&Arc<Rates>>, now: Instant) -> Bandwidth {
        let Rates { up, down } = self.rates(now);
        let bounds = |own, way| Bounds { own, shared: shared.cloned(), way, waits: false };
        Bandwidth { up: bounds(up, Way::Up), down: bounds(down, Way::Down) }
    }
}

/// The rates of a key.
#[derive(Debug)]
pub struct Rates {
    up: Option<Rate>,
    down: Option<Rate>,
}

impl Rates {
    fn of(&self, way: Way) -> Option<&Rate> {
        if way == Way::Up { self.up.as_ref() } else { self.down.as_ref() }
    }

    fn is_full(&self, now: Instant) -> bool {
        [&self.up, &self.down].into_iter().flatten().all(|rate| rate.is_full(now))
    }
}

/// The keys of one configuration. A key stays as long as a session has it or it owes something: who
/// reconnects does not begin anew.
#[derive(Debug, Default)]
pub struct Table {
    keys: Mutex<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    map: HashMap<Box<str>, Arc<Rates>>,
    sweep_at: usize,
}

impl Table {
    /// The rates of a key, new ones where it is not known.
    pub fn rates(&self, key: &str, wanted: &Wanted, now: Instant) -> Arc<Rates> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let key = &*short(key, keys.map.hasher());
        if let Some(rates) = keys.map.get(key) {
            return rates.clone();
        }
        if keys.map.len() >= keys.sweep_at.max(LEAST_TO_SWEEP) {
            keys.sweep(now);
        }
        let rates = Arc::new(wanted.rates(now));
        keys.map.insert(key.into(), rates.clone());
        rates
    }

    /// How many keys are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).map.len()
    }

    /// Reports whether no key is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Keys {
    fn sweep(&mut self, now: Instant) {
        let mut idle = 0;
        self.map.retain(|_, rates| {
            let held = Arc::strong_count(rates) > 1;
            idle += usize::from(!held && !rates.is_full(now));
            held || (!rates.is_full(now) && idle <= MOST_IDLE)
        });
        self.sweep_at = self.map.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Moves bytes for so many seconds as fast as allowed, `late` after each time it may.
    fn moved(wanted: &Wanted, seconds: u64, late: Duration) -> u64 {
        let began = now();
        let mut bounds = wanted.bandwidth(None, began).up;
        let (mut now, mut moved) = (began, 0);
        while now < began + Duration::from_secs(seconds) {
            let turn = bounds.turn(now).min(256 * 1024);
            let wait = bounds.reserve(turn, now);
            if !wait.is_zero() {
                now += wait + late;
            }
            bounds.settle(turn, turn, now);
            moved += turn as u64;
        }
        moved
    }

    #[test]
    fn a_rate_is_kept_from_one_kilobyte_to_one_gigabyte() {
        for bytes in [1_000, 64_000, 1_000_000, 125_000_000, 1_000_000_000] {
            for late in [0, 2, 30] {
                let wanted = Wanted { up: Some(bytes), ..Wanted::default() };
                let moved = moved(&wanted, 4, Duration::from_millis(late));
                let wrong = moved.abs_diff(4 * bytes);
                assert!(wrong * 20 <= 4 * bytes, "{moved} of {bytes} a second, {late} ms late");
            }
        }
    }

    #[test]
    fn a_burst_comes_at_once_and_then_the_rate() {
        let wanted = Wanted { up: Some(1000), burst: Some(5000), down: None };
        let now = now();
        let mut bounds = wanted.bandwidth(None, now).up;
        assert_eq!(bounds.turn(now), 5000);
        assert!(bounds.reserve(5000, now).is_zero());
        bounds.settle(5000, 5000, now);
        assert_eq!(bounds.turn(now), 50);
        assert!(bounds.reserve(100, now).is_zero(), "the last place of the burst");
        bounds.settle(100, 100, now);
        assert_eq!(bounds.reserve(100, now), Duration::from_millis(100));
        bounds.settle(100, 0, now);
        assert_eq!(bounds.reserve(100, now + Duration::from_millis(40)), Duration::from_millis(60));
    }

    #[test]
    fn sessions_of_a_key_take_turns() {
        let wanted = Wanted { up: Some(100_000), ..Wanted::default() };
        let (table, began) = (Table::default(), now());
        let own = Wanted::default();
        let shared = || table.rates("k", &wanted, began);
        let mut sessions: Vec<_> =
            (0..10).map(|_| (own.bandwidth(Some(&shared()), began).up, began, 0, 0)).collect();
        let until = began + Duration::from_secs(10);
        loop {
            let (bounds, due, reserved, moved) = sessions.iter_mut().min_by_key(|(_, due, ..)| *due).unwrap();
            if *due >= until {
                break;
            }
            let now = *due;
            bounds.settle(*reserved, *reserved, now);
            *moved += *reserved;
            *reserved = bounds.turn(now);
            *due = now + bounds.reserve(*reserved, now).max(Duration::from_micros(1));
        }
        let moved: Vec<usize> = sessions.iter().map(|(.., moved)| *moved).collect();
        let (all, least, most) = (moved.iter().sum::<usize>(), moved.iter().min(), moved.iter().max());
        assert!(all.abs_diff(1_000_000) <= 50_000, "{moved:?}");
        assert!(most.unwrap() - least.unwrap() <= 20_000, "{moved:?}");
    }

    #[test]
    fn who_reconnects_still_owes() {
        let wanted = Wanted { up: Some(1000), ..Wanted::default() };
        let (table, now) = (Table::default(), now());
        let mut first = Wanted::default().bandwidth(Some(&table.rates("k", &wanted, now)), now);
        first.up.reserve(2000, now);
        first.up.settle(2000, 2000, now);
        drop(first);
        let second = Wanted::default().bandwidth(Some(&table.rates("k", &wanted, now)), now);
        assert!(!second.up.take(1, now), "the debt is forgotten");
        assert!(second.down.take(1, now), "there is no limit");
        assert!(second.up.take(1, now + Duration::from_secs(2)));
    }

    #[test]
    fn long_keys_are_told_apart_and_not_kept() {
        let (table, now) = (Table::default(), now());
        let wanted = Wanted { up: Some(1), down: None, burst: None };
        let keys = ["a", "b"].map(|end| "x".repeat(16_000) + end);
        let [first, second] = [&keys[0], &keys[1]].map(|key| table.rates(key, &wanted, now));
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&first, &table.rates(&keys[0], &wanted, now)));
        let kept: Vec<usize> = table.keys.lock().unwrap().map.keys().map(|key| key.len()).collect();
        assert!(kept.iter().all(|length| *length < 200), "{kept:?}");
    }

    #[test]
    fn keys_without_sessions_and_debts_go() {
        let wanted = Wanted { up: Some(1000), ..Wanted::default() };
        let (table, now) = (Table::default(), now());
        let kept = table.rates("kept", &wanted, now);
        for key in 0..10_000 {
            table.rates(&key.to_string(), &wanted, now);
        }
        assert!(table.len() <= LEAST_TO_SWEEP, "{}", table.len());
        assert!(Arc::ptr_eq(&kept, &table.rates("kept", &wanted, now)));
        for key in 0..3 * MOST_IDLE {
            table.rates(&key.to_string(), &wanted, now).up.as_ref().unwrap().reserve(10_000, now);
        }
        assert!(table.len() <= 2 * MOST_IDLE, "{}", table.len());
    }
}
