//! What becomes of a result about a node: it is counted, and the log is told.
//!
//! Probes bring results, and sessions that could not connect. The line about a counted result is the one
//! that APISIX's operators look for (`resty/healthcheck.lua:757`).

use std::sync::{Mutex, PoisonError};

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

/// Reports whether one more line may be written, and how many were not in the ten seconds before.
fn may_tell() -> Option<u64> {
    static LINES: Mutex<Lines> = Mutex::new(Lines { window: 0, told: 0, kept_back: 0 });
    let window = unix_ms() / 10_000;
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut before = 0;
    if lines.window != window {
        before = lines.kept_back;
        *lines = Lines { window, told: 0, kept_back: 0 };
    }
    if lines.told >= MOST_LINES {
        lines.kept_back += 1;
        return None;
    }
    lines.told += 1;
    Some(before)
}

/// Lines about health in a span of ten seconds.
struct Lines {
    window: u64,
    told: u64,
    kept_back: u64,
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
