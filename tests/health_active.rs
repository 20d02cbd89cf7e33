//! Active checks through the binary: what config.yaml has to say, and what the log tells.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/patient.rs"]
mod patient;
#[path = "support/peers.rs"]
mod peers;
#[path = "support/tls.rs"]
mod tls;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use binary::{Gateway, Setup};
use patient::{Manner, Patient};
use peers::{ask, connect, echo, talk};
use serde_json::{Value, json};
use tls::{Authority, Client, Pair};

fn node(addr: SocketAddr) -> Value {
    json!({"host": addr.ip(), "port": addr.port(), "weight": 1})
}

fn checks(kind: &str, more: &Value) -> Value {
    let mut active = json!({
        "type": kind,
        "healthy": {"interval": 1, "successes": 1},
        "unhealthy": {"interval": 1, "tcp_failures": 2, "http_failures": 1},
    });
    for (name, value) in more.as_object().unwrap() {
        active[name] = value.clone();
    }
    json!({"active": active})
}

/// One route of every listen to this upstream.
fn to(upstream: &Value) -> Value {
    let mut upstream = upstream.clone();
    upstream["id"] = json!("u1");
    json!({"stream_routes": [{"id": "r1", "upstream_id": "u1"}], "upstreams": [upstream]})
}

/// Messages of the log that contain these words, from the first to the last.
fn told(gateway: &Gateway, words: &str) -> Vec<String> {
    let lines = gateway.log().into_iter();
    let messages = lines.filter_map(|line| Some(line["message"].as_str()?.to_owned()));
    messages.filter(|message| message.contains(words)).collect()
}

/// `observed/13_healthcheck.txt`, and on to the node's return.
#[test]
fn a_dead_node_goes_with_the_lines_that_operators_look_for_and_comes_back() {
    let (well, mut dead) = (echo("A"), Patient::refusing());
    let upstream =
        json!({"nodes": [node(well), node(dead.addr)], "retries": 0, "checks": checks("tcp", &json!({}))});
    let mut gateway = Setup::objects(&to(&upstream)).start();
    let increment = format!("increment (2/2) for '127.0.0.1({})'", dead.addr);
    let mut answers = Vec::new();
    gateway.eventually("the second failure", |gateway| {
        answers.push(ask(gateway.tcp(0)).is_ok());
        !told(gateway, &increment).is_empty()
    });
    assert!(answers.contains(&true) && answers.contains(&false), "half of them before: {answers:?}");
    for _ in 0..20 {
        assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    }
    let lines = told(&gateway, "increment");
    let expected = |number| format!("unhealthy TCP increment ({number}/2) for '127.0.0.1({})'", dead.addr);
    assert!(
        lines.len() == 2 && lines[0].contains(&expected(1)) && lines[1].contains(&expected(2)),
        "{lines:?}"
    );
    assert!(lines[0].contains("refused"), "what was found is said: {lines:?}");
    let line = gateway.says("is down");
    assert_eq!((&line["level"], &line["upstream"]), (&json!("WARN"), &json!("u1")), "{line}");
    assert!(line["message"].as_str().unwrap().contains("1 of 2 are down"), "{line}");

    dead.listen();
    gateway.says(&format!("healthy SUCCESS increment (1/1) for '127.0.0.1({})'", dead.addr));
    gateway.says("is used again");
    let before = dead.count();
    dead.behave(Manner::Says(b"B".to_vec()));
    gateway.eventually("sessions at the node", |gateway| {
        drop(connect(gateway.tcp(0)));
        dead.visits()[before..].iter().any(|visit| !visit.heard.is_empty()) || dead.count() > before + 2
    });
}

