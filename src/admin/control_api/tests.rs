//! Pages over snapshots that are built from objects, as a node builds them.

use std::sync::Arc;

use super::*;
use crate::config::{Listen, RulesConfig};
use crate::health::{Cause, Finding, Limits, Report};
use crate::live::Live;
use crate::snapshot::Builder;
use crate::store::{Batch, Event, Store};

const CHECKS: &str = r#"{"active":{"type":"tcp","healthy":{"interval":1,"successes":1},"unhealthy":{"interval":1,"tcp_failures":2}}}"#;

/// The snapshot of these objects, each written as `kind/id`.
pub(in crate::admin) fn snapshot(objects: &[(&str, &str)]) -> Snapshot {
    let objects: Vec<_> = objects
        .iter()
        .map(|(key, value)| {
            let value = value.replace("CHECKS", CHECKS);
            (Key::from_path(key).unwrap(), value.into(), 5)
        })
        .collect();
    let mut store = Store::new(RulesConfig::everything());
    let batch = Batch { events: vec![Event::Resync { objects, revision: 9 }], revision: 9 };
    let changes = store.apply(batch, 0);
    assert!(changes.refused.is_empty(), "{:?}", changes.refused);
    Builder::new(Arc::new(Live::default()), 0).build(&store, &changes)
}

