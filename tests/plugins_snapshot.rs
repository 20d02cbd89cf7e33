//! Plugins in the snapshot: what is shared, what is kept over edits, what traffic-split reaches.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/objects.rs"]
mod objects;

use std::sync::Arc;
use std::time::SystemTime;

use objects::Objects;
use serde_json::{Value, json};
use streamgate::balance::{Pool, Tried};
use streamgate::plugin::{Kept, Run, Scene, Step};
use streamgate::resource::Kind;
use streamgate::session::{Host, Inbound, Transport};
use streamgate::snapshot::UpstreamSettings;

const THREE: [&str; 3] = ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"];

fn load(objects: &[(Kind, &str, Value)]) -> Objects {
    Objects::new(0, UpstreamSettings::default(), objects)
}

fn split(entries: &Value) -> Value {
    json!({"traffic-split": {"rules": [{"weighted_upstreams": entries}]}})
}

fn inbound() -> Inbound {
    Inbound::new(Transport::Tcp, "127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap())
}

/// Runs the plugins of a route; what is chosen.
#[track_caller]
fn choose(objects: &Objects, route: &str, preview: bool) -> Kept {
    let snapshot = &objects.snapshot;
    let route = snapshot.route(route).unwrap();
    let (mut inbound, mut kept) = (inbound(), Kept::default());
    let mut scene = Scene {
        inbound: &mut inbound,
        route: route.facts(),
        host: &Host::default(),
        first: &[],
        now: now(),
        time: SystemTime::UNIX_EPOCH,
        kept: &mut kept,
        given: None,
        preview,
    };
    assert_eq!(Run::default().step(&route.plugins, &mut scene), Step::Done);
    kept
}

/// The pool that the next session of a route gets.
#[track_caller]
fn pool(objects: &Objects, route: &str) -> Arc<Pool> {
    let kept = choose(objects, route, false);
    match &kept.choice {
        Some(choice) => objects.snapshot.chosen(choice).unwrap().clone(),
        None => objects.pool_of(route),
    }
}

fn ids(objects: &Objects) -> Vec<String> {
    let mut ids: Vec<String> = objects.snapshot.pools().map(|pool| pool.id.to_string()).collect();
    ids.sort();
    ids
}

#[test]
fn routes_share_the_plugins_of_their_service() {
    let service = |more: &Value| {
        let mut plugins = json!({"prometheus": {}, "traffic-split": {}});
        plugins.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"upstream": {"nodes": {}}, "plugins": plugins})
    };
    let of_service = json!({"service_id": "s"});
    let mut objects = load(&[
        (Kind::Service, "s", service(&json!({}))),
        (Kind::StreamRoute, "1", of_service.clone()),
        (Kind::StreamRoute, "2", of_service.clone()),
        (Kind::StreamRoute, "own", json!({"service_id": "s", "plugins": {"prometheus": {}}})),
    ]);
    let place = |objects: &Objects, route: &str, name: &str| {
        let route = objects.snapshot.route(route).unwrap();
        let armed = route.plugins.iter().find(|armed| armed.class.name == name);
        std::ptr::from_ref(armed.expect(name)).addr()
    };
    for name in ["prometheus", "traffic-split"] {
        assert_eq!(place(&objects, "1", name), place(&objects, "2", name), "{name}");
    }
    // One of its own takes the place of that one alone.
    assert_eq!(place(&objects, "own", "traffic-split"), place(&objects, "1", "traffic-split"));
    assert_ne!(place(&objects, "own", "prometheus"), place(&objects, "1", "prometheus"));
    // A route that comes later, and one that is written again, take what is there.
    let before = place(&objects, "1", "prometheus");
    objects.put(Kind::StreamRoute, "3", &of_service);
    objects.put(Kind::StreamRoute, "2", &json!({"service_id": "s", "server_port": 9100}));
    assert_eq!(["2", "3"].map(|route| place(&objects, route, "prometheus")), [before; 2]);
    // A new version of the service is a new one for all.
    objects.put(Kind::Service, "s", &service(&json!({"prometheus": {"prefer_name": true}})));
    assert_eq!(place(&objects, "1", "prometheus"), place(&objects, "3", "prometheus"));
    assert_eq!(objects.snapshot.route("1").unwrap().plugins.iter().count(), 2);
}

#[test]
fn what_traffic_split_reaches_is_built_and_forgotten() {
    let named = |name: &str| json!({"nodes": [{"host": name, "port": 80, "weight": 1}]});
    let entries = json!([{"upstream_id": "u"}, {"upstream": named("canary")}, {}]);
    let mut objects = load(&[
        (Kind::Upstream, "u", named("db")),
        (Kind::Upstream, "http", named("http")),
        (Kind::Service, "s", json!({"upstream_id": "http", "plugins": split(&entries)})),
    ]);
    assert_eq!(ids(&objects), [""; 0], "no route uses it");
    objects.put(Kind::StreamRoute, "1", &json!({"service_id": "s", "upstream": {"nodes": {}}}));
    let reached = ["services/s/traffic-split/0/1", "stream_routes/1", "u"];
    assert_eq!(ids(&objects), reached);
    // Of two routes that share it, one going takes nothing away.
    objects.put(Kind::StreamRoute, "2", &json!({"service_id": "s", "upstream": {"nodes": {}}}));
    objects.delete(Kind::StreamRoute, "2");
    assert_eq!(ids(&objects), reached);
    // The route's own configuration takes its place.
    let own = json!({"service_id": "s", "upstream": {"nodes": {}}, "plugins": split(&json!([{}]))});
    objects.put(Kind::StreamRoute, "1", &own);
    assert_eq!(ids(&objects), ["stream_routes/1"]);
    for switched_off in [json!({"disable": true}), json!({"disable": false})] {
        let mut plugins = split(&json!([{"upstream_id": "u"}]));
        plugins["traffic-split"]["_meta"] = switched_off.clone();
        objects.put(Kind::StreamRoute, "1", &json!({"plugins": plugins}));
        let expected: &[&str] = if switched_off["disable"] == true { &[] } else { &["u"] };
        assert_eq!(ids(&objects), expected);
    }
}

