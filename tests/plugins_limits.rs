//! ip-restriction, limit-conn and limit-rate with real clients, over several workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/configured.rs"]
mod configured;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/peers.rs"]
mod peers;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use configured::Configured;
use gateway::{Setup, connect, poll_until, says};
use peers::{echo, talk};
use serde_json::{Value, json};
use streamgate::probe::Trust;
use streamgate::resource::Kind;
use streamgate::session::End;
use streamgate::snapshot::UpstreamSettings;
use tokio::time::Instant;

/// A gateway of four workers whose only route has these plugins.
fn gateway(plugins: &Value) -> (Configured, SocketAddr) {
    let setup = Setup { workers: 4, ..Setup::default() };
    let upstream = json!({"nodes": objects::nodes(&[echo("a")])});
    let objects = [
        (Kind::StreamRoute, "r1", json!({"upstream_id": "u1", "plugins": plugins})),
        (Kind::Upstream, "u1", upstream),
    ];
    let mut configured = Configured::start(&setup, UpstreamSettings::default(), Trust::default(), &objects);
    let addr = configured.tcp();
    (configured, addr)
}

/// A session that was let in; `None` where it was refused.
fn enter(addr: SocketAddr) -> Option<TcpStream> {
    let mut stream = connect(addr);
    talk(&mut stream).ok().map(|_| stream)
}

/// Sessions of the route that plugins refused.
fn denied(configured: &Configured) -> u64 {
    let stats = configured.objects.live.routes.get(&"r1".into()).unwrap();
    stats.ended_count(End::PluginDenied)
}

#[track_caller]
fn until_nothing_is_counted(configured: &Configured) {
    poll_until("end of all counts", || (configured.objects.live.limits.remembered().0 == 0).then_some(()));
}

/// Ends a connection by a reset.
fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[test]
fn of_200_clients_at_once_as_many_enter_as_may() {
    let limit = json!({"conn": 30, "burst": 20, "default_conn_delay": 0.05, "key": "remote_addr"});
    let (configured, addr) = gateway(&json!({"limit-conn": limit}));
    let together = Barrier::new(200);
    // A second round finds all places given back.
    for round in 0..2 {
        let entered: Vec<TcpStream> = thread::scope(|scope| {
            let enter = || {
                together.wait();
                enter(addr)
            };
            let clients: Vec<_> = (0..200).map(|_| scope.spawn(enter)).collect();
            clients.into_iter().filter_map(|client| client.join().unwrap()).collect()
        });
        assert_eq!(entered.len(), 50, "round {round}");
        assert_eq!(denied(&configured), 150 * (round + 1));
        drop(entered);
        until_nothing_is_counted(&configured);
    }
}

#[test]
fn who_comes_later_waits_longer() {
    let limit = json!({"conn": 1, "burst": 2, "default_conn_delay": 0.2, "key": "remote_addr"});
    let (mut configured, addr) = gateway(&json!({"limit-conn": limit}));
    let mut held = Vec::new();
    for waits in [0.0, 0.2, 0.4] {
        let began = Instant::now();
        held.push(enter(addr).unwrap());
        assert!(began.elapsed().as_secs_f64() >= waits, "{:?} instead of {waits}", began.elapsed());
    }
    assert!(enter(addr).is_none());
    let outcome = configured.gateway.ends_with(End::PluginDenied);
    assert_eq!(outcome.apisix_code(), "503");
    let why = outcome.detail.unwrap();
    assert_eq!(&*why, "limit-conn: \"127.0.0.1\" has 3 sessions, as many as conn 1 and burst 2 allow");
}

#[test]
fn a_count_outlives_edits_but_not_another_configuration() {
    let limit = |delay| json!({"conn": 1, "burst": 0, "default_conn_delay": delay, "key": "remote_addr"});
    let (mut configured, addr) = gateway(&json!({"limit-conn": limit(1)}));
    let route = |more: &str, delay: i64| {
        json!({"upstream_id": "u1", "desc": more,
               "plugins": {"limit-conn": limit(delay), "ip-restriction": {"blacklist": ["10.0.0.0/8"]}}})
    };
    let _held = enter(addr).unwrap();
    assert!(enter(addr).is_none());
    configured.put(Kind::StreamRoute, "r1", &route("unrelated", 1));
    assert!(enter(addr).is_none(), "an unrelated edit keeps the count");
    configured.put(Kind::StreamRoute, "r1", &route("unrelated", 2));
    let _other = enter(addr).expect("another configuration begins anew");
    assert!(enter(addr).is_none());
    // The first session still has its place in the first count.
    configured.put(Kind::StreamRoute, "r1", &route("back", 1));
    assert!(enter(addr).is_none());
}

#[test]
fn routes_of_a_service_share_its_count() {
    let (mut configured, first) = gateway(&json!({}));
    let second = configured.tcp();
    let limit = json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "remote_addr"});
    configured.put(Kind::Service, "s", &json!({"upstream_id": "u1", "plugins": {"limit-conn": limit}}));
    for (id, addr) in [("r1", first), ("r2", second)] {
        let route = json!({"service_id": "s", "server_port": addr.port()});
        configured.put(Kind::StreamRoute, id, &route);
    }
    let held = enter(first).unwrap();
    assert!(enter(second).is_none());
    drop(held);
    until_nothing_is_counted(&configured);
    let held = enter(second).unwrap();
    // The route's own configuration is another limit.
    let route = json!({"service_id": "s", "server_port": first.port(), "plugins": {"limit-conn": limit}});
    configured.put(Kind::StreamRoute, "r1", &route);
    let _own = enter(first).unwrap();
    drop(held);
}

