//! `close_on_down`: live sessions end when their node goes down or leaves the upstream, at a pace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/configured.rs"]
mod configured;
#[path = "support/datagrams.rs"]
mod datagrams;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/objects.rs"]
mod objects;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use configured::Configured;
use datagrams::{arrives, check_round_trip, client};
use gateway::{PATIENCE, Setup, accept, connect, hears, hears_end, poll_until, says, server, udp};
use serde_json::{Value, json};
use streamgate::config::Extensions;
use streamgate::probe::Trust;
use streamgate::session::End;
use streamgate::snapshot::UpstreamSettings;
use tokio::time::Instant;

/// So long nothing may happen that shall not happen; sessions are ended ten times a second.
const QUIET: Duration = Duration::from_millis(400);

/// Nodes in the order they are preferred; probes come too late to say anything.
fn upstream(addrs: &[SocketAddr], label: Option<&str>) -> Value {
    let half = json!({"interval": 600});
    let checks = json!({"active": {"type": "tcp", "healthy": half, "unhealthy": half}});
    let mut upstream = json!({"nodes": objects::nodes(addrs), "checks": checks});
    for (place, node) in (0..).zip(upstream["nodes"].as_array_mut().unwrap()) {
        node["priority"] = json!(-place);
    }
    if let Some(label) = label {
        upstream["labels"] = json!({"streamgate/close-on-down": label});
    }
    upstream
}

fn configured(upstream: &Value, config: Option<&str>) -> Configured {
    let mut settings = UpstreamSettings::default();
    if let Some(text) = config {
        let mut own = Extensions::default();
        own.set("close_on_down", text).unwrap();
        settings.extensions.insert("u1".into(), own);
    }
    let setup = Setup { workers: 2, ..Setup::default() };
    Configured::start(&setup, settings, Trust::default(), &objects::to(upstream))
}

/// A session, with its node's end of it.
#[track_caller]
fn session(at: SocketAddr, node: &TcpListener) -> (TcpStream, TcpStream) {
    let client = connect(at);
    let upstream = accept(node);
    (client, upstream)
}

#[track_caller]
fn check_alive((client, node): &mut (TcpStream, TcpStream)) {
    says(client, b"?");
    hears(node, b"?");
    says(node, b"!");
    hears(client, b"!");
}

/// Nothing happens to a session for a while.
#[track_caller]
fn check_stays(session: &mut (TcpStream, TcpStream)) {
    session.0.set_read_timeout(Some(QUIET)).unwrap();
    let error = session.0.read(&mut [0]).expect_err("the session ended");
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    session.0.set_read_timeout(Some(PATIENCE)).unwrap();
    check_alive(session);
}

#[test]
fn sessions_of_a_node_that_goes_down_end_and_clients_come_to_another() {
    let ((first, a), (second, b)) = (server(), server());
    let mut gateway = configured(&upstream(&[a, b], Some("true")), None);
    let at = gateway.tcp();
    let mut of_first = session(at, &first);
    check_alive(&mut of_first);
    gateway.set_usable(a, false);
    let mut of_second = session(at, &second);
    hears_end(&mut of_first.0);
    hears_end(&mut of_first.1);
    let outcome = gateway.gateway.ends_with(End::NodeDown);
    assert_eq!(outcome.node.as_deref(), Some(&*a.to_string()));
    assert_eq!((outcome.traffic.received, outcome.traffic.sent), (1, 1));
    check_stays(&mut of_second);
    // It is back: nobody who comes then is ended for what was.
    gateway.set_usable(a, true);
    let mut of_first = session(at, &first);
    check_stays(&mut of_first);
}

