//! Plugins against the real ones (`conformance/vectors/plugins.jsonl`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use streamgate::live::Live;
use streamgate::plugin::{Armed, Attached, Given, Kept, Plugins, RouteFacts, Run, Scene, Step};
use streamgate::resource::{Key, Kind, PluginConf};
use streamgate::session::{Host, Inbound, Transport};

fn vectors(kind: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/vectors/plugins.jsonl");
    let lines = fs::read_to_string(path).unwrap();
    let vectors = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let vectors: Vec<_> = vectors.filter(|vector| vector["kind"] == kind).collect();
    assert!(vectors.len() > 40, "{kind}: {}", vectors.len());
    vectors
}

/// A route with one plugin.
fn plugins(live: &Live, name: &str, conf: &Value) -> Plugins {
    let conf = PluginConf {
        name: name.into(),
        conf: Arc::new(conf.clone()),
        disabled: false,
        enabled: true,
        broken: None,
        secret: false,
        split: None,
    };
    let attached = Attached { owner: Key::new(Kind::StreamRoute, "1"), conf: &conf };
    let mut degraded = Vec::new();
    let armed = Armed::new(&attached, live, &mut degraded).unwrap();
    assert!(degraded.is_empty(), "{degraded:?}");
    Plugins::new(vec![Arc::new(armed)])
}

#[derive(Debug)]
struct Variables<'a>(&'a Value);

impl Given for Variables<'_> {
    fn variable(&self, name: &str) -> Option<Option<&str>> {
        self.0.get(name).and_then(Value::as_str).map(Some)
    }
}

/// Asks the plugins about a session with these variables.
fn ask(plugins: &Plugins, variables: &Value, kept: &mut Kept) -> Step {
    let any = "127.0.0.1:1".parse().unwrap();
    let mut scene = Scene {
        inbound: &mut Inbound::new(Transport::Tcp, any, any),
        route: RouteFacts::default(),
        host: &Host::default(),
        first: &[],
        now: tokio::time::Instant::now().into_std(),
        time: SystemTime::now(),
        kept,
        given: Some(&Variables(variables)),
        preview: false,
    };
    Run::default().step(plugins, &mut scene)
}

/// The code of a refusal, as the vectors write it.
fn code(step: &Step) -> Value {
    match step {
        Step::Deny { denied, .. } => denied.code.into(),
        _ => Value::Null,
    }
}

#[test]
fn ip_restriction_lets_in_whom_apisix_lets_in() {
    let mut wrong = Vec::new();
    for vector in vectors("ip-restriction") {
        let plugins = plugins(&Live::default(), "ip-restriction", &vector["conf"]);
        for test in vector["tests"].as_array().unwrap() {
            let step = ask(&plugins, &json!({"remote_addr": test["remote_addr"]}), &mut Kept::default());
            if code(&step) != test["reject"] {
                wrong.push(format!("{} {}: {test}: {step:?}", vector["id"], vector["conf"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn limit_conn_counts_and_delays_as_apisix_does() {
    let mut wrong = Vec::new();
    for vector in vectors("limit-conn") {
        let live = Live::default();
        let plugins = plugins(&live, "limit-conn", &vector["conf"]);
        let mut sessions = HashMap::new();
        for op in vector["ops"].as_array().unwrap() {
            let session = op["session"].as_u64().unwrap();
            if op["op"] == "leave" {
                sessions.remove(&session);
                continue;
            }
            let mut kept = Kept::default();
            let step = ask(&plugins, &op["vars"], &mut kept);
            sessions.insert(session, kept);
            let delay = if let Step::Wait(time) = step { time } else { Duration::ZERO };
            if code(&step) != op["reject"] || delay != Duration::from_secs_f64(op["delay"].as_f64().unwrap())
            {
                wrong.push(format!("{} {}: {op}: {step:?}", vector["id"], vector["conf"]));
            }
        }
        drop(sessions);
        assert_eq!(live.limits.remembered().0, 0, "{}", vector["id"]);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
