//! traffic-split through real sockets: shares, upstreams written in it, what is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/configured.rs"]
mod configured;
#[path = "support/gateway.rs"]
mod gateway;
#[path = "support/objects.rs"]
mod objects;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use configured::Configured;
use gateway::{Setup, connect, hears_end, poll_until, refused};
use serde_json::{Value, json};
use streamgate::probe::Trust;
use streamgate::resource::Kind;
use streamgate::session::End;
use streamgate::snapshot::UpstreamSettings;

/// A server that says its letter to each client and closes.
struct Letter {
    addr: SocketAddr,
    count: Arc<AtomicUsize>,
}

impl Letter {
    fn new(letter: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, count) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let counted = count.clone();
        // It ends with the process: `accept` has nothing that wakes it.
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                counted.fetch_add(1, Relaxed);
                let _ = client.write_all(&[letter]);
            }
        });
        Self { addr, count }
    }

    fn upstream(&self) -> Value {
        json!({"nodes": objects::nodes(&[self.addr])})
    }
}

fn start(setup: &Setup, objects: &[(Kind, &str, Value)]) -> Configured {
    Configured::start(setup, UpstreamSettings::default(), Trust::default(), objects)
}

fn split(entries: &Value) -> Value {
    json!({"traffic-split": {"rules": [{"weighted_upstreams": entries}]}})
}

/// The letters that so many clients hear, one after the other; `.` for a connection that is closed.
fn hear(at: SocketAddr, count: usize) -> String {
    let one = |_| {
        let mut letter = [0];
        match connect(at).read(&mut letter) {
            Ok(1) => char::from(letter[0]),
            _ => '.',
        }
    };
    (0..count).map(one).collect()
}

fn count(heard: &str, letter: char) -> usize {
    heard.chars().filter(|c| *c == letter).count()
}

/// What the ingress controller writes for a `TCPRoute` with weights: the plugin stands in the service, and all
/// routes of it share one round.
#[test]
fn routes_of_a_service_share_its_turns() {
    let (stable, canary) = (Letter::new(b'S'), Letter::new(b'C'));
    let service = |canary_nodes: &Value| {
        json!({
            "upstream": stable.upstream(),
            "plugins": split(&json!([{"upstream": canary_nodes, "weight": 1}, {"weight": 9}])),
        })
    };
    let mut gateway = start(&Setup::default(), &[(Kind::Service, "s", service(&canary.upstream()))]);
    let (one, other) = (gateway.tcp(), gateway.tcp());
    for at in [one, other] {
        let route = json!({"server_port": at.port(), "service_id": "s"});
        gateway.put(Kind::StreamRoute, &at.port().to_string(), &route);
    }
    let heard = hear(one, 5) + &hear(other, 5);
    assert_eq!((count(&heard, 'C'), count(&heard, 'S')), (1, 9), "{heard}");
    // Edits of other objects, of the nodes of an entry and of other plugins do not begin the round anew.
    let mut heard = String::new();
    for turn in 0..10 {
        let mut changed = service(&canary.upstream());
        changed["desc"] = turn.to_string().into();
        changed["plugins"]["traffic-split"]["rules"][0]["weighted_upstreams"][0]["upstream"]["retries"] =
            turn.into();
        gateway.put(Kind::Service, "s", &changed);
        gateway.put(Kind::Upstream, "other", &json!({"nodes": {}}));
        heard += &hear(if turn % 2 == 0 { one } else { other }, 1);
    }
    assert_eq!((count(&heard, 'C'), count(&heard, 'S')), (1, 9), "{heard}");
}

#[test]
fn ten_thousand_sessions_over_all_workers_are_shared_exactly() {
    let letters = [b'A', b'B', b'C', b'D'].map(Letter::new);
    let weights = [7, 2, 1, 0];
    let entries: Value = letters
        .iter()
        .zip(weights)
        .map(|(letter, weight)| json!({"upstream": letter.upstream(), "weight": weight}))
        .collect();
    let setup = Setup { every_outcome: false, ..Setup::default() };
    let mut gateway = start(&setup, &[(Kind::StreamRoute, "r1", json!({"plugins": split(&entries)}))]);
    let at = gateway.tcp();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(count(&hear(at, 1250), '.'), 0));
        }
    });
    let counts = letters.map(|letter| letter.count.load(Relaxed));
    assert_eq!(counts, [7000, 2000, 1000, 0]);
}

