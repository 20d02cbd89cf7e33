//! What accepted objects become.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use serde_json::json;
use streamgate::config::RulesConfig;
use streamgate::health::{Limits, Report};
use streamgate::resource::{
    Balancer, CheckKind, HashKey, Key, Kind, Object, Parsed, Remark, Rules, Scheme, Service, Ssl,
    StreamRoute, Upstream, Versions,
};
use streamgate::sni::SniPattern;

fn parse(kind: Kind, text: &str) -> Parsed {
    let names = ["ip-restriction", "limit-conn", "mqtt-proxy", "prometheus", "syslog", "traffic-split"];
    let rules =
        Rules::new(&RulesConfig { stream_plugins: names.map(Box::from).to_vec(), ..RulesConfig::default() });
    rules.parse(&Key::new(kind, "7"), text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn texts(remarks: Vec<Remark>) -> Vec<String> {
    remarks.into_iter().map(|remark| remark.text).collect()
}

fn route(text: &str) -> (StreamRoute, Vec<String>) {
    let parsed = parse(Kind::StreamRoute, text);
    match parsed.object {
        Object::StreamRoute(route) => ((*route).clone(), texts(parsed.warnings)),
        other => panic!("{other:?}"),
    }
}

fn upstream(text: &str) -> (Upstream, Vec<String>) {
    let parsed = parse(Kind::Upstream, text);
    match parsed.object {
        Object::Upstream(upstream) => ((*upstream).clone(), texts(parsed.warnings)),
        other => panic!("{other:?}"),
    }
}

fn ssl(text: &str) -> (Ssl, Vec<String>, Option<String>) {
    let parsed = parse(Kind::Ssl, text);
    match parsed.object {
        Object::Ssl(ssl) => ((*ssl).clone(), texts(parsed.warnings), parsed.unusable.map(|why| why.text)),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn check_nodes(text: &str, nodes: &[&str], warned: &[&str]) {
    let (upstream, warnings) = upstream(text);
    let shown: Vec<String> = upstream
        .nodes
        .iter()
        .map(|node| format!("{}:{} {} {}", node.host, node.port, node.weight, node.priority))
        .collect();
    assert_eq!(shown, nodes, "{text}");
    assert_eq!(warnings.len(), warned.len(), "{text}: {warnings:?}");
    for (warning, part) in warnings.iter().zip(warned) {
        assert!(warning.starts_with("upstream 7: node ") && warning.contains(part), "{warning}");
    }
}

#[test]
fn nodes_keep_their_order_and_lose_what_cannot_be_dialled() {
    check_nodes(
        r#"{"nodes":{"z.internal:80":1,"10.0.0.1:0x50":2.0,"[::1]:443":0}}"#,
        &["z.internal:80 1 0", "10.0.0.1:80 2 0", "[::1]:443 0 0"],
        &[],
    );
    check_nodes(
        r#"{"nodes":{"a":1,"a:0":1,":80":1,"http://a:80":1,"::1":1,"b:80":1e20}}"#,
        &["b:80 4294967295 0"],
        &[
            "\"a\" has no port",
            "\"a:0\" has no port",
            "\":80\" has no host",
            "has ':' in its host",
            "\"::1\" has no port",
        ],
    );
    check_nodes(
        r#"{"nodes":[{"host":"::1","port":80.0,"weight":1},{"host":"b","weight":1},
            {"host":"*","port":1,"weight":1},{"host":"c","port":1,"weight":3,"priority":-1}]}"#,
        &["[::1]:80 1 0", "c:1 3 -1"],
        &["\"b\" has no port", "has '*' in its host"],
    );
    check_nodes(
        r#"{"nodes":[{"host":"a","port":1,"weight":1},{"host":"b","port":1,"weight":1},
            {"host":"a","port":1,"weight":5},{"host":"a","port":1,"weight":6,"priority":1}]}"#,
        &["a:1 5 0", "b:1 1 0", "a:1 6 1"],
        &[],
    );
    check_nodes(r#"{"nodes":[]}"#, &[], &[]);
}

#[test]
fn upstream_fields() {
    let (parsed, warnings) = upstream(
        r#"{"nodes":{},"type":"chash","key":"remote_addr","retries":1e20,"retry_timeout":0.5,"scheme":"tls",
            "timeout":{"connect":0.00001,"send":5,"read":1e300},"labels":{"a":"b"},"tls":{"client_cert_id":7.0},
            "checks":{"active":{"type":"tcp","healthy":{}}},"create_time":1}"#,
    );
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(parsed.balancer, Balancer::Chash(HashKey::Variable("remote_addr".into())));
    assert_eq!(parsed.retries, Some(u32::MAX));
    assert_eq!(parsed.retry_timeout, Some(Duration::from_millis(500)));
    let timeout = parsed.timeout.unwrap();
    assert_eq!(timeout.connect, Duration::from_millis(1));
    assert_eq!(timeout.idle, Duration::from_millis(2_147_483_647));
    assert_eq!(parsed.scheme, Scheme::Tls);
    assert_eq!(parsed.tls.unwrap().client_cert_id.as_deref(), Some("7"));
    let checks = parsed.checks.unwrap();
    assert_eq!(checks.active.kind, CheckKind::Tcp);
    assert_eq!(checks.active.limits, Limits::ACTIVE);
    assert_eq!(parsed.extensions, None);
    assert_eq!(upstream(r#"{"nodes":{},"retry_timeout":0}"#).0.retry_timeout, None);

    let (unknown, warnings) = upstream(r#"{"nodes":{},"type":"random"}"#);
    assert_eq!(unknown.balancer, Balancer::Unknown("random".into()));
    assert!(warnings[0].contains("\"random\" is no balancer"), "{warnings:?}");

    let (discovered, _) = upstream(r#"{"service_name":"s","discovery_type":"dns"}"#);
    assert_eq!(&*discovered.discovery.unwrap().kind, "dns");
    assert!(upstream(r#"{"nodes":[],"service_name":"s"}"#).0.discovery.is_none());
}

#[test]
fn route_fields() {
    let (parsed, warnings) = route(
        r#"{"name":"n","server_port":9100.0,"remote_addr":"10.1.2.3/8","snis":["A.com","*.B.com"],"service_id":1e14,
            "tls_passthrough":true,"upstream":{"nodes":{"a:1":1},"type":"chash"},
            "plugins":{"prometheus":[],"nope":{},"limit-conn":{"_meta":{"disable":true}}}}"#,
    );
    assert_eq!((parsed.id.as_ref(), parsed.name.as_deref()), ("7", Some("n")));
    assert_eq!(parsed.server_port, Some(9100));
    assert_eq!(parsed.remote_addr.unwrap().to_string(), "10.0.0.0/8");
    assert_eq!(parsed.snis, [SniPattern::Exact("a.com".into()), SniPattern::Suffix(".b.com".into())]);
    assert_eq!(parsed.service_id.as_deref(), Some("1e+14"));
    assert!(parsed.tls_passthrough);
    assert_eq!(parsed.upstream.unwrap().balancer, Balancer::Chash(HashKey::Nothing));
    let plugins: Vec<_> =
        parsed.plugins.iter().map(|plugin| (&*plugin.name, plugin.enabled, plugin.disabled)).collect();
    assert_eq!(plugins, [("prometheus", true, false), ("nope", false, false), ("limit-conn", true, true)]);
    assert_eq!(*parsed.plugins[0].conf, json!({"prefer_name": false}));
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings[0].contains("plugin nope") && warnings[1].contains("_meta.disable"), "{warnings:?}");
    assert!(warnings[2].contains("the upstream of stream_route 7: "), "{warnings:?}");

    assert_eq!(route(r#"{"snis":["a.com","*"]}"#).0.snis, []);
    assert_eq!(route(r#"{"sni":"*"}"#).0.snis, [SniPattern::Suffix("".into())]);
    let (odd, warnings) = route(r#"{"remote_addr":"1.2.3.4\u0000x"}"#);
    assert_eq!(odd.remote_addr.unwrap().to_string(), "1.2.3.4");
    assert!(warnings[0].contains("read as 1.2.3.4"), "{warnings:?}");
}

#[test]
fn filters_that_cannot_work_are_named() {
    let (_, warnings) = route(
        r#"{"plugins":{"prometheus":{"_meta":{"filter":[["a"]]}},
            "traffic-split":{"rules":[{"match":[{"vars":[["a","~~","(?=x)"]]}]}]}}}"#,
    );
    assert!(warnings[0].starts_with("/plugins/prometheus/_meta/filter/0: "), "{warnings:?}");
    assert!(warnings[1].contains("\"(?=x)\" does not compile and never matches"), "{warnings:?}");
}

/// SG-001
#[test]
fn a_broken_plugin_of_a_service_refuses_sessions_and_the_service_stays() {
    let parsed =
        parse(Kind::Service, r#"{"plugins":{"mqtt-proxy":{},"ip-restriction":{"whitelist":["10.0.0.1"]}}}"#);
    let Object::Service(service) = parsed.object else { panic!("{:?}", parsed.object) };
    let Service { plugins, .. } = &*service;
    assert!(plugins[0].broken.as_ref().unwrap().text.contains("lacks `protocol_level`"));
    assert_eq!((&plugins[1].broken, &plugins[1].conf["response_code"]), (&None, &json!(403)));
    let warned: Vec<_> = parsed.warnings.iter().map(|remark| (remark.rule, &*remark.text)).collect();
    assert_eq!(warned.len(), 2, "{warned:?}");
    assert!(warned.iter().all(|(rule, _)| *rule == Some("SG-001")), "{warned:?}");
    assert!(warned[0].1.contains("this one refuses every session"), "{warned:?}");
    assert!(warned[1].1.contains("ip-restriction gets its defaults here"), "{warned:?}");
}

struct Pair {
    cert: String,
    key: String,
}

fn pair() -> Pair {
    let made = rcgen::generate_simple_self_signed(["a.com".to_owned()]).unwrap();
    Pair { cert: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

#[test]
fn certificates_become_identities() {
    let Pair { cert, key } = pair();
    let text = json!({
        "snis": ["A.com.", "*.b.com"], "status": 1.0, "ssl_protocols": [],
        "cert": format!("\u{feff}{}", cert.replace('\n', " \r\n")), "key": format!("{key}trailing text"),
        "certs": ["$env://CERT"], "keys": [key], "client": {"ca": cert}
    });
    let (parsed, warnings, unusable) = ssl(&text.to_string());
    assert!(warnings.len() == 1 && unusable.is_none(), "{warnings:?} {unusable:?}");
    assert!(warnings[0].starts_with("/certs/0 is \"$env://CERT\", and this process has no"), "{warnings:?}");
    assert_eq!(parsed.names.iter().collect::<Vec<_>>(), ["a.com", "*.b.com"]);
    assert_eq!(parsed.identities.len(), 1);
    assert_eq!(parsed.client.unwrap().depth, 1);
    assert!(parsed.enabled && !parsed.client_type && parsed.versions == Versions::default());
}

#[test]
fn a_pair_that_cannot_be_served_is_left_out_and_the_last_one_makes_the_object_unusable() {
    let (first, second) = (pair(), pair());
    let alone = json!({"sni": "a.com", "cert": first.cert, "key": second.key});
    let (parsed, warnings, unusable) = ssl(&alone.to_string());
    assert!(parsed.identities.is_empty() && warnings.is_empty());
    assert_eq!(unusable.unwrap(), "/cert: its private key does not belong to its certificate");

    let beside = json!({"sni": "a.com", "cert": first.cert, "key": first.key, "certs": [first.cert], "keys": [second.key]});
    let (parsed, warnings, unusable) = ssl(&beside.to_string());
    assert_eq!((parsed.identities.len(), unusable), (1, None));
    assert!(warnings[0].starts_with("/certs/0: "), "{warnings:?}");

    let old = json!({"sni": "a.com", "cert": first.cert, "key": first.key, "ssl_protocols": ["TLSv1.1"]});
    assert!(ssl(&old.to_string()).2.unwrap().contains("TLS 1.1 alone"));
}

#[test]
fn the_plugins_key_names_the_stream_plugins() {
    let parsed =
        parse(Kind::Plugins, r#"[{"name":"a","stream":true},{"name":"b"},{"name":"c","stream":false}]"#);
    let Object::Plugins(names) = parsed.object else { panic!("{:?}", parsed.object) };
    assert_eq!(*names, ["a".into()]);
}

#[test]
fn health_checks_are_read_with_the_defaults_of_schema_and_library() {
    let (parsed, warnings) = upstream(
        r#"{"nodes":{},"pass_host":"rewrite","upstream_host":"up.test","checks":{"active":{"type":"https",
            "timeout":0.25,"concurrency":3,"host":"node.test","port":8443,"http_path":"/ready",
            "req_headers":["X-Probe: yes","nonsense"],"https_verify_certificate":false,
            "healthy":{"interval":5,"successes":1,"http_statuses":[204]},"unhealthy":{"tcp_failures":9}},
            "passive":{"unhealthy":{"tcp_failures":0}}}}"#,
    );
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("req_headers has \"nonsense\""), "{warnings:?}");
    let checks = parsed.checks.unwrap();
    let active = &checks.active;
    assert_eq!((active.kind, active.port, active.concurrency), (CheckKind::Https, Some(8443), 3));
    assert_eq!(active.timeout, Duration::from_millis(250));
    assert_eq!((active.host.as_deref(), active.host_header.as_deref()), (Some("node.test"), Some("up.test")));
    assert_eq!(active.request.headers, [("X-Probe".into(), "yes".into())]);
    assert_eq!((&*active.request.method, &*active.request.path), ("GET", "/ready"));
    assert!(!active.request.verify);
    assert_eq!(active.interval(true), Some(Duration::from_secs(5)));
    assert_eq!(active.interval(false), Some(Duration::from_secs(1)), "the schema fills it in");
    assert_eq!(active.limits, Limits { successes: 1, tcp_failures: 9, ..Limits::ACTIVE });
    assert_eq!(active.judge(204), Some(Report::Success));
    assert_eq!(active.judge(503), Some(Report::HttpFailure));
    assert_eq!(active.judge(200), None);
    assert_eq!(checks.passive, Some(Limits { tcp_failures: 0, ..Limits::PASSIVE }));
}

#[test]
fn fields_of_checks_that_nothing_reads_are_told() {
    let (parsed, warnings) =
        upstream(r#"{"nodes":{},"checks":{"active":{"typ":"tcp","healthy":{"sucesses":1}},"pasive":{}}}"#);
    assert_eq!(parsed.checks.unwrap().active.kind, CheckKind::Http);
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, part) in warnings.iter().zip([
        "/checks has \"pasive\", which nothing reads; there are active, passive",
        "/checks/active has \"typ\"",
        "/checks/active/healthy has \"sucesses\"",
    ]) {
        assert!(warning.contains(part), "{warning}");
    }
}

#[test]
fn paths_of_checks_can_be_sent() {
    for (written, path, told) in [
        ("/ready?deep=1", "/ready?deep=1", false),
        ("health", "/health", true),
        ("", "/", true),
        ("/a b", "/a%20b", true),
        ("/a\r\nX: y", "/a%0D%0AX:%20y", true),
        ("/\u{e4}", "/%C3%A4", true),
    ] {
        let checks = json!({"nodes": {}, "checks": {"active": {"http_path": written}}});
        let (parsed, warnings) = upstream(&checks.to_string());
        assert_eq!(&*parsed.checks.unwrap().active.request.path, path);
        assert_eq!(!warnings.is_empty(), told, "{warnings:?}");
    }
}

#[test]
fn a_half_that_is_absent_is_not_probed() {
    let (parsed, _) = upstream(r#"{"nodes":{},"checks":{"active":{"type":"tcp","unhealthy":{}}}}"#);
    let active = &parsed.checks.unwrap().active;
    assert_eq!((active.interval(true), active.interval(false)), (None, Some(Duration::from_secs(1))));
    assert_eq!(active.judge(302), Some(Report::Success));
}

#[test]
fn labels_of_ours_switch_on_what_apisix_has_not() {
    let (parsed, warnings) = upstream(
        r#"{"nodes":{},"labels":{"team":"a","streamgate/close-on-down":"50","streamgate/tcp-send":"PING\\r\\n",
            "streamgate/tcp-expect":"+PONG","streamgate/typo":"x"}}"#,
    );
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("label streamgate/typo"), "{warnings:?}");
    let extensions = parsed.extensions.unwrap();
    assert_eq!(extensions.close_on_down, Some(50));
    assert_eq!(extensions.tcp_send.as_deref(), Some(&b"PING\r\n"[..]));
    assert_eq!(extensions.tcp_expect.as_deref(), Some(&b"+PONG"[..]));
}
