//! A first datagram that a node refuses goes to the next node (APISIX loses it).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/configured.rs"]
mod configured;
#[path = "support/datagrams.rs"]
mod datagrams;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/objects.rs"]
mod objects;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use configured::Configured;
use datagrams::{arrives, client, datagrams, hears, payload, send_segments};
use gateway::{Gateway, Setup, poll_until, pool, settings, udp};
use serde_json::{Value, json};
use streamgate::balance::PoolSettings;
use streamgate::live::Stats;
use streamgate::probe::Trust;
use streamgate::session::{ConnectFailure, End};
use streamgate::snapshot::UpstreamSettings;

/// An address where datagrams are refused. Below the range that ports are chosen from, and of a host of its
/// own: nobody binds it.
fn refusing(host: u8) -> SocketAddr {
    ([127, 77, 0, host], 9).into()
}

/// A gateway of one worker whose nodes are tried in this order.
fn failing_over(settings: PoolSettings, nodes: &[SocketAddr]) -> (Gateway, SocketAddr, Vec<Arc<Stats>>) {
    let pool = pool(settings, nodes);
    let stats = pool.nodes().iter().map(|node| node.stats.clone()).collect();
    let (gateway, at) = Gateway::serving(&Setup { workers: 1, ..Setup::default() }, datagrams(), pool);
    (gateway, at, stats)
}

/// Asserts that nothing is waiting at a node, once all that was sent before has been dealt with.
#[track_caller]
fn hears_nothing_more(node: &UdpSocket) {
    node.set_nonblocking(true).unwrap();
    let more = node.recv(&mut [0; 64]);
    assert_eq!(more.expect_err("one more datagram").kind(), ErrorKind::WouldBlock);
    node.set_nonblocking(false).unwrap();
}

fn refusals(stats: &Stats) -> u64 {
    stats.failed_count(ConnectFailure::Refused)
}

