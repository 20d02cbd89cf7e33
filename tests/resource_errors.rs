//! What an operator reads about a refused object: the path, the value, what is allowed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use streamgate::config::RulesConfig;
use streamgate::resource::{Key, Kind, Rules, validate_line};

fn rules(standalone: bool) -> Rules {
    let names = [
        "ip-restriction",
        "limit-conn",
        "limit-rate",
        "mqtt-proxy",
        "prometheus",
        "syslog",
        "traffic-split",
        "own-plugin",
    ];
    Rules::new(&RulesConfig {
        stream_plugins: names.map(Box::from).to_vec(),
        xrpc_protocols: vec!["redis".into()],
        keyring: vec!["qeddd145sfvddff3".into()],
        plugins_key_counts: false,
        standalone,
        ..RulesConfig::default()
    })
}

#[track_caller]
fn check(kind: Kind, value: &Value, expected: &[&str]) {
    let rejection = rules(false).parse(&Key::new(kind, "7"), value.to_string().as_bytes()).unwrap_err();
    assert_eq!(rejection.mistakes, expected, "{value}");
}

#[track_caller]
fn route(value: &Value, expected: &[&str]) {
    check(Kind::StreamRoute, value, expected);
}

#[track_caller]
fn upstream(value: &Value, expected: &[&str]) {
    check(Kind::Upstream, value, expected);
}

#[test]
fn scalars() {
    route(&json!({"server_port": "x"}), &["/server_port is \"x\"; an integer from 1 to 65535 is allowed"]);
    route(&json!({"server_port": 0}), &["/server_port is 0; an integer from 1 to 65535 is allowed"]);
    route(&json!({"server_port": 1.5}), &["/server_port is 1.5; an integer from 1 to 65535 is allowed"]);
    route(&json!({"name": null}), &["/name is null; a string of 1 to 256 characters is allowed"]);
    route(
        &json!({"upstream_id": 0.5}),
        &[
            "/upstream_id is 0.5; a string of 1 to 64 characters (letters, digits, `-`, `_` and `.`) or an integer of at least 1 is allowed",
        ],
    );
    route(
        &json!({"upstream_id": "a/b"}),
        &[
            "/upstream_id is \"a/b\"; a string of 1 to 64 characters (letters, digits, `-`, `_` and `.`) is allowed",
        ],
    );
    route(
        &json!({"remote_addr": "10.0.0.0/33"}),
        &[
            "/remote_addr is \"10.0.0.0/33\"; a string (an address such as 10.0.0.1 or a network such as 10.0.0.0/8 or 2001:db8::/32) is allowed",
        ],
    );
    upstream(
        &json!({"nodes": {}, "scheme": "ssl"}),
        &[
            "/scheme is \"ssl\"; one of \"grpc\", \"grpcs\", \"http\", \"https\", \"tcp\", \"tls\", \"udp\", \"kafka\" is allowed",
        ],
    );
    upstream(
        &json!({"nodes": {}, "timeout": {"connect": 0, "send": 1}}),
        &[
            "/timeout lacks `read`: a number above 0 (seconds)",
            "/timeout/connect is 0; a number above 0 (seconds) is allowed",
        ],
    );
}

#[test]
fn every_mistake_is_told_at_once() {
    route(
        &json!({"server_port": 0, "name": "", "sni": "a b"}),
        &[
            "/server_port is 0; an integer from 1 to 65535 is allowed",
            "/name is \"\"; a string of 1 to 256 characters is allowed",
            "/sni is \"a b\"; a string (a host name, an address, or `*` and the end of a name) is allowed",
        ],
    );
}

#[test]
fn unknown_fields_name_the_one_that_was_meant() {
    route(
        &json!({"server_prt": 1}),
        &["/server_prt is no field of a stream_route; did you mean `server_port`?"],
    );
    route(&json!({"priority": 1}), &["/priority is no field of a stream_route"]);
    route(
        &json!({"upstream": {"node": {}}}),
        &[
            "/upstream/node is no field of an upstream; did you mean `nodes`?",
            "/upstream lacks `nodes` or `service_name` and `discovery_type`",
        ],
    );
}

#[test]
fn alternatives_name_the_one_that_was_meant() {
    upstream(
        &json!({"type": "roundrobin"}),
        &["the value lacks `nodes` or `service_name` and `discovery_type`"],
    );
    upstream(
        &json!({"nodes": [], "service_name": "s", "discovery_type": "dns"}),
        &[
            "the value has `nodes` as well as `service_name` and `discovery_type`; only one of them is allowed",
        ],
    );
    upstream(
        &json!({"nodes": [{"host": "a", "port": 0, "weight": 1}]}),
        &["/nodes/0/port is 0; an integer from 1 to 65535 is allowed"],
    );
    upstream(
        &json!({"nodes": {"a:1": -1}}),
        &["/nodes/a:1 is -1; an integer of at least 0 (a weight) is allowed"],
    );
    upstream(
        &json!({"nodes": "a:1"}),
        &[
            "/nodes is \"a:1\"; an object (an object of `host:port` to weight) or a list (a list of nodes) is allowed",
        ],
    );
    route(
        &json!({"sni": "a", "snis": ["b"]}),
        &["the value has too much; either `sni` or `snis` is allowed"],
    );
    check(
        Kind::Ssl,
        &json!({}),
        &["the value lacks `key`", "the value lacks `cert`", "the value lacks `sni` or `snis`"],
    );
}

