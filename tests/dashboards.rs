//! deploy/: every query of the board and of docs/metrics.md, and every alert, in a real Prometheus that
//! scrapes gateways under a load in which everything goes wrong that may.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/etcd.rs"]
mod etcd;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/prometheus.rs"]
mod prometheus;
#[path = "support/tls.rs"]
mod tls;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use binary::{Gateway, PATIENCE, Setup, pause};
use etcd::Etcd;
use peers::{ask, ask_udp, connect, echo, refused, until_answered};
use prometheus::{Prometheus, promtool};
use serde_json::{Value, json};
use tokio::time::Instant;

const BOARD: &str = "deploy/grafana-board.json";
const RULES: &str = "deploy/prometheus-rules.yml";
const CASES: &str = "deploy/prometheus-rules-test.yml";

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap()
}

/// What the board asks: the title of the panel or variable, and an expression.
fn asked_by_board() -> Vec<(String, String)> {
    let board: Value = serde_json::from_str(&read(BOARD)).unwrap();
    let panels = board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let mut asked = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            asked.push((text(&panel["title"]), filled(target["expr"].as_str().unwrap())));
        }
    }
    for variable in board["templating"]["list"].as_array().unwrap() {
        if let Some((series, _)) = variable["query"].as_str().unwrap().rsplit_once(", ")
            && let Some(series) = series.strip_prefix("label_values(")
        {
            asked.push((text(&variable["name"]), filled(series)));
        }
    }
    assert!(asked.len() > 30, "{asked:?}");
    asked
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// As Grafana fills it where all instances and routes are chosen.
fn filled(expression: &str) -> String {
    let filled = expression.replace("$__rate_interval", "10s");
    let filled = filled.replace("$instance", ".*").replace("$route", ".*");
    assert!(!filled.contains('$'), "{expression} has a variable that this test does not know");
    filled
}

/// The queries of docs/metrics.md: one a line, or with more lines that are indented.
fn asked_by_documents() -> Vec<String> {
    let document = read("docs/metrics.md");
    let mut asked: Vec<String> = Vec::new();
    for block in document.split("```promql\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        for line in block.lines().filter(|line| !line.trim().is_empty()) {
            match asked.last_mut() {
                Some(last) if line.starts_with(' ') => last.push_str(line),
                _ => asked.push(line.to_owned()),
            }
        }
    }
    assert!(asked.len() > 10, "{asked:?}");
    asked
}

/// The names of metrics in a text, as families.
fn names(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for prefix in ["streamgate_", "apisix_stream_", "apisix_upstream_", "apisix_etcd_", "process_"] {
        for (place, _) in text.match_indices(prefix) {
            let before = text[..place].chars().next_back();
            let rest = &text[place..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let name = &rest[..end];
            // A part of a longer word, `streamgate_tls_*`, and the crates of that name.
            let whole = !before.is_some_and(|c| c.is_ascii_alphanumeric() || "_.".contains(c));
            if whole && !name.ends_with('_') && !rest[end..].starts_with("::") {
                let family = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
                found.insert(family.unwrap_or(name).to_owned());
            }
        }
    }
    found
}

fn alerts() -> Vec<String> {
    let rules = read(RULES);
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    alerts.map(str::to_owned).collect()
}

#[test]
fn every_alert_fires_when_it_shall_and_not_otherwise() {
    promtool(&["check", "rules", "prometheus-rules.yml"]);
    promtool(&["test", "rules", "prometheus-rules-test.yml"]);
    let cases = read(CASES);
    for alert in alerts() {
        for verdict in ["fires", "is silent"] {
            assert!(cases.contains(&format!("- name: '{alert} {verdict}: ")), "no case: {alert} {verdict}");
        }
    }
}

#[test]
fn every_alert_says_what_to_do() {
    let rules = read(RULES);
    for alert in rules.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        let description = alert.lines().find_map(|line| line.trim().strip_prefix("description: "));
        assert!(description.is_some_and(|text| text.len() > 60), "{name} does not say what to do");
        assert!(
            ["{severity: critical}", "{severity: warning}"].iter().any(|one| alert.contains(one)),
            "{name}"
        );
    }
}

#[test]
fn the_configuration_of_prometheus_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prometheus.yml");
    fs::write(&file, prometheus::config(&["127.0.0.1:9091".parse().unwrap()])).unwrap();
    promtool(&["check", "config", file.to_str().unwrap()]);
}

/// Sessions of all kinds, again and again until dropped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn new() -> Self {
        Self { stop: Arc::default(), threads: vec![] }
    }

    fn and(mut self, session: impl Fn() + Send + 'static) -> Self {
        let stop = self.stop.clone();
        self.threads.push(thread::spawn(move || {
            while !stop.load(Relaxed) {
                session();
                thread::sleep(Duration::from_millis(50));
            }
        }));
        self
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // What a thread panicked with is told already.
            let _ = thread.join();
        }
    }
}

/// Whatever comes of it.
fn plain_to_tls(address: SocketAddr) {
    let Ok(mut stream) = connect(address) else { return };
    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    let _ = stream.read(&mut [0; 16]);
}