#[test]
fn keys_are_counted_apart() {
    let key = json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key_type": "var_combination",
                     "key": "$remote_addr $server_port"});
    let (mut configured, first) = gateway(&json!({"limit-conn": key}));
    let second = configured.tcp();
    let _held = enter(first).unwrap();
    let _other = enter(second).unwrap();
    assert!(enter(first).is_none() && enter(second).is_none());
}

#[test]
fn a_later_refusal_gives_the_place_back() {
    let limit = json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "remote_addr"});
    let (mut configured, addr) = gateway(&json!({"limit-conn": limit, "mqtt-proxy": {"protocol_level": 4}}));
    for _ in 0..3 {
        let mut stream = connect(addr);
        says(&mut stream, b"GET / HTTP/1.1\r\n\r\n");
        let outcome = configured.gateway.ends_with(End::PluginDenied);
        assert_eq!(outcome.denied.unwrap().plugin, "mqtt-proxy");
        until_nothing_is_counted(&configured);
    }
}

#[test]
fn who_goes_while_waiting_gives_the_place_back() {
    let limit = json!({"conn": 1, "burst": 1, "default_conn_delay": 3600, "key": "remote_addr"});
    let (mut configured, addr) = gateway(&json!({"limit-conn": limit}));
    let held = enter(addr).unwrap();
    // Of two clients one waits and the other is refused.
    let mut clients = vec![connect(addr), connect(addr)];
    configured.gateway.ends_with(End::PluginDenied);
    let refused = poll_until("a client that is refused", || {
        clients.iter().position(|client| {
            client.set_nonblocking(true).unwrap();
            !(&*client).read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        })
    });
    clients.remove(refused);
    reset(clients.remove(0));
    configured.gateway.ends_with(End::ClientReset);
    drop(held);
    until_nothing_is_counted(&configured);
}

#[test]
fn a_rate_is_that_of_all_workers() {
    // A token comes back after 1,000 s: none while this runs.
    let limit = json!({"rate": 0.001, "burst": 4, "rejected_code": 500});
    let (mut configured, addr) = gateway(&json!({"limit-rate": limit}));
    let entered = (0..20).filter_map(|_| enter(addr)).count();
    assert_eq!(entered, 5);
    poll_until("refusals", || (denied(&configured) == 15).then_some(()));
    let mut outcomes = std::iter::from_fn(|| Some(configured.gateway.outcome()));
    let outcome = outcomes.find(|outcome| outcome.end == End::PluginDenied).unwrap();
    let denied = outcome.denied.unwrap();
    assert_eq!((denied.plugin, denied.code), ("limit-rate", 500));
    let why = outcome.detail.unwrap();
    let (before, left) = why.split_once("; the next may in ").unwrap();
    assert_eq!(before, "limit-rate: \"127.0.0.1\" begins more than 0.001 sessions a second");
    let left: f64 = left.strip_suffix('s').unwrap().parse().unwrap();
    assert!((900.0..=1000.0).contains(&left), "{left}");
}

/// Of five clients that send datagrams so many are answered.
#[track_caller]
fn check_associations(plugins: &Value, answered: usize) {
    let (mut configured, _) = gateway(plugins);
    let addr = configured.udp();
    let refused = || denied(&configured);
    let clients: Vec<UdpSocket> = (0..5).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let heard = clients.iter().filter(|client| {
        client.set_nonblocking(true).unwrap();
        let before = refused();
        client.send_to(b"?", addr).unwrap();
        poll_until("an answer or a refusal", || {
            let answer = client.recv_from(&mut [0; 9]).map(|_| true).ok();
            answer.or_else(|| (refused() > before).then_some(false))
        })
    });
    assert_eq!(heard.count(), answered, "{plugins}");
}

#[test]
fn associations_count_as_connections_do() {
    check_associations(&json!({"limit-rate": {"rate": 0.001, "burst": 1, "key": "server_port"}}), 2);
    // Nobody waits: that would be an hour.
    let limit = json!({"conn": 1, "burst": 2, "default_conn_delay": 3600, "key": "remote_addr"});
    check_associations(&json!({"limit-conn": limit}), 3);
}

#[test]
fn clients_are_kept_out_by_their_address() {
    let (mut configured, addr) =
        gateway(&json!({"ip-restriction": {"blacklist": ["127.9.0.0/16"], "message": "go away"}}));
    let ask = |client: &str| {
        let client = format!("{client}:0").parse().unwrap();
        let mut stream = peers::connect_from(client, addr).unwrap();
        talk(&mut stream).ok()
    };
    assert_eq!(ask("127.8.0.1").as_deref(), Some("a"));
    assert_eq!(ask("127.9.0.1"), None);
    let mut outcomes = std::iter::from_fn(|| Some(configured.gateway.outcome()));
    let outcome = outcomes.find(|outcome| outcome.end == End::PluginDenied).unwrap();
    let why = outcome.detail.clone().unwrap();
    assert_eq!(&*why, "ip-restriction: client 127.9.0.1 is on the blacklist (127.9.0.0/16)");
    assert_eq!((outcome.apisix_code(), outcome.traffic.sent), ("403", 0));
}
