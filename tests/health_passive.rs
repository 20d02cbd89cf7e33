//! Passive checks: failed connects of sessions count, and nodes that only they took out come back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/configured.rs"]
mod configured;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/patient.rs"]
mod patient;

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use configured::Configured;
use gateway::{PATIENCE, connect, poll_until, reset};
use patient::{Manner, Patient};
use serde_json::{Value, json};
use streamgate::health::{Cause, Cell, Finding, Limits, Report, State};
use streamgate::live::Budget;
use streamgate::probe::{self, Trust};
use streamgate::session::{ConnectFailure, End};
use streamgate::snapshot::Published;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Nodes in the order they are preferred. No probe of a usable node; one that is down is probed every
/// `unhealthy` seconds.
fn upstream(addrs: &[SocketAddr], unhealthy: Option<u32>, passive: Option<&Value>) -> Value {
    let mut checks = json!({"active": {"type": "tcp"}});
    if let Some(interval) = unhealthy {
        checks["active"]["unhealthy"] = json!({"interval": interval});
    }
    if let Some(passive) = passive {
        checks["passive"] = passive.clone();
    }
    let mut upstream = json!({"nodes": objects::nodes(addrs), "checks": checks, "timeout": {"connect": 0.3, "send": 60, "read": 60}});
    for (place, node) in (0..).zip(upstream["nodes"].as_array_mut().unwrap()) {
        node["priority"] = json!(-place);
    }
    upstream
}

fn failures(gateway: &Configured, nodes: &[&Patient]) -> Vec<u8> {
    nodes.iter().map(|node| gateway.standing(node.addr).tcp_failure).collect()
}

/// One session, to its end.
#[track_caller]
fn session(gateway: &mut Configured, at: SocketAddr) -> End {
    // Hears the end, or a reset where there was no node.
    let _ = connect(at).read(&mut [0]);
    gateway.gateway.outcome().end
}

/// Sessions one after another, and the failed connects that are counted of each node after each session.
#[track_caller]
fn check(nodes: &[&Patient], edit: impl Fn(&mut Value), passive: Option<&Value>, expected: &[(End, &[u8])]) {
    let addrs: Vec<SocketAddr> = nodes.iter().map(|node| node.addr).collect();
    let mut written = upstream(&addrs, None, passive);
    edit(&mut written);
    let mut gateway = Configured::to(&written);
    let at = gateway.tcp();
    for (number, (end, counts)) in expected.iter().enumerate() {
        let ended = session(&mut gateway, at);
        let found = failures(&gateway, nodes);
        assert_eq!((ended, &*found), (*end, *counts), "session {number} of {written}");
    }
}

fn passive(tcp_failures: u32) -> Value {
    json!({"unhealthy": {"tcp_failures": tcp_failures}})
}

const FINE: End = End::UpstreamClosed;
const FAILED: End = End::ConnectFailed;

#[test]
fn failed_attempts_count_wherever_there_are_checks() {
    let (lost, well) = (Patient::refusing(), Patient::new(Manner::Closes));
    // Two by the default of passive, though passive is not written; then it is out.
    let seen: [(End, &[u8]); 3] = [(FINE, &[1, 0]), (FINE, &[2, 0]), (FINE, &[2, 0])];
    check(&[&lost, &well], |_| (), None, &seen);
    check(&[&lost, &well], |_| (), Some(&json!({})), &seen);
    // The limits of passive count, not those of active.
    let one: [(End, &[u8]); 2] = [(FINE, &[1, 0]), (FINE, &[1, 0])];
    check(&[&lost, &well], |_| (), Some(&passive(1)), &one);
    let active = |upstream: &mut Value| {
        upstream["checks"]["active"]["unhealthy"] = json!({"interval": 600, "tcp_failures": 1});
    };
    check(&[&lost, &well], active, None, &seen[..2]);
    let many: [(End, &[u8]); 4] = [(FINE, &[1, 0]), (FINE, &[2, 0]), (FINE, &[3, 0]), (FINE, &[3, 0])];
    check(&[&lost, &well], |_| (), Some(&passive(3)), &many);
    // 0: they are ignored.
    let none: [(End, &[u8]); 3] = [(FINE, &[0, 0]); 3];
    check(&[&lost, &well], |_| (), Some(&passive(0)), &none);
}

