//! Active checks: who is probed, when, and what stays over edits. Never more than was configured.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/configured.rs"]
mod configured;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/patient.rs"]
mod patient;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use configured::{Configured, set_usable};
use gateway::{Setup, connect, poll_until};
use patient::{Manner, Patient, Waiting};
use serde_json::{Value, json};
use streamgate::health::State;
use streamgate::probe::Trust;
use streamgate::resource::Kind;
use streamgate::snapshot::UpstreamSettings;
use tokio::time::Instant;

/// Probed by TCP every second, `more` being members of `active`.
fn checks(more: &Value) -> Value {
    let mut active = json!({"type": "tcp", "healthy": {"interval": 1}, "unhealthy": {"interval": 1}});
    for (name, value) in more.as_object().unwrap() {
        active[name] = value.clone();
    }
    json!({"active": active})
}

fn upstream(addrs: &[SocketAddr], checks: &Value) -> Value {
    json!({"nodes": objects::nodes(addrs), "checks": checks})
}

fn patients(count: usize) -> Vec<Patient> {
    (0..count).map(|_| Patient::new(Manner::Silent)).collect()
}

fn addrs(patients: &[Patient]) -> Vec<SocketAddr> {
    patients.iter().map(|patient| patient.addr).collect()
}

/// Asserts that no target was probed again before its interval was over. Who came is noted a little later
/// than it came, and not always as much later.
#[track_caller]
fn check_intervals(patients: &[Patient], interval: Duration) {
    for patient in patients {
        let visits = patient.visits();
        for pair in visits.windows(2) {
            let gap = pair[1].at - pair[0].at;
            assert!(gap >= interval.mul_f64(0.7), "{} was probed again after {gap:?}", patient.addr);
        }
    }
}

fn total(patients: &[Patient]) -> usize {
    patients.iter().map(Patient::count).sum()
}

/// Lets `rounds` rounds of probes pass, changing something again and again.
#[track_caller]
fn while_probed(patients: &[Patient], rounds: usize, mut change: impl FnMut(usize)) {
    let (began, mut turn) = (Instant::now(), 0);
    let mut next = began;
    poll_until("so many probes", || {
        if Instant::now() >= next {
            change(turn);
            turn += 1;
            next += Duration::from_millis(130);
        }
        (total(patients) >= rounds * patients.len() || began.elapsed() > Duration::from_secs(8)).then_some(())
    });
    let most = patients.len() * usize::try_from(began.elapsed().as_secs() + 1).unwrap();
    assert!(total(patients) <= most, "{} probes, at most {most} were configured", total(patients));
}

#[test]
fn edits_bring_no_probes_of_their_own() {
    let patients = patients(12);
    let addrs = addrs(&patients);
    let mut gateway = Configured::to(&upstream(&addrs, &checks(&json!({}))));
    while_probed(&patients, 4, |turn| {
        let mut edited =
            upstream(&addrs, &checks(&json!({"timeout": 1 + turn % 2, "concurrency": 5 + turn})));
        edited["nodes"][0]["weight"] = json!(turn);
        edited["retries"] = json!(turn);
        gateway.put_upstream(&edited);
    });
    check_intervals(&patients, Duration::from_secs(1));
}

#[test]
fn a_node_that_goes_and_comes_back_is_not_probed_more_often() {
    let patients = patients(24);
    let addrs = addrs(&patients);
    let mut gateway = Configured::to(&upstream(&addrs, &checks(&json!({}))));
    while_probed(&patients, 3, |turn| match turn % 4 {
        0 => gateway.put_upstream(&upstream(&addrs[..2], &checks(&json!({})))),
        2 => gateway.put_upstream(&json!({"nodes": objects::nodes(&addrs)})),
        _ => gateway.put_upstream(&upstream(&addrs, &checks(&json!({})))),
    });
    check_intervals(&patients, Duration::from_secs(1));
}

#[test]
fn probes_of_many_are_spread_over_the_interval() {
    let patients = patients(40);
    let _gateway = Configured::to(&upstream(&addrs(&patients), &checks(&json!({"concurrency": 100}))));
    poll_until("a probe of each", || patients.iter().all(|patient| patient.count() > 0).then_some(()));
    let mut firsts: Vec<Instant> = patients.iter().map(|patient| patient.visits()[0].at).collect();
    firsts.sort();
    let most = firsts.iter().map(|at| {
        firsts.iter().filter(|other| **other >= *at && **other < *at + Duration::from_millis(100)).count()
    });
    assert!(most.max().unwrap() < 20, "so many of 40 within a tenth of the interval");
}