/// An upstream and a route that bring two nodes with checks each; `down` of the upstream's are down.
pub(in crate::admin) fn checked(down: usize) -> Snapshot {
    let snapshot = snapshot(&[
        ("stream_routes/1", r#"{"server_port":1,"upstream_id":"h1"}"#),
        ("stream_routes/2", r#"{"upstream":{"nodes":{"127.0.0.1:3":1},"checks":CHECKS}}"#),
        ("upstreams/h1", r#"{"nodes":{"127.0.0.1:1":1,"127.0.0.1:2":1},"checks":CHECKS}"#),
        ("upstreams/of-http", r#"{"nodes":{"127.0.0.1:1":1},"checks":CHECKS}"#),
    ]);
    let pool = snapshot.checked_pools().find(|pool| &*pool.id == "h1").unwrap();
    let checked = pool.checked().unwrap();
    for target in checked.targets.iter().rev().take(down) {
        for _ in 0..2 {
            let cause = || Cause {
                by: Finding::Active,
                why: "the <connection> was refused".into(),
                since_unix_ms: 1_000,
            };
            target.cell.report(Report::TcpFailure, &Limits::ACTIVE, cause);
        }
    }
    snapshot
}

fn ask(snapshot: &Snapshot, target: &str, html: bool) -> Page {
    let listen = Listen::plain("9100", "0.0.0.0:9100".parse().unwrap(), Transport::Tcp);
    let facing = Facing { listens: vec![listen], fallback_sni: None };
    let site = Site { snapshot, facing: &facing, prefix: "/apisix", source: "etcd" };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    assert!(is_known(path), "{path}");
    site.answer(&Request { path: path.into(), query: query.into(), html })
}

#[track_caller]
fn check(snapshot: &Snapshot, target: &str, status: u16, expected: &Value) {
    let page = ask(snapshot, target, false);
    let body: Value = serde_json::from_str(&page.body).unwrap();
    assert_eq!((page.status.as_u16(), &body), (status, expected), "{target}");
}

fn error(why: &str) -> Value {
    json!({"error_msg": why})
}

#[test]
fn health_is_told_as_by_apisix_with_reasons() {
    let snapshot = checked(1);
    let untouched = "nothing has changed its state since this process knows it";
    let well = json!({"success": 0, "http_failure": 0, "tcp_failure": 0, "timeout_failure": 0});
    let node = |port: u16| {
        json!({"ip": "127.0.0.1", "port": port, "hostname": "127.0.0.1", "status": "healthy",
        "counter": well, "since": null, "by": null, "why": untouched, "last_result": null})
    };
    let mut down = node(2);
    down["status"] = "unhealthy".into();
    down["counter"]["tcp_failure"] = 2.into();
    down["since"] = "1970-01-01T00:00:01Z".into();
    down["by"] = "active".into();
    down["why"] = "the <connection> was refused".into();
    let of_upstream = json!({"name": "/apisix/upstreams/h1", "type": "tcp", "nodes": [node(1), down],
        "all_down": false, "sent_to_down": 0});
    let of_route = json!({"name": "/apisix/stream_routes/2", "type": "tcp", "nodes": [node(3)],
        "all_down": false, "sent_to_down": 0});
    check(&snapshot, "/v1/healthcheck/upstreams/h1", 200, &of_upstream);
    check(&snapshot, "/v1/healthcheck/stream_routes/2", 200, &of_route);
    check(&snapshot, "/v1/healthcheck", 200, &json!([of_route, of_upstream]));
    check(&Snapshot::default(), "/v1/healthcheck", 200, &json!({}));
    let table = ask(&snapshot, "/v1/healthcheck", true);
    assert!(table.html && table.body.contains("<td>/apisix/upstreams/h1</td>"), "{}", table.body);
    assert!(table.body.contains("the &lt;connection&gt; was refused"), "{}", table.body);
}

#[test]
fn sessions_that_were_sent_to_a_down_node_are_told() {
    let snapshot = checked(2);
    let page = ask(&snapshot, "/v1/healthcheck/upstreams/h1", false);
    let page: Value = serde_json::from_str(&page.body).unwrap();
    assert_eq!((&page["all_down"], &page["sent_to_down"]), (&json!(true), &json!(0)));
    let pool = snapshot.checked_pools().find(|pool| &*pool.id == "h1").unwrap();
    pool.checked().unwrap().stats.all_down.add_one();
    let page = ask(&snapshot, "/v1/healthcheck/upstreams/h1", false);
    assert!(page.body.contains(r#""sent_to_down":1"#), "{}", page.body);
    let summary = json!([{"upstream": "h1", "down": 2, "of": 2, "all_down": true}]);
    assert_eq!(Value::from(healthcheck::upstreams_down(&snapshot)), summary);
}

#[test]
fn what_is_missing_is_said_as_by_apisix() {
    let snapshot = checked(0);
    for (target, status, why) in [
        ("/v1/healthcheck/stream_routes/1", 404, "no checker for stream_routes[1]"),
        ("/v1/healthcheck/upstreams/of-http", 404, "no checker for upstreams[of-http]"),
        ("/v1/healthcheck/upstreams/x", 404, "upstreams[x] not found"),
        ("/v1/healthcheck/routes/1", 404, "routes[1] not found"),
        ("/v1/healthcheck/upstreams", 404, "missing src id for src type upstreams"),
        ("/v1/healthcheck/ssls/1", 400, "invalid src type ssls"),
        ("/v1/service/x", 404, "service[x] not found"),
        ("/v1/upstream/x", 404, "upstream[x] not found"),
        ("/v1/route/x", 404, "route[x] not found"),
        ("/v1/plugin_metadata/syslog", 404, "plugin metadata[syslog] not found"),
    ] {
        check(&snapshot, target, status, &error(why));
    }
    for path in [
        "/v1",
        "/v1/",
        "/v1/schema",
        "/v1/stream_routes",
        "/v1/stream_route/1",
        "/v1/upstream",
        "/v1/upstreams/h1",
        "/v2/upstreams",
        "/x/v1/routes",
    ] {
        assert!(!is_known(path), "{path}");
    }
}

#[test]
fn objects_are_listed_in_the_order_of_their_keys() {
    let snapshot = snapshot(&[
        ("upstreams/b", r#"{"nodes":{"db.test:1":1}}"#),
        ("upstreams/a", r#"{"nodes":{}}"#),
        ("services/s", r#"{"upstream":{"nodes":{"127.0.0.1:1":1}}}"#),
        ("plugin_metadata/syslog", r#"{"log_format":{}}"#),
    ]);
    let page: Value = serde_json::from_str(&ask(&snapshot, "/v1/upstreams", false).body).unwrap();
    let keys: Vec<_> = page.as_array().unwrap().iter().map(|item| item["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["/apisix/upstreams/a", "/apisix/upstreams/b"]);
    assert_eq!((&page[0]["has_domain"], &page[1]["has_domain"]), (&json!(false), &json!(true)));
    assert_eq!((&page[1]["modifiedIndex"], &page[1]["createdIndex"]), (&json!(5), &json!(5)));
    check(&snapshot, "/v1/upstream/b", 200, &page[1]);
    check(&snapshot, "/v1/upstream/%62", 200, &page[1]);
    check(&snapshot, "/v1/plugin_metadatas", 200, &json!([{"log_format": {}, "id": "syslog"}]));
    check(&snapshot, "/v1/plugin_metadata/syslog", 200, &json!({"log_format": {}, "id": "syslog"}));
    check(&snapshot, "/v1/routes", 200, &json!({}));
    let page: Value = serde_json::from_str(&ask(&snapshot, "/v1/services", false).body).unwrap();
    assert_eq!(page[0]["value"]["upstream"]["nodes"][0]["port"], 1);
}

#[test]
fn explaining_takes_no_turn() {
    let snapshot = checked(1);
    let target = "/v1/explain?client=10.0.0.1&server=127.0.0.1:1";
    let answer = || -> Value { serde_json::from_str(&ask(&snapshot, target, false).body).unwrap() };
    let first = answer();
    assert_eq!(first["listen"], "none of config.yaml is tcp 127.0.0.1:1");
    assert_eq!(first["route"], json!({"id": "1", "revision": 5}));
    assert_eq!((&first["upstream"], &first["method"]), (&json!("h1"), &json!("roundrobin")));
    assert_eq!((&first["node"], &first["nodes"]), (&json!("127.0.0.1:1"), &json!(2)));
    assert_eq!((&first["revision"], &first["source"]), (&json!(9), &json!("etcd")));
    assert_eq!(first["health"][1]["status"], "unhealthy");
    assert_eq!(first["others"][0], json!({"route": "2", "why": "would match, but comes later in the order"}));
    assert_eq!(answer(), first);
}

#[test]
fn a_session_that_ends_says_how() {
    let snapshot = snapshot(&[
        ("stream_routes/1", r#"{"server_port":9100,"upstream_id":"none"}"#),
        ("stream_routes/2", r#"{"server_port":2,"upstream":{"nodes":{"db.test:1":1}}}"#),
    ]);
    let ask = |query: &str| -> Value {
        let page = ask(&snapshot, &format!("/v1/explain?client=10.0.0.1&{query}"), false);
        serde_json::from_str(&page.body).unwrap()
    };
    let missing = ask("server=127.0.0.1:9100");
    assert_eq!(missing["end"], "upstream_missing");
    assert!(missing["reason"].as_str().unwrap().starts_with("upstream none does not exist"), "{missing}");
    assert_eq!(ask("server=127.0.0.1:3")["end"], "no_route");
    assert_eq!(ask("server=127.0.0.1:3&tls=true")["end"], "tls_no_sni");
    assert_eq!(ask("server=127.0.0.1:3&tls=true&sni=A.b.")["ssl"]["name"], "a.b");
    let pending = ask("server=127.0.0.1:2");
    assert!(
        pending["reason"].as_str().unwrap().contains("has not been answered for; sessions wait"),
        "{pending}"
    );
    assert_eq!((&pending["end"], &pending["node"]), (&Value::Null, &Value::Null));
    assert_eq!(pending["dns"], json!({"names": [], "pending": ["db.test"]}));
    assert_eq!(ask("server=127.0.0.1:3&others=0")["rest"], json!(["2 rules for other ports"]));
}

#[test]
fn questions_that_mean_nothing_are_refused() {
    let snapshot = Snapshot::default();
    for (query, why) in [
        ("", "client is missing; ask such as ?client=10.0.0.1:5000&server=10.0.0.2:3306"),
        ("client=x", "client is \"x\"; IP or IP:PORT is allowed"),
        ("client=%5B::1%5D:1&server=1.2.3.4", "server is \"1.2.3.4\"; IP:PORT is allowed"),
        ("client=::1&server=[::1]:1&transport=sctp", "transport is \"sctp\"; tcp or udp is allowed"),
        ("client=::1&server=[::1]:1&tls=1", "tls is \"1\"; true or false is allowed"),
        (
            "port=1",
            "port is unknown; known are client, server, sni, transport, tls, preread, var.NAME, others",
        ),
    ] {
        check(&snapshot, &format!("/v1/explain?{query}"), 400, &error(why));
    }
}

#[test]
fn percent_signs_are_undone_where_they_stand_for_a_byte() {
    for (text, expected) in
        [("a%20b", "a b"), ("%", "%"), ("%4", "%4"), ("%zz%41", "%zzA"), ("%ff", "\u{fffd}")]
    {
        assert_eq!(decoded(text), expected);
    }
}