#[test]
fn the_first_rule_that_takes_a_session_counts() {
    let letters = [b'A', b'B', b'C', b'O'].map(Letter::new);
    let [a, b, c, own] = &letters;
    let mut gateway = start(&Setup::default(), &[]);
    let [first, second, third] = [0; 3].map(|_| gateway.tcp());
    let port = |at: SocketAddr| json!({"vars": [["server_port", "==", at.port().to_string()]]});
    let rules = json!([
        {"match": [port(first), {"vars": [["remote_addr", "==", "10.9.9.9"]]}],
         "weighted_upstreams": [{"upstream_id": "a"}]},
        // The id counts where both are written.
        {"match": [{"vars": [["remote_addr", "==", "10.9.9.9"]]}, port(first), port(second)],
         "weighted_upstreams": [{"upstream_id": "b", "upstream": c.upstream()}]},
    ]);
    let route = json!({"upstream": own.upstream(), "plugins": {"traffic-split": {"rules": rules}}});
    gateway.put(Kind::Upstream, "a", &a.upstream());
    gateway.put(Kind::Upstream, "b", &b.upstream());
    gateway.put(Kind::StreamRoute, "r1", &route);
    assert_eq!([first, second, third].map(|at| hear(at, 2)), ["AA", "BB", "OO"]);
    // Nothing is asked for, so every session is taken, in later rules too; no rules: none is.
    let with = |rules: Value| json!({"upstream": own.upstream(), "plugins": {"traffic-split": rules}});
    let entry = json!([{"upstream": c.upstream()}]);
    let mut more = rules;
    more.as_array_mut().unwrap().push(json!({"match": [], "weighted_upstreams": entry}));
    gateway.put(Kind::StreamRoute, "r1", &with(json!({"rules": more})));
    assert_eq!([first, second, third].map(|at| hear(at, 2)), ["AA", "BB", "CC"]);
    for nothing in [json!({"rules": []}), json!({}), json!({"rules": [{"match": []}]})] {
        gateway.put(Kind::StreamRoute, "r1", &with(nothing));
        assert_eq!(hear(first, 2), "OO");
    }
    // Where nobody has a weight, all are equal.
    let zero = json!([{"upstream_id": "a", "weight": 0}, {"upstream_id": "b", "weight": 0}]);
    let plugin = json!({"rules": [{"weighted_upstreams": zero}]});
    gateway.put(Kind::StreamRoute, "r1", &with(plugin));
    assert_eq!(hear(first, 4), "ABAB");
}

#[test]
fn only_sessions_that_go_to_a_missing_upstream_are_refused() {
    let there = Letter::new(b'T');
    let entries = json!([{"upstream_id": "gone"}, {"upstream": there.upstream()}]);
    // It has no upstream of its own, and none is needed.
    let mut gateway =
        start(&Setup::default(), &[(Kind::StreamRoute, "r1", json!({"plugins": split(&entries)}))]);
    let at = gateway.tcp();
    assert_eq!(hear(at, 4), ".T.T");
    assert_eq!(gateway.objects.snapshot.route("r1").unwrap().stats.ended_count(End::UpstreamMissing), 2);
    let degraded = gateway.objects.snapshot.degraded();
    let [one] = &degraded[..] else { panic!("{degraded:?}") };
    assert_eq!(&*one.why, "traffic-split: upstream gone does not exist; write it or change the upstream_id");
    gateway.put(Kind::Upstream, "gone", &there.upstream());
    assert_eq!(hear(at, 4), "TTTT");
    assert!(gateway.objects.snapshot.degraded().is_empty());
}

/// Whatever its own plugins say, nobody knows whom the service would have kept out.
#[test]
fn a_missing_service_is_not_got_around() {
    let there = Letter::new(b'T');
    let route = json!({"service_id": "s", "plugins": split(&json!([{"upstream": there.upstream()}]))});
    let mut gateway = start(&Setup::default(), &[(Kind::StreamRoute, "r1", route)]);
    let at = gateway.tcp();
    hears_end(&mut connect(at));
    gateway.put(Kind::Service, "s", &json!({}));
    assert_eq!(hear(at, 1), "T");
    assert_eq!(there.count.load(Relaxed), 1);
}

/// APISIX leaves checks and retries out of an upstream written in the plugin.
#[test]
fn an_upstream_in_the_plugin_has_retries_and_health_checks() {
    let (well, (_socket, lost)) = (Letter::new(b'W'), refused());
    let probes = json!({"active": {"type": "tcp",
        "healthy": {"interval": 1, "successes": 1}, "unhealthy": {"interval": 1, "tcp_failures": 1}}});
    let upstream = json!({"nodes": [{"host": "127.0.0.1", "port": lost.port(), "weight": 1, "priority": 1},
        {"host": "127.0.0.1", "port": well.addr.port(), "weight": 1}], "retries": 1, "checks": probes});
    let route = json!({"plugins": split(&json!([{"upstream": upstream}]))});
    let mut gateway = start(&Setup::default(), &[(Kind::StreamRoute, "r1", route.clone())]);
    let at = gateway.tcp();
    assert_eq!(hear(at, 1), "W", "the next node is tried");
    let snapshot = gateway.objects.snapshot.clone();
    let pool = snapshot.checked_pools().next().unwrap();
    assert_eq!(&*pool.id, "stream_routes/r1/traffic-split/0/0");
    let cell = objects::cell(pool, lost);
    gateway.put(Kind::Upstream, "other", &json!({"nodes": {}}));
    poll_until("a probe that fails", || (!cell.is_usable()).then_some(()));
    let before = pool.nodes()[0].stats.ended_count(End::ConnectFailed);
    assert_eq!(hear(at, 3), "WWW");
    assert_eq!(pool.nodes()[0].stats.ended_count(End::ConnectFailed), before, "it is not tried any more");
    gateway.delete(Kind::StreamRoute, "r1");
    assert_eq!(gateway.objects.snapshot.checked_pools().count(), 0);
}
