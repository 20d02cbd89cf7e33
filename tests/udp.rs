//! UDP associations through a gateway in this process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/datagrams.rs"]
mod datagrams;
#[path = "support/gateway.rs"]
mod gateway;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use streamgate::balance::PoolSettings;
use streamgate::config::Listen;
use streamgate::resource::Timeouts;
use streamgate::session::{End, Outcome, Traffic, Transport};
use streamgate::snapshot::Target;

use datagrams::{arrives, check_round_trip, client, datagrams, hears, passes_in_a_network, serving};
use gateway::{Gateway, Setup, listen, poll_until, pool, settings, udp};

#[test]
fn datagrams_go_both_ways_whole_and_on_one_association() {
    let (gateway, at, node) = serving(&Setup::default(), datagrams());
    let client = client(at);
    let first = check_round_trip(&client, &node, b"question");
    for payload in [&[][..], &vec![1; 1400], &vec![2; 20_000], &vec![3; 60_000], &vec![4; 65_507]] {
        assert_eq!(check_round_trip(&client, &node, payload), first, "{} bytes", payload.len());
    }
    // More answers than questions, and an empty one.
    node.send_to(b"", first).unwrap();
    node.send_to(b"more", first).unwrap();
    hears(&client, b"");
    hears(&client, b"more");
    assert_eq!(gateway.stats.active(), 1);
    let total = 8 + 1400 + 20_000 + 60_000 + 65_507;
    poll_until("live counts", || (gateway.stats.bytes() == (total, total + 4)).then_some(()));
    let outcomes = gateway.stop(Duration::ZERO);
    let [Outcome { end: End::Drained, traffic, attempts: 1, .. }] = &*outcomes else {
        panic!("{outcomes:?}")
    };
    assert_eq!(*traffic, Traffic { received: total, sent: total + 4 });
}

#[test]
fn each_client_has_an_association_of_its_own() {
    let (gateway, at, node) = serving(&Setup { workers: 3, ..Setup::default() }, datagrams());
    let clients: Vec<_> = (0..30).map(|_| client(at)).collect();
    let mut associations: Vec<_> =
        clients.iter().map(|client| check_round_trip(client, &node, b"hello")).collect();
    associations.sort();
    associations.dedup();
    assert_eq!(associations.len(), 30);
    assert_eq!(gateway.stats.active(), 30);
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    let (mut gateway, first, node) = serving(&Setup::default(), datagrams());
    let second = gateway.listen(listen(Transport::Udp, "127.0.0.2"));
    let (socket, _) = udp("127.0.0.1");
    for at in [first, second] {
        socket.send_to(b"who", at).unwrap();
        let association = arrives(&node, b"who");
        node.send_to(b"me", association).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(from, at);
    }
    assert_eq!(gateway.stats.active(), 2, "one client, two local addresses: two associations");
}

#[test]
fn silence_ends_an_association_and_nothing_of_it_is_used_again() {
    let (first, first_addr) = udp("127.0.0.1");
    let (second, second_addr) = udp("127.0.0.1");
    let timeouts = Timeouts { idle: Duration::from_millis(50), ..settings().timeouts };
    let nodes = pool(PoolSettings { timeouts, ..settings() }, &[first_addr]);
    let (mut gateway, at) = Gateway::serving(&Setup::default(), datagrams(), nodes);
    let client = client(at);
    check_round_trip(&client, &first, b"before");
    let outcome = gateway.ends_with(End::IdleTimeout);
    assert!(outcome.duration >= Duration::from_millis(50), "{:?}", outcome.duration);
    gateway.publish(Target::Inline(Arc::new(pool(settings(), &[second_addr]))), &[]);
    check_round_trip(&client, &second, b"after");
}

#[test]
fn the_listen_may_set_the_idle_limit() {
    let idle = Listen { idle_timeout: Some(Duration::from_millis(50)), ..datagrams() };
    let (mut gateway, at, node) = serving(&Setup::default(), idle);
    check_round_trip(&client(at), &node, b"x");
    gateway.ends_with(End::IdleTimeout);
}

#[test]
fn a_change_of_routes_leaves_associations_alone() {
    let (gateway, at, node) = serving(&Setup::default(), datagrams());
    let client = client(at);
    let association = check_round_trip(&client, &node, b"before");
    gateway.publish_nothing();
    assert_eq!(check_round_trip(&client, &node, b"after"), association);
}

#[test]
fn the_last_expected_answer_ends_an_association() {
    let dns = Listen { responses: Some(2), ..datagrams() };
    let (mut gateway, at, node) = serving(&Setup::default(), dns);
    let client = client(at);
    client.send(b"q").unwrap();
    let association = arrives(&node, b"q");
    for answer in [b"1", b"2"] {
        node.send_to(answer, association).unwrap();
        hears(&client, answer);
    }
    let outcome = gateway.ends_with(End::UpstreamClosed);
    assert_eq!(outcome.traffic, Traffic { received: 1, sent: 2 });
    assert_ne!(check_round_trip(&client, &node, b"again"), association);
}

