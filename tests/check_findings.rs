//! What `streamgate check` prints about objects: each difference to APISIX with its id, each with the
//! object it touches.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/names.rs"]
mod names;

use std::fs;
use std::process::Command;

use etcd::Etcd;
use names::Names;
use serde_json::{Value, json};

/// Runs `check` on a config.yaml in a folder of its own, besides the given files.
fn check(config: &str, files: &[(&str, String)]) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("conf")).unwrap();
    let path = folder.path().join("conf/config.yaml");
    fs::write(&path, config).unwrap();
    for (name, text) in files {
        fs::write(folder.path().join("conf").join(name), text).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamgate"));
    let output = command.args(["check", "-c"]).arg(&path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

fn config(provider: &str, rest: &str) -> String {
    format!(
        "apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [\"127.0.0.1:0\"]}}{rest}}}\n\
         deployment: {{role: data_plane, role_data_plane: {{config_provider: {provider}}}}}\n\
         stream_plugins: [ip-restriction, limit-conn, mqtt-proxy, prometheus, syslog, traffic-split, own]\n\
         streamgate: {{allow_port_zero: true}}\n"
    )
}

/// Reads objects from apisix.json.
fn check_objects(objects: &Value) -> (i32, String) {
    let names = Names::start(&[("many.test", &["127.0.0.8", "127.0.0.9"]), ("one.test", &["127.0.0.8"])]);
    let rest = format!(", dns_resolver: [\"{}\"]", names.addr());
    check(&config("json", &rest), &[("apisix.json", objects.to_string())])
}

/// A route to one upstream `u` leads to a line with these beginnings and words.
#[track_caller]
fn upstream(value: Value, line: &str, words: &str) {
    let mut upstream = value;
    upstream["id"] = json!("u");
    finds(&json!({"stream_routes": [{"id": "r", "upstream_id": "u"}], "upstreams": [upstream]}), line, words);
}

#[track_caller]
fn finds(objects: &Value, line: &str, words: &str) {
    let (code, text) = check_objects(objects);
    let found = text.lines().any(|one| one.starts_with(line) && one.contains(words));
    assert!(found, "no line `{line} … {words}` in\n{text}");
    let expected = i32::from(!line.starts_with("WARN"));
    assert_eq!(code, expected, "{text}");
}

fn nodes() -> Value {
    json!({"127.0.0.1:1": 1, "127.0.0.2:1": 1})
}

#[test]
fn nothing_to_say_is_exit_zero() {
    let (code, text) = check_objects(&json!({
        "stream_routes": [{"id": "r", "upstream_id": "u", "plugins": {"prometheus": {}}}],
        "upstreams": [{"id": "u", "nodes": nodes()}],
    }));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("1 stream_routes, 1 upstreams (1 used by streams), 0 services, 0 ssls"), "{text}");
    assert!(text.ends_with("0 rejected, 0 change behaviour, 0 warnings; exit 0\n"), "{text}");
}

#[test]
fn what_only_http_uses_is_not_judged() {
    let (code, text) = check_objects(&json!({
        "upstreams": [{"id": "h", "type": "random", "nodes": nodes()}, {"id": "bad", "nodes": 7}],
    }));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("unused   upstreams/bad  "), "{text}");
    assert!(!text.contains("upstreams/h"), "{text}");
}

#[test]
fn plugins_of_a_service_in_a_file_serve() {
    let objects = json!({
        "stream_routes": [{"id": "r", "service_id": "s"}],
        "services": [{"id": "s", "upstream": {"nodes": nodes()}, "plugins": {"prometheus": {}}}],
    });
    finds(&objects, "CHANGES  SG-002 services/s  ", "APISIX drops a service with plugins");
}

#[test]
fn references_where_none_can_be_are_rejected_alone() {
    let route = json!({"id": "r", "remote_addr": "$env://A", "upstream": {"nodes": nodes()}});
    finds(&json!({"stream_routes": [route]}), "REJECTED SG-003 stream_routes/r  ", "/remote_addr");
    let plugins = json!({"ip-restriction": {"whitelist": ["$secret://vault/1/a"]}});
    let route = json!({"id": "r", "plugins": plugins, "upstream": {"nodes": nodes()}});
    finds(&json!({"stream_routes": [route]}), "REJECTED SG-003 stream_routes/r  ", "/whitelist/0");
}

