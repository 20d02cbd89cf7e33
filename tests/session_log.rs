//! The session log of the real binary: what its lines say, and which sessions have one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peers.rs"]
mod peers;

use std::fs;
use std::io::Read;

use binary::{Gateway, Setup, Signal};
use peers::{ask, ask_udp, connect, echo, refused, talk};
use serde_json::{Value, json};

/// `r1` of `@tcp0` and of `@udp0` leads to an echo by the service `s1`, `dead` of `@tcp1` to a node that
/// refuses.
fn setup(session_log: &str) -> Setup {
    let node = echo("A").to_string();
    let (closed, dead) = refused();
    std::mem::forget(closed);
    let objects = json!({
        "upstreams": [{"id": "u1", "nodes": {node: 1}}],
        "services": [{"id": "s1", "name": "database", "upstream_id": "u1"}],
        "stream_routes": [
            {"id": "r1", "name": "first", "server_port": "@tcp0", "service_id": "s1"},
            {"id": "r2", "server_port": "@udp0", "service_id": "s1"},
            {"id": "dead", "server_port": "@tcp1", "upstream": {"nodes": {dead.to_string(): 1}}},
        ],
    });
    let ours = format!("  session_log: {session_log}\n");
    Setup { tcp: 2, ours, ..Setup::objects(&objects) }
}

fn lines(gateway: &Gateway) -> Vec<Value> {
    let text = fs::read_to_string(gateway.folder().join("sessions")).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[track_caller]
fn wait(gateway: &mut Gateway, count: usize) -> Vec<Value> {
    gateway.eventually("lines of the session log", |gateway| lines(gateway).len() >= count);
    lines(gateway)
}

#[test]
fn a_line_of_a_file_says_everything() {
    let mut gateway = setup("{sessions: all, path: sessions}").start();
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    let line = wait(&mut gateway, 1).remove(0);
    for (field, expected) in [
        ("event", json!("end")),
        ("end", json!("client_closed")),
        ("side", json!("client")),
        ("message", json!("the client closed the session")),
        ("route", json!("r1")),
        ("route_name", json!("first")),
        ("service", json!("s1")),
        ("service_name", json!("database")),
        ("upstream", json!("u1")),
        ("server", json!(gateway.tcp(0).to_string())),
        ("transport", json!("tcp")),
        ("bytes_received", json!(1)),
        ("bytes_sent", json!(2)),
        ("attempts", json!(1)),
        ("client_retransmits", json!(0)),
        ("upstream_retransmits", json!(0)),
    ] {
        assert_eq!(line[field], expected, "{field} of {line}");
    }
    for time in ["connect_ms", "first_byte_ms", "duration_ms", "client_rtt_ms", "upstream_rtt_ms"] {
        assert!(line[time].as_f64().is_some_and(|time| time > 0.0), "{time} of {line}");
    }
    assert!(line["first_byte_ms"].as_f64() <= line["duration_ms"].as_f64(), "{line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z') && line.get("sni").is_none(), "{line}");

    assert_eq!(connect(gateway.tcp(1)).unwrap().read(&mut [0]).unwrap(), 0);
    let line = wait(&mut gateway, 2).remove(1);
    assert_eq!((&line["end"], &line["side"]), (&json!("connect_failed"), &json!("upstream")), "{line}");
    let failed = line["failed"].as_str().unwrap();
    assert!(failed.contains(" refused ") && failed.ends_with(" ms"), "{line}");
    assert!(line.get("upstream_rtt_ms").is_none() && line.get("connect_ms").is_none(), "{line}");
    assert!(line["client_rtt_ms"].is_number(), "{line}");
    // Nothing of it is in the log of the process.
    assert!(!gateway.log_text().contains("no node could be reached"), "{}", gateway.log_text());
}

#[test]
fn the_log_of_the_process_is_the_default_and_tells_of_what_is_abnormal() {
    let mut gateway = Setup { ours: String::new(), ..setup("{}") }.start();
    assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    assert_eq!(connect(gateway.tcp(1)).unwrap().read(&mut [0]).unwrap(), 0);
    let line = gateway.says_end("connect_failed");
    assert_eq!(line["route"], "dead", "{line}");
    assert!(
        line["failed"].as_str().unwrap().contains("refused") && line["client_rtt_ms"].is_number(),
        "{line}"
    );
    assert!(!gateway.log_text().contains("client_closed"));
}

#[test]
fn hup_changes_which_sessions_are_told_of() {
    let mut gateway = setup("{sessions: none, path: sessions}").start();
    assert_eq!(connect(gateway.tcp(1)).unwrap().read(&mut [0]).unwrap(), 0);
    gateway.eventually("the end", |gateway| gateway.ended_so("dead", "connect_failed") >= 1.0);
    gateway.setup.ours = "  session_log: {sessions: all, sample: 0.5}\n".into();
    gateway.rewrite();
    gateway.signal(Signal::HUP);
    gateway.says("HUP: config.yaml was read again");
    for _ in 0..20 {
        assert_eq!(ask(gateway.tcp(0)).unwrap(), "A");
    }
    assert_eq!(connect(gateway.tcp(1)).unwrap().read(&mut [0]).unwrap(), 0);
    gateway.says_end("connect_failed");
    let told = gateway.log().into_iter().filter(|line| line["end"] == "client_closed").count();
    // Each of two workers may have a half left over.
    assert!((9..=10).contains(&told), "{told} of 20\n{}", gateway.log_text());
    assert_eq!(lines(&gateway).len(), 0);
}

#[test]
fn sessions_that_last_are_told_of_while_they_live() {
    let mut gateway = setup("{long_sessions: 100ms, path: sessions}").start();
    let mut stream = connect(gateway.tcp(0)).unwrap();
    assert_eq!(talk(&mut stream).unwrap(), "A");
    assert_eq!(ask_udp(gateway.udp(0)).unwrap(), "A");
    let told = |gateway: &Gateway, transport: &str, bytes: u64| {
        lines(gateway)
            .into_iter()
            .find(|line| line["transport"] == transport && line["bytes_received"] == bytes)
    };
    gateway.eventually("a line of the association", |gateway| told(gateway, "udp", 1).is_some());
    gateway.eventually("a line of the connection", |gateway| told(gateway, "tcp", 1).is_some());
    assert_eq!(talk(&mut stream).unwrap(), "A");
    gateway.eventually("its bytes so far", |gateway| told(gateway, "tcp", 2).is_some());
    let line = told(&gateway, "tcp", 2).unwrap();
    for (field, expected) in [
        ("event", json!("open")),
        ("message", json!("the session lives on")),
        ("route", json!("r1")),
        ("upstream", json!("u1")),
        ("bytes_sent", json!(4)),
    ] {
        assert_eq!(line[field], expected, "{field} of {line}");
    }
    assert!(line.get("end").is_none() && line.get("side").is_none(), "{line}");
    assert!(line["duration_ms"].as_f64().is_some_and(|time| time >= 100.0), "{line}");
    drop(stream);
    gateway.eventually("the end", |gateway| gateway.ended_so("r1", "client_closed") >= 1.0);
    let count = |gateway: &Gateway, transport: &str| {
        lines(gateway).iter().filter(|line| line["transport"] == transport).count()
    };
    let (tcp, udp) = (count(&gateway, "tcp"), count(&gateway, "udp"));
    gateway.eventually("two more lines of what lives", |gateway| count(gateway, "udp") >= udp + 2);
    // One may have been on its way.
    assert!(count(&gateway, "tcp") <= tcp + 1, "a session that is over is told of no more");
}
