//! TCP sessions through a gateway in this process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/gateway.rs"]
mod gateway;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use streamgate::balance::{Pool, PoolSettings};
use streamgate::config::Listen;
use streamgate::resource::Timeouts;
use streamgate::session::{End, Traffic, Transport};
use streamgate::snapshot::Target;

use gateway::{
    Gateway, PATIENCE, Setup, accept, connect, hears, hears_end, hears_reset, listen, poll_until, pool,
    refused, reset, says, server, settings,
};

fn tcp() -> Listen {
    listen(Transport::Tcp, "127.0.0.1")
}

fn brief(ms: u64) -> PoolSettings {
    PoolSettings {
        timeouts: Timeouts { idle: Duration::from_millis(ms), ..settings().timeouts },
        ..settings()
    }
}

/// A session under way: its gateway, its client, the connection its node got.
fn session(listen: Listen, settings: PoolSettings) -> (Gateway, TcpStream, TcpStream) {
    let (upstream, addr) = server();
    let (gateway, at) = Gateway::serving(&Setup::default(), listen, pool(settings, &[addr]));
    let client = connect(at);
    let node = accept(&upstream);
    (gateway, client, node)
}

#[test]
fn bytes_go_both_ways_and_are_accounted_for() {
    let (mut gateway, mut client, mut node) = session(tcp(), settings());
    says(&mut client, b"question");
    hears(&mut node, b"question");
    says(&mut node, b"an answer");
    hears(&mut client, b"an answer");
    poll_until("live counts", || (gateway.stats.bytes() == (8, 9)).then_some(()));
    assert_eq!(gateway.stats.active(), 1);
    drop(client);
    hears_end(&mut node);
    drop(node);
    let outcome = gateway.ends_with(End::ClientClosed);
    assert_eq!(outcome.traffic, Traffic { received: 8, sent: 9 });
    assert_eq!((outcome.route.as_deref(), outcome.upstream.as_deref()), (Some("r1"), Some("u1")));
    assert_eq!((outcome.attempts, outcome.connect.is_some()), (1, true));
    assert_eq!(gateway.stats.ended_count(End::ClientClosed), 1);
    assert_eq!(gateway.ended_count(End::ClientClosed), 1);
    poll_until("the end", || (gateway.stats.active() == 0).then_some(()));
    assert_eq!(gateway.stats.duration.read().0.iter().sum::<u64>(), 1);
    assert_eq!(gateway.stats.connect.read().0.iter().sum::<u64>(), 1);
    poll_until("its permit", || (gateway.sessions.used() == 0).then_some(()));
}

#[test]
fn a_server_may_speak_first() {
    let (mut gateway, mut client, mut node) = session(tcp(), settings());
    says(&mut node, b"220 ready");
    hears(&mut client, b"220 ready");
    drop(node);
    hears_end(&mut client);
    drop(client);
    gateway.ends_with(End::UpstreamClosed);
}

#[test]
fn half_closed_connections_go_on() {
    let (mut gateway, mut client, mut node) = session(tcp(), settings());
    says(&mut client, b"request");
    client.shutdown(Shutdown::Write).unwrap();
    hears(&mut node, b"request");
    hears_end(&mut node);
    says(&mut node, b"late answer");
    hears(&mut client, b"late answer");
    drop(node);
    hears_end(&mut client);
    gateway.ends_with(End::ClientClosed);
}

#[test]
fn half_closed_by_the_server_goes_on_too() {
    let (mut gateway, mut client, mut node) = session(tcp(), settings());
    says(&mut node, b"bye");
    node.shutdown(Shutdown::Write).unwrap();
    hears(&mut client, b"bye");
    hears_end(&mut client);
    says(&mut client, b"last words");
    hears(&mut node, b"last words");
    drop(client);
    hears_end(&mut node);
    gateway.ends_with(End::UpstreamClosed);
}

#[test]
fn a_half_closed_connection_that_is_silent_ends() {
    let listen = Listen { half_close_timeout: Duration::from_millis(50), ..tcp() };
    let (mut gateway, client, mut node) = session(listen, settings());
    client.shutdown(Shutdown::Write).unwrap();
    hears_end(&mut node);
    gateway.ends_with(End::HalfClosedTimeout);
}

#[test]
fn a_reset_after_a_fin_is_noticed_at_once() {
    for of_the_client in [true, false] {
        let (mut gateway, client, node) = session(tcp(), settings());
        let (mut gone, mut left, end) =
            if of_the_client { (client, node, End::ClientReset) } else { (node, client, End::UpstreamReset) };
        says(&mut gone, b"last words");
        gone.shutdown(Shutdown::Write).unwrap();
        hears(&mut left, b"last words");
        hears_end(&mut left);
        reset(gone);
        gateway.ends_with(end);
        // Nobody is there any more: what it says comes back as a reset.
        poll_until("a reset", || left.write_all(b"x").is_err().then_some(()));
    }
}