/// How many of the sessions of a node that went down have ended after so long.
#[track_caller]
fn check_pace(rate: u32, sessions: usize) {
    let ((first, a), (_second, b)) = (server(), server());
    let mut gateway = configured(&upstream(&[a, b], Some(&rate.to_string())), None);
    let at = gateway.tcp();
    let _held: Vec<_> = (0..sessions).map(|_| session(at, &first)).collect();
    let began = Instant::now();
    gateway.set_usable(a, false);
    let mut ends = Vec::new();
    poll_until("the end of all", || {
        while gateway.gateway.outcome_now().is_some_and(|outcome| outcome.end == End::NodeDown) {
            ends.push(began.elapsed());
        }
        (ends.len() == sessions).then_some(())
    });
    for (number, at) in (1_u32..).zip(&ends) {
        // The first may come with the next tick, a tenth of a second after what was counted before.
        let earliest = Duration::from_secs(number.into()) / rate;
        assert!(
            *at + Duration::from_millis(150) >= earliest,
            "the {number}th of {rate} a second at {at:?}: {ends:?}"
        );
    }
    let last = Duration::from_secs(sessions as u64) / rate;
    assert!(*ends.last().unwrap() < last + Duration::from_secs(3), "{ends:?}");
}

#[test]
fn so_many_a_second_end() {
    check_pace(5, 6);
    check_pace(40, 60);
}

#[test]
fn it_is_off_unless_asked_for() {
    for (label, config) in
        [(None, None), (Some("false"), None), (Some("0"), None), (Some("true"), Some("false"))]
    {
        let ((first, a), (_second, b)) = (server(), server());
        let mut gateway = configured(&upstream(&[a, b], label), config);
        let at = gateway.tcp();
        let mut held = session(at, &first);
        gateway.set_usable(a, false);
        check_stays(&mut held);
    }
}

#[test]
fn what_config_yaml_says_wins_over_the_label() {
    for (label, config) in [(None, "true"), (Some("false"), "50")] {
        let ((first, a), (_second, b)) = (server(), server());
        let mut gateway = configured(&upstream(&[a, b], label), Some(config));
        let at = gateway.tcp();
        let mut held = session(at, &first);
        gateway.set_usable(a, false);
        hears_end(&mut held.0);
        gateway.gateway.ends_with(End::NodeDown);
    }
}

#[test]
fn where_all_are_down_nobody_is_ended() {
    let ((first, a), (second, b)) = (server(), server());
    let mut gateway = configured(&upstream(&[a, b], Some("1")), None);
    let at = gateway.tcp();
    let mut held = session(at, &first);
    gateway.set_usable(b, false);
    gateway.set_usable(a, false);
    check_stays(&mut held);
    // As soon as one is back, sessions of the others end.
    gateway.set_usable(b, true);
    hears_end(&mut held.0);
    gateway.gateway.ends_with(End::NodeDown);
    let mut held = session(at, &second);
    check_stays(&mut held);
}

#[test]
fn a_node_that_leaves_the_upstream_loses_its_sessions_at_the_same_pace() {
    let ((first, a), (second, b)) = (server(), server());
    let mut gateway = configured(&upstream(&[a, b], Some("10")), None);
    let at = gateway.tcp();
    let held: Vec<_> = (0..5).map(|_| session(at, &first)).collect();
    let began = Instant::now();
    gateway.put_upstream(&upstream(&[b], Some("10")));
    for (mut client, _node) in held {
        hears_end(&mut client);
        gateway.gateway.ends_with(End::NodeDown);
    }
    assert!(began.elapsed() > Duration::from_millis(300), "five at once, at 10 a second");
    let mut held = session(at, &second);
    check_stays(&mut held);
    // Without health checks it is the same.
    let mut unchecked = upstream(&[a], Some("true"));
    unchecked.as_object_mut().unwrap().remove("checks");
    gateway.put_upstream(&unchecked);
    hears_end(&mut held.0);
}

/// A version of the upstream that serves only for a moment may have sessions, too.
#[test]
fn sessions_of_a_version_that_was_there_for_a_moment_are_not_forgotten() {
    let ((first, a), (_second, b)) = (server(), server());
    let mut gateway = configured(&upstream(&[b], Some("true")), None);
    let at = gateway.tcp();
    for _ in 0..3 {
        gateway.put_upstream(&upstream(&[a, b], Some("true")));
        let mut held = session(at, &first);
        gateway.put_upstream(&upstream(&[b], Some("true")));
        hears_end(&mut held.0);
        gateway.gateway.ends_with(End::NodeDown);
    }
}

