//! The control API of the real binary: pages as an APISIX 3.18 gave them, and `explain --node`, which asks it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/peers.rs"]
mod peers;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use binary::{Gateway, Setup, http, run, stderr, stdout};
use etcd::Etcd;
use peers::{ask, echo, until_answered};
use serde_json::{Value, json};

/// As an operator writes them for a raw TCP service.
fn checks() -> Value {
    json!({"active": {"type": "tcp", "healthy": {"interval": 1, "successes": 1},
        "unhealthy": {"interval": 1, "tcp_failures": 2, "timeouts": 1}}})
}

fn with_control(mut setup: Setup) -> Setup {
    setup.control = true;
    setup
}

/// A page of the control API.
#[track_caller]
fn page(gateway: &Gateway, path: &str) -> (u16, Value) {
    let (code, body) = http(gateway.control(), "GET", path).unwrap();
    (code, serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path} is no JSON: {body}")))
}

#[track_caller]
fn check(gateway: &Gateway, path: &str, code: u16, expected: &Value) {
    let (found, body) = page(gateway, path);
    assert_eq!((found, &body), (code, expected), "{path}");
}

/// Without the members that APISIX does not have.
fn as_in_apisix(mut upstream: Value) -> Value {
    let mut take = |at: &str, names: &[&str]| {
        let member = upstream.pointer_mut(at).unwrap().as_object_mut().unwrap();
        for name in names {
            assert!(member.remove(*name).is_some(), "no {name}: {member:?}");
        }
    };
    take("", &["all_down", "sent_to_down"]);
    take("/nodes/0", &["since", "by", "why", "last_result"]);
    take("/nodes/1", &["since", "by", "why", "last_result"]);
    upstream
}

fn healthy(name: &str, nodes: [SocketAddr; 2]) -> Value {
    let nodes = nodes.map(|node| {
        json!({"status": "healthy", "ip": "127.0.0.1", "port": node.port(), "hostname": "127.0.0.1",
            "counter": {"tcp_failure": 0, "timeout_failure": 0, "success": 0, "http_failure": 0}})
    });
    json!({"name": name, "nodes": nodes, "type": "tcp"})
}

#[tokio::test]
async fn pages_read_as_in_apisix() {
    let (etcd, a, b) = (Etcd::start().await, echo("A"), echo("B"));
    let gateway = with_control(Setup::etcd(&etcd.endpoint())).start();
    for list in ["healthcheck", "routes", "services", "upstreams", "plugin_metadatas"] {
        check(&gateway, &format!("/v1/{list}"), 200, &json!({}));
    }
    let nodes = json!({a.to_string(): 1, b.to_string(): 1});
    let upstream = json!({"type": "roundrobin", "retries": 0, "nodes": nodes, "checks": checks()});
    let revision = etcd.put("/apisix/upstreams/h1", upstream.to_string()).await;
    let inline = json!({"server_port": 1, "upstream": {"nodes": nodes, "checks": checks()}});
    etcd.put("/apisix/stream_routes/2", inline.to_string()).await;
    let route = json!({"server_port": gateway.tcp(0).port(), "upstream_id": "h1"});
    etcd.put("/apisix/stream_routes/1", route.to_string()).await;
    until_answered(gateway.tcp(0), "A");

    let item = json!({"key": "/apisix/upstreams/h1", "modifiedIndex": revision, "createdIndex": revision,
        "value": {"pass_host": "pass", "retries": 0, "id": "h1", "resource_key": "/apisix/upstreams/h1",
            "type": "roundrobin",
            "checks": {"active": {"healthy": {"successes": 1, "http_statuses": [200, 302], "interval": 1},
                "type": "tcp", "unhealthy": {"http_failures": 5, "tcp_failures": 2, "timeouts": 1,
                    "http_statuses": [429, 404, 500, 501, 502, 503, 504, 505], "interval": 1},
                "concurrency": 10, "http_method": "GET", "http_path": "/", "http_req_body": "",
                "https_verify_certificate": true, "timeout": 1}},
            "nodes": [{"port": a.port(), "host": "127.0.0.1", "weight": 1},
                {"port": b.port(), "host": "127.0.0.1", "weight": 1}],
            "scheme": "http", "resource_version": revision, "resource_id": "h1", "hash_on": "vars"},
        "has_domain": false});
    check(&gateway, "/v1/upstreams", 200, &json!([item]));
    check(&gateway, "/v1/upstream/h1", 200, &item);

    let of_upstream = healthy("/apisix/upstreams/h1", [a, b]);
    let of_route = healthy("/apisix/stream_routes/2", [a, b]);
    let one = page(&gateway, "/v1/healthcheck/upstreams/h1").1;
    assert_eq!(as_in_apisix(one), of_upstream);
    let all: Vec<Value> = serde_json::from_value(page(&gateway, "/v1/healthcheck").1).unwrap();
    assert_eq!(all.into_iter().map(as_in_apisix).collect::<Vec<_>>(), [of_route, of_upstream]);
    for (path, why) in [
        ("/v1/healthcheck/stream_routes/1", "no checker for stream_routes[1]"),
        ("/v1/service/x", "service[x] not found"),
        ("/v1/plugin_metadata/syslog", "plugin metadata[syslog] not found"),
    ] {
        check(&gateway, path, 404, &json!({"error_msg": why}));
    }
    for path in ["/v1/gc", "/v1/nope", "/apisix/prometheus/metrics"] {
        assert_eq!(http(gateway.control(), "GET", path).unwrap().0, 404, "{path}");
    }
    assert_eq!(http(gateway.control(), "POST", "/v1/upstreams").unwrap().0, 405);
    assert_eq!(http(gateway.pages(), "GET", "/v1/upstreams").unwrap().0, 404, "it is the metrics server");
}