#[test]
fn no_more_probes_are_under_way_than_concurrency_allows() {
    let (waiting, pause) = (Waiting::default(), Duration::from_millis(200));
    let patients: Vec<Patient> = (0..9).map(|_| Patient::slow(&waiting, pause)).collect();
    let more = json!({"type": "http", "concurrency": 3, "timeout": 5});
    let _gateway = Configured::to(&upstream(&addrs(&patients), &checks(&more)));
    poll_until("probes of all", || (patients.iter().all(|patient| patient.count() >= 2)).then_some(()));
    assert_eq!(waiting.most(), 3);
    check_intervals(&patients, Duration::from_secs(1));
}

#[test]
fn only_upstreams_that_a_route_reaches_are_probed() {
    let all = patients(6);
    let [reached, unreached, of_http, inline, of_service, shared] = &all[..] else { panic!() };
    let one = |patient: &Patient| upstream(&[patient.addr], &checks(&json!({})));
    let objects = [
        (Kind::StreamRoute, "r1", json!({"server_port": 1, "upstream_id": "u1"})),
        (Kind::StreamRoute, "r2", json!({"server_port": 2, "upstream": one(inline)})),
        (Kind::StreamRoute, "r3", json!({"server_port": 3, "service_id": "s1"})),
        (Kind::Service, "s1", json!({"upstream": one(of_service)})),
        (Kind::StreamRoute, "r5", json!({"server_port": 5, "upstream_id": "u3"})),
        (Kind::StreamRoute, "r6", json!({"server_port": 6, "upstream_id": "u3"})),
        (Kind::Upstream, "u1", one(reached)),
        (Kind::Upstream, "u2", one(unreached)),
        (Kind::Upstream, "u3", one(shared)),
        (Kind::Upstream, "u4", one(of_http)),
    ];
    let setup = Setup { workers: 1, ..Setup::default() };
    let mut gateway = Configured::start(&setup, UpstreamSettings::default(), Trust::default(), &objects);
    // From the moment the route is there, without a session.
    poll_until("probes", || {
        [reached, inline, of_service, shared].iter().all(|one| one.count() >= 2).then_some(())
    });
    assert_eq!((unreached.count(), of_http.count()), (0, 0));
    gateway.put(Kind::StreamRoute, "r4", &json!({"server_port": 4, "upstream_id": "u2"}));
    gateway.delete(Kind::StreamRoute, "r1");
    poll_until("probes of what is reached now", || (unreached.count() >= 2).then_some(()));
    let before = reached.count();
    poll_until("two more", || (unreached.count() >= 4).then_some(()));
    assert_eq!((reached.count(), of_http.count()), (before, 0));
    // Two routes go to one of them, which is probed once.
    check_intervals(&all, Duration::from_secs(1));
}

#[test]
fn disabled_checks_probe_and_filter_nobody() {
    let (well, lost) = (Patient::new(Manner::Silent), Patient::refusing());
    let settings = UpstreamSettings { checks: false, ..UpstreamSettings::default() };
    let all = upstream(&[well.addr, lost.addr], &checks(&json!({"unhealthy": {"tcp_failures": 1}})));
    let setup = Setup { workers: 1, ..Setup::default() };
    let disabled = Configured::start(&setup, settings, Trust::default(), &objects::to(&all));
    let probed = Patient::new(Manner::Silent);
    let _other = Configured::to(&upstream(&[probed.addr], &checks(&json!({}))));
    poll_until("probes elsewhere", || (probed.count() >= 2).then_some(()));
    assert_eq!(well.count(), 0);
    assert!(disabled.objects.pool().checked().is_none());
}

#[test]
fn what_is_known_stays_over_edits() {
    let (well, lost) = (Patient::new(Manner::Silent), Patient::refusing());
    let both = [well.addr, lost.addr];
    let mut gateway = Configured::to(&upstream(&both, &checks(&json!({"unhealthy": {"interval": 600}}))));
    gateway.until_usable(lost.addr, false);
    let (cell, before) = (gateway.cell(lost.addr), gateway.standing(lost.addr));
    // Weights, a node more, their order, each member of checks; and gone and back while a session knows it.
    let mut edits =
        vec![upstream(&both, &checks(&json!({"unhealthy": {"interval": 600, "tcp_failures": 5}})))];
    edits.push(upstream(
        &[lost.addr, well.addr],
        &checks(&json!({"type": "http", "unhealthy": {"interval": 600}})),
    ));
    edits.push(upstream(
        &[lost.addr, ([127, 0, 0, 9], 9).into(), well.addr],
        &checks(&json!({"unhealthy": {"interval": 600}})),
    ));
    edits[0]["nodes"][1]["weight"] = json!(50);
    for edit in &edits {
        gateway.put_upstream(edit);
        assert!(Arc::ptr_eq(&cell, &gateway.cell(lost.addr)));
        assert_eq!(gateway.standing(lost.addr), before);
        assert!(
            !gateway.objects.pool().nodes().iter().find(|node| node.addr == lost.addr).unwrap().is_usable()
        );
        assert_eq!(gateway.objects.pool().checked().unwrap().stats.down.count(), 1);
    }
}