#[test]
fn what_was_said_before_a_fin_survives_a_reset() {
    let (mut gateway, mut client, mut node) = session(tcp(), settings());
    // More than the client's kernel takes: the rest waits in the gateway's.
    let said = vec![7; 256 << 10];
    says(&mut node, &said);
    node.shutdown(Shutdown::Write).unwrap();
    poll_until("the answer in the gateway", || (gateway.stats.bytes().1 == 256 << 10).then_some(()));
    reset(node);
    gateway.ends_with(End::UpstreamReset);
    hears(&mut client, &said);
    hears_end(&mut client);
}

#[test]
fn without_half_close_the_first_fin_ends_both() {
    let (mut gateway, mut client, mut node) = session(Listen { half_close: false, ..tcp() }, settings());
    let bulk = vec![7; 100_000];
    says(&mut client, &bulk);
    client.shutdown(Shutdown::Write).unwrap();
    hears(&mut node, &bulk);
    hears_end(&mut node);
    hears_end(&mut client);
    gateway.ends_with(End::ClientClosed);
}

#[test]
fn resets_reach_the_other_side() {
    let (mut gateway, mut client, mut node) = session(tcp(), settings());
    says(&mut client, b"x");
    hears(&mut node, b"x");
    reset(client);
    hears_reset(&mut node);
    gateway.ends_with(End::ClientReset);

    let (mut gateway, mut client, mut node) = session(tcp(), settings());
    says(&mut node, b"x");
    hears(&mut client, b"x");
    reset(node);
    hears_reset(&mut client);
    gateway.ends_with(End::UpstreamReset);
}

#[test]
fn what_was_said_before_a_reset_arrives() {
    let (mut gateway, mut client, mut node) = session(tcp(), settings());
    says(&mut client, b"more than the server reads");
    says(&mut node, b"413");
    // Closing with unread bytes sends a reset.
    poll_until("unread bytes", || (node.peek(&mut [0; 4]).unwrap() == 4).then_some(()));
    drop(node);
    hears(&mut client, b"413");
    hears_reset(&mut client);
    gateway.ends_with(End::UpstreamReset);
}

#[test]
fn a_slow_reader_slows_the_sender_and_loses_nothing() {
    const TOTAL: usize = 64 << 20;
    let (mut gateway, client, mut node) = session(tcp(), settings());
    let sent = Arc::new(AtomicU64::new(0));
    let (counter, mut writer) = (sent.clone(), client);
    let sender = thread::spawn(move || {
        let mut chunk = vec![0; 1 << 16];
        for number in 0..TOTAL / chunk.len() {
            chunk.fill(u8::try_from(number % 251).unwrap());
            writer.write_all(&chunk).unwrap();
            counter.fetch_add(chunk.len() as u64, Relaxed);
        }
    });
    let (mut last, mut same) = (0, 0);
    poll_until("a sender that waits", || {
        let now = sent.load(Relaxed);
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
        (same > 50).then_some(())
    });
    // Two kernels' worth of socket buffers and one buffer of the gateway lie between the two.
    assert!(last < TOTAL as u64 / 2, "{last} bytes were taken while nobody read");
    let mut chunk = vec![0; 1 << 16];
    for number in 0..TOTAL / chunk.len() {
        node.read_exact(&mut chunk).unwrap();
        assert!(chunk.iter().all(|byte| usize::from(*byte) == number % 251), "chunk {number}");
    }
    sender.join().unwrap();
    hears_end(&mut node);
    drop(node);
    assert_eq!(gateway.ends_with(End::ClientClosed).traffic.received, TOTAL as u64);
}

#[test]
fn silence_ends_a_session() {
    let (mut gateway, mut client, mut node) = session(tcp(), brief(50));
    hears_end(&mut client);
    hears_end(&mut node);
    let outcome = gateway.ends_with(End::IdleTimeout);
    assert!(outcome.duration >= Duration::from_millis(50), "{:?}", outcome.duration);
}

