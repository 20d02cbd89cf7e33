//! The incremental snapshot equals one built from nothing, whatever happened before.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use streamgate::balance::Pool;
use streamgate::config::RulesConfig;
use streamgate::live::Live;
use streamgate::resource::{Key, Kind};
use streamgate::session::{Inbound, Transport};
use streamgate::snapshot::{Builder, Snapshot, Target};
use streamgate::store::{Batch, Changes, Event, Store};

/// What a session could notice of a snapshot.
#[derive(Debug, PartialEq)]
struct Seen {
    routes: BTreeMap<String, String>,
    pools: BTreeMap<String, String>,
    rejected: Vec<String>,
    winners: Vec<Option<String>>,
}

fn nodes(pool: &Pool) -> String {
    let mut nodes: Vec<String> =
        pool.nodes().iter().map(|node| format!("{}*{}", node.label, node.weight)).collect();
    nodes.sort();
    format!("{} {nodes:?} pending={}", pool.id, pool.settings.pending)
}

fn seen(snapshot: &Snapshot) -> Seen {
    let routes = snapshot.routes().map(|route| {
        let target = match &route.target {
            Target::Upstream(id) => format!("upstream {id}"),
            Target::Inline(pool) => nodes(pool),
            Target::MissingService(id) => format!("no service {id}"),
            Target::Nothing => "nothing".into(),
        };
        (route.id.to_string(), format!("{target} {:?} {:?}", route.service, route.plugins))
    });
    let winners = ["10.0.0.1", "10.9.0.1", "192.168.0.1"].into_iter().flat_map(|client| {
        [9100, 9101, 9102].map(|port| {
            let client = std::net::SocketAddr::new(client.parse().unwrap(), 1000);
            let server = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            let inbound = Inbound::new(Transport::Tcp, client, server);
            snapshot.find(&inbound).map(|route| route.id.to_string())
        })
    });
    Seen {
        winners: winners.collect(),
        routes: routes.collect(),
        pools: snapshot.pools().map(|pool| (pool.id.to_string(), nodes(pool))).collect(),
        rejected: snapshot.rejected().iter().map(|rejected| rejected.key.to_string()).collect(),
    }
}

