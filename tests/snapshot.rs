//! The incremental snapshot equals one built from nothing, whatever happened before.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use streamgate::balance::{Pool, Tried};
use streamgate::config::RulesConfig;
use streamgate::live::Live;
use streamgate::plugin::Choice;
use streamgate::resource::{Key, Kind};
use streamgate::session::{Inbound, Transport};
use streamgate::snapshot::{Builder, Route, Snapshot, Target};
use streamgate::store::{Batch, Changes, Event, Store};

/// What a session could notice of a snapshot.
#[derive(Debug, PartialEq)]
struct Seen {
    routes: BTreeMap<String, String>,
    pools: BTreeMap<String, String>,
    rejected: Vec<String>,
    written: Vec<String>,
    winners: Vec<Option<String>>,
}

fn nodes(pool: &Pool) -> String {
    let mut nodes: Vec<String> =
        pool.nodes().iter().map(|node| format!("{}*{}", node.label, node.weight)).collect();
    nodes.sort();
    format!("{} {nodes:?} of {:?} pending={}", pool.id, pool.names(), pool.settings.pending)
}

/// Their names in order, and where they may send sessions. What they count is shared by all snapshots.
fn plugins(route: &Route) -> String {
    let names: Vec<&str> = route.plugins.iter().map(|armed| armed.class.name).collect();
    let choices: Vec<&Choice> = route.plugins.choices().collect();
    format!("{names:?} {choices:?}")
}