#[test]
fn the_next_node_is_tried() {
    let ((_held, dead), (upstream, alive)) = (refused(), server());
    let nodes = pool(settings(), &[dead, alive]);
    let stats: Vec<_> = nodes.nodes().iter().map(|node| node.stats.clone()).collect();
    let (mut gateway, at) = Gateway::serving(&Setup::default(), tcp(), nodes);
    let client = connect(at);
    let node = accept(&upstream);
    drop((client, node));
    let outcome = gateway.outcome();
    assert_eq!((outcome.attempts, outcome.node.as_deref()), (2, Some(&*alive.to_string())));
    assert_eq!(stats[0].ended_count(End::ConnectFailed), 1);
    assert_eq!(stats[1].ended_count(outcome.end), 1);
    poll_until("the end", || stats.iter().all(|stats| stats.active() == 0).then_some(()));
}

#[track_caller]
fn check_refused(nodes: Pool, end: End, words: &[&str]) {
    let (mut gateway, at) = Gateway::serving(&Setup::default(), tcp(), nodes);
    let mut client = connect(at);
    hears_end(&mut client);
    let outcome = gateway.ends_with(end);
    let detail = outcome.detail.unwrap_or_default();
    for word in words {
        assert!(detail.contains(word), "{detail}");
    }
}

#[test]
fn a_client_nobody_serves_is_closed_and_told_why_in_the_log() {
    let ((_held, dead), (_other, dead_too)) = (refused(), refused());
    let names = [&*dead.to_string(), &*dead_too.to_string(), "refused"];
    check_refused(pool(settings(), &[dead, dead_too]), End::ConnectFailed, &names);
    let once = PoolSettings { attempts: 1, ..settings() };
    check_refused(pool(once, &[dead, dead_too]), End::ConnectFailed, &["refused"]);
    let no_time = PoolSettings { retry_timeout: Some(Duration::ZERO), ..settings() };
    check_refused(pool(no_time, &[dead, dead_too]), End::RetryDeadline, &["refused", "retry_timeout"]);
    check_refused(pool(settings(), &[]), End::NoNode, &["u1"]);
    let tls = PoolSettings { unfit: Some("no such certificate".into()), ..settings() };
    check_refused(pool(tls, &[dead]), End::UpstreamTls, &["upstream u1: no such certificate"]);
}

#[test]
fn a_node_that_does_not_answer_is_given_up() {
    // A listener whose queue is full drops further SYNs.
    let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    hole.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    hole.listen(0).unwrap();
    let addr = hole.local_addr().unwrap().as_socket().unwrap();
    let fill = || TcpStream::connect_timeout(&addr, Duration::from_millis(100));
    let _waiting: Vec<_> = (0..8).map_while(|_| fill().ok()).collect();
    let timeouts = Timeouts { connect: Duration::from_millis(50), ..settings().timeouts };
    check_refused(
        pool(PoolSettings { timeouts, ..settings() }, &[addr]),
        End::ConnectFailed,
        &["no answer within 50ms"],
    );
}

#[track_caller]
fn check_target(target: Option<Target>, plugins: &[(&str, serde_json::Value)], end: End, word: &str) {
    let mut gateway = Gateway::start(&Setup::default());
    match target {
        Some(target) => gateway.publish(target, plugins),
        None => gateway.publish_nothing(),
    }
    let at = gateway.listen(tcp());
    hears_end(&mut connect(at));
    let outcome = gateway.ends_with(end);
    assert!(outcome.detail.unwrap_or_default().contains(word));
    assert_eq!(gateway.ended_count(end), 1);
}

#[test]
fn every_dead_end_has_its_name() {
    check_target(None, &[], End::NoRoute, "no stream_route");
    check_target(Some(Target::Upstream("u9".into())), &[], End::UpstreamMissing, "u9");
    check_target(Some(Target::MissingService("s9".into())), &[], End::ServiceMissing, "s9");
    check_target(Some(Target::Nothing), &[], End::UpstreamMissing, "names an upstream");
    let denying = ("ip-restriction", serde_json::json!({"blacklist": ["127.0.0.0/8"]}));
    let target = Target::Inline(Arc::new(pool(settings(), &[refused().1])));
    check_target(Some(target), &[denying], End::PluginDenied, "ip-restriction");
}

