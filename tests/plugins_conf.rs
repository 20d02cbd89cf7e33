//! What is said and kept of the configurations of plugins when their object is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use streamgate::config::{RulesConfig, Variables};
use streamgate::live::Live;
use streamgate::plugin::{Armed, Attached, Plugin};
use streamgate::resource::{Destination, Key, Kind, Object, Parsed, PluginConf, Rules, Scheme};

fn read(kind: Kind, plugins: &Value) -> Parsed {
    let variables = [("KEY", "remote_addr"), ("HOST", "10.1.0.9"), ("BAD", "s3cret value"), ("LOGIC", "or")];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let environment = Variables::new(variables.into());
    let rules = Rules::new(&RulesConfig { environment, ..RulesConfig::everything() });
    rules.parse(&Key::new(kind, "1"), json!({ "plugins": plugins }).to_string().as_bytes()).unwrap()
}

fn confs(parsed: &Parsed) -> &[PluginConf] {
    match &parsed.object {
        Object::StreamRoute(route) => &route.plugins,
        Object::Service(service) => &service.plugins,
        other => panic!("{other:?}"),
    }
}

/// Asserts which rules of docs/compatibility.md stand behind the remarks, and a part of each.
#[track_caller]
fn check(plugins: &Value, expected: &[(Option<&str>, &str)]) {
    let parsed = read(Kind::StreamRoute, plugins);
    let told: Vec<_> = parsed.warnings.iter().map(|remark| (remark.rule, remark.text.as_str())).collect();
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for ((rule, text), (expected_rule, part)) in told.iter().zip(expected) {
        assert!(rule == expected_rule && text.contains(part), "{rule:?} {text} instead of {part}");
    }
}

fn limit(key: &str) -> Value {
    json!({"limit-conn": {"conn": 1, "burst": 0, "default_conn_delay": 1, "key": key}})
}

fn split(entries: &Value) -> Value {
    json!({"traffic-split": {"rules": [{"weighted_upstreams": entries}]}})
}

#[test]
fn what_of_a_plugin_has_no_effect_is_told() {
    let meta = |meta: Value| json!({"ip-restriction": {"blacklist": ["10.0.0.1"], "_meta": meta}});
    check(&meta(json!({"filter": [["remote_addr", "==", "10.0.0.1"]]})), &[]);
    check(&meta(json!({"priority": 5})), &[(None, "/plugins/ip-restriction/_meta/priority has no effect")]);
    check(&meta(json!({"pre_function": "return 1"})), &[(Some("SG-134"), "is never run")]);
    check(&meta(json!({"filter": [["remote_addr"]]})), &[(None, "the plugin runs on every session")]);
    check(&meta(json!({"priority": 5, "disable": true})), &[]);
}

#[test]
fn what_of_traffic_split_is_otherwise_is_told() {
    let rules = |rules: Value| json!({"traffic-split": {"rules": rules}});
    let conditional = json!({"match": [{"vars": [["server_port", "==", "1"]]}]});
    check(&rules(json!([])), &[(Some("SG-132"), "/plugins/traffic-split/rules is empty")]);
    check(&rules(json!([{"match": []}])), &[]);
    let told = [(Some("SG-132"), "/rules/1/match is empty")];
    check(&rules(json!([conditional, {"match": []}])), &told);
    check(
        &rules(json!([{}, conditional])),
        &[(None, "/rules/1 is never asked: rules/0 takes every session")],
    );
    let zero = json!([{"weight": 0}, {"weight": 0, "upstream_id": 1}]);
    check(&split(&zero), &[(None, "the weight is 0 everywhere")]);
    let nodes = json!({"nodes": {"10.1.0.1:80": 1}});
    check(&split(&json!([{"upstream": nodes}])), &[]);
    let both = json!([{"upstream": nodes, "upstream_id": "u"}]);
    check(&split(&both), &[(None, "upstream_id counts")]);
    let more = json!([{"upstream": {"nodes": {"10.1.0.1:80": 1}, "retries": 2, "scheme": "tls"}}]);
    check(
        &split(&more),
        &[(Some("SG-131"), "/weighted_upstreams/0/upstream: retries, scheme tls counts here")],
    );
    // Checked as one inside a route is.
    let odd = json!([{"upstream": {"nodes": {"10.1.0.1:80": 1}, "type": "best"}}]);
    check(&split(&odd), &[(Some("SG-005"), "weighted_upstreams/0/upstream: type \"best\" is no balancer")]);
}