#[test]
fn nodes_and_balancers() {
    upstream(
        json!({"nodes": {"127.0.0.1": 1, "127.0.0.1:1": 1}}),
        "CHANGES  SG-004 upstreams/u  ",
        "is left out",
    );
    upstream(
        json!({"type": "random", "nodes": nodes()}),
        "CHANGES  SG-005 upstreams/u  ",
        "\"random\" is no balancer",
    );
    upstream(json!({"type": "ewma", "nodes": nodes()}), "CHANGES  SG-021 upstreams/u  ", "type ewma");
    upstream(
        json!({"type": "chash", "key": "remote_addr", "nodes": {"one.test:1": 1, "127.0.0.1:1": 1}}),
        "CHANGES  SG-022 upstreams/u  ",
        "chash over host names",
    );
    upstream(
        json!({"type": "chash", "key": "remote_addr", "nodes": {"127.0.0.1:1": 4_000_000_001_u64, "127.0.0.2:1": 1}}),
        "CHANGES  SG-026 upstreams/u  ",
        "hash ring too large",
    );
    upstream(
        json!({"nodes": {"many.test:1": 1}}),
        "WARN     SG-023 upstreams/u  ",
        "many.test has 2 addresses",
    );
    upstream(
        json!({"nodes": {"127.0.0.1:1": 1, "127.0.0.2:1": 0}}),
        "WARN     SG-025 upstreams/u  ",
        "some nodes have weight 0",
    );
    upstream(
        json!({"type": "least_conn", "nodes": {"127.0.0.1:1": 1, "127.0.0.2:1": 0}}),
        "WARN     SG-025 upstreams/u  ",
        "nodes of weight 0 get no session",
    );
    upstream(
        json!({"type": "chash", "key": "remote_addr", "nodes": {"127.0.0.1:1": 0, "127.0.0.2:1": 0}}),
        "WARN     SG-025 upstreams/u  ",
        "every weight is 0",
    );
}

#[test]
fn names_that_apisix_does_not_resolve() {
    let named = json!({"nodes": {"one.test:1": 1}});
    let objects = json!({
        "stream_routes": [{"id": "r", "service_id": "s"}],
        "services": [{"id": "s", "upstream": named}],
    });
    finds(&objects, "CHANGES  SG-024 services/s  ", "one.test is resolved here");
    let objects = json!({
        "stream_routes": [{"id": "r", "service_id": "s", "upstream": named}],
        "services": [{"id": "s"}],
    });
    finds(&objects, "CHANGES  SG-024 stream_routes/r  ", "one.test is resolved here");
}

#[test]
fn routes() {
    let route = |more: Value| {
        let mut route = json!({"id": "r", "upstream": {"nodes": nodes()}});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"stream_routes": [route]})
    };
    let sni = route(json!({"sni": "DB.example.com"}));
    finds(&sni, "CHANGES  SG-008 stream_routes/r  ", "\"DB.example.com\"");
    let filter = json!({"prometheus": {"_meta": {"filter": [["remote_addr", "~~", "(?!a)b"]]}}});
    finds(&route(json!({"plugins": filter})), "CHANGES  SG-010 stream_routes/r  ", "never matches");
    finds(&route(json!({"plugins": {"own": {}}})), "CHANGES  SG-015 stream_routes/r  ", "no plugin own");
    let tls = json!({"client_cert": "x".repeat(128), "client_key": "y".repeat(64)});
    let inline = json!({"nodes": nodes(), "tls": tls});
    finds(
        &route(json!({"upstream": inline})),
        "CHANGES  SG-013 stream_routes/r  ",
        "without a client certificate",
    );
}