/// Three upstreams that are probed by HTTPS, one node each, whose answer is well.
#[test]
fn https_is_verified_by_the_bundle_unless_told_otherwise() {
    let (authority, other) = (Authority::new("probes"), Authority::new("others"));
    let names = ["probed.example"];
    let (good, strange) = (authority.issue(&names), other.issue(&names));
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle.pem");
    fs::write(&bundle, &authority.pem).unwrap();
    // Each counts its one result as a success or as a failed connection.
    let cases = [
        ("fine", &good, json!({"host": "probed.example"}), "healthy SUCCESS"),
        ("host-header", &good, json!({"host": "other.example"}), "healthy SUCCESS"),
        ("other-name", &good, json!({"host": "other.example"}), "unhealthy TCP"),
        ("other-authority", &strange, json!({"host": "probed.example"}), "unhealthy TCP"),
        (
            "any",
            &strange,
            json!({"host": "other.example", "https_verify_certificate": false}),
            "healthy SUCCESS",
        ),
    ];
    let (mut upstreams, mut routes, mut seen) = (Vec::new(), Vec::new(), Vec::new());
    for (port, (id, pair, more, expected)) in (1..).zip(&cases) {
        // Where a success is expected, its first answer is not well: it takes the node out.
        let (addr, heard) = https(pair, expected.starts_with("healthy"));
        let mut upstream = json!({"id": id, "nodes": [node(addr)], "checks": checks("https", more)});
        if *id == "host-header" {
            upstream["pass_host"] = json!("rewrite");
            upstream["upstream_host"] = json!("probed.example");
        }
        upstreams.push(upstream);
        routes.push(json!({"id": id, "server_port": port, "upstream_id": id}));
        seen.push((addr, heard));
    }
    let objects = json!({"stream_routes": routes, "upstreams": upstreams});
    let apisix = format!("  ssl: {{ssl_trusted_certificate: \"{}\"}}\n", bundle.display());
    let mut gateway = Setup { apisix, ..Setup::objects(&objects) }.start();
    for ((id, _, more, expected), (addr, heard)) in cases.iter().zip(&seen) {
        let line = gateway.says(&format!("upstream {id}: {expected} increment"));
        assert!(line["message"].as_str().unwrap().contains(&addr.to_string()), "{line}");
        let heard = heard.lock().unwrap();
        if expected.starts_with("healthy") {
            let name = if *id == "host-header" { "probed.example" } else { more["host"].as_str().unwrap() };
            let (sni, request) = &heard[0];
            assert_eq!(sni.as_deref(), Some(name), "{id}");
            assert!(request.to_lowercase().contains(&format!("\r\nhost: {name}\r\n")), "{id}: {request}");
        } else {
            assert!(heard.is_empty(), "{id} was asked though it is not trusted");
        }
    }
}

/// Server names and requests, in the order they came.
type Heard = Arc<Mutex<Vec<(Option<String>, String)>>>;

/// A server of HTTPS that answers 200, to the first question 500 where `sick_first`.
fn https(pair: &Pair, sick_first: bool) -> (SocketAddr, Heard) {
    let (listener, config) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(tls::server_config(pair, None)));
    let (addr, heard) = (listener.local_addr().unwrap(), Heard::default());
    let notes = heard.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(mut session) = tls::accept_hands(stream, config.clone()) else { continue };
            let mut request = Vec::new();
            let mut buffer = [0; 4096];
            while !request.ends_with(b"\r\n\r\n") {
                match session.read(&mut buffer) {
                    Ok(count) if count > 0 => request.extend_from_slice(&buffer[..count]),
                    _ => break,
                }
            }
            let request = String::from_utf8(request).unwrap();
            if request.is_empty() {
                continue;
            }
            let first = {
                let mut notes = notes.lock().unwrap();
                notes.push((session.conn.server_name().map(str::to_owned), request));
                notes.len() == 1
            };
            let status = if first && sick_first { 500 } else { 200 };
            // Whoever asked may be gone.
            let _ = session.write_all(format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n").as_bytes());
            let _ = session.flush();
        }
    });
    (addr, heard)
}