#[test]
fn ids_and_weights_are_read_as_elsewhere() {
    let entries =
        json!([{"upstream_id": 7, "weight": 1e20}, {"upstream": {"nodes": {}, "scheme": "tls"}}, {}]);
    let parsed = read(Kind::Service, &split(&entries));
    let split = confs(&parsed)[0].split.clone().unwrap();
    let [first, second, third] = &*split.rules[0].shares else { panic!("{split:?}") };
    assert!(matches!(&first.to, Destination::Upstream(id) if &**id == "7"));
    assert_eq!([first.weight, second.weight, third.weight], [u32::MAX, 1, 1]);
    assert!(matches!(&second.to, Destination::Inline(upstream) if upstream.scheme == Scheme::Tls));
    assert!(matches!(third.to, Destination::Own));
}

#[test]
fn references_become_what_they_stand_for() {
    let parsed = read(Kind::StreamRoute, &limit("$env://KEY"));
    assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
    let [conf] = confs(&parsed) else { panic!() };
    assert!(conf.secret && conf.broken.is_none());
    assert_eq!(conf.conf["key"], "remote_addr");
    // However deep.
    let node = json!([{"upstream": {"nodes": [{"host": "$env://HOST", "port": 80, "weight": 1}]}}]);
    let parsed = read(Kind::Service, &split(&node));
    let split = confs(&parsed)[0].split.clone().unwrap();
    let (.., upstream) = split.inline().next().unwrap();
    assert_eq!(&*upstream.nodes[0].written, "10.1.0.9");
    let parsed = read(Kind::StreamRoute, &limit("remote_addr"));
    assert!(!confs(&parsed)[0].secret);
}

#[test]
fn a_reference_to_nothing_refuses_the_sessions_of_its_plugin_alone() {
    for key in ["$env://NONE", "$secret://vault/1/key"] {
        let parsed = read(Kind::StreamRoute, &limit(key));
        assert!(parsed.unusable.is_none());
        let [remark] = &parsed.warnings[..] else { panic!("{:?}", parsed.warnings) };
        assert_eq!(remark.rule, Some("SG-133"));
        assert!(remark.text.starts_with(&format!("/plugins/limit-conn/key is \"{key}\", and ")), "{remark}");
        let mut degraded = Vec::new();
        let attached = Attached { owner: Key::new(Kind::StreamRoute, "1"), conf: &confs(&parsed)[0] };
        let armed = Armed::new(&attached, &Live::default(), &mut degraded).unwrap();
        assert!(matches!(armed.plugin, Plugin::Unusable(_)), "{armed:?}");
        assert!(degraded[0].ends_with("its sessions are refused"), "{degraded:?}");
        assert_eq!(armed.rule, Some("SG-133"));
    }
    let mut off = limit("$env://NONE");
    off["limit-conn"]["_meta"] = json!({"disable": true});
    assert!(read(Kind::StreamRoute, &off).warnings.is_empty());
}

/// What is refused because of a secret is told without it.
#[test]
fn no_remark_shows_a_secret() {
    let told = |plugins: &Value| {
        let parsed = read(Kind::StreamRoute, plugins);
        let told: Vec<String> = parsed.warnings.iter().map(ToString::to_string).collect();
        let all = told.join("\n");
        assert!(!all.contains("s3cret"), "{all}");
        assert!(!told.is_empty());
        (all, confs(&parsed)[0].broken.is_some())
    };
    let id = json!([{"upstream_id": "$env://BAD"}]);
    let (text, broken) = told(&split(&id));
    assert!(broken && text.contains("is not allowed there"), "{text}");
    let filter =
        json!({"traffic-split": {"rules": [{"match": [{"vars": [["$env://LOGIC", "==", "s3cret"]]}]}]}});
    assert!(told(&filter).1);
    let balancer = json!([{"upstream": {"nodes": {"10.1.0.1:80": 1}, "type": "$env://BAD"}}]);
    let (text, broken) = told(&split(&balancer));
    assert!(!broken && text.contains("what a reference to a secret stands for"), "{text}");
}