/// One step of a life of a configuration.
#[derive(Clone, Debug)]
enum Step {
    Put(Key, String),
    Delete(Key),
    Resolve(&'static str, Vec<IpAddr>),
    Resync(Vec<(Key, String)>),
}

fn upstream() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(r#"{"nodes":{"10.1.0.1:80":1}}"#.to_owned()),
        Just(r#"{"nodes":{"db:80":2,"10.1.0.1:80":1}}"#.to_owned()),
        Just(r#"{"nodes":{"db:80":1,"cache:80":1}}"#.to_owned()),
        Just(r#"{"nodes":{}}"#.to_owned()),
        Just(r#"{"nodes":7}"#.to_owned()),
    ]
}

fn id() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("1"), Just("2"), Just("3")]
}

fn object() -> impl Strategy<Value = (Key, String)> {
    let conditions = prop_oneof![
        Just(""),
        Just(r#""server_port":9100,"#),
        Just(r#""server_port":9101,"#),
        Just(r#""remote_addr":"10.0.0.0/16","#),
        Just(r#""remote_addr":"10.0.0.0/8","server_port":9102,"#),
    ];
    let route =
        (id(), conditions, id(), upstream(), 0..6).prop_map(|(id, conditions, other, upstream, shape)| {
            let rest = match shape {
                0 => format!(r#""upstream_id":"{other}""#),
                1 => format!(r#""service_id":"{other}""#),
                2 => format!(r#""service_id":"{other}","upstream":{upstream}"#),
                3 => format!(r#""upstream":{upstream}"#),
                4 => format!(r#""plugins":{{"prometheus":{{}}}},"service_id":"{other}""#),
                _ => r#""protocol":{"name":"redis","superior_id":"1"}"#.to_owned(),
            };
            (Key::new(Kind::StreamRoute, id), format!("{{{conditions}{rest}}}"))
        });
    let service = (id(), id(), upstream(), any::<bool>()).prop_map(|(id, other, upstream, inline)| {
        let text = if inline {
            format!(r#"{{"upstream":{upstream}}}"#)
        } else {
            format!(r#"{{"upstream_id":"{other}","plugins":{{"limit-conn":{{"conn":1,"burst":0,"default_conn_delay":1,"key":"remote_addr"}}}}}}"#)
        };
        (Key::new(Kind::Service, id), text)
    });
    let upstream = (id(), upstream()).prop_map(|(id, text)| (Key::new(Kind::Upstream, id), text));
    prop_oneof![3 => route, 1 => service, 1 => upstream]
}

fn step() -> impl Strategy<Value = Step> {
    let addresses = prop_oneof![
        Just(vec![]),
        Just(vec!["10.2.0.1".parse().unwrap()]),
        Just(vec!["10.2.0.1".parse().unwrap(), "10.2.0.2".parse().unwrap()]),
    ];
    prop_oneof![
        8 => object().prop_map(|(key, text)| Step::Put(key, text)),
        2 => object().prop_map(|(key, _)| Step::Delete(key)),
        2 => (prop_oneof![Just("db"), Just("cache")], addresses).prop_map(|(name, all)| Step::Resolve(name, all)),
        1 => proptest::collection::vec(object(), 0..6).prop_map(Step::Resync),
    ]
}

fn event(step: Step, revision: i64) -> Event {
    match step {
        Step::Put(key, text) => Event::Put { key, value: text.into(), revision },
        Step::Delete(key) => Event::Delete { key, revision },
        Step::Resolve(name, addresses) => {
            Event::Addresses { name: name.into(), addresses: addresses.into(), ttl: Duration::from_secs(1) }
        }
        Step::Resync(objects) => {
            // As in etcd, a key is there once.
            let objects: BTreeMap<Key, Bytes> =
                objects.into_iter().map(|(key, text)| (key, Bytes::from(text))).collect();
            let objects = objects.into_iter().map(|(key, value)| (key, value, revision)).collect();
            Event::Resync { objects, revision }
        }
    }
}

fn rules() -> RulesConfig {
    RulesConfig {
        stream_plugins: vec!["prometheus".into(), "limit-conn".into()],
        xrpc_protocols: vec!["redis".into()],
        ..RulesConfig::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn incremental_equals_full(steps in proptest::collection::vec(step(), 1..40)) {
        let mut store = Store::new(rules());
        let mut builder = Builder::new(Arc::new(Live::default()), 1);
        let first = Batch { events: vec![Event::Resync { objects: vec![], revision: 1 }], revision: 1 };
        let changes = store.apply(first, 0);
        builder.build(&store, &changes);
        for (revision, step) in (2..).zip(steps) {
            let batch = Batch { events: vec![event(step, revision)], revision };
            let changes = store.apply(batch, 0);
            let incremental = builder.build(&store, &changes);

            let all = Changes { keys: store.entries().map(|(key, _)| key.clone()).collect(), ..Changes::default() };
            let full = Builder::new(Arc::new(Live::default()), 9).build(&store, &all);
            prop_assert_eq!(seen(&incremental), seen(&full));
        }
    }
}

fn single(objects: &[(Kind, &str, &str)]) -> (Store, Builder, Snapshot) {
    let mut store = Store::new(rules());
    let mut builder = Builder::new(Arc::new(Live::default()), 1);
    let objects = objects
        .iter()
        .map(|(kind, id, text)| (Key::new(*kind, *id), Bytes::copy_from_slice(text.as_bytes()), 1))
        .collect();
    let changes = store.apply(Batch { events: vec![Event::Resync { objects, revision: 1 }], revision: 1 }, 0);
    let snapshot = builder.build(&store, &changes);
    (store, builder, snapshot)
}

#[test]
fn upstreams_that_no_route_reaches_are_neither_built_nor_resolved() {
    let (mut store, mut builder, snapshot) = single(&[
        (Kind::Upstream, "http", r#"{"nodes":{"only-http:80":1}}"#),
        (Kind::Upstream, "u", r#"{"nodes":{"db:80":1}}"#),
        (Kind::StreamRoute, "r", r#"{"upstream_id":"u"}"#),
    ]);
    assert_eq!(snapshot.upstream_pools().map(|pool| &*pool.id).collect::<Vec<_>>(), ["u"]);
    assert_eq!(builder.wanted_names().map(|name| &**name).collect::<Vec<_>>(), ["db"]);

    let event = Event::Delete { key: Key::new(Kind::StreamRoute, "r"), revision: 2 };
    let changes = store.apply(Batch { events: vec![event], revision: 2 }, 0);
    assert_eq!(builder.build(&store, &changes).pools().count(), 0);
    assert_eq!(builder.wanted_names().count(), 0);
}

#[test]
fn addresses_of_a_name_share_its_weight_exactly() {
    let (mut store, mut builder, _) = single(&[(
        Kind::StreamRoute,
        "r",
        r#"{"upstream":{"nodes":{"db:80":3,"10.0.0.9:80":2,"cache:80":1}}}"#,
    )]);
    let resolve = |name: &str, ips: &[&str]| Event::Addresses {
        name: name.into(),
        addresses: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ttl: Duration::from_secs(1),
    };
    let events = vec![resolve("db", &["10.0.0.1", "10.0.0.2"]), resolve("cache", &["10.0.0.3"])];
    let changes = store.apply(Batch { events, revision: 0 }, 0);
    let snapshot = builder.build(&store, &changes);
    let route = snapshot.routes().next().unwrap();
    let Target::Inline(pool) = &route.target else { panic!() };
    let weights: Vec<_> = pool.nodes().iter().map(|node| (node.addr.ip().to_string(), node.weight)).collect();
    let expected = [("10.0.0.1", 3), ("10.0.0.2", 3), ("10.0.0.9", 4), ("10.0.0.3", 2)];
    assert_eq!(weights, expected.map(|(ip, weight)| (ip.to_owned(), weight)));
    assert_eq!(pool.settings.attempts, 3, "a name counts once");
}

#[test]
fn a_route_to_a_rejected_upstream_says_why() {
    let (_, _, snapshot) = single(&[
        (Kind::Upstream, "u", r#"{"nodes":7}"#),
        (Kind::StreamRoute, "r", r#"{"upstream_id":"u"}"#),
        (Kind::StreamRoute, "s", r#"{"upstream_id":"v"}"#),
    ]);
    let why = |id| snapshot.pool(&snapshot.route(id).unwrap().target).unwrap_err().1;
    assert!(why("r").starts_with("upstream u is rejected: /nodes is 7"), "{}", why("r"));
    assert!(why("s").starts_with("upstream v does not exist"), "{}", why("s"));
}