/// Objects of which some work, and each of the others fails in a way of its own.
async fn write_objects(etcd: &Etcd, gateway: &Gateway, (a, dead): (SocketAddr, [SocketAddr; 2])) {
    let port = |listen: usize| gateway.tcp(listen).port();
    let checks = json!({"active": {"type": "tcp", "unhealthy": {"interval": 1, "tcp_failures": 1}}});
    let upstream = |nodes: &[SocketAddr]| {
        let nodes = nodes.iter().map(|node| json!({"host": node.ip(), "port": node.port(), "weight": 1}));
        json!({"nodes": nodes.collect::<Vec<_>>()})
    };
    let checked = |nodes: &[SocketAddr]| {
        let mut upstream = upstream(nodes);
        upstream["checks"] = checks.clone();
        upstream
    };
    let told = json!({"prometheus": {}});
    let closed = json!({"prometheus": {}, "ip-restriction": {"blacklist": ["127.0.0.0/8"]}});
    let authority = tls::Authority::new("test");
    for (key, value) in [
        ("upstreams/good", upstream(&[a])),
        ("upstreams/mixed", checked(&[a, dead[0]])),
        // Of a node that is alone nobody asks whether it is down.
        ("upstreams/down", checked(&dead)),
        ("ssls/cert", tls::ssl("cert", &["a.test"], &authority.issue(&["a.test"]))),
        ("stream_routes/good", json!({"server_port": port(0), "upstream_id": "good", "plugins": told})),
        ("stream_routes/datagrams", json!({"server_port": gateway.udp(0).port(), "upstream_id": "good"})),
        (
            "stream_routes/dead",
            json!({"server_port": port(1), "upstream": upstream(&dead[..1]), "plugins": told}),
        ),
        ("stream_routes/mixed", json!({"server_port": port(2), "upstream_id": "mixed"})),
        ("stream_routes/down", json!({"server_port": port(3), "upstream_id": "down"})),
        ("stream_routes/closed", json!({"server_port": port(4), "upstream_id": "good", "plugins": closed})),
        ("stream_routes/lost", json!({"server_port": port(5), "upstream_id": "none"})),
        ("stream_routes/bad", json!({"server_port": "x", "upstream_id": "good"})),
    ] {
        etcd.put(&format!("/apisix/{key}"), value.to_string()).await;
    }
}

fn load(gateway: &Gateway) -> Load {
    let mut load = Load::new();
    for listen in 0..=6 {
        let address = gateway.tcp(listen);
        load = load.and(move || drop(ask(address)));
    }
    let (tls, udp) = (gateway.tcp(7), gateway.udp(0));
    load.and(move || plain_to_tls(tls)).and(move || drop(ask_udp(udp)))
}

/// What is said of alerts after each has been looked at.
fn states(prometheus: &Prometheus) -> Vec<(String, String)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = prometheus.api("/api/v1/rules");
        let groups = answer["data"]["groups"].as_array().unwrap();
        let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect();
        for rule in &rules {
            assert_ne!(rule["health"], "err", "{}: {}", rule["name"], rule["lastError"]);
        }
        if !rules.is_empty() && rules.iter().all(|rule| rule["health"] == "ok") {
            return rules.iter().map(|rule| (text(&rule["name"]), text(&rule["state"]))).collect();
        }
        assert!(Instant::now() < deadline, "not every rule is looked at: {answer}");
        pause();
    }
}

/// Waits until the alerts that are not silent are these.
#[track_caller]
fn check_alerts(prometheus: &Prometheus, loud: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let states = states(prometheus);
        assert_eq!(states.len(), alerts().len());
        let mut seen: Vec<&str> =
            states.iter().filter(|(_, state)| state != "inactive").map(|(name, _)| &**name).collect();
        seen.sort_unstable();
        if seen == loud {
            return;
        }
        assert!(Instant::now() < deadline, "pending or firing: {seen:?}, not {loud:?}");
        pause();
    }
}

#[tokio::test]
async fn queries_have_answers_under_load() {
    let (etcd, a) = (Etcd::start().await, echo("A"));
    let ((_kept, dead), (_too, other_dead)) = (refused(), refused());
    let mut setup = Setup::etcd(&etcd.endpoint());
    (setup.tcp, setup.listens) = (8, vec!["", "", "", "", "", "", "", "tls: true"]);
    let (gateway, other) = (setup.start(), Setup::etcd(&etcd.endpoint()).start());
    write_objects(&etcd, &gateway, (a, [dead, other_dead])).await;
    until_answered(gateway.tcp(0), "A");
    let _load = load(&gateway);
    let prometheus = Prometheus::start(&[gateway.pages(), other.pages()]);

    let mut unanswered = asked_by_board();
    let deadline = Instant::now() + PATIENCE;
    loop {
        unanswered.retain(|(_, expression)| prometheus.query(expression).is_empty());
        if unanswered.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "panels without data: {unanswered:#?}\n{}", gateway.metrics());
        pause();
    }
    for expression in asked_by_documents() {
        prometheus.query(&expression);
    }
    check_alerts(
        &prometheus,
        &[
            "StreamgateConnectFailures",
            "StreamgateNodesDown",
            "StreamgateRejectedObjects",
            "StreamgateRouteBroken",
            "StreamgateRouteRefusesAll",
            "StreamgateUpstreamDown",
        ],
    );

    check_names(&gateway.metrics());
}

/// Whatever is named has its family in a scrape.
#[track_caller]
fn check_names(page: &str) {
    let there: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for file in [BOARD, RULES, CASES, "docs/metrics.md", "docs/operations.md"] {
        let named = names(&read(file));
        let missing: Vec<_> = named.iter().filter(|name| !there.contains(&***name)).collect();
        assert!(missing.is_empty(), "{file} names {missing:?}, which no scrape has");
    }
}