#[test]
fn config_yaml_may_switch_checks_off() {
    let (well, patient) = (echo("A"), Patient::new(Manner::Silent));
    let checks = checks("tcp", &json!({"port": patient.addr.port()}));
    let objects = to(&json!({"nodes": [node(well)], "checks": checks}));
    let apisix = "  disable_upstream_healthcheck: true\n".to_owned();
    let off = Setup { apisix, ..Setup::objects(&objects) }.start();
    let probed = Patient::new(Manner::Silent);
    let checks = self::checks("tcp", &json!({"port": probed.addr.port()}));
    let mut on = Setup::objects(&to(&json!({"nodes": [node(well)], "checks": checks}))).start();
    on.eventually("probes of another gateway", |_| probed.count() >= 2);
    assert_eq!(patient.count(), 0);
    assert_eq!(ask(off.tcp(0)).unwrap(), "A");
}

/// A node that leaves loses its sessions where config.yaml says so, whatever the label says; they
/// are told of as `node_down`.
#[test]
fn config_yaml_may_close_sessions_of_nodes_that_leave() {
    let (first, second) = (echo("A"), echo("B"));
    let upstream = || {
        let mut upstream =
            json!({"nodes": [node(first), node(second)], "labels": {"streamgate/close-on-down": "false"}});
        upstream["nodes"][1]["priority"] = json!(-1);
        upstream["checks"] = checks("tcp", &json!({}));
        upstream
    };
    let ours = "  upstreams: {u1: {close_on_down: 50}}\n".to_owned();
    let pair = Authority::new("clients").issue(&["a.test"]);
    let mut objects = to(&upstream());
    objects["ssls"] = json!([tls::ssl("1", &["a.test"], &pair)]);
    let setup = Setup { ours, tcp: 2, listens: vec!["", "tls: true"], ..Setup::objects(&objects) };
    let mut gateway = setup.start();
    let mut session = connect(gateway.tcp(0)).unwrap();
    assert_eq!(talk(&mut session).unwrap(), "A");
    let config = Client::default().config();
    let mut secure = tls::shake_hands(gateway.tcp(1), Some("a.test"), &config).unwrap();
    assert_eq!(talk(&mut secure).unwrap(), "A");
    // The node leaves.
    let mut without = upstream();
    without["nodes"].as_array_mut().unwrap().remove(0);
    objects["upstreams"] = to(&without)["upstreams"].clone();
    gateway.write_objects(&objects);
    assert_eq!(session.read(&mut [0]).unwrap(), 0);
    assert_eq!(secure.read(&mut [0]).unwrap(), 0, "an end that TLS tells of");
    let line = gateway.says_end("node_down");
    assert_eq!((&line["node"], &line["side"]), (&json!(first.to_string()), &json!("upstream")), "{line}");
    let series = format!(
        "streamgate_node_connections_total{{upstream=\"u1\",node=\"{second}\",end=\"node_down\",side=\"upstream\"}}"
    );
    assert!(gateway.metric(&series).unwrap_or_default() < 1.0);
}

/// `streamgate_connect_failures_total` tells the kinds of failed attempts apart.
#[test]
fn failed_attempts_are_counted_by_their_reason() {
    let (well, lost) = (echo("A"), Patient::refusing());
    let mut upstream = json!({"nodes": [node(lost.addr), node(well)]});
    upstream["nodes"][1]["priority"] = json!(-1);
    let mut gateway = Setup::objects(&to(&upstream)).start();
    for _ in 0..3 {
        assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    }
    let series = |node: SocketAddr, reason: &str| {
        format!("streamgate_connect_failures_total{{upstream=\"u1\",node=\"{node}\",reason=\"{reason}\"}}")
    };
    gateway.eventually("counts", |gateway| gateway.metric(&series(lost.addr, "refused")) == Some(3.0));
    assert!(gateway.metric(&series(well, "refused")).unwrap_or_default() < 1.0);
    // The other node speaks no TLS, and says so: it is another reason.
    let deaf = Patient::new(Manner::Says(b"what?\r\n".to_vec()));
    let upstream =
        json!({"nodes": [node(deaf.addr)], "scheme": "tls", "timeout": {"connect": 5, "send": 5, "read": 5}});
    gateway.write_objects(&to(&upstream));
    gateway.eventually("a failed handshake", |gateway| {
        let _ = ask(gateway.tcp(0));
        gateway.metric(&series(deaf.addr, "tls")).is_some_and(|count| count >= 1.0)
    });
}