#[test]
fn the_last_attempt_of_a_session_counts_only_with_passive() {
    let (first, last) = (Patient::refusing(), Patient::refusing());
    check(&[&first, &last], |_| (), None, &[(FAILED, &[1, 0]), (FAILED, &[2, 0])]);
    check(&[&first, &last], |_| (), Some(&passive(9)), &[(FAILED, &[1, 1]), (FAILED, &[2, 2])]);
    let no_retries = |upstream: &mut Value| upstream["retries"] = json!(0);
    check(&[&first, &last], no_retries, None, &[(FAILED, &[0, 0]), (FAILED, &[0, 0])]);
    check(&[&first, &last], no_retries, Some(&passive(9)), &[(FAILED, &[1, 0]), (FAILED, &[2, 0])]);
    // A node that is alone: its further attempts are not counted, the last one is.
    let thrice = |upstream: &mut Value| upstream["retries"] = json!(3);
    check(&[&first], thrice, None, &[(FAILED, &[0])]);
    check(&[&first], thrice, Some(&passive(9)), &[(FAILED, &[1]), (FAILED, &[2])]);
    let counted = |upstream: &mut Value| {
        upstream["retries"] = json!(3);
        upstream["type"] = json!("least_conn");
    };
    check(&[&first], counted, Some(&passive(9)), &[(FAILED, &[4])]);
}

#[test]
fn what_comes_after_the_connection_is_not_counted() {
    let node = Patient::new(Manner::Silent);
    let mut gateway = Configured::to(&upstream(&[node.addr], None, Some(&passive(1))));
    let at = gateway.tcp();
    let client = connect(at);
    poll_until("a session", || (gateway.objects.pool().nodes()[0].stats.in_flight() == 1).then_some(()));
    reset(client);
    gateway.gateway.ends_with(End::ClientReset);
    node.behave(Manner::Closes);
    assert_eq!(session(&mut gateway, at), FINE);
    assert_eq!(gateway.standing(node.addr).state, State::Healthy);
    // Nor does a good session heal what failed ones have counted: there are no passive successes.
    let (lost, well) = (Patient::refusing(), Patient::new(Manner::Closes));
    let mut two = upstream(&[lost.addr, well.addr], None, Some(&passive(2)));
    two["nodes"][1]["priority"] = json!(0);
    let mut gateway = Configured::to(&two);
    let at = gateway.tcp();
    for _ in 0..8 {
        assert_eq!(session(&mut gateway, at), FINE);
    }
    assert_eq!(gateway.standing(lost.addr).state, State::Unhealthy);
}

/// A connect that is not answered counts as a failed one, never as a timeout (`ngx_stream_lua_balancer.c`).
#[test]
fn a_missing_answer_counts_as_a_failed_connect() {
    let (full, _keep) = unanswering();
    let well = Patient::new(Manner::Closes);
    let mut gateway = Configured::to(&upstream(&[full, well.addr], None, Some(&passive(9))));
    let at = gateway.tcp();
    assert_eq!(session(&mut gateway, at), FINE);
    let standing = gateway.standing(full);
    assert_eq!((standing.tcp_failure, standing.timeout_failure), (1, 0));
    assert_eq!(gateway.objects.pool().nodes()[0].stats.failed_count(ConnectFailure::TimedOut), 1);
}

/// An address that answers no connection: its accept queue is full.
fn unanswering() -> (SocketAddr, Vec<socket2::Socket>) {
    let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let listener = new();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut keep = vec![listener];
    for _ in 0..4 {
        let client = new();
        client.set_nonblocking(true).unwrap();
        // It is under way.
        let _ = client.connect(&addr);
        keep.push(client);
    }
    (addr.as_socket().unwrap(), keep)
}

