//! Passive health checks: what a failed attempt says about its node.
//!
//! As in APISIX an attempt that is followed by another counts wherever the upstream has checks at all, by
//! the limits of `passive` or its defaults; the last one of a session only where `passive` is written
//! (`apisix/balancer.lua:283-296`, `apisix/init.lua:1061-1087`). Of a node that is alone only the last
//! one counts (`apisix/balancer.lua:250`). Every failure counts as one of TCP, a missing answer too. What
//! this host itself lacks is nobody else's fault.

use crate::balance::Pool;
use crate::health::{Cell, Finding, Report};
use crate::net::checkup;
use crate::session::ConnectFailure;

/// Takes note of a failed attempt. `again`: another one follows. `why` is for the operator.
pub(super) fn blame(pool: &Pool, cell: &Cell, (failure, again): (ConnectFailure, bool), why: &str) {
    let Some((checked, target)) = pool.checked().zip(checkup::target_of(pool, cell)) else { return };
    let alone = pool.nodes().len() == 1 && !pool.counts_sessions();
    let counts = if again { !alone } else { checked.checks.passive.is_some() };
    if counts && failure != ConnectFailure::Exhausted {
        let result = (Report::TcpFailure, Finding::Passive);
        checkup::report(pool, target, result, &checked.passive_limits(), why);
    }
}
