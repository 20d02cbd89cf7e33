//! The binary on a real etcd: what is written there is what clients get, whatever becomes of etcd.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/proxy.rs"]
mod proxy;

use std::io::ErrorKind;
use std::net::SocketAddr;

use binary::{Gateway, Setup, http, run, stderr, stdout};
use etcd::Etcd;
use peers::{ask, ask_udp, connect, connect_from, echo, talk, until_answered, until_closed};
use proxy::Proxy;
use serde_json::{Value, json};

const R1: &str = "/apisix/stream_routes/r1";
const U1: &str = "/apisix/upstreams/u1";
const REJECTED: &str = "streamgate_rejected_objects{kind=\"stream_routes\"}";

/// An upstream of one node.
fn upstream(node: SocketAddr) -> String {
    json!({"nodes": {node.to_string(): 1}}).to_string()
}

/// A route of one listen to u1.
fn route(listen: SocketAddr) -> String {
    json!({"server_port": listen.port(), "upstream_id": "u1"}).to_string()
}

/// A gateway on `etcd` whose listen `tcp(0)` leads to `node` by r1 and u1.
async fn serving(etcd: &Etcd, node: SocketAddr) -> Gateway {
    let gateway = Setup::etcd(&etcd.endpoint()).start();
    etcd.put(U1, upstream(node)).await;
    etcd.put(R1, route(gateway.tcp(0))).await;
    until_answered(gateway.tcp(0), "A");
    gateway
}

/// What the status page says about a rejected object.
fn rejected(gateway: &Gateway, object: &str) -> Option<Value> {
    let status = gateway.status();
    status["rejected"].as_array()?.iter().find(|one| one["object"] == object).cloned()
}

#[tokio::test]
async fn put_update_and_delete_are_followed() {
    let (etcd, a, b) = (Etcd::start().await, echo("A"), echo("B"));
    let mut gateway = Setup::etcd(&etcd.endpoint()).start();
    let (tcp, udp) = (gateway.tcp(0), gateway.udp(0));
    assert!(ask(tcp).is_err(), "no route, no answer");

    etcd.put(U1, upstream(a)).await;
    etcd.put(R1, route(tcp)).await;
    etcd.put("/apisix/stream_routes/r2", route(udp)).await;
    until_answered(tcp, "A");
    gateway.eventually("a datagram's answer", |_| ask_udp(udp).as_deref() == Some("A"));

    let mut open = connect(tcp).unwrap();
    assert_eq!(talk(&mut open).unwrap(), "A");
    let revision = etcd.put(U1, upstream(b)).await;
    until_answered(tcp, "B");
    assert_eq!(gateway.status()["revision"], revision);
    assert_eq!(talk(&mut open).unwrap(), "A", "an open session keeps its node");
    let revision = Some(f64::from(i32::try_from(revision).unwrap()));
    assert_eq!(gateway.metric("streamgate_config_revision"), revision);
    for key in ["upstreams", "max_modify_index", "prev_index"] {
        assert_eq!(
            gateway.metric(&format!("apisix_etcd_modify_indexes{{key=\"{key}\"}}")),
            revision,
            "{key}"
        );
    }
    assert_eq!(gateway.metric("apisix_etcd_reachable"), Some(1.0));

    etcd.delete(R1).await;
    until_closed(tcp);
    let before = gateway.ended_so("", "no_route");
    let kind = ask(tcp).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{kind}");
    gateway.eventually("count", |gateway| gateway.ended_so("", "no_route") > before);
    let line = gateway.says_end("no_route");
    assert_eq!((&line["side"], &line["level"]), (&json!("gateway"), &json!("WARN")), "{line}");
    assert_eq!(line["server"], tcp.to_string());
    assert_eq!(talk(&mut open).unwrap(), "A", "an open session outlives its route");
}