/// Active checks bring back what sessions took out.
#[test]
fn probes_bring_a_node_back() {
    let mut lost = Patient::refusing();
    let well = Patient::new(Manner::Closes);
    let mut gateway = Configured::to(&upstream(&[lost.addr, well.addr], Some(1), Some(&passive(1))));
    let at = gateway.tcp();
    assert_eq!(session(&mut gateway, at), FINE);
    assert!(!gateway.cell(lost.addr).is_usable());
    assert_eq!(gateway.cell(lost.addr).cause().unwrap().by, Finding::Passive);
    lost.behave(Manner::Closes);
    lost.listen();
    gateway.until_usable(lost.addr, true);
    assert_eq!(gateway.cell(lost.addr).cause().unwrap().by, Finding::Active);
    let before = lost.count();
    assert_eq!(session(&mut gateway, at), FINE);
    poll_until("the session", || (lost.count() > before).then_some(()));
}

/// What a session found out is remembered for its own node alone, and a session that failed for another
/// reason says nothing: in APISIX the status of one is reported for the next (`init.lua:1061`).
#[test]
fn nobody_is_blamed_for_another_session() {
    let (lost, well) = (Patient::refusing(), Patient::new(Manner::Closes));
    let mut two = upstream(&[lost.addr, well.addr], None, Some(&passive(200)));
    two["nodes"][1]["priority"] = json!(0);
    let mut gateway = Configured::to(&two);
    let at = gateway.tcp();
    for _ in 0..20 {
        assert_eq!(session(&mut gateway, at), FINE);
    }
    let counts = failures(&gateway, &[&lost, &well]);
    assert!(counts[0] == 10 && counts[1] == 0, "{counts:?}");
}

/// How long a node stays out that only sessions took out and nothing probes (APISIX: for ever), with a clock
/// that the test moves.
#[tokio::test(start_paused = true)]
async fn a_node_that_nothing_probes_comes_back_after_a_while_that_grows() {
    let addr: SocketAddr = ([10, 0, 0, 1], 1).into();
    let objects =
        objects::Objects::to(0, &upstream(&[addr, ([10, 0, 0, 2], 1).into()], None, Some(&passive(1))));
    let (published, (_changed, told)) = (Published::default(), watch::channel(()));
    published.store(objects.snapshot.clone());
    let stop = CancellationToken::new();
    let (live, trust, descriptors) = (objects.live.clone(), Trust::default(), Budget::new(100));
    let means = probe::Means { published, live, trust, descriptors };
    let probes = tokio::spawn(probe::run(means, told, stop.clone()));
    let cell = objects.cell(addr);
    let seconds: Vec<u64> = {
        let mut seconds = Vec::new();
        for _ in 0..7 {
            seconds.push(out_for(&cell).await);
        }
        seconds
    };
    let expected = [10, 20, 40, 80, 160, 300, 300];
    let near = |(found, expected): (&u64, u64)| (expected..expected + 3).contains(found);
    assert!(seconds.iter().zip(expected).all(near), "{seconds:?}");
    assert_eq!(cell.cause().unwrap().by, Finding::BackOff);
    assert!(cell.cause().unwrap().why.contains("no probe"), "{:?}", cell.cause());
    // After as long a time without a failure it counts as proven.
    sleep(Duration::from_secs(305)).await;
    let first = out_for(&cell).await;
    assert!(near((&first, 10)), "{first}");
    stop.cancel();
    probes.await.unwrap();
}

/// Takes a target out as a session does; after how many seconds it is back.
async fn out_for(cell: &Arc<Cell>) -> u64 {
    let cause = || Cause { by: Finding::Passive, why: "refused".into(), since_unix_ms: 0 };
    cell.report(Report::TcpFailure, &Limits { tcp_failures: 1, ..Limits::PASSIVE }, cause).unwrap();
    let began = Instant::now();
    while !cell.is_usable() {
        assert!(began.elapsed() < PATIENCE * 100, "it does not come back");
        sleep(Duration::from_millis(100)).await;
    }
    began.elapsed().as_secs()
}