#[test]
fn a_refused_datagram_goes_to_the_next_node_once() {
    let (node, addr) = udp("127.0.0.1");
    let (gateway, at, stats) = failing_over(settings(), &[refusing(1), refusing(2), addr]);
    let client = client(at);
    client.send(b"who?").unwrap();
    let association = arrives(&node, b"who?");
    node.send_to(b"me", association).unwrap();
    hears(&client, b"me");
    // What comes later goes the same way, by the same association, and nothing came twice.
    client.send(b"again").unwrap();
    assert_eq!(arrives(&node, b"again"), association);
    hears_nothing_more(&node);
    assert_eq!(stats.iter().map(|node| refusals(node)).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(stats.iter().map(|node| node.in_flight()).collect::<Vec<_>>(), [0, 0, 1]);
    let outcomes = gateway.stop(Duration::ZERO);
    let [outcome] = &*outcomes else { panic!("{outcomes:?}") };
    assert_eq!((outcome.attempts, outcome.end), (3, End::Drained));
    assert_eq!(outcome.node.as_deref(), Some(&*addr.to_string()));
    assert_eq!((outcome.traffic.received, outcome.traffic.sent), (9, 2));
}

/// Clients that say several things at once: all of it arrives, in order, once. `nodes` refuse before.
#[track_caller]
fn check_several(refusers: u8, said: &[&[u8]]) {
    let (node, addr) = udp("127.0.0.1");
    let mut nodes: Vec<SocketAddr> = (1..=refusers).map(refusing).collect();
    nodes.push(addr);
    let (_gateway, at, _) = failing_over(PoolSettings { attempts: 9, ..settings() }, &nodes);
    for round in 0..20 {
        let client = client(at);
        for datagram in said {
            client.send(datagram).unwrap();
        }
        let mut associations: Vec<SocketAddr> =
            said.iter().map(|datagram| arrives(&node, datagram)).collect();
        associations.dedup();
        assert_eq!(associations.len(), 1, "in round {round}");
        node.send_to(b"all", associations[0]).unwrap();
        hears(&client, b"all");
        hears_nothing_more(&node);
    }
}

#[test]
fn what_a_client_says_at_once_arrives_in_order() {
    check_several(1, &[b"1", b"22", b"333"]);
    check_several(1, &[b"", b"1", b"", b"1"]);
    check_several(1, &[&[7; 1000], &[8; 1000], &[9; 1000]]);
}

#[test]
fn two_datagrams_find_the_third_node() {
    check_several(2, &[b"1", b"22"]);
    check_several(2, &[b"1", b"22", b"333"]);
    check_several(4, &[b"1", b"22", b"333", b"4444"]);
}

/// Datagrams that reach the gateway as one message with segments (GRO) are datagrams all the same.
#[test]
fn segments_fail_over_one_by_one() {
    let (node, addr) = udp("127.0.0.1");
    let (_gateway, at, _) = failing_over(settings(), &[refusing(1), refusing(2), addr]);
    let client = client(at);
    let bytes = payload(1250, 7);
    send_segments(&client, None, &bytes, 500);
    for part in bytes.chunks(500) {
        arrives(&node, part);
    }
    hears_nothing_more(&node);
}

#[test]
fn a_node_that_has_answered_is_not_left() {
    let ((node, addr), (other, other_addr)) = (udp("127.0.0.1"), udp("127.0.0.1"));
    let (gateway, at, _) = failing_over(settings(), &[addr, other_addr]);
    let client = client(at);
    client.send(b"first").unwrap();
    let association = arrives(&node, b"first");
    node.send_to(b"answer", association).unwrap();
    hears(&client, b"answer");
    drop(node);
    poll_until("a refusal", || {
        client.send(b"still there?").unwrap();
        (gateway.node.udp_refused.count() > 0).then_some(())
    });
    hears_nothing_more(&other);
    // It is back on the same port, and the association with it.
    let node = UdpSocket::bind(addr).unwrap();
    node.set_read_timeout(Some(gateway::PATIENCE)).unwrap();
    poll_until("the node again", || {
        client.send(b"now?").unwrap();
        node.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (_, from) = node.recv_from(&mut [0; 64]).ok()?;
        assert_eq!(from, association);
        Some(())
    });
    assert_eq!(gateway.stats.active(), 1);
}

#[test]
fn where_all_refuse_the_association_stays_with_the_last_and_each_counts_once() {
    let nodes = [refusing(1), refusing(2), refusing(3)];
    let (mut gateway, at, stats) = failing_over(settings(), &nodes);
    let client = client(at);
    client.send(b"anybody?").unwrap();
    poll_until("three refusals", || (gateway.node.udp_refused.count() >= 3).then_some(()));
    poll_until("the last one's count", || (refusals(&stats[2]) == 1).then_some(()));
    assert_eq!(stats.iter().map(|node| refusals(node)).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(gateway.stats.active(), 1, "the association stays, as in nginx");
    assert!(gateway.outcome_now().is_none());
    // Whoever is tried has been tried: no second round.
    client.send(b"and now?").unwrap();
    poll_until("another refusal", || (gateway.node.udp_refused.count() >= 4).then_some(()));
    assert_eq!(stats.iter().map(|node| node.in_flight()).collect::<Vec<_>>(), [0, 0, 1]);
}

#[test]
fn retries_bound_the_attempts() {
    let (node, addr) = udp("127.0.0.1");
    for (attempts, refusers) in [(1, 1), (2, 2)] {
        let mut nodes: Vec<SocketAddr> = (1..=refusers).map(refusing).collect();
        nodes.push(addr);
        let (gateway, at, stats) = failing_over(PoolSettings { attempts, ..settings() }, &nodes);
        client(at).send(b"x").unwrap();
        poll_until("refusals", || (gateway.node.udp_refused.count() >= u64::from(attempts)).then_some(()));
        let outcomes = gateway.stop(Duration::ZERO);
        assert_eq!(outcomes[0].attempts, attempts);
        assert_eq!(refusals(stats.last().unwrap()), 0);
        hears_nothing_more(&node);
    }
}

#[test]
fn no_attempt_begins_after_retry_timeout() {
    let ((silent, first), (node, addr)) = (udp("127.0.0.1"), udp("127.0.0.1"));
    let retry_timeout = Some(Duration::from_millis(1));
    let (gateway, at, _) = failing_over(PoolSettings { retry_timeout, ..settings() }, &[first, addr]);
    let client = client(at);
    client.send(b"x").unwrap();
    arrives(&silent, b"x");
    let began = tokio::time::Instant::now();
    poll_until("a millisecond", || (began.elapsed() > Duration::from_millis(2)).then_some(()));
    drop(silent);
    poll_until("a refusal", || {
        client.send(b"y").unwrap();
        (gateway.node.udp_refused.count() > 0).then_some(())
    });
    gateway.stop(Duration::ZERO);
    hears_nothing_more(&node);
}

/// Beyond what is kept of one client, its node is not left.
#[test]
fn what_is_kept_of_a_client_is_bounded() {
    let ((silent, first), (node, addr)) = (udp("127.0.0.1"), udp("127.0.0.1"));
    let (gateway, at, _) = failing_over(settings(), &[first, addr]);
    let (modest, greedy) = (client(at), client(at));
    for (client, size) in [(&modest, 1000), (&greedy, 1400)] {
        for _ in 0..3 {
            client.send(&vec![1; size]).unwrap();
            arrives(&silent, &vec![1; size]);
        }
    }
    drop(silent);
    greedy.send(b"more").unwrap();
    poll_until("a refusal", || (gateway.node.udp_refused.count() == 1).then_some(()));
    modest.send(b"more").unwrap();
    for _ in 0..3 {
        arrives(&node, &[1; 1000]);
    }
    arrives(&node, b"more");
    hears_nothing_more(&node);
}

/// A worker keeps something of so many clients that nobody has answered, and no more.
#[test]
fn what_is_kept_of_all_clients_is_bounded() {
    const MOST: usize = 4096;
    let ((silent, first), (node, addr)) = (udp("127.0.0.1"), udp("127.0.0.1"));
    let nodes = pool(settings(), &[first, addr]);
    let setup = Setup { workers: 1, associations: 2 * MOST, descriptors: 2 * MOST, ..Setup::default() };
    let (gateway, at) = Gateway::serving(&setup, datagrams(), nodes);
    let first = client(at);
    first.send(b"x").unwrap();
    arrives(&silent, b"x");
    for number in 1..MOST {
        let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
        let (client, _) = udp(&format!("127.1.{high}.{low}"));
        client.send_to(b"x", at).unwrap();
        arrives(&silent, b"x");
    }
    let last = client(at);
    last.send(b"x").unwrap();
    arrives(&silent, b"x");
    assert_eq!(gateway.stats.active(), MOST as u64 + 1);
    drop(silent);
    last.send(b"last").unwrap();
    poll_until("a refusal", || (gateway.node.udp_refused.count() == 1).then_some(()));
    first.send(b"first").unwrap();
    arrives(&node, b"x");
    arrives(&node, b"first");
    hears_nothing_more(&node);
}

fn checked(passive: Option<Value>, nodes: &[SocketAddr]) -> Value {
    let mut checks = json!({"active": {"type": "tcp", "healthy": {"interval": 600}}});
    if let Some(passive) = passive {
        checks["passive"] = passive;
    }
    let nodes = objects::nodes(nodes);
    let mut upstream = json!({"nodes": nodes, "checks": checks});
    for (place, node) in (0..).zip(upstream["nodes"].as_array_mut().unwrap()) {
        node["priority"] = json!(-place);
    }
    upstream
}

#[test]
fn refusals_count_as_failed_connects_of_sessions_do() {
    let (node, addr) = udp("127.0.0.1");
    let refuser = refusing(1);
    let mut gateway = Configured::to(&checked(None, &[refuser, addr]));
    let at = gateway.udp();
    for (failures, usable) in [(1, true), (2, false)] {
        client(at).send(b"x").unwrap();
        arrives(&node, b"x");
        assert_eq!(
            (gateway.standing(refuser).tcp_failure, gateway.cell(refuser).is_usable()),
            (failures, usable)
        );
    }
    // It is out: nobody is sent there any more.
    let before = gateway.gateway.node.udp_refused.count();
    for _ in 0..10 {
        client(at).send(b"x").unwrap();
        arrives(&node, b"x");
    }
    assert_eq!(gateway.gateway.node.udp_refused.count(), before);
}

#[test]
fn the_last_refusal_counts_only_with_passive() {
    for (passive, counted) in [(None, 0), (Some(json!({"unhealthy": {"tcp_failures": 9}})), 1)] {
        let nodes = [refusing(1), refusing(2)];
        let upstream = objects::to(&checked(passive, &nodes));
        let setup = Setup { workers: 1, ..Setup::default() };
        let mut gateway = Configured::start(&setup, UpstreamSettings::default(), Trust::default(), &upstream);
        let at = gateway.udp();
        client(at).send(b"x").unwrap();
        let last = gateway.objects.pool().nodes()[1].stats.clone();
        poll_until("both refusals", || (refusals(&last) == 1).then_some(()));
        let counts = nodes.map(|node| gateway.standing(node).tcp_failure);
        assert_eq!(counts, [1, counted]);
    }
}