#[test]
fn without_healthy_only_what_is_down_is_probed() {
    let mut lost = Patient::refusing();
    let well = Patient::new(Manner::Silent);
    let checks = json!({"active": {"type": "tcp", "unhealthy": {"interval": 1, "tcp_failures": 1}}});
    let mut checked = upstream(&[lost.addr, well.addr], &checks);
    checked["checks"]["passive"] = json!({"unhealthy": {"tcp_failures": 1}});
    checked["nodes"][1]["priority"] = json!(-1);
    let mut gateway = Configured::to(&checked);
    let at = gateway.tcp();
    lost.listen();
    let probed = Patient::new(Manner::Silent);
    let _other = Configured::to(&upstream(&[probed.addr], &self::checks(&json!({}))));
    poll_until("probes elsewhere", || (probed.count() >= 2).then_some(()));
    assert_eq!((lost.count(), well.count()), (0, 0), "they are usable");
    // A session takes it out; probes bring it back, twice, for the default is two successes.
    lost.refuse();
    drop(connect(at));
    gateway.until_usable(lost.addr, false);
    lost.listen();
    gateway.until_usable(lost.addr, true);
    poll_until("two probes", || (lost.count() >= 2).then_some(()));
    assert_eq!((lost.count(), gateway.standing(lost.addr).state), (2, State::Healthy));
}

/// `observed/13`: a session goes to a dead node until the second probe has failed, and not after that; with
/// all nodes dead sessions go to all of them again, counted.
#[test]
fn sessions_leave_a_node_with_its_second_failed_probe() {
    let (well, dead) = (Patient::new(Manner::Says(b"A".to_vec())), Patient::refusing());
    let mut checked = upstream(&[well.addr, dead.addr], &checks(&json!({})));
    checked["retries"] = json!(0);
    let mut gateway = Configured::to(&checked);
    let at = gateway.tcp();
    let answered = || {
        use std::io::Read;
        connect(at).read_exact(&mut [0]).is_ok()
    };
    let mut seen = Vec::new();
    poll_until("the second failure", || {
        // The state is looked at first: it may change behind a session's back.
        let out = !gateway.cell(dead.addr).is_usable();
        seen.push((gateway.standing(dead.addr).tcp_failure, answered()));
        out.then_some(())
    });
    assert!(
        seen.iter().any(|(failures, answered)| *failures == 1 && !answered),
        "mostly healthy is used: {seen:?}"
    );
    for _ in 0..20 {
        assert!(answered());
    }
    let stats = gateway.objects.pool().checked().unwrap().stats.clone();
    assert_eq!((stats.down.count(), stats.all_down.count()), (1, 0));
    set_usable(&gateway.cell(well.addr), false);
    let answers = [answered(), answered(), answered(), answered()];
    assert_eq!(answers.iter().filter(|answered| **answered).count(), 2, "all are down: all are used");
    assert_eq!(stats.all_down.count(), 4);
}

#[test]
fn a_probe_under_way_is_judged_whatever_edits_come() {
    let (waiting, pause) = (Waiting::default(), Duration::from_mins(1));
    let patient = Patient::slow(&waiting, pause);
    let silent = |concurrency: u32| {
        let more =
            json!({"type": "http", "timeout": 1, "concurrency": concurrency, "unhealthy": {"timeouts": 1}});
        upstream(&[patient.addr, ([127, 0, 0, 9], 9).into()], &checks(&more))
    };
    let mut gateway = Configured::to(&silent(1));
    let mut turn = 1;
    poll_until("its end", || {
        turn += 1;
        gateway.put_upstream(&silent(1 + turn % 50));
        (!gateway.standing(patient.addr).state.is_usable()).then_some(())
    });
}

#[test]
fn a_node_that_was_down_is_so_when_it_comes_back_soon() {
    let (well, lost) = (Patient::new(Manner::Silent), Patient::refusing());
    let slow = checks(&json!({"unhealthy": {"interval": 600}}));
    let mut gateway = Configured::to(&upstream(&[well.addr, lost.addr], &slow));
    gateway.until_usable(lost.addr, false);
    gateway.put_upstream(&upstream(&[well.addr], &slow));
    // Two changes that are looked at apart.
    poll_until("a probe of the other", || (well.count() >= 2).then_some(()));
    let visits = well.count();
    poll_until("one more", || (well.count() > visits).then_some(()));
    gateway.put_upstream(&upstream(&[well.addr, lost.addr], &slow));
    assert!(!gateway.standing(lost.addr).state.is_usable(), "it is forgotten");
}