fn seen(snapshot: &Snapshot) -> Seen {
    let routes = snapshot.routes().map(|route| {
        let target = match &route.target {
            Target::Upstream(id) => format!("upstream {id}"),
            Target::Inline(pool) => nodes(pool),
            Target::Service(id) => format!("service {id}"),
            Target::MissingService(id) => format!("no service {id}"),
            Target::Nothing => "nothing".into(),
        };
        (route.id.to_string(), format!("{target} {:?} {}", route.service, plugins(route)))
    });
    let winners = ["10.0.0.1", "10.9.0.1", "192.168.0.1"].into_iter().flat_map(|client| {
        [9100, 9101, 9102].map(|port| {
            let client = std::net::SocketAddr::new(client.parse().unwrap(), 1000);
            let server = std::net::SocketAddr::from(([127, 0, 0, 1], port));
            let inbound = Inbound::new(Transport::Tcp, client, server);
            snapshot.find(&inbound).map(|route| route.id.to_string())
        })
    });
    let kinds = [Kind::StreamRoute, Kind::Upstream, Kind::Service];
    let written = kinds.into_iter().flat_map(|kind| snapshot.all_written(kind));
    let written = written.map(|(key, written)| format!("{key} {}", String::from_utf8_lossy(&written.bytes)));
    Seen {
        written: written.collect(),
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

/// How many routes there may be, and the conditions they may have.
#[derive(Clone, Copy, Debug)]
struct Shape {
    routes: u8,
    conditions: &'static [&'static str],
}

const MIXED: Shape = Shape {
    routes: 3,
    conditions: &[
        "",
        r#""server_port":9100,"#,
        r#""server_port":9101,"#,
        r#""remote_addr":"10.0.0.0/16","#,
        r#""remote_addr":"10.0.0.0/8","server_port":9102,"#,
    ],
};

/// Shapes that put all routes into one place of the index.
const ONE_PLACE: [Shape; 3] = [
    Shape { routes: 90, conditions: &[r#""server_port":9101,"#] },
    Shape {
        routes: 20,
        conditions: &[
            r#""remote_addr":"10.0.0.0/8","#,
            r#""remote_addr":"10.0.0.0/16","#,
            r#""remote_addr":"10.0.0.1","#,
            r#""remote_addr":"192.168.0.0/31","#,
        ],
    },
    Shape {
        routes: 20,
        conditions: &[
            r#""server_port":9102,"server_addr":"127.0.0.0/8","#,
            r#""server_port":9102,"server_addr":"127.0.0.1","#,
            r#""server_port":9102,"server_addr":"127.0.0.2/31","#,
        ],
    },
];

/// What traffic-split may say; the last is none.
fn split() -> impl Strategy<Value = Option<String>> {
    let entry = prop_oneof![
        Just("{}".to_owned()),
        id().prop_map(|id| format!(r#"{{"upstream_id":"{id}"}}"#)),
        upstream().prop_map(|text| format!(r#"{{"upstream":{text},"weight":2}}"#)),
    ];
    let rule = (proptest::collection::vec(entry, 1..4), any::<bool>()).prop_map(|(entries, conditional)| {
        let conditions =
            if conditional { r#""match":[{"vars":[["server_port","==","9100"]]}],"# } else { "" };
        format!(r#"{{{conditions}"weighted_upstreams":[{}]}}"#, entries.join(","))
    });
    let rules = proptest::collection::vec(rule, 0..3);
    prop_oneof![
        2 => rules.prop_map(|rules| Some(format!(r#""traffic-split":{{"rules":[{}]}}"#, rules.join(",")))),
        3 => Just(None),
    ]
}

fn object(shape: Shape) -> impl Strategy<Value = (Key, String)> {
    let conditions = prop::sample::select(shape.conditions);
    let place = (1..=shape.routes).prop_map(|place| place.to_string());
    let route = (place, conditions, id(), upstream(), split(), 0..6).prop_map(
        |(id, conditions, other, upstream, split, shape)| {
            let rest = match shape {
                0 => format!(r#""upstream_id":"{other}""#),
                1 => format!(r#""service_id":"{other}""#),
                2 => format!(r#""service_id":"{other}","upstream":{upstream}"#),
                3 => format!(r#""upstream":{upstream}"#),
                4 => format!(r#""plugins":{{"prometheus":{{}}}},"service_id":"{other}""#),
                _ => r#""protocol":{"name":"redis","superior_id":"1"}"#.to_owned(),
            };
            let plugins = split.filter(|_| shape != 4).map(|split| format!(r#""plugins":{{{split}}},"#));
            let plugins = plugins.unwrap_or_default();
            (Key::new(Kind::StreamRoute, id), format!("{{{conditions}{plugins}{rest}}}"))
        },
    );
    let service =
        (id(), id(), upstream(), split(), any::<bool>()).prop_map(|(id, other, upstream, split, inline)| {
            let limit = r#""limit-conn":{"conn":1,"burst":0,"default_conn_delay":1,"key":"remote_addr"}"#;
            let plugins = split.unwrap_or_else(|| limit.into());
            let text = if inline {
                format!(r#"{{"upstream":{upstream},"plugins":{{{plugins}}}}}"#)
            } else {
                format!(r#"{{"upstream_id":"{other}","plugins":{{{plugins}}}}}"#)
            };
            (Key::new(Kind::Service, id), text)
        });
    let upstream = (id(), upstream()).prop_map(|(id, text)| (Key::new(Kind::Upstream, id), text));
    prop_oneof![3 => route, 1 => service, 1 => upstream]
}

fn step(shape: Shape) -> impl Strategy<Value = Step> {
    let addresses = prop_oneof![
        Just(vec![]),
        Just(vec!["10.2.0.1".parse().unwrap()]),
        Just(vec!["10.2.0.1".parse().unwrap(), "10.2.0.2".parse().unwrap()]),
    ];
    prop_oneof![
        8 => object(shape).prop_map(|(key, text)| Step::Put(key, text)),
        2 => object(shape).prop_map(|(key, _)| Step::Delete(key)),
        2 => (prop_oneof![Just("db"), Just("cache")], addresses).prop_map(|(name, all)| Step::Resolve(name, all)),
        1 => proptest::collection::vec(object(shape), 0..=usize::from(shape.routes)).prop_map(Step::Resync),
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
        stream_plugins: vec!["prometheus".into(), "limit-conn".into(), "traffic-split".into()],
        xrpc_protocols: vec!["redis".into()],
        ..RulesConfig::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn incremental_equals_full(steps in proptest::collection::vec(step(MIXED), 1..40)) {
        check_incremental(steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn incremental_equals_full_in_one_place(
        steps in prop::sample::select(&ONE_PLACE[..])
            .prop_flat_map(|shape| proptest::collection::vec(step(shape), 1..120)),
    ) {
        check_incremental(steps)?;
    }
}

/// Compares every state on the way with one built from nothing.
fn check_incremental(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut store = Store::new(rules());
    let mut builder = Builder::new(Arc::new(Live::default()), 1);
    let first = Batch { events: vec![Event::Resync { objects: vec![], revision: 1 }], revision: 1 };
    let changes = store.apply(first, 0);
    builder.build(&store, &changes);
    for (revision, step) in (2..).zip(steps) {
        let batch = Batch { events: vec![event(step, revision)], revision };
        let changes = store.apply(batch, 0);
        let incremental = builder.build(&store, &changes);

        let accepted = store.entries().map(|(key, _)| key);
        let keys = accepted.chain(store.rejected().map(|rejected| &rejected.key)).cloned().collect();
        let all = Changes { keys, ..Changes::default() };
        let mut from_nothing = Builder::new(Arc::new(Live::default()), 9);
        let full = from_nothing.build(&store, &all);
        prop_assert_eq!(seen(&incremental), seen(&full));
        prop_assert_eq!(wanted(&builder), wanted(&from_nothing));
    }
    Ok(())
}

fn wanted(builder: &Builder) -> BTreeSet<String> {
    builder.wanted_names().map(ToString::to_string).collect()
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

/// A control plane with one gateway's eyes.
struct Life {
    store: Store,
    builder: Builder,
    snapshot: Snapshot,
    revision: i64,
}

impl Life {
    fn of(objects: &[(Kind, &str, &str)]) -> Self {
        let (store, builder, snapshot) = single(objects);
        Self { store, builder, snapshot, revision: 1 }
    }

    fn apply(&mut self, event: impl FnOnce(i64) -> Event) {
        self.revision += 1;
        let batch = Batch { events: vec![event(self.revision)], revision: self.revision };
        let changes = self.store.apply(batch, 0);
        self.snapshot = self.builder.build(&self.store, &changes);
    }

    fn put(&mut self, kind: Kind, id: &str, text: &str) {
        let (key, value) = (Key::new(kind, id), Bytes::copy_from_slice(text.as_bytes()));
        self.apply(|revision| Event::Put { key, value, revision });
    }

    fn resolve(&mut self, name: &str, address: &str) {
        let addresses = [address.parse().unwrap()].into();
        self.apply(|_| Event::Addresses { name: name.into(), addresses, ttl: Duration::from_secs(1) });
    }

    fn pool(&self, route: &str) -> &Arc<Pool> {
        self.snapshot.pool(&self.snapshot.route(route).unwrap().target).unwrap()
    }

    /// Asserts that `change` leaves the turns of this route's nodes alone: with it before each pick,
    /// three equal nodes get ten picks of thirty each.
    #[track_caller]
    fn check_turns_go_on(&mut self, route: &str, mut change: impl FnMut(&mut Self, usize)) {
        let inbound =
            Inbound::new(Transport::Tcp, "127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
        let mut counts = BTreeMap::<String, usize>::new();
        for turn in 0..30 {
            change(self, turn);
            let picked = self.pool(route).pick(&inbound, now(), &mut Tried::default()).unwrap();
            *counts.entry(picked.node.label.to_string()).or_default() += 1;
        }
        assert_eq!(counts.into_values().collect::<Vec<_>>(), [10, 10, 10]);
    }
}

const THREE: &str = r#""nodes":{"10.1.0.1:80":1,"10.1.0.2:80":1,"10.1.0.3:80":1}"#;

#[test]
fn a_refused_version_does_not_begin_the_turns_anew() {
    let nodes = format!("{{{THREE}}}");
    let inline = format!(r#"{{"upstream":{nodes}}}"#);
    let mut life = Life::of(&[
        (Kind::Upstream, "u", &nodes),
        (Kind::Service, "s", &inline),
        (Kind::StreamRoute, "of-upstream", r#"{"upstream_id":"u"}"#),
        (Kind::StreamRoute, "of-service", r#"{"service_id":"s"}"#),
        (Kind::StreamRoute, "own", &inline),
        (Kind::StreamRoute, "both", &inline.replacen('{', r#"{"service_id":"s","#, 1)),
    ]);
    let bad = r#"{"upstream":7,"nodes":7}"#;
    life.check_turns_go_on("of-upstream", |life, _| life.put(Kind::Upstream, "u", bad));
    life.check_turns_go_on("of-service", |life, _| life.put(Kind::Service, "s", bad));
    life.check_turns_go_on("own", |life, _| life.put(Kind::StreamRoute, "own", bad));
    life.check_turns_go_on("both", |life, _| life.put(Kind::Service, "s", bad));
    assert_eq!(life.snapshot.rejected().len(), 3);
}

#[test]
fn turns_go_on_when_something_else_changes() {
    let nodes = format!("{{{THREE}}}");
    let inline = format!(r#"{{"upstream":{nodes}}}"#);
    let named = nodes.replace("10.1.0.3", "db");
    let service = format!(r#"{{"upstream":{named}}}"#);
    let mut life = Life::of(&[
        (Kind::Upstream, "named", &named),
        (Kind::Upstream, "u", &nodes),
        (Kind::Service, "named", &service),
        (Kind::Service, "s", &inline),
        (Kind::StreamRoute, "of-named", r#"{"upstream_id":"named"}"#),
        (Kind::StreamRoute, "of-service", r#"{"service_id":"s"}"#),
        (Kind::StreamRoute, "of-upstream", r#"{"upstream_id":"u"}"#),
        (Kind::StreamRoute, "own", &inline.replacen('{', r#"{"service_id":"named","#, 1)),
    ]);
    let answer = |life: &mut Life, turn: usize| life.resolve("db", &format!("10.2.0.{turn}"));
    // Addresses of a node of the upstream, or of the service, that another route goes to.
    life.check_turns_go_on("of-upstream", answer);
    life.check_turns_go_on("own", answer);
    let label = |life: &Life, route: &str| {
        let pool = life.pool(route);
        pool.nodes().iter().map(|node| node.addr.to_string()).any(|addr| addr == "10.2.0.29:80")
    };
    assert!(label(&life, "of-named"));
    // The service's plugins.
    let plugin =
        r#""plugins":{"limit-conn":{"conn":1,"burst":TURN,"default_conn_delay":1,"key":"remote_addr"}}"#;
    let with_plugin = |text: &str, turn: usize| {
        text.replacen('{', &format!("{{{},", plugin.replace("TURN", &turn.to_string())), 1)
    };
    life.check_turns_go_on("of-service", |life, turn| {
        life.put(Kind::Service, "s", &with_plugin(&inline, turn));
    });
    life.check_turns_go_on("own", |life, turn| {
        life.put(Kind::Service, "named", &with_plugin(&service, turn));
    });
    // The route's own conditions, and a rewrite that changes nothing.
    life.check_turns_go_on("own", |life, turn| {
        let text = inline.replacen('{', &format!(r#"{{"server_port":{},"#, 9000 + turn), 1);
        life.put(Kind::StreamRoute, "own", &text);
    });
    life.check_turns_go_on("of-upstream", |life, turn| {
        life.put(Kind::Upstream, "u", &nodes.replacen('{', &format!(r#"{{"update_time":{turn},"#), 1));
    });
}

#[test]
fn addresses_of_a_service_leave_its_routes_alone() {
    let mut life = Life::of(&[
        (Kind::Service, "s", r#"{"upstream":{"nodes":{"db:80":1}}}"#),
        (Kind::StreamRoute, "r", r#"{"service_id":"s"}"#),
    ]);
    let before = life.snapshot.route("r").unwrap().clone();
    assert!(life.pool("r").settings.pending);
    life.resolve("db", "10.2.0.1");
    assert!(Arc::ptr_eq(&before, life.snapshot.route("r").unwrap()), "the route was built anew");
    assert_eq!(life.pool("r").nodes().len(), 1);
}

#[test]
fn the_list_of_rejected_objects_is_not_copied() {
    let mut life =
        Life::of(&[(Kind::StreamRoute, "bad", r#"{"server_port":"none"}"#), (Kind::StreamRoute, "r", "{}")]);
    let before = life.snapshot.clone();
    life.put(Kind::StreamRoute, "r", r#"{"server_port":9100}"#);
    assert!(std::ptr::eq(before.rejected()[0], life.snapshot.rejected()[0]));
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

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