/// An address of a name makes one pool anew: no route, and no pool beside it.
#[test]
fn an_answer_of_the_resolver_changes_one_pool() {
    let entries = json!([
        {"upstream": {"nodes": [{"host": "db", "port": 80, "weight": 1}]}},
        {"upstream": {"nodes": {THREE[0]: 1, THREE[1]: 1, THREE[2]: 1}}},
    ]);
    let mut objects = load(&[
        (Kind::Service, "s", json!({"plugins": split(&entries)})),
        (Kind::StreamRoute, "r", json!({"service_id": "s"})),
    ]);
    let route = objects.snapshot.route("r").unwrap().clone();
    let first = pool(&objects, "r");
    assert!(first.settings.pending && first.nodes().is_empty());
    let beside = pool(&objects, "r");
    objects.resolve("db", &["10.2.0.1".parse().unwrap()]);
    assert!(Arc::ptr_eq(&route, objects.snapshot.route("r").unwrap()), "the route was built anew");
    assert_eq!(pool(&objects, "r").nodes()[0].addr, "10.2.0.1:80".parse().unwrap());
    assert!(Arc::ptr_eq(&beside, &pool(&objects, "r")));
}

#[test]
fn turns_of_shares_and_of_nodes_go_on_over_edits() {
    let entry = json!({"nodes": {THREE[0]: 1, THREE[1]: 1, THREE[2]: 1}});
    let route = |weights: [u32; 2], more: &Value| {
        let entries =
            json!([{"upstream": entry, "weight": weights[0]}, {"upstream": more, "weight": weights[1]}]);
        json!({"plugins": split(&entries)})
    };
    let other = |turn: usize| json!({"nodes": {"10.9.0.1:80": 1}, "retries": turn});
    let mut objects = load(&[(Kind::StreamRoute, "r", route([2, 1], &other(0)))]);
    let mut picked: Vec<String> = Vec::new();
    for turn in 0..18 {
        objects.put(Kind::StreamRoute, "r", &route([2, 1], &other(turn)));
        objects.put(Kind::Upstream, "u", &json!({"nodes": {}, "desc": turn.to_string()}));
        let pool = pool(&objects, "r");
        let node = pool.pick(&inbound(), now(), &mut Tried::default()).unwrap();
        picked.push(node.node.label.to_string());
    }
    picked.sort();
    let of = |label: &str| picked.iter().filter(|other| *other == label).count();
    assert_eq!(THREE.map(of), [4; 3]);
    assert_eq!(of("10.9.0.1:80"), 6);
}

#[test]
fn looking_ahead_moves_no_turn() {
    let entries = json!([{"upstream_id": "a", "weight": 2}, {"upstream_id": "b"}]);
    let nodes = json!({"nodes": {"10.1.0.1:80": 1}});
    let objects = load(&[
        (Kind::Upstream, "a", nodes.clone()),
        (Kind::Upstream, "b", nodes),
        (Kind::StreamRoute, "r", json!({"plugins": split(&entries)})),
    ]);
    let mut found = String::new();
    for _ in 0..6 {
        let foreseen = [0; 3].map(|_| format!("{:?}", choose(&objects, "r", true).choice));
        let choice = choose(&objects, "r", false).choice;
        assert_eq!(foreseen, [0; 3].map(|_| format!("{choice:?}")));
        found += &objects.snapshot.chosen(&choice.unwrap()).unwrap().id;
    }
    assert_eq!(found, "abaaba");
}

/// A session that a plugin holds up while its configuration is changed gets what it chose, wherever that
/// stands now, else what stands in its place.
#[test]
fn a_choice_outlives_an_edit() {
    let to = |address: &str| json!({"upstream": {"nodes": {address: 1}}});
    let route = |entries: &[Value]| json!({"plugins": split(&json!(entries))});
    let [first, second, third] = ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"].map(to);
    let mut objects = load(&[(Kind::StreamRoute, "r", route(std::slice::from_ref(&first)))]);
    let choice = choose(&objects, "r", false).choice.unwrap();
    let mut check = |entries: &[Value], expected: Option<&str>| {
        objects.put(Kind::StreamRoute, "r", &route(entries));
        let found = objects.snapshot.chosen(&choice).ok().map(|pool| pool.nodes()[0].label.to_string());
        assert_eq!(found.as_deref(), expected, "{entries:?}");
    };
    check(&[first.clone(), second.clone()], Some("10.1.0.1:80"));
    check(&[second, first], Some("10.1.0.1:80"));
    check(&[third], Some("10.1.0.3:80"));
    check(&[json!({})], None);
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
