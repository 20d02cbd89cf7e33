//! When a target is probed next, and when one is let in again that nothing probes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::balance::{Pool, Target};
use crate::net::checkup;

/// An interval is made longer by up to this part of it, never shorter: nobody gets more probes than were
/// configured.
const JITTER: f64 = 0.1;
/// How long a target stays out that only sessions took out and nothing probes: the first time, and at most.
const BACK_OFF: [Duration; 2] = [Duration::from_secs(10), Duration::from_mins(5)];

/// When a target was probed last, and its interval then; kept over edits of its upstream.
#[derive(Debug, Default)]
pub(super) struct LastProbe(Mutex<Option<(Instant, Duration)>>);

impl LastProbe {
    fn get(&self) -> Option<(Instant, Duration)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports whether the interval since then is not over yet.
    pub(super) fn is_recent(&self, now: Instant) -> bool {
        self.get().is_some_and(|(last, interval)| now < last + interval)
    }
}

/// The schedule of one target.
#[derive(Debug)]
pub(super) struct Schedule {
    last: Arc<LastProbe>,
    /// When it began, where there was no probe yet.
    begun: Instant,
    /// From 0 to 1: how much longer than the interval this round is; in the first one, how much of the
    /// interval there is left.
    lot: f64,
    /// Since when a target is out, or was let in again, that nothing probes.
    waiting: Option<Instant>,
}

impl Schedule {
    /// One that begins now. `lot` is from 0 to 1.
    pub(super) fn new(last: Arc<LastProbe>, lot: f64) -> Self {
        Self { last, begun: Instant::now(), lot, waiting: None }
    }

    /// How long there is until the next probe.
    pub(super) fn left(&self, interval: Duration, now: Instant) -> Duration {
        let due = match self.last.get() {
            Some((last, _)) => last + interval.mul_f64(1.0 + JITTER * self.lot),
            None => self.begun + interval.mul_f64(self.lot),
        };
        due.saturating_duration_since(now)
    }

    pub(super) fn is_due(&self, interval: Duration, now: Instant) -> bool {
        self.left(interval, now).is_zero()
    }

    /// A probe begins, of a target that is to be probed at this interval.
    pub(super) fn begins(&mut self, now: Instant, interval: Duration, lot: f64) {
        *self.last.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, interval));
        self.lot = lot;
        self.waiting = None;
    }

    /// Looks after a target that is not probed in its state: it comes back after a time that grows each
    /// time it fails again soon (APISIX: never).
    pub(super) fn without_probes(&mut self, pool: &Pool, target: &Target, now: Instant) {
        let relapses = target.cell.relapses();
        let limit = back_off(relapses);
        if target.cell.is_usable() {
            if relapses == 0 {
                self.waiting = None;
            } else if now.duration_since(*self.waiting.get_or_insert(now)) >= limit {
                target.cell.proven();
                self.waiting = None;
            }
            return;
        }
        if now.duration_since(*self.waiting.get_or_insert(now)) < limit {
            return;
        }
        let why = format!("no probe is configured for it, and it has been out for {limit:?}");
        checkup::revive(pool, target, &why);
        self.waiting = Some(now);
    }
}

/// How long a target stays out that was let in so often unproven.
fn back_off(relapses: usize) -> Duration {
    let [first, longest] = BACK_OFF;
    let doubled = u32::try_from(relapses).unwrap_or(u32::MAX).min(16);
    (first * 2_u32.pow(doubled)).min(longest)
}