#[test]
fn certificates_that_cannot_be_served() {
    let pair = || {
        let made = rcgen::generate_simple_self_signed(["a.com".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    };
    let ((cert, key), (_, other)) = (pair(), pair());
    let ssl = json!({"id": "s", "sni": "a.com", "cert": cert, "key": other});
    finds(&json!({"ssls": [ssl]}), "REJECTED SG-006 ssls/s  ", "does not belong to its certificate");
    let ssl = json!({"id": "s", "sni": "a.com", "cert": cert, "key": key, "certs": [cert], "keys": [other]});
    finds(&json!({"ssls": [ssl]}), "CHANGES  SG-006 ssls/s  ", "the pair is left out");
    let ssl = json!({"id": "s", "sni": "a.com", "cert": cert, "key": key, "ssl_protocols": ["TLSv1.1"]});
    finds(&json!({"ssls": [ssl]}), "REJECTED SG-007 ssls/s  ", "TLS 1.1 alone");
}

#[test]
fn tls_towards_nodes() {
    upstream(json!({"nodes": nodes(), "scheme": "tls"}), "CHANGES  SG-087 upstreams/u  ", "scheme tls");
    let tls = json!({"client_cert_id": "nowhere"});
    let objects = json!({
        "upstreams": [{"id": "u", "nodes": nodes(), "scheme": "tls", "tls": tls}],
        "stream_routes": [{"id": "r", "upstream_id": "u"}],
    });
    let (code, text) = check_objects(&objects);
    assert_eq!(code, 1, "{text}");
    let line = "WARN     stream_routes/r  its connections are closed (upstream_tls): its tls.client_cert_id names \
                ssl nowhere, which does not exist";
    assert!(text.contains(line), "{text}");
}

/// Listens with these switches, and routes for them without any certificate.
#[track_caller]
fn on_listen(switches: &str, route: &Value, line: &str) {
    let config =
        config("json", "").replace("\"127.0.0.1:0\"", &format!("{{addr: \"127.0.0.1:0\", {switches}}}"));
    let (_, text) = check(&config, &[("apisix.json", json!({"stream_routes": [route]}).to_string())]);
    assert!(text.contains(line), "no `{line}` in\n{text}");
}

#[test]
fn routes_that_do_not_fit_their_listens() {
    let route = |more: Value| {
        let mut route = json!({"id": "r", "sni": "a.com", "upstream": {"nodes": nodes()}});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        route
    };
    let passing = || route(json!({"tls_passthrough": true}));
    on_listen("tls: true", &passing(), "stream_routes/r  tls_passthrough: no listen that it can match");
    on_listen("tls: true", &passing(), "its TLS is ended there");
    on_listen("tls: true", &route(json!({})), "stream_routes/r  no ssl has a certificate for a.com");
    on_listen("tls: true", &route(json!({})), "terminates TLS and there is no certificate");
    on_listen("proxy_protocol: true", &passing(), "TLS is not looked at");
    let (code, text) =
        check_objects(&json!({"stream_routes": [{"id": "r", "upstream": {"nodes": nodes()}}]}));
    assert!(code == 0 && text.contains("0 warnings"), "{text}");
    let fine = config("json", "")
        .replace("\"127.0.0.1:0\"", "{addr: \"127.0.0.1:0\", tls: true, tls_passthrough: true}");
    let objects = json!({"stream_routes": [passing()]}).to_string();
    let (_, text) = check(&fine, &[("apisix.json", objects)]);
    assert!(!text.contains("stream_routes/r"), "{text}");
}

#[test]
fn targets_that_nobody_probes() {
    let checks = |active: Value| json!({"nodes": nodes(), "checks": {"active": active}});
    let both = json!({"type": "tcp", "healthy": {}, "unhealthy": {}});
    upstream(checks(json!({"type": "tcp", "unhealthy": {}})), "WARN     upstreams/u  ", "are never probed");
    upstream(checks(json!({"type": "tcp", "healthy": {}})), "WARN     SG-102 upstreams/u  ", "taken out");
    let (code, text) = check_objects(&json!({"upstreams": [checks(both)]}));
    assert!(code == 0 && !text.contains("probed"), "{text}");
}

#[test]
fn what_is_not_built_yet() {
    upstream(
        json!({"service_name": "x", "discovery_type": "kubernetes"}),
        "CHANGES  SG-050 upstreams/u  ",
        "discovery by kubernetes",
    );
}

#[test]
fn what_limit_conn_has_for_http_alone() {
    let limit = |name: &str, value: Value| {
        let mut limit = json!({"conn": 1, "burst": 0, "default_conn_delay": 1, "key": "remote_addr"});
        limit[name] = value;
        json!({"stream_routes": [{"id": "r", "upstream_id": "u", "plugins": {"limit-conn": limit}}],
               "upstreams": [{"id": "u", "nodes": nodes()}]})
    };
    let line = "CHANGES  SG-120 stream_routes/r  ";
    finds(
        &limit("policy", json!("redis")),
        line,
        "/plugins/limit-conn/policy is \"redis\" and has no effect",
    );
    finds(&limit("rejected_code", json!(429)), line, "/plugins/limit-conn/rejected_code is 429");
    for (name, value) in [("policy", json!("local")), ("rejected_code", json!(503))] {
        let (code, text) = check_objects(&limit(name, value));
        assert_eq!(code, 0, "{text}");
    }
}

#[test]
fn a_registry_that_config_yaml_does_not_have() {
    let by_consul = json!({"service_name": "x", "discovery_type": "consul"});
    upstream(by_consul.clone(), "WARN     upstreams/u  ", "config.yaml has no section discovery.consul");
    let route = json!({"id": "r", "upstream": by_consul});
    let with = config("json", "") + "discovery: {consul: {servers: [\"http://127.0.0.1:1\"]}}\n";
    let objects = json!({"stream_routes": [route]}).to_string();
    let (_, text) = check(&with, &[("apisix.json", objects)]);
    assert!(!text.contains("discovery"), "{text}");
}

/// What only etcd has: services whose plugins APISIX does not check, and an order that depends on when
/// a route was created.
#[tokio::test]
async fn objects_of_etcd() {
    let etcd = Etcd::start().await;
    for (key, value) in [
        ("services/defaults", json!({"plugins": {"prometheus": {}}, "upstream": {"nodes": nodes()}})),
        (
            "services/whole",
            json!({"plugins": {"prometheus": {"prefer_name": true}}, "upstream": {"nodes": nodes()}}),
        ),
        ("services/broken", json!({"plugins": {"mqtt-proxy": {}}, "upstream": {"nodes": nodes()}})),
        ("stream_routes/10", json!({"server_port": 1, "service_id": "defaults", "create_time": 2})),
        ("stream_routes/2", json!({"server_port": 1, "service_id": "whole", "create_time": 1})),
        ("stream_routes/3", json!({"server_port": 3, "service_id": "broken", "create_time": 3})),
        ("stream_routes/bytes", json!({"server_port": 4, "upstream": {"nodes": nodes()}})),
    ] {
        etcd.put(&format!("/apisix/{key}"), value.to_string()).await;
    }
    let text = config("etcd", "")
        .replace("deployment: {", &format!("deployment: {{etcd: {{host: [\"{}\"]}}, ", etcd.endpoint()));
    let (code, text) = tokio::task::spawn_blocking(move || check(&text, &[])).await.unwrap();
    assert_eq!(code, 1, "{text}");
    for (line, words) in [
        ("CHANGES  SG-001 services/defaults  ", "gets its defaults here"),
        ("CHANGES  SG-001 services/broken  ", "APISIX does not check"),
        ("CHANGES  SG-001 stream_routes/3  ", "its sessions are refused"),
        (
            "CHANGES  SG-030 stream_routes/10  ",
            "2 was created earlier: a running APISIX picks it, and 10 after a restart",
        ),
    ] {
        let found = text.lines().any(|one| one.starts_with(line) && one.contains(words));
        assert!(found, "no line `{line} … {words}` in\n{text}");
    }
    assert!(!text.contains("services/whole"), "{text}");
}

#[test]
fn traffic_split() {
    let with = |entry: Value, upstream: Value| {
        let split = json!({"rules": [{"weighted_upstreams": [{"upstream": {"nodes": nodes()}}, entry]}]});
        json!({
            "stream_routes": [{"id": "r", "plugins": {"traffic-split": split}}],
            "upstreams": [upstream],
        })
    };
    let objects = |entry: Value| with(entry, json!({"id": "u", "nodes": {}}));
    let missing = objects(json!({"upstream_id": "gone"}));
    finds(&missing, "CHANGES  SG-130 stream_routes/r  ", "upstream gone does not exist");
    let named = objects(json!({"upstream_id": "u"}));
    finds(&named, "WARN     stream_routes/r  ", "closed (no_node): upstream u: ");
    let reached = with(json!({"upstream_id": "u"}), json!({"id": "u", "nodes": nodes(), "type": "ewma"}));
    finds(&reached, "CHANGES  SG-021 upstreams/u  ", "ewma");
    let more = objects(json!({"upstream": {"nodes": nodes(), "retries": 1}}));
    finds(&more, "CHANGES  SG-131 stream_routes/r  ", "retries counts here");
    let ewma = objects(json!({"upstream": {"nodes": nodes(), "type": "ewma"}}));
    finds(&ewma, "CHANGES  SG-021 stream_routes/r  ", "ewma");
}
