//! Tables of the reference, section 4.3.

use super::*;

const LIMITS: Limits = Limits { successes: 2, http_failures: 2, tcp_failures: 3, timeouts: 0 };

/// `s`, `h`, `t`, `o`: success, http, tcp, timeout. The answer: state and counters (success, http,
/// tcp, timeout), and which results were counted.
#[track_caller]
fn check(reports: &str, state: State, counters: [u8; 4], counted: &str) {
    let mut standing = Standing::default();
    let mut seen = String::new();
    for letter in reports.chars() {
        let report = match letter {
            's' => Report::Success,
            'h' => Report::HttpFailure,
            't' => Report::TcpFailure,
            _ => Report::Timeout,
        };
        let next = standing.after(report, &LIMITS);
        seen.push(if next.is_some() { letter } else { '.' });
        standing = next.unwrap_or(standing);
        assert_eq!(Standing::unpack(standing.pack()), standing, "packing");
    }
    assert_eq!(standing.state, state, "{reports}");
    let Standing { success, http_failure, tcp_failure, timeout_failure, .. } = standing;
    assert_eq!([success, http_failure, tcp_failure, timeout_failure], counters, "{reports}");
    assert_eq!(seen, counted, "{reports}");
}

#[test]
fn successes_while_healthy_are_not_counted() {
    check("", State::Healthy, [0, 0, 0, 0], "");
    check("sss", State::Healthy, [0, 0, 0, 0], "...");
}

#[test]
fn failures_turn_at_their_own_limit() {
    check("h", State::MostlyHealthy, [0, 1, 0, 0], "h");
    check("hh", State::Unhealthy, [0, 2, 0, 0], "hh");
    check("tt", State::MostlyHealthy, [0, 0, 2, 0], "tt");
    check("ttt", State::Unhealthy, [0, 0, 3, 0], "ttt");
    check("tht", State::MostlyHealthy, [0, 1, 2, 0], "tht");
    check("thth", State::Unhealthy, [0, 2, 2, 0], "thth");
}

#[test]
fn a_limit_of_zero_ignores() {
    check("oooo", State::Healthy, [0, 0, 0, 0], "....");
    check("hoo", State::MostlyHealthy, [0, 1, 0, 0], "h..");
}

#[test]
fn failures_while_unhealthy_are_not_counted() {
    check("hhht", State::Unhealthy, [0, 2, 0, 0], "hh..");
}

#[test]
fn a_success_clears_failures_and_a_failure_clears_successes() {
    check("ths", State::MostlyHealthy, [1, 0, 0, 0], "ths");
    check("thst", State::MostlyHealthy, [0, 0, 1, 0], "thst");
    check("hs", State::MostlyHealthy, [1, 0, 0, 0], "hs");
    check("hss", State::Healthy, [2, 0, 0, 0], "hss");
    check("hsss", State::Healthy, [2, 0, 0, 0], "hss.");
}

#[test]
fn the_way_back_is_by_successes_in_a_row() {
    check("hhs", State::MostlyUnhealthy, [1, 0, 0, 0], "hhs");
    check("hhss", State::Healthy, [2, 0, 0, 0], "hhss");
    // A failure on the way back starts it anew, without making it unhealthy before the limit.
    check("hhst", State::MostlyUnhealthy, [0, 0, 1, 0], "hhst");
    check("hhsts", State::MostlyUnhealthy, [1, 0, 0, 0], "hhsts");
    check("hhshh", State::Unhealthy, [0, 2, 0, 0], "hhshh");
}

#[test]
fn the_successes_that_were_counted_last_stay_until_a_failure() {
    check("hsst", State::MostlyHealthy, [0, 0, 1, 0], "hsst");
}

#[test]
fn cells_count_the_unusable_and_tell_why() {
    let down = Arc::new(Down::default());
    let cell = Cell::new(down.clone());
    let cause = |why: &str| Cause { by: Finding::Active, why: why.into(), since_unix_ms: 7 };
    let first = cell.report(Report::TcpFailure, &Limits::ACTIVE, || cause("one")).unwrap();
    assert!(!first.turned && cell.is_usable() && down.count() == 0);
    let second = cell.report(Report::TcpFailure, &Limits::ACTIVE, || cause("two")).unwrap();
    assert!(second.turned && !cell.is_usable());
    assert_eq!(cell.report(Report::TcpFailure, &Limits::ACTIVE, || cause("three")), None);
    assert_eq!((down.count(), &*cell.cause().unwrap().why), (1, "two"));
    // On the way back and away from it, it is still down for what it was taken out for.
    cell.report(Report::Success, &Limits::ACTIVE, || cause("an answer")).unwrap();
    assert_eq!((cell.standing().state, &*cell.cause().unwrap().why), (State::MostlyUnhealthy, "two"));
    assert!(cell.revive(cause("time is over")) && !cell.revive(cause("again")));
    assert_eq!((down.count(), cell.relapses()), (0, 1));
    for _ in 0..2 {
        cell.report(Report::TcpFailure, &Limits::ACTIVE, || cause("down"));
    }
    assert_eq!(down.count(), 1);
    drop(cell);
    assert_eq!(down.count(), 0, "a target that is gone is not down");
}

use std::sync::Arc;
