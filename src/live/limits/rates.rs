//! When the next session of each key may begin: token buckets.
//!
//! Of a bucket only the time is kept at which it will be full again; one that is full needs no entry.
//! A key that has taken `n` tokens from a full bucket is full again after `n` intervals.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::{LimitKey, PARTS, Table};
use crate::live::Counter;

/// How many keys all rates of the process remember: some 30 MB. Above it those are forgotten whose
/// buckets are nearest to full, so those that ask for the most stay limited.
pub const MOST_KEYS: usize = 262_144;

/// The same, for one part of the table.
const MOST: usize = MOST_KEYS / PARTS;
/// Parts with fewer are not worth a sweep.
const LEAST_TO_SWEEP: usize = 64;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pace {
    /// From one token to the next, in nanoseconds.
    interval: u64,
    /// How far ahead the time may be at which it is full, for one more token to be there.
    ahead: u64,
}

impl Pace {
    /// `rate` tokens a second, and `burst` more in a full bucket than those of a second. Rates outside
    /// of what can be measured, one in 146 years to one a nanosecond, count as the nearest one inside.
    #[must_use]
    pub fn new(rate: f64, burst: f64) -> Self {
        let interval =
            nanos(Duration::try_from_secs_f64(1.0 / rate.max(0.0)).unwrap_or(Duration::MAX)).max(1);
        let tokens = rate.max(1.0) + burst.max(0.0);
        #[expect(clippy::cast_precision_loss, reason = "a nanosecond more or less")]
        let ahead = Duration::try_from_secs_f64((tokens - 1.0) * (interval as f64 / 1e9));
        Self { interval, ahead: nanos(ahead.unwrap_or(Duration::MAX)) }
    }
}

fn nanos(time: Duration) -> u64 {
    // The rest of the range is left for what it is added to.
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 4)
}

/// One limit on sessions a second.
#[derive(Debug)]
pub struct RateLimit {
    pub(super) id: u64,
    pub(super) buckets: Arc<Buckets>,
}

/// Of all limits.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    /// What times are counted from: that of the first session.
    epoch: OnceLock<Instant>,
    table: Table<Full>,
    forgotten: Arc<Counter>,
}

/// When buckets are full.
#[derive(Debug)]
struct Full {
    at: HashMap<Box<str>, u64>,
    sweep_at: usize,
}

impl Default for Full {
    fn default() -> Self {
        Self { at: HashMap::new(), sweep_at: LEAST_TO_SWEEP }
    }
}

impl Buckets {
    pub(super) fn new(forgotten: Arc<Counter>) -> Self {
        Self { forgotten, ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.table.sum(|part| part.at.len())
    }
}

impl RateLimit {
    /// An empty key.
    #[must_use]
    pub fn key(&self) -> LimitKey {
        LimitKey::of(self.id)
    }

    /// Takes a token of the key's bucket; otherwise tells how long it is until there is one.
    pub fn take(&self, key: &LimitKey, pace: Pace, now: Instant) -> Result<(), Duration> {
        let now = self.since_epoch(now);
        let key = self.buckets.table.name(key);
        let Some(mut part) = self.buckets.table.part(&key) else { return Ok(()) };
        let known = part.at.get_mut(&*key);
        let full = taken(known.as_deref().copied(), pace, now)?;
        if let Some(at) = known {
            *at = full;
        } else {
            part.make_room(now, &self.buckets.forgotten);
            part.at.insert(key.into(), full);
        }
        Ok(())
    }

    /// What [`Self::take`] would say.
    pub fn look(&self, key: &LimitKey, pace: Pace, now: Instant) -> Result<(), Duration> {
        let key = self.buckets.table.name(key);
        let known = self.buckets.table.part(&key).and_then(|part| part.at.get(&*key).copied());
        taken(known, pace, self.since_epoch(now)).map(drop)
    }

    fn since_epoch(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(*self.buckets.epoch.get_or_init(|| now)))
    }
}

/// When a bucket is full after one token more was taken.
fn taken(full: Option<u64>, pace: Pace, now: u64) -> Result<u64, Duration> {
    let full = full.unwrap_or(now).max(now);
    match (full - now).checked_sub(pace.ahead) {
        None | Some(0) => Ok(full.saturating_add(pace.interval)),
        Some(missing) => Err(Duration::from_nanos(missing)),
    }
}