#[test]
fn a_refused_client_that_has_spoken_sees_a_reset() {
    let mut gateway = Gateway::start(&Setup::default());
    let at = gateway.listen(tcp());
    // A gateway that is faster than the bytes closes with a FIN.
    poll_until("a reset", || {
        let mut client = connect(at);
        let _ = client.write_all(b"hello");
        client.read(&mut [0]).err().filter(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    });
    gateway.ends_with(End::NoRoute);
}

#[test]
fn sessions_over_the_limit_are_closed_at_once() {
    let (upstream, addr) = server();
    let setup = Setup { sessions: 1, ..Setup::default() };
    let (mut gateway, at) = Gateway::serving(&setup, tcp(), pool(settings(), &[addr]));
    let first = connect(at);
    let node = accept(&upstream);
    hears_end(&mut connect(at));
    gateway.ends_with(End::Limit);
    drop((first, node));
    gateway.outcome();
    poll_until("its permit", || (gateway.sessions.used() == 0).then_some(()));
    let _next = connect(at);
    accept(&upstream);
}

#[test]
fn descriptors_bound_sessions_too() {
    let (upstream, addr) = server();
    let setup = Setup { descriptors: 3, ..Setup::default() };
    let (mut gateway, at) = Gateway::serving(&setup, tcp(), pool(settings(), &[addr]));
    let _first = connect(at);
    let _node = accept(&upstream);
    hears_end(&mut connect(at));
    let outcome = gateway.ends_with(End::Limit);
    assert!(outcome.detail.unwrap().contains("LimitNOFILE"));
}

#[test]
fn a_session_outlives_its_listen_and_the_port_can_be_had_again() {
    let (mut gateway, mut client, mut node) = session(tcp(), settings());
    let at = client.peer_addr().unwrap();
    let report = gateway.reconcile(&[]).unwrap();
    assert_eq!(report.closed.len(), 1);
    assert!(TcpStream::connect(at).is_err(), "the port is still open");
    says(&mut client, b"still here");
    hears(&mut node, b"still here");
    assert_eq!(gateway.listen(Listen { addr: at, ..tcp() }), at);
}

#[test]
fn changed_settings_count_for_new_sessions_without_binding_again() {
    let (upstream, addr) = server();
    let (mut gateway, at) = Gateway::serving(&Setup::default(), tcp(), pool(settings(), &[addr]));
    let before = connect(at);
    let mut old_node = accept(&upstream);
    let report = gateway.reconcile(&[Listen { half_close: false, ..tcp() }]).unwrap();
    assert_eq!((report.opened.len(), report.changed.len(), report.closed.len()), (0, 1, 0));
    let mut after = connect(at);
    let _node = accept(&upstream);
    after.shutdown(Shutdown::Write).unwrap();
    hears_end(&mut after);
    gateway.ends_with(End::ClientClosed);
    before.shutdown(Shutdown::Write).unwrap();
    hears_end(&mut old_node);
    says(&mut old_node, b"old rules");
    hears(&mut { before }, b"old rules");
}

#[test]
fn a_listen_that_cannot_be_had_changes_nothing_and_names_the_holder() {
    let (held, taken) = server();
    let (mut gateway, at) = Gateway::serving(&Setup::default(), tcp(), pool(settings(), &[taken]));
    let other = Listen { addr: taken, written: "9100".into(), ..tcp() };
    let errors = gateway.reconcile(&[other]).unwrap_err();
    let error = errors[0].to_string();
    let pid = format!("(pid {})", std::process::id());
    assert!(error.contains("9100") && error.contains(&taken.to_string()) && error.contains(&pid), "{error}");
    let _client = connect(at);
    accept(&held);
}

#[test]
fn every_worker_gets_connections() {
    let (upstream, addr) = server();
    let setup = Setup { workers: 3, ..Setup::default() };
    let (gateway, at) = Gateway::serving(&setup, tcp(), pool(settings(), &[addr]));
    let pairs: Vec<_> = (0..60).map(|_| (connect(at), accept(&upstream))).collect();
    assert_eq!(gateway.stats.active(), 60);
    drop(pairs);
}

#[test]
fn a_stop_waits_for_sessions_and_not_for_ever() {
    let (gateway, client, node) = session(tcp(), settings());
    drop((client, node));
    let outcomes = gateway.stop(PATIENCE);
    assert_ne!(outcomes[0].end, End::Drained);

    let (gateway, mut client, _node) = session(tcp(), settings());
    let outcomes = gateway.stop(Duration::from_millis(50));
    assert_eq!(outcomes.iter().map(|outcome| outcome.end).collect::<Vec<_>>(), [End::Drained]);
    hears_end(&mut client);
}

#[test]
fn ipv6_is_served_as_ipv4_is() {
    let upstream = TcpListener::bind("[::1]:0").unwrap();
    let nodes = pool(settings(), &[upstream.local_addr().unwrap()]);
    let (mut gateway, at) = Gateway::serving(&Setup::default(), listen(Transport::Tcp, "::1"), nodes);
    let mut client = connect(at);
    let mut node = accept(&upstream);
    says(&mut client, b"six");
    hears(&mut node, b"six");
    drop((client, node));
    assert_eq!(gateway.outcome().inbound.server, at);
}
