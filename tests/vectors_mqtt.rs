//! What a real APISIX makes of an MQTT client's first bytes (`conformance/vectors/plugins.jsonl`).
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};
use streamgate::live::Live;
use streamgate::plugin::mqtt_proxy::MqttProxy;
use streamgate::plugin::{Decision, Ground, Kept, RouteFacts, Scene, Stage};
use streamgate::resource::{Key, Kind};
use streamgate::session::{Host, Inbound, Transport};

/// Quirks that are not followed, with what APISIX makes of such a client.
const OURS: &[(&str, &str)] = &[("SG-125", "accept"), ("SG-126", "error")];

fn hex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

/// What the plugin says, in the words of the vectors.
fn answer(conf: &Value, first: &[u8]) -> Value {
    let (owner, live) = (Key::new(Kind::StreamRoute, "r1"), Live::default());
    let plugin = MqttProxy::compile(conf, &Ground { owner: &owner, live: &live }).unwrap();
    let addr = "127.0.0.1:1883".parse().unwrap();
    let mut inbound = Inbound::new(Transport::Tcp, addr, addr);
    let mut scene = Scene {
        inbound: &mut inbound,
        route: RouteFacts::default(),
        host: &Host::default(),
        first,
        now: tokio::time::Instant::now().into_std(),
        time: SystemTime::UNIX_EPOCH,
        kept: &mut Kept::default(),
        given: None,
        preview: false,
    };
    match plugin.preread(&mut scene) {
        Decision::Pass => json!({"result": "accept", "id": inbound.mqtt_client_id}),
        Decision::Deny { code, .. } => json!({"result": "reject", "code": code}),
        Decision::Read(count) => json!({"result": "need_more", "want": count}),
        Decision::Wait(time) => panic!("waits {time:?}"),
    }
}

fn expected(vector: &Value) -> Value {
    match vector["result"].as_str().unwrap() {
        "accept" => {
            let id = vector["client_id_hex"].as_str().map(hex);
            // SG-127: what is no UTF-8 is no name.
            json!({"result": "accept", "id": id.and_then(|id| String::from_utf8(id).ok())})
        }
        "need_more" => json!({"result": "need_more", "want": vector["want"]}),
        other => json!({"result": other, "code": vector["code"]}),
    }
}

#[test]
fn clients_are_let_in_as_in_apisix() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/vectors/plugins.jsonl");
    let (mut seen, mut wrong, mut ours) = (0, Vec::new(), BTreeMap::new());
    for line in fs::read_to_string(path).unwrap().lines() {
        let vector: Value = serde_json::from_str(line).unwrap();
        if vector["kind"] != "mqtt-proxy" {
            continue;
        }
        seen += 1;
        let first = hex(vector["hex"].as_str().unwrap());
        let (answer, expected) = (answer(&vector["conf"], &first), expected(&vector));
        if answer == expected {
            continue;
        }
        let refused = answer == json!({"result": "reject", "code": 503});
        let rule = match vector["result"].as_str().unwrap() {
            "accept" if refused && matches!(first[0], 0x11..=0x20) => Some(OURS[0]),
            "error" if refused => Some(OURS[1]),
            _ => None,
        };
        match rule {
            Some(rule) => *ours.entry(rule).or_insert(0) += 1,
            None => wrong.push(format!("{}: {answer}, {expected} in APISIX", vector["id"])),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 100, "{seen} lines");
    assert!(OURS.iter().all(|rule| ours.contains_key(rule)), "{ours:?}");
}