#[test]
fn checks_after_the_schema() {
    route(
        &json!({"remote_addr": "$env://ADDR"}),
        &[
            "/remote_addr is \"$env://ADDR\", a reference to a secret, which nothing resolves here; write the address itself",
        ],
    );
    route(
        &json!({"protocol": {"name": "dubbo"}}),
        &["/protocol/name is \"dubbo\", which xrpc.protocols of config.yaml does not list (it lists: redis)"],
    );
    route(
        &json!({"plugins": {"limit-conn": {"conn": 1, "burst": 0, "default_conn_delay": 1}}}),
        &["/plugins/limit-conn lacks `key`: a string"],
    );
    let rate = |conf: Value| json!({"plugins": {"limit-rate": conf}});
    route(
        &rate(json!({"rate": 0, "burst": -1})),
        &[
            "/plugins/limit-rate/rate is 0; a number above 0 (new sessions a second) is allowed",
            "/plugins/limit-rate/burst is -1; an integer of at least 0 (sessions) is allowed",
        ],
    );
    route(
        &rate(json!({"rate": 1, "brust": 1})),
        &["/plugins/limit-rate/brust is no field of plugin limit-rate; did you mean `burst`?"],
    );
    route(&json!({"plugins": {"a/b": 1}}), &["/plugins/a~1b is 1; an object is allowed"]);
    upstream(
        &json!({"nodes": {}, "type": "chash"}),
        &["the value lacks `key`: chash needs what to hash, such as \"remote_addr\""],
    );
    let vars = |vars: Value| json!({"plugins": {"traffic-split": {"rules": [{"match": [{"vars": vars}]}]}}});
    route(
        &vars(json!([["remote_addr", "=", "1"]])),
        &[
            "/plugins/traffic-split/rules/0/match/0/vars/0: operator `=` is unknown; there are ==, ~=, >, >=, <, <=, ~~, ~*, in, has, ipmatch",
        ],
    );
}

#[test]
fn secrets_are_not_shown() {
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n";
    let value = json!({"sni": "a", "cert": "c", "key": key, "keys": [key]});
    let error = rules(false).parse(&Key::new(Kind::Ssl, "7"), value.to_string().as_bytes()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("/key is a text that is not shown; a string of 64 to 65536"), "{text}");
    assert!(!text.contains("AAAA"), "{text}");
}

#[test]
fn unknown_plugins_reject_in_standalone_alone() {
    let key = Key::new(Kind::StreamRoute, "7");
    let value = br#"{"plugins":{"limit-con":{}}}"#;
    let accepted = rules(false).parse(&key, value).unwrap();
    assert!(accepted.warnings[0].text.contains("did you mean `limit-conn`?"), "{:?}", accepted.warnings);
    let refused = rules(true).parse(&key, value).unwrap_err();
    assert!(refused.mistakes[0].contains("limit-con is not among the enabled"), "{refused}");
    let unbuilt = rules(true).parse(&key, br#"{"plugins":{"own-plugin":{}}}"#).unwrap();
    assert!(unbuilt.warnings[0].text.contains("NOT ENFORCED"), "{:?}", unbuilt.warnings);
}

/// SG-002
#[test]
fn standalone_checks_and_keeps_the_plugins_of_a_service() {
    let key = Key::new(Kind::Service, "7");
    assert!(rules(true).parse(&key, br#"{"plugins":{"prometheus":{}}}"#).is_ok());
    for value in [&br#"{"plugins":{"nope":{}}}"#[..], br#"{"plugins":{"mqtt-proxy":{}}}"#] {
        assert!(rules(true).parse(&key, value).is_err());
        assert!(rules(false).parse(&key, value).is_ok());
    }
}

#[track_caller]
fn line(line: &str, expected: &Value) {
    let answer: Value = serde_json::from_str(&validate_line(&rules(false), line)).unwrap();
    assert_eq!(&answer, expected, "{line}");
}

#[test]
fn validate_answers_every_line() {
    line(r#"{"id":"a","kind":"stream_route","value":{}}"#, &json!({"id": "a", "ok": true, "error": null}));
    line(
        r#"{"id":7,"kind":"upstream","value":{"nodes":{"a":1}}}"#,
        &json!({"id": 7, "ok": true, "error": null, "warnings": [
            "upstream 7: node \"a\" has no port from 1 to 65535, and a stream has no default one; it is left out"
        ]}),
    );
    line(
        r#"{"id":"a","kind":"plugin:mqtt-proxy","value":{}}"#,
        &json!({"id": "a", "ok": false, "error": "/plugins/mqtt-proxy lacks `protocol_level`: an integer"}),
    );
    line(
        r#"{"id":"a","kind":"plugin_metadata:syslog","value":{"log_format":{}}}"#,
        &json!({"id": "a", "ok": true, "error": null}),
    );
    line(
        r#"{"id":"a","kind":"secret","value":{"id":"vault/1","uri":"https://v:8200","prefix":"kv","token":"t"}}"#,
        &json!({"id": "a", "ok": true, "error": null}),
    );
    for (bad, id) in
        [("", Value::Null), ("{", Value::Null), (r#"{"id":"a"}"#, json!("a")), ("[]", Value::Null)]
    {
        let answer: Value = serde_json::from_str(&validate_line(&rules(false), bad)).unwrap();
        assert_eq!((&answer["ok"], &answer["id"]), (&json!(false), &id), "{bad}");
        assert!(answer["error"].is_string(), "{bad}");
    }
    let unknown: Value =
        serde_json::from_str(&validate_line(&rules(false), r#"{"id":"a","kind":"route","value":{}}"#))
            .unwrap();
    assert!(unknown["error"].as_str().unwrap().contains("kind \"route\" is unknown"), "{unknown}");
}
