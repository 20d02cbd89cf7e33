//! What becomes of a result about a node: it is counted, and the log is told.
//!
//! Probes bring results, and sessions that could not connect. The line about a counted result is the one
//! that APISIX's operators look for (`resty/healthcheck.lua:757`).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::balance::{Pool, Target};
use crate::health::{Applied, Cause, Cell, Finding, Limits, Report};
use crate::net::clock::unix_ms;

/// Results that are told in ten seconds: thousands of nodes may flap.
const MOST_LINES: u64 = 200;

/// Counts a result about a target of `pool`; `why` says what was found, for the operator.
pub fn report(pool: &Pool, target: &Target, result: (Report, Finding), limits: &Limits, why: &str) {
    let (report, by) = result;
    let cause = || Cause { by, why: why.into(), since_unix_ms: unix_ms() };
    target.cell.heard(unix_ms());
    let Some(Applied { now, turned }) = target.cell.report(report, limits, cause) else { return };
    let Some(kept_back) = may_tell() else { return };
    if kept_back > 0 {
        tracing::warn!("suppressed {kept_back} lines about health checks; pages and metrics have all");
    }
    let health = if report == Report::Success { "healthy" } else { "unhealthy" };
    tracing::warn!(
        upstream = &*pool.id,
        node = %target.addr,
        by = by.label(),
        "upstream {}: {health} {} increment ({}/{}) for '{}({})': {why}",
        pool.id,
        report.label(),
        now.counter(report),
        limits.of(report),
        target.host,
        target.addr,
    );
    if turned {
        tell(pool, target, why);
    }
}

/// Reports whether one more line may be written, and how many were not before. Without a lock: sessions
/// report from their workers, and shall not wait for the control plane.
fn may_tell() -> Option<u64> {
    static LINES: Lines = Lines { wanted: AtomicU64::new(0), kept_back: AtomicU64::new(0) };
    LINES.may_tell(unix_ms() / 10_000)
}

/// Lines about health in a span of ten seconds.
struct Lines {
    /// The span, and in the lower half how many lines have been wanted in it.
    wanted: AtomicU64,
    kept_back: AtomicU64,
}

impl Lines {
    fn may_tell(&self, span: u64) -> Option<u64> {
        let count = |wanted| if wanted >> 32 == span { wanted + 1 } else { span << 32 | 1 };
        let before = self.wanted.fetch_update(Relaxed, Relaxed, |wanted| Some(count(wanted))).unwrap_or(0);
        if count(before) & u64::from(u32::MAX) > MOST_LINES {
            self.kept_back.fetch_add(1, Relaxed);
            return None;
        }
        Some(if before >> 32 == span { 0 } else { self.kept_back.swap(0, Relaxed) })
    }
}

/// Lets a target in again that nothing probes.
pub fn revive(pool: &Pool, target: &Target, why: &str) {
    let cause = Cause { by: Finding::BackOff, why: why.into(), since_unix_ms: unix_ms() };
    if target.cell.revive(cause) {
        tell(pool, target, why);
    }
}

/// The target of a node's standing.
#[must_use]
pub fn target_of<'a>(pool: &'a Pool, cell: &Cell) -> Option<&'a Target> {
    pool.checked()?.targets.iter().find(|target| std::ptr::eq(&raw const *target.cell, cell))
}

/// Tells of a target that is used no longer, or again.
fn tell(pool: &Pool, target: &Target, why: &str) {
    let Some(checked) = pool.checked() else { return };
    let (down, all) = (checked.down(), checked.targets.len());
    let (id, addr) = (&pool.id, target.addr);
    if target.cell.is_usable() {
        tracing::warn!(upstream = &**id, node = %addr, "upstream {id}: {addr} is used again: {why}; {down} of {all} are down");
    } else if down < all {
        tracing::warn!(upstream = &**id, node = %addr, "upstream {id}: {addr} is down: {why}; {down} of {all} are down");
    } else if all == 1 {
        tracing::error!(
            upstream = &**id,
            node = %addr,
            "upstream {id}: {addr} is down: {why}; it is the only node, and sessions are sent there all the same",
        );
    } else {
        tracing::error!(
            upstream = &**id,
            node = %addr,
            "upstream {id}: {addr} is down: {why}; now all {all} are down, and sessions are sent to all of them",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_are_told_in_a_span_and_the_next_says_what_was_not() {
        let lines = Lines { wanted: AtomicU64::new(0), kept_back: AtomicU64::new(0) };
        for _ in 0..MOST_LINES {
            assert_eq!(lines.may_tell(7), Some(0));
        }
        for _ in 0..3 {
            assert_eq!(lines.may_tell(7), None);
        }
        assert_eq!(lines.may_tell(8), Some(3));
        assert_eq!(lines.may_tell(8), Some(0));
    }
}