#[test]
fn the_longest_idle_answered_association_makes_room() {
    let setup = Setup { workers: 1, associations: 3, ..Setup::default() };
    let (mut gateway, at, node) = serving(&setup, datagrams());
    let waiting = client(at);
    waiting.send(b"unanswered").unwrap();
    let unanswered = arrives(&node, b"unanswered");
    let (old, recent, new) = (client(at), client(at), client(at));
    check_round_trip(&old, &node, b"x");
    check_round_trip(&recent, &node, b"x");
    check_round_trip(&new, &node, b"x");
    let outcome = gateway.ends_with(End::Limit);
    assert_eq!(outcome.inbound.client, old.local_addr().unwrap());
    assert_eq!(gateway.node.udp_evicted.count(), 1);
    node.send_to(b"at last", unanswered).unwrap();
    hears(&waiting, b"at last");
    assert_eq!(gateway.stats.active(), 3);
}

#[test]
fn descriptors_are_shared_with_sessions_by_eviction() {
    let setup = Setup { workers: 1, descriptors: 2, ..Setup::default() };
    let (mut gateway, at, node) = serving(&setup, datagrams());
    for _ in 0..3 {
        check_round_trip(&client(at), &node, b"x");
    }
    gateway.ends_with(End::Limit);
    assert_eq!(gateway.stats.active(), 2);
}

#[test]
fn a_node_that_refuses_may_come_back() {
    let (node, addr) = udp("127.0.0.1");
    drop(node);
    let (gateway, at) = Gateway::serving(&Setup::default(), datagrams(), pool(settings(), &[addr]));
    let client = client(at);
    poll_until("an ICMP error", || {
        client.send(b"anybody?").unwrap();
        (gateway.node.udp_refused.count() > 0).then_some(())
    });
    assert_eq!(gateway.stats.active(), 1, "the association stays");
    let node = UdpSocket::bind(addr).unwrap();
    node.set_read_timeout(Some(gateway::PATIENCE)).unwrap();
    client.send(b"now?").unwrap();
    let mut buffer = [0; 16];
    let (len, association) = node.recv_from(&mut buffer).unwrap();
    node.send_to(&buffer[..len], association).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), len);
}

#[track_caller]
fn check_dropped(target: Option<Target>, end: End) {
    let mut gateway = Gateway::start(&Setup::default());
    match target {
        Some(target) => gateway.publish(target, &[]),
        None => gateway.publish_nothing(),
    }
    let at = gateway.listen(datagrams());
    let client = client(at);
    for _ in 0..200 {
        client.send(b"x").unwrap();
    }
    gateway.ends_with(end);
    poll_until("all counted", || (gateway.ended_count(end) == 200).then_some(()));
    assert!(gateway.node.outcomes_dropped.count() >= 100, "a line for each of a flood of datagrams");
}

#[test]
fn datagrams_that_go_nowhere_are_counted_and_logged_at_a_bounded_rate() {
    check_dropped(None, End::NoRoute);
    check_dropped(Some(Target::Upstream("u9".into())), End::UpstreamMissing);
    check_dropped(Some(Target::Inline(Arc::new(pool(settings(), &[])))), End::NoNode);
}

#[test]
fn a_closed_listen_ends_its_associations() {
    let (mut gateway, at, node) = serving(&Setup::default(), datagrams());
    check_round_trip(&client(at), &node, b"x");
    gateway.reconcile(&[]).unwrap();
    let outcome = gateway.ends_with(End::Drained);
    assert!(outcome.detail.unwrap().contains("listen was closed"));
    assert!(UdpSocket::bind(at).is_ok(), "the port is free again");
}

#[test]
fn ipv6_is_served_as_ipv4_is() {
    let (node, addr) = udp("::1");
    let nodes = pool(settings(), &[addr]);
    let (_gateway, at) = Gateway::serving(&Setup::default(), listen(Transport::Udp, "::1"), nodes);
    let (socket, _) = udp("::1");
    socket.connect(at).unwrap();
    check_round_trip(&socket, &node, b"six");
}

/// On a host's own wildcard address anybody could write to the test; in a network namespace nobody can.
#[test]
fn a_wildcard_listen_answers_from_the_address_that_was_asked() {
    passes_in_a_network("inside_a_namespace", r#"ip link set lo up; exec "$0" "$@""#);
}

#[test]
#[ignore = "run by a_wildcard_listen_answers_from_the_address_that_was_asked"]
fn inside_a_namespace() {
    for (wildcard, asked) in [("0.0.0.0", ["127.0.0.1", "127.0.0.2"]), ("::", ["::1", "::1"])] {
        let (node, addr) = udp("127.0.0.1");
        let nodes = pool(settings(), &[addr]);
        let listen = listen(Transport::Udp, wildcard);
        let (gateway, at) = Gateway::serving(&Setup::default(), listen, nodes);
        for ip in asked {
            let target = SocketAddr::new(ip.parse().unwrap(), at.port());
            let (socket, _) = udp(if at.is_ipv4() { "127.0.0.1" } else { "::1" });
            socket.connect(target).unwrap();
            check_round_trip(&socket, &node, b"who?");
        }
        let outcomes = gateway.stop(Duration::ZERO);
        assert!(outcomes.iter().any(|outcome| outcome.inbound.server.ip().to_string() == asked[1]));
    }
}