#[tokio::test]
async fn an_invalid_version_leaves_the_last_good_one_serving() {
    let (etcd, a, b) = (Etcd::start().await, echo("A"), echo("B"));
    let mut gateway = serving(&etcd, a).await;
    let tcp = gateway.tcp(0);
    assert_eq!(gateway.metric(REJECTED), Some(0.0));

    for (value, reason) in [(r#"{"server_port":"x"}"#, "/server_port"), ("{no json", "JSON")] {
        let revision = etcd.put(R1, value).await;
        gateway.eventually("rejection", |gateway| {
            rejected(gateway, "stream_routes/r1").is_some_and(|one| one["revision"] == revision)
        });
        let one = rejected(&gateway, "stream_routes/r1").unwrap();
        assert!(one["reason"].as_str().unwrap().contains(reason), "{one}");
        assert_eq!(one["previous_serves"], true);
        assert!(one["age_seconds"].is_u64(), "{one}");
        assert_eq!(gateway.metric(REJECTED), Some(1.0));
        let line = gateway.says(&format!("rejected stream_routes/r1 revision {revision}: "));
        assert!(line["message"].as_str().unwrap().ends_with("the previous version keeps serving"), "{line}");
        assert_eq!(ask(tcp).unwrap(), "A");
    }
    // What it refers to is followed all the same, and a good version ends the matter.
    etcd.put(U1, upstream(b)).await;
    until_answered(tcp, "B");
    etcd.put(R1, route(tcp)).await;
    gateway.eventually("acceptance", |gateway| gateway.metric(REJECTED) == Some(0.0));
    assert_eq!(rejected(&gateway, "stream_routes/r1"), None);
    assert_eq!(ask(tcp).unwrap(), "B");
    // People delete so.
    etcd.put(R1, "").await;
    until_closed(tcp);
}

#[tokio::test]
async fn a_missing_upstream_is_named_and_a_service_lends_its_own() {
    let (etcd, a, b) = (Etcd::start().await, echo("A"), echo("B"));
    let mut gateway = Setup::etcd(&etcd.endpoint()).start();
    let tcp = gateway.tcp(0);
    etcd.put(R1, json!({"server_port": tcp.port(), "upstream_id": "nowhere"}).to_string()).await;
    gateway.eventually("the ending", |gateway| {
        ask(tcp).is_err() && gateway.ended_so("r1", "upstream_missing") >= 1.0
    });
    let line = gateway.says_end("upstream_missing");
    assert_eq!(line["route"], "r1");
    assert!(line["detail"].as_str().unwrap().contains("nowhere"), "{line}");
    etcd.put("/apisix/upstreams/nowhere", upstream(a)).await;
    until_answered(tcp, "A");

    etcd.put(R1, json!({"server_port": tcp.port(), "service_id": "s1"}).to_string()).await;
    gateway.eventually("the ending", |gateway| {
        ask(tcp).is_err() && gateway.ended_so("r1", "service_missing") >= 1.0
    });
    assert!(gateway.says_end("service_missing")["detail"].as_str().unwrap().contains("s1"));
    etcd.put("/apisix/services/s1", json!({"upstream": {"nodes": {b.to_string(): 1}}}).to_string()).await;
    until_answered(tcp, "B");
    // An upstream of the route itself goes first.
    let own = json!({"server_port": tcp.port(), "service_id": "s1", "upstream_id": "nowhere"});
    etcd.put(R1, own.to_string()).await;
    until_answered(tcp, "A");
}

#[tokio::test]
async fn without_etcd_it_starts_and_waits() {
    let mut etcd = Etcd::start().await;
    let a = echo("A");
    etcd.put(U1, upstream(a)).await;
    etcd.stop();
    let mut gateway = Setup::etcd(&etcd.endpoint()).launch();
    let tcp = gateway.tcp(0);
    gateway.eventually("the reason", |gateway| gateway.status()["source"]["problem"].is_object());
    let page = gateway.status();
    assert_eq!((&page["ready"], &page["source"]["reachable"]), (&json!(false), &json!(false)), "{page}");
    let problem = page["source"]["problem"]["text"].as_str().unwrap();
    assert!(problem.contains(&etcd.addr().to_string()), "{problem}");
    let (code, why) = http(gateway.status_pages(), "GET", "/status/ready").unwrap();
    assert!(code == 503 && why.contains("no configuration has been received from etcd yet"), "{code} {why}");
    assert_eq!(http(gateway.status_pages(), "GET", "/status").unwrap().0, 200);
    assert_eq!(gateway.metric("streamgate_ready"), Some(0.0));
    assert_eq!(gateway.metric("apisix_etcd_reachable"), Some(0.0));
    assert_eq!(connect(tcp).unwrap_err().kind(), ErrorKind::ConnectionRefused, "listens are closed");

    etcd.restart().await;
    gateway.wait_ready();
    let ready = (200, "{\"status\":\"ok\"}\n".to_owned());
    assert_eq!(http(gateway.status_pages(), "GET", "/status/ready").unwrap(), ready);
    assert_eq!(gateway.metric("streamgate_ready"), Some(1.0));
    assert_eq!(gateway.metric("apisix_etcd_reachable"), Some(1.0));
    etcd.put(R1, route(tcp)).await;
    until_answered(tcp, "A");
}

#[tokio::test]
async fn an_etcd_lost_later_changes_nothing_until_it_is_back() {
    let (mut etcd, a, b) = (Etcd::start().await, echo("A"), echo("B"));
    let mut gateway = serving(&etcd, a).await;
    let tcp = gateway.tcp(0);
    let mut open = connect(tcp).unwrap();
    assert_eq!(talk(&mut open).unwrap(), "A");

    etcd.stop();
    gateway.eventually("the loss", |gateway| gateway.metric("apisix_etcd_reachable") == Some(0.0));
    let page = gateway.status();
    assert_eq!((&page["ready"], &page["source"]["reachable"]), (&json!(true), &json!(false)), "{page}");
    assert_eq!(talk(&mut open).unwrap(), "A");
    assert_eq!(ask(tcp).unwrap(), "A");

    etcd.restart().await;
    etcd.put(U1, upstream(b)).await;
    until_answered(tcp, "B");
    assert_eq!(talk(&mut open).unwrap(), "A");
    gateway.eventually("the return", |gateway| gateway.metric("apisix_etcd_reachable") == Some(1.0));
    assert!(gateway.metric("streamgate_etcd_reconnects_total").unwrap() >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_during_a_disconnect_loses_nothing() {
    let (etcd, a, b) = (Etcd::start().await, echo("A"), echo("B"));
    let proxy = Proxy::start(etcd.addr()).await;
    let mut gateway = Setup::etcd(&proxy.endpoint()).start();
    let tcp = gateway.tcp(0);
    etcd.put(U1, upstream(a)).await;
    etcd.put(R1, route(tcp)).await;
    etcd.put("/apisix/stream_routes/old", route(gateway.udp(0))).await;
    until_answered(tcp, "A");
    gateway.eventually("two routes", |gateway| gateway.status()["routes"] == 2);

    proxy.block();
    etcd.put(U1, upstream(b)).await;
    etcd.delete("/apisix/stream_routes/old").await;
    let last = etcd.put("/apisix/stream_routes/new", r#"{"server_port":1,"upstream_id":"u1"}"#).await;
    etcd.compact(last).await;
    assert_eq!(ask(tcp).unwrap(), "A", "nothing is known of it yet");
    proxy.unblock();
    until_answered(tcp, "B");
    gateway.eventually("the new set", |gateway| gateway.status()["revision"] == last);
    let page = gateway.metrics();
    let has = |id: &str| page.contains(&format!("route=\"{id}\""));
    assert_eq!((has("new"), has("old"), has("r1")), (true, false, true), "{page}");
}

#[tokio::test]
async fn a_user_who_may_only_read_is_enough() {
    let (etcd, a) = (Etcd::start().await, echo("A"));
    etcd.put(U1, upstream(a)).await;
    etcd.enable_auth("gate", "secret", "/apisix");
    let mut refused = Setup::etcd_as(&etcd.endpoint(), "user: gate, password: wrong").launch();
    refused.eventually("the reason", |gateway| {
        let status = gateway.status();
        status["source"]["problem"]["text"].as_str().is_some_and(|text| text.contains("refuses user gate"))
    });
    assert_eq!(refused.status()["ready"], false);
    assert!(!refused.log_text().contains("wrong"), "the password is in the log");

    let gateway = Setup::etcd_as(&etcd.endpoint(), "user: gate, password: secret").start();
    let tcp = gateway.tcp(0);
    etcd.ctl(&["--user=root:root", "put", R1, &route(tcp)]);
    until_answered(tcp, "A");
}

/// The client address that route `number` is for.
fn client(number: usize) -> String {
    format!("127.1.{}.{}", number / 250, number % 250 + 1)
}

#[tokio::test]
async fn three_thousand_objects_in_a_burst_are_all_served() {
    const ROUTES: usize = 3_000;
    let (etcd, a, b) = (Etcd::start().await, echo("A"), echo("B"));
    let mut gateway = Setup::etcd(&etcd.endpoint()).start();
    let tcp = gateway.tcp(0);
    let objects: Vec<(String, String)> = (0..ROUTES)
        .map(|number| {
            let node = if number % 2 == 0 { a } else { b };
            let value = json!({
                "server_port": tcp.port(),
                "remote_addr": client(number),
                "upstream": {"nodes": {node.to_string(): 1}},
            });
            (format!("/apisix/stream_routes/{number}"), value.to_string())
        })
        .collect();
    for some in objects.chunks(100) {
        let changes: Vec<_> = some.iter().map(|(key, value)| (key.as_str(), Some(value.as_str()))).collect();
        etcd.txn(&changes).await;
    }
    let loaded = "streamgate_loaded_objects{kind=\"stream_routes\"}";
    gateway.eventually("3,000 routes", |gateway| gateway.metric(loaded) == Some(3_000.0));
    assert_eq!(gateway.metric(REJECTED), Some(0.0));
    for number in (0..ROUTES).step_by(101).chain([ROUTES - 1]) {
        let from = format!("{}:0", client(number)).parse().unwrap();
        let name = talk(&mut connect_from(from, tcp).unwrap()).unwrap();
        assert_eq!(name, if number % 2 == 0 { "A" } else { "B" }, "route {number}");
    }
    assert!(ask(tcp).is_err(), "127.0.0.1 has no route");

    // A node that joins later reads them as one list, and routes alike.
    let mut second = Setup::etcd(&etcd.endpoint()).start();
    assert_eq!(second.metric(loaded), Some(3_000.0));
    assert_eq!(second.status()["revision"], gateway.status()["revision"]);
    // Deletes that are watched always count, however many at once.
    etcd.ctl(&["del", "--prefix", "/apisix/stream_routes/"]);
    for gateway in [&mut gateway, &mut second] {
        gateway.eventually("an empty table", |gateway| gateway.metric(loaded) == Some(0.0));
        assert_eq!(gateway.status()["held_full_read"], Value::Null);
    }
}

#[tokio::test]
async fn an_etcd_that_lost_its_data_takes_no_route_away() {
    let (mut etcd, a) = (Etcd::start().await, echo("A"));
    let mut gateway = serving(&etcd, a).await;
    let tcp = gateway.tcp(0);
    for number in 0..11 {
        let key = format!("/apisix/stream_routes/x{number}");
        etcd.put(&key, r#"{"server_port":1,"upstream_id":"u1"}"#).await;
    }
    gateway.eventually("12 routes", |gateway| gateway.status()["routes"] == 12);
    let config = gateway.config_file().display().to_string();
    let none = run(&["accept-state", "-c", &config], b"");
    assert_eq!(none.status.code(), Some(1));
    assert!(stderr(&none).contains("no full read is held back"), "{}", stderr(&none));

    etcd.wipe(None);
    etcd.restart().await;
    gateway.eventually("the held read", |gateway| gateway.metric("streamgate_full_read_held") == Some(1.0));
    let page = gateway.status();
    let held = &page["held_full_read"];
    assert_eq!((&held["routes"], &held["removed"]), (&json!(12), &json!(12)), "{page}");
    assert_eq!(page["routes"], 12);
    gateway.says("`streamgate accept-state`");
    assert_eq!(ask(tcp).unwrap(), "A");

    let accepted = run(&["accept-state", "-c", &config], b"");
    assert!(accepted.status.success(), "{}", stderr(&accepted));
    assert!(stdout(&accepted).starts_with("accepted: "), "{}", stdout(&accepted));
    until_closed(tcp);
    gateway.eventually("the end of it", |gateway| {
        gateway.metric("streamgate_full_read_held") == Some(0.0) && gateway.status()["routes"] == 0
    });
    assert_eq!(gateway.status()["held_full_read"], Value::Null);
    gateway.says("accepted by an operator");
}
