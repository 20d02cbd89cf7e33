//! limit-bandwidth: no direction is faster than it may be, nothing is lost or changed by it, and all else of
//! a session is as without it. How exact the rate is, is tested without a clock (`live::bandwidth`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use gateway::{
    Gateway, Setup, accept, connect, hears, hears_end, listen, poll_until, pool, reset, says, server,
    settings, udp,
};
use serde_json::{Value, json};
use streamgate::balance::PoolSettings;
use streamgate::resource::Timeouts;
use streamgate::session::{End, Transport};
use streamgate::snapshot::Target;
use tokio::time::Instant;

/// A gateway whose one route has these bounds and this idle limit, and its node.
fn serving(conf: &Value, idle: Duration) -> (Gateway, SocketAddr, TcpListener) {
    let (node, addr) = server();
    let mut gateway = Gateway::start(&Setup::default());
    let timeouts = Timeouts { idle, ..settings().timeouts };
    let pool = pool(PoolSettings { timeouts, ..settings() }, &[addr]);
    gateway.publish(Target::Inline(Arc::new(pool)), &[("limit-bandwidth", conf.clone())]);
    let at = gateway.listen(listen(Transport::Tcp, "127.0.0.1"));
    (gateway, at, node)
}

const LONG: Duration = Duration::from_mins(10);

/// Bytes of which each tells its place.
fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]).collect()
}

/// Passes so many bytes through each of the pairs at once, from the first to the second; how long it took.
#[track_caller]
fn passed(pairs: &mut [(TcpStream, TcpStream)], count: usize) -> Duration {
    let (all, began) = (&bytes(count), Instant::now());
    thread::scope(|scope| {
        for (from, to) in pairs {
            scope.spawn(|| from.write_all(all).unwrap());
            scope.spawn(|| {
                let mut heard = vec![0; all.len()];
                to.read_exact(&mut heard).unwrap();
                assert!(heard == *all, "other bytes");
            });
        }
    });
    began.elapsed()
}

/// That many sessions take at least so long for so many bytes each.
#[track_caller]
fn check(conf: &Value, (up, sessions): (bool, usize), count: usize, least: Duration) {
    let (gateway, at, node) = serving(conf, LONG);
    let mut pairs = Vec::new();
    for _ in 0..sessions {
        let client = connect(at);
        let upstream = accept(&node);
        pairs.push(if up { (client, upstream) } else { (upstream, client) });
    }
    let took = passed(&mut pairs, count);
    assert!(took >= least, "{conf}: {sessions} times {count} bytes took {took:?}, up: {up}");
    drop(gateway);
}

/// What is sent before the rate counts is a tenth of a second's worth, and a turn.
#[test]
fn neither_direction_is_faster_than_it_may_be() {
    let half = Duration::from_millis(400);
    check(&json!({"upload": 400_000}), (true, 1), 220_000, half);
    check(&json!({"download": 400_000}), (false, 1), 220_000, half);
    check(&json!({"key_upload": 400_000}), (true, 4), 55_000, half);
    check(&json!({"key_download": 400_000, "key": "server_port"}), (false, 4), 55_000, half);
    check(&json!({"upload": 400_000, "key_upload": 4_000_000}), (true, 2), 220_000, half);
    check(&json!({"upload": 400_000, "burst": 100_000}), (true, 1), 280_000, half);
}

#[test]
fn the_other_direction_and_a_burst_are_not_held_up() {
    // At the rate each would take far longer than anybody waits.
    check(&json!({"upload": 10}), (false, 1), 1_000_000, Duration::ZERO);
    check(&json!({"download": 10}), (true, 1), 1_000_000, Duration::ZERO);
    check(&json!({"upload": 10, "burst": 1_000_000}), (true, 1), 1_000_000, Duration::ZERO);
}

#[test]
fn bulk_goes_through_pipes_and_arrives_whole() {
    let (gateway, at, node) = serving(&json!({"download": 200_000_000}), LONG);
    let (client, upstream) = (connect(at), accept(&node));
    let took = passed(&mut [(upstream, client)], 64 << 20);
    assert!(took >= Duration::from_millis(200), "{took:?}");
    assert!(gateway.node.bulk_flows.count() > 0, "everything was copied");
}