impl Full {
    /// Sees to it that one more has room. A sweep costs as much as there is, and comes after as many
    /// new keys as a third of that at least.
    fn make_room(&mut self, now: u64, forgotten: &Counter) {
        if self.at.len() < self.sweep_at {
            return;
        }
        self.at.retain(|_, full| *full > now);
        if self.at.len() > MOST / 4 * 3 {
            let before = self.at.len();
            let mut times: Vec<u64> = self.at.values().copied().collect();
            let (_, least, later) = times.select_nth_unstable(before - MOST / 2);
            // Many may have the same time.
            let mut equal = MOST / 2 - later.iter().filter(|time| *time > least).count();
            self.at.retain(|_, full| {
                let kept = *full > *least || *full == *least && equal > 0;
                equal -= usize::from(kept && *full == *least);
                kept
            });
            forgotten.add(u64::try_from(before - self.at.len()).unwrap_or(0));
        }
        self.sweep_at = (self.at.len() * 2).clamp(LEAST_TO_SWEEP, MOST);
        self.at.shrink_to(self.sweep_at);
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::live::limits::Limits;

    fn key(limit: &RateLimit, text: &str) -> LimitKey {
        let mut key = limit.key();
        key.write_str(text).unwrap();
        key
    }

    /// How many of `asked` sessions pass at once, after the bucket has been left alone for `rest`
    /// since it was emptied.
    #[track_caller]
    fn check(rate: f64, burst: f64, at_first: usize, after: &[(f64, usize)]) {
        let limits = Limits::default();
        let (limit, pace) = (limits.rate(""), Pace::new(rate, burst));
        let mut now = tokio::time::Instant::now().into_std();
        let pass = |now| (0..1000).filter(|_| limit.take(&key(&limit, "a"), pace, now).is_ok()).count();
        assert_eq!(pass(now), at_first, "at first, rate {rate} burst {burst}");
        for (seconds, expected) in after {
            now += Duration::from_secs_f64(*seconds);
            assert_eq!(pass(now), *expected, "after {seconds} s, rate {rate} burst {burst}");
        }
    }

    #[test]
    fn a_bucket_holds_a_second_and_the_burst() {
        check(5.0, 0.0, 5, &[(0.1, 0), (0.11, 1), (1.01, 5), (60.0, 5)]);
        check(5.0, 10.0, 15, &[(1.01, 5), (60.0, 15)]);
        check(0.5, 0.0, 1, &[(1.0, 0), (1.01, 1), (100.0, 1)]);
        check(0.5, 2.0, 3, &[(2.01, 1), (100.0, 3)]);
        check(2.5, 0.0, 2, &[(10.0, 2)]);
        // What no clock can measure.
        check(1e300, 0.0, 1000, &[(0.0, 1000)]);
        check(1e-300, 0.0, 1, &[(1e9, 0)]);
        check(1.0, 1e300, 1000, &[]);
    }

    #[test]
    fn who_is_refused_is_told_how_long() {
        let limits = Limits::default();
        let (limit, pace, now) =
            (limits.rate(""), Pace::new(0.1, 0.0), tokio::time::Instant::now().into_std());
        let a = key(&limit, "a");
        assert_eq!(limit.look(&a, pace, now), Ok(()));
        assert_eq!(limit.take(&a, pace, now), Ok(()));
        assert_eq!(limit.take(&a, pace, now + Duration::from_secs(4)), Err(Duration::from_secs(6)));
        assert_eq!(limit.look(&a, pace, now + Duration::from_secs(4)), Err(Duration::from_secs(6)));
        // A worker whose time is older.
        assert!(limit.take(&a, pace, now.checked_sub(Duration::from_secs(1)).unwrap()).is_err());
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let limits = Limits::default();
        let (limit, pace, mut now) =
            (limits.rate(""), Pace::new(1.0, 0.0), tokio::time::Instant::now().into_std());
        for at in 0..100_000 {
            // One key in a millisecond, each full again after a second: 1,000 are not full.
            now += Duration::from_millis(1);
            limit.take(&key(&limit, &at.to_string()), pace, now).unwrap();
        }
        let (_, remembered) = limits.remembered();
        assert!((1000..PARTS * LEAST_TO_SWEEP + 1000).contains(&remembered), "{remembered}");
        assert_eq!(limits.buckets.forgotten.count(), 0);
    }

    #[test]
    fn a_flood_of_keys_takes_no_more_memory_and_who_asks_most_stays_limited() {
        let limits = Limits::default();
        let (limit, pace, now) =
            (limits.rate(""), Pace::new(0.1, 1.0), tokio::time::Instant::now().into_std());
        let greedy = key(&limit, "greedy");
        limit.take(&greedy, pace, now).unwrap();
        limit.take(&greedy, pace, now).unwrap();
        for at in 0..MOST_KEYS * 2 {
            limit.take(&key(&limit, &at.to_string()), pace, now).unwrap();
        }
        let (_, remembered) = limits.remembered();
        assert!((MOST_KEYS / 2..=MOST_KEYS).contains(&remembered), "{remembered}");
        let forgotten = usize::try_from(limits.buckets.forgotten.count()).unwrap();
        assert_eq!(forgotten, MOST_KEYS * 2 + 1 - remembered);
        assert!(limit.take(&greedy, pace, now).is_err());
    }
}