#[test]
fn a_node_that_comes_back_keeps_the_sessions_that_are_left() {
    let ((first, a), (_second, b)) = (server(), server());
    let both = upstream(&[a, b], Some("2"));
    let mut gateway = configured(&both, None);
    let at = gateway.tcp();
    let mut held: Vec<_> = (0..4).map(|_| session(at, &first)).collect();
    for leaves in [true, false] {
        if leaves {
            gateway.put_upstream(&upstream(&[b], Some("2")));
        } else {
            gateway.set_usable(a, false);
        }
        gateway.gateway.ends_with(End::NodeDown);
        if leaves {
            gateway.put_upstream(&both);
        } else {
            gateway.set_usable(a, true);
        }
        held.retain_mut(|(client, _)| {
            client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            client.read(&mut [0]).is_err()
        });
        for session in &mut held {
            check_stays(session);
        }
    }
    assert_eq!(held.len(), 2);
}

#[test]
fn switching_it_off_or_deleting_the_upstream_lets_sessions_be() {
    let ((first, a), (_second, b)) = (server(), server());
    let mut gateway = configured(&upstream(&[a, b], Some("1")), None);
    let at = gateway.tcp();
    let mut held = session(at, &first);
    gateway.put_upstream(&upstream(&[b], None));
    check_stays(&mut held);
    gateway.delete(streamgate::resource::Kind::StreamRoute, "r1");
    check_stays(&mut held);
}

#[test]
fn associations_end_with_the_next_datagram_and_go_on_elsewhere() {
    let ((first, a), (second, b)) = (udp("127.0.0.1"), udp("127.0.0.1"));
    let mut gateway = configured(&upstream(&[a, b], Some("true")), None);
    let at = gateway.udp();
    let clients: Vec<UdpSocket> = (0..3).map(|_| client(at)).collect();
    for client in &clients {
        check_round_trip(client, &first, b"hello");
    }
    gateway.set_usable(a, false);
    for client in &clients {
        // Whoever is not yet ended is answered by the old node.
        poll_until("the other node", || {
            client.send(b"?").unwrap();
            second.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            second.recv(&mut [0; 8]).ok()
        });
        gateway.gateway.ends_with(End::NodeDown);
    }
    assert_eq!(gateway.objects.snapshot.route("r1").unwrap().stats.active(), 3);
}

/// Clients that are silent while the time passes in which they could have been ended do not all end at once.
#[test]
fn silent_associations_are_not_saved_up() {
    let ((first, a), (second, b)) = (udp("127.0.0.1"), udp("127.0.0.1"));
    let mut gateway = configured(&upstream(&[a, b], Some("5")), None);
    let at = gateway.udp();
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(at)).collect();
    for client in &clients {
        check_round_trip(client, &first, b"hello");
    }
    gateway.set_usable(a, false);
    // One speaks, again and again, and is ended.
    second.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    poll_until("the other node", || {
        clients[0].send(b"?").unwrap();
        second.recv(&mut [0; 8]).ok()
    });
    first.set_nonblocking(true).unwrap();
    while first.recv(&mut [0; 8]).is_ok() {}
    first.set_nonblocking(false).unwrap();
    gateway.gateway.ends_with(End::NodeDown);
    // The others may be ended when they speak; that takes nobody else's turn away for good.
    gateway.set_usable(a, true);
    let began = Instant::now();
    poll_until("a tick", || (began.elapsed() > QUIET).then_some(()));
    for client in &clients[1..] {
        client.send(b"!").unwrap();
        arrives(&first, b"!");
    }
    assert!(gateway.gateway.outcome_now().is_none(), "the node is back");
}
