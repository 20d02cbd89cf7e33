//! What the store keeps, refuses and holds back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use streamgate::config::RulesConfig;
use streamgate::resource::{Key, Kind, Object};
use streamgate::store::{Batch, Changes, Event, Store};

const ROUTE: &str = r#"{"server_port":9100,"upstream_id":"u1"}"#;
const OTHER: &str = r#"{"server_port":9200,"upstream_id":"u1"}"#;
const BAD: &str = r#"{"server_port":"x"}"#;

fn key(id: &str) -> Key {
    Key::new(Kind::StreamRoute, id)
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(store: &mut Store, id: &str, text: &str, revision: i64) -> Changes {
    let event = Event::Put { key: key(id), value: bytes(text), revision };
    store.apply(Batch { events: vec![event], revision }, 1000)
}

fn delete(store: &mut Store, id: &str, revision: i64) -> Changes {
    store.apply(Batch { events: vec![Event::Delete { key: key(id), revision }], revision }, 1000)
}

fn resync(store: &mut Store, objects: &[(&str, &str, i64)], revision: i64) -> Changes {
    let objects = objects.iter().map(|(id, text, revision)| (key(id), bytes(text), *revision)).collect();
    store.apply(Batch { events: vec![Event::Resync { objects, revision }], revision }, 2000)
}

fn loaded(rules: RulesConfig) -> Store {
    let mut store = Store::new(rules);
    resync(&mut store, &[], 1);
    store
}

#[track_caller]
fn check_port(store: &Store, id: &str, port: Option<u16>) {
    let found = store.entry(&key(id)).map(|entry| match &entry.object {
        Object::StreamRoute(route) => route.server_port.unwrap(),
        other => panic!("{other:?}"),
    });
    assert_eq!(found, port, "{id}");
}

#[test]
fn an_invalid_update_keeps_the_previous_version_and_says_so() {
    let mut store = loaded(RulesConfig::default());
    put(&mut store, "r", ROUTE, 2);
    let changes = put(&mut store, "r", BAD, 3);
    check_port(&store, "r", Some(9100));
    assert_eq!(changes.refused.len(), 1);
    let rejected = store.rejected().next().unwrap();
    assert_eq!((rejected.revision, rejected.since_unix_ms, rejected.previous_serves), (3, 1000, true));
    put(&mut store, "r", OTHER, 4);
    check_port(&store, "r", Some(9200));
    assert_eq!(store.rejected().count(), 0);
}

#[test]
fn an_unparsable_value_keeps_the_previous_version() {
    let mut store = loaded(RulesConfig::default());
    put(&mut store, "r", ROUTE, 2);
    put(&mut store, "r", "{\"id\":", 3);
    check_port(&store, "r", Some(9100));
    delete(&mut store, "r", 4);
    check_port(&store, "r", None);
    assert_eq!(store.rejected().count(), 0, "a deleted object is not rejected any more");
}

#[test]
fn events_at_or_below_the_applied_revision_are_ignored() {
    let mut store = loaded(RulesConfig::default());
    put(&mut store, "r", ROUTE, 5);
    assert!(put(&mut store, "r", OTHER, 5).is_empty());
    assert!(delete(&mut store, "r", 4).is_empty());
    check_port(&store, "r", Some(9100));
}

#[test]
fn a_full_read_removes_what_is_gone_and_reuses_what_is_not() {
    let mut store = loaded(RulesConfig::default());
    put(&mut store, "a", ROUTE, 2);
    put(&mut store, "b", ROUTE, 3);
    let changes = resync(&mut store, &[("b", ROUTE, 3), ("c", OTHER, 4)], 9);
    let mut ids: Vec<_> = changes.keys.iter().map(|key| &*key.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["a", "c"], "b is the same version");
    check_port(&store, "a", None);
    assert_eq!(store.revision(), 9);
}

#[test]
fn a_lower_revision_of_a_restored_etcd_counts() {
    let mut store = loaded(RulesConfig::default());
    put(&mut store, "a", ROUTE, 50);
    resync(&mut store, &[("a", OTHER, 3)], 5);
    check_port(&store, "a", Some(9200));
    assert_eq!(store.revision(), 5);
    put(&mut store, "a", ROUTE, 6);
    check_port(&store, "a", Some(9100));
}

#[test]
fn an_etcd_filled_anew_has_other_values_at_the_same_revisions() {
    let mut store = loaded(RulesConfig::default());
    put(&mut store, "a", ROUTE, 2);
    put(&mut store, "b", BAD, 3);
    resync(&mut store, &[("a", OTHER, 2), ("b", OTHER, 3)], 3);
    check_port(&store, "a", Some(9200));
    check_port(&store, "b", Some(9200));
    assert!(resync(&mut store, &[("a", OTHER, 2), ("b", OTHER, 3)], 3).is_empty());
}

#[test]
fn a_refused_version_is_not_reported_again_by_a_full_read() {
    let mut store = loaded(RulesConfig::default());
    put(&mut store, "a", BAD, 2);
    assert!(resync(&mut store, &[("a", BAD, 2)], 9).refused.is_empty());
    assert_eq!(store.rejected().count(), 1);
}

fn with_routes(count: usize) -> (Store, Vec<String>) {
    let mut store = loaded(RulesConfig::default());
    let ids: Vec<String> = (0..count).map(|i| format!("r{i:02}")).collect();
    for (revision, id) in (2..).zip(&ids) {
        put(&mut store, id, ROUTE, revision);
    }
    (store, ids)
}

#[test]
fn a_full_read_that_removes_most_routes_is_held() {
    let (mut store, ids) = with_routes(12);
    let kept: Vec<_> = ids[..5].iter().map(|id| (id.as_str(), OTHER, 90)).collect();
    assert!(resync(&mut store, &kept, 100).is_empty());
    let held = store.held().unwrap();
    assert_eq!((held.would_remove, held.since_unix_ms, held.until_unix_ms), (7, 2000, 602_000));
    check_port(&store, "r00", Some(9100));

    // The watch goes on: its events apply to what serves and to what is held.
    delete(&mut store, "r01", 101);
    check_port(&store, "r01", None);
    put(&mut store, "new", OTHER, 102);
    check_port(&store, "new", Some(9200));

    assert!(!store.accept_held(3000).is_empty());
    check_port(&store, "r00", Some(9200));
    check_port(&store, "r01", None);
    check_port(&store, "r11", None);
    check_port(&store, "new", Some(9200));
    assert_eq!(store.held(), None);
}

#[test]
fn half_of_the_routes_or_a_few_are_not_held() {
    let (mut store, ids) = with_routes(12);
    let kept: Vec<_> = ids[..6].iter().map(|id| (id.as_str(), ROUTE, 90)).collect();
    resync(&mut store, &kept, 100);
    assert_eq!((store.held(), store.count(Kind::StreamRoute)), (None, 6));
    resync(&mut store, &[], 101);
    assert_eq!((store.held(), store.count(Kind::StreamRoute)), (None, 0), "fewer than ten are loaded");
}

#[test]
fn a_good_full_read_ends_the_hold() {
    let (mut store, ids) = with_routes(12);
    resync(&mut store, &[], 100);
    assert!(store.held().is_some());
    let all: Vec<_> = ids.iter().map(|id| (id.as_str(), OTHER, 110)).collect();
    resync(&mut store, &all, 120);
    assert_eq!(store.held(), None);
    check_port(&store, "r00", Some(9200));
}

#[test]
fn whoever_empties_a_file_means_it() {
    let mut store = Store::new(RulesConfig { standalone: true, ..RulesConfig::default() });
    let ids: Vec<String> = (0..12).map(|i| i.to_string()).collect();
    let all: Vec<_> = ids.iter().map(|id| (id.as_str(), ROUTE, 1)).collect();
    resync(&mut store, &all, 1);
    resync(&mut store, &[], 2);
    assert_eq!((store.held(), store.count(Kind::StreamRoute)), (None, 0));
}

#[test]
fn objects_of_a_file_keep_its_order() {
    let mut store = Store::new(RulesConfig { standalone: true, ..RulesConfig::default() });
    resync(&mut store, &[("z", ROUTE, 1), ("a", ROUTE, 2)], 1);
    let order = |id| store.entry(&key(id)).unwrap().order.clone();
    assert!(order("z") < order("a"));
}

#[test]
fn the_plugins_key_counts_only_where_the_admin_api_is_off() {
    let list = r#"[{"name":"limit-conn","stream":true},{"name":"http-only"}]"#;
    let route =
        r#"{"plugins":{"limit-conn":{"conn":1,"burst":0,"default_conn_delay":1,"key":"remote_addr"}}}"#;
    for counts in [false, true] {
        let rules = RulesConfig { plugins_key_counts: counts, ..RulesConfig::default() };
        let mut store = loaded(rules);
        put(&mut store, "r", route, 2);
        let event = Event::Put { key: Key::new(Kind::Plugins, ""), value: bytes(list), revision: 3 };
        store.apply(Batch { events: vec![event], revision: 3 }, 1000);
        let Object::StreamRoute(route) = &store.entry(&key("r")).unwrap().object else { panic!() };
        assert_eq!(route.plugins[0].enabled, counts);
        let event = Event::Delete { key: Key::new(Kind::Plugins, ""), revision: 4 };
        store.apply(Batch { events: vec![event], revision: 4 }, 1000);
        let Object::StreamRoute(route) = &store.entry(&key("r")).unwrap().object else { panic!() };
        assert!(!route.plugins[0].enabled);
    }
}

/// A control plane cannot name a plugin of ours.
#[test]
fn of_our_own_plugins_config_yaml_decides_alone() {
    let list = r#"[{"name":"limit-conn","stream":true},{"name":"limit-bandwidth","stream":true}]"#;
    let named = [("limit-conn", true), ("limit-rate", true), ("limit-bandwidth", false), ("syslog", false)];
    let rules = RulesConfig {
        plugins_key_counts: true,
        stream_plugins: vec!["limit-rate".into(), "syslog".into()],
        ..RulesConfig::default()
    };
    let mut store = loaded(rules);
    let event = Event::Put { key: Key::new(Kind::Plugins, ""), value: bytes(list), revision: 3 };
    store.apply(Batch { events: vec![event], revision: 3 }, 1000);
    for ((name, enabled), revision) in named.into_iter().zip(4..) {
        let value = format!(r#"{{"plugins":{{"{name}":{{"_meta":{{"disable":true}}}}}}}}"#);
        put(&mut store, name, &value, revision);
        let Object::StreamRoute(route) = &store.entry(&key(name)).unwrap().object else { panic!() };
        assert_eq!(route.plugins[0].enabled, enabled, "{name}");
    }
}

#[test]
fn addresses_change_only_what_they_change() {
    let mut store = loaded(RulesConfig::default());
    let mut resolved = |ip: &str| {
        let event = Event::Addresses {
            name: "db".into(),
            addresses: Arc::from([ip.parse().unwrap()]),
            ttl: std::time::Duration::from_secs(1),
        };
        store.apply(Batch { events: vec![event], revision: 0 }, 0).names.len()
    };
    assert_eq!((resolved("10.0.0.1"), resolved("10.0.0.1"), resolved("10.0.0.2")), (1, 0, 1));
}