#[tokio::test]
async fn pages_follow_what_serves() {
    const U1: &str = "/apisix/upstreams/u1";
    let etcd = Etcd::start().await;
    let mut gateway = with_control(Setup::etcd(&etcd.endpoint())).start();
    let value = |gateway: &Gateway| page(gateway, "/v1/upstream/u1").1["value"]["desc"].clone();
    let revision = etcd.put(U1, r#"{"nodes":{"10.0.0.1:1":1},"desc":"first"}"#).await;
    // It has no route: APISIX shows it all the same.
    gateway.eventually("the object", |gateway| value(gateway) == "first");
    // A refused version does not serve, so it is not shown.
    etcd.put(U1, r#"{"nodes":7,"desc":"refused"}"#).await;
    etcd.put("/apisix/upstreams/u2", r#"{"nodes":{}}"#).await;
    gateway.eventually("the other", |gateway| page(gateway, "/v1/upstream/u2").0 == 200);
    let (_, kept) = page(&gateway, "/v1/upstream/u1");
    assert_eq!((&kept["value"]["desc"], &kept["modifiedIndex"]), (&json!("first"), &json!(revision)));
    etcd.put(U1, r#"{"nodes":{},"desc":"second"}"#).await;
    gateway.eventually("the edit", |gateway| value(gateway) == "second");
    etcd.delete(U1).await;
    gateway.eventually("the deletion", |gateway| page(gateway, "/v1/upstream/u1").0 == 404);
}

/// A gateway whose listen `tcp(0)` leads to two nodes with checks, in turns.
fn serving() -> Gateway {
    let nodes = json!({echo("A").to_string(): 1, echo("B").to_string(): 1});
    let route = json!({"id": "r1", "server_port": "@tcp0", "upstream": {"nodes": nodes, "checks": checks()}});
    let setup = with_control(Setup::objects(&json!({"stream_routes": [route]})));
    let gateway = setup.start();
    ask(gateway.tcp(0)).unwrap();
    gateway
}

fn node_url(gateway: &Gateway) -> String {
    format!("http://{}", gateway.control())
}

#[test]
fn health_is_among_metrics_and_status() {
    let gateway = serving();
    let page = gateway.metrics();
    let nodes = page.lines().filter(|line| line.starts_with("apisix_upstream_status{"));
    let nodes: Vec<_> = nodes.collect();
    assert_eq!(nodes.len(), 2, "{page}");
    for line in nodes {
        assert!(
            line.contains("{name=\"/stream_routes/r1\",ip=\"127.0.0.1\",port=\"") && line.ends_with(" 1"),
            "{line}"
        );
    }
    for metric in ["streamgate_upstream_nodes_down", "streamgate_upstream_all_down_sessions_total"] {
        assert_eq!(
            gateway.metric(&format!("{metric}{{upstream=\"stream_routes/r1\"}}")),
            Some(0.0),
            "{metric}"
        );
    }
    assert_eq!(gateway.status()["upstreams_down"], json!([]));
}

#[test]
fn explain_asks_the_running_node() {
    let gateway = serving();
    let server = gateway.tcp(0).to_string();
    let said = |more: &[&str]| {
        let arguments = [&["explain", "--client", "127.0.0.1", "--server", &server], more].concat();
        let output = run(&arguments, b"");
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let (url, config) = (node_url(&gateway), gateway.config_file());
    for _ in 0..3 {
        let answer = said(&["--node", &url]);
        assert_eq!(said(&["--node", &url]), answer, "asking takes no turn");
        let lines: Vec<&str> = answer.lines().collect();
        let (node, method) = lines[0]
            .strip_prefix("route  r1   upstream stream_routes/r1   node ")
            .and_then(|rest| rest.split_once(' '))
            .unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(method, "(roundrobin, 1 of 2)");
        assert_eq!(lines.len(), 4, "{answer}");
        assert!(lines[1..3].iter().all(|line| line.starts_with("health 127.0.0.1:")), "{answer}");
        assert!(lines[1].contains(" healthy: "), "{answer}");
        assert_eq!(lines[3], "config of the running node, from its file");
        // What was foreseen is what the next session gets.
        let (_, explained) = page(&gateway, &format!("/v1/explain?client=127.0.0.1&server={server}"));
        assert_eq!(explained["node"], node);
        assert_eq!(ask(gateway.tcp(0)).unwrap(), name_of(node));
    }
    let answer = said(&["-c", config.to_str().unwrap()]);
    assert!(answer.ends_with(", health unknown\n"), "{answer}");
}

/// What the echo upstream at this address says.
#[track_caller]
fn name_of(node: &str) -> String {
    ask(node.parse().unwrap()).unwrap()
}

#[track_caller]
fn refuses(url: &str, code: i32, words: &str) {
    let arguments = ["explain", "--client", "127.0.0.1", "--server", "127.0.0.1:1", "--node", url];
    let output = run(&arguments, b"");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(words) && output.stdout.is_empty(), "no {words} in\n{said}");
}

#[test]
fn what_is_no_node_is_told_apart() {
    let gateway = serving();
    refuses(
        &format!("http://{}", gateway.pages()),
        1,
        "has no /v1/explain: it is an APISIX, or not the control address",
    );
    refuses(&format!("http://{}/v1", gateway.control()), 64, "such as http://127.0.0.1:9090");
    refuses("https://127.0.0.1:1", 64, "speaks no TLS");
    let (_keeper, nobody) = peers::refused();
    refuses(&format!("http://{nobody}/"), 1, &format!("cannot ask the node at http://{nobody}: "));
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stranger.local_addr().unwrap();
    let greeting =
        std::thread::spawn(move || stranger.accept().unwrap().0.write_all(b"220 mail\r\n").unwrap());
    refuses(&format!("http://{address}"), 1, "cannot ask the node");
    greeting.join().unwrap();
}

#[test]
fn an_address_that_is_taken_stops_the_start_only_where_it_is_written() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port();
    let text = |control: &str| {
        format!(
            "apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [\"127.0.0.1:@tcp0\"]}}{control}}}\n\
             deployment: {{role: data_plane, role_data_plane: {{config_provider: json}}}}\n\
             plugin_attr: {{prometheus: {{export_addr: {{port: @metrics}}}}}}\n"
        )
    };
    let mut setup = Setup::objects(&json!({}));
    setup.whole = Some(text(&format!(", control: {{port: {taken}}}")));
    let mut refused = Gateway::spawn(setup.clone());
    assert_eq!(refused.ended().code(), Some(1));
    let words = format!("cannot listen on 127.0.0.1:{taken} (apisix.control)");
    assert!(refused.log_text().contains(&words), "{}", refused.log_text());
    // Taken by this test, or by whoever has it already.
    let _holder = TcpListener::bind("127.0.0.1:9090");
    setup.whole = Some(text(""));
    let mut gateway = setup.start();
    gateway.says("this gateway goes on without the control API");
}