#[test]
fn what_waits_is_passed_on_before_the_end() {
    let (mut gateway, at, node) = serving(&json!({"upload": 100_000, "download": 100_000}), LONG);
    let (mut client, mut upstream) = (connect(at), accept(&node));
    let all = bytes(30_000);
    says(&mut client, &all);
    client.shutdown(Shutdown::Write).unwrap();
    hears(&mut upstream, &all);
    hears_end(&mut upstream);
    says(&mut upstream, &all);
    drop(upstream);
    hears(&mut client, &all);
    hears_end(&mut client);
    let outcome = gateway.ends_with(End::ClientClosed);
    assert_eq!((outcome.traffic.received, outcome.traffic.sent), (30_000, 30_000));
}

#[test]
fn who_has_to_wait_is_not_idle() {
    // A byte every 100 ms, and the idle limit is shorter.
    let (mut gateway, at, node) = serving(&json!({"upload": 10}), Duration::from_millis(60));
    let (mut client, mut upstream) = (connect(at), accept(&node));
    says(&mut client, b"123456");
    hears(&mut upstream, b"123456");
    gateway.ends_with(End::IdleTimeout);
}

#[test]
fn a_reset_ends_a_session_that_has_to_wait() {
    // What the client has said would take hours. The idle limit is that of a half-closed one, too.
    let (mut gateway, at, node) = serving(&json!({"upload": 1000}), Duration::from_millis(300));
    let (mut client, mut upstream) = (connect(at), accept(&node));
    says(&mut client, &bytes(100_000));
    hears(&mut upstream, &bytes(100_000)[..50]);
    reset(client);
    gateway.ends_with(End::ClientReset);
    let heard = poll_until("end", || match upstream.read(&mut [0; 4096]) {
        Ok(count) => (count == 0).then_some(false),
        Err(_) => Some(true),
    });
    assert!(heard, "it looks like an end");
}

#[test]
fn datagrams_that_are_too_fast_are_dropped_and_counted() {
    for (conf, up) in [
        (json!({"upload": 1000, "burst": 5000}), true),
        (json!({"key_download": 1000, "burst": 5000}), false),
    ] {
        let (node, addr) = udp("127.0.0.1");
        let mut gateway = Gateway::start(&Setup::default());
        let pool = Target::Inline(Arc::new(pool(settings(), &[addr])));
        gateway.publish(pool, &[("limit-bandwidth", conf)]);
        let at = gateway.listen(listen(Transport::Udp, "127.0.0.1"));
        let client = udp("127.0.0.1").0;
        client.connect(at).unwrap();
        client.send(b"who").unwrap();
        let (_, association) = node.recv_from(&mut [0; 16]).unwrap();
        let sent = 50;
        for _ in 0..sent {
            let datagram = [7; 500];
            if up {
                client.send(&datagram).map(drop)
            } else {
                node.send_to(&datagram, association).map(drop)
            }
            .unwrap();
        }
        let receiver = if up { &node } else { &client };
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut arrived = 0;
        let dropped = poll_until("all of them", || {
            while receiver.recv(&mut [0; 1000]).is_ok() {
                arrived += 1;
            }
            let dropped = gateway.node.udp_over_rate.count();
            (arrived + dropped == sent).then_some(dropped)
        });
        // The burst, and the one that is more.
        assert!(arrived >= 10, "{arrived} of {sent} arrived");
        assert!(dropped >= 20, "{dropped} of {sent} were dropped");
    }
}

#[test]
fn tls_is_bounded_too() {
    let (node, addr) = server();
    let bounds = json!({"limit-bandwidth": {"upload": 400_000, "download": 400_000}});
    let route = json!({"id": "r1", "plugins": bounds, "upstream": {"nodes": {addr.to_string(): 1}}});
    let certificate = tls::ssl("1", &["a.test"], &tls::Authority::new("root").issue(&["a.test"]));
    let objects = json!({"stream_routes": [route], "ssls": [certificate]});
    let setup = binary::Setup::objects(&objects);
    let plugins = vec!["limit-bandwidth"];
    let gateway = binary::Setup { plugins, listens: vec!["tls: true"], ..setup }.start();
    let config = tls::Client::default().config();
    let mut session = tls::shake_hands(gateway.tcp(0), Some("a.test"), &config).unwrap();
    let mut upstream = accept(&node);
    let all = bytes(220_000);
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            session.write_all(&all).unwrap();
            session.flush().unwrap();
        });
        hears(&mut upstream, &all);
    });
    assert!(began.elapsed() >= Duration::from_millis(400), "up in {:?}", began.elapsed());
    let began = Instant::now();
    let mut sender = upstream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| sender.write_all(&all).unwrap());
        let mut heard = vec![0; all.len()];
        session.read_exact(&mut heard).unwrap();
        assert!(heard == all);
    });
    assert!(began.elapsed() >= Duration::from_millis(400), "down in {:?}", began.elapsed());
}
