//! Every verdict of the real APISIX on configuration documents and stored keys
//! (`conformance/vectors`, its README says how they were taken).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use streamgate::config::RulesConfig;
use streamgate::resource::keyring::Keyring;
use streamgate::resource::{Key, Kind, Object, Rules, pem, validate_line};

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/vectors").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn lines(name: &str) -> Vec<Value> {
    file(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn pems() -> HashMap<String, String> {
    serde_json::from_str(&file("pem.json")).unwrap()
}

/// Replaces `@@pem:NAME@@` and `@@rep:U:N@@` in every string.
fn expand(value: &mut Value, pems: &HashMap<String, String>) {
    match value {
        Value::String(text) => *text = expanded(text, pems),
        Value::Array(list) => list.iter_mut().for_each(|entry| expand(entry, pems)),
        Value::Object(map) => map.values_mut().for_each(|entry| expand(entry, pems)),
        _ => {}
    }
}

fn expanded(text: &str, pems: &HashMap<String, String>) -> String {
    let mut parts = text.split("@@");
    let mut out = parts.next().unwrap_or_default().to_owned();
    while let Some(part) = parts.next() {
        if let Some(name) = part.strip_prefix("pem:") {
            out.push_str(&pems[name]);
        } else if let Some((unit, count)) = part.strip_prefix("rep:").and_then(|rest| rest.rsplit_once(':')) {
            out.push_str(&unit.repeat(count.parse().unwrap()));
        } else {
            panic!("unknown macro {part:?}");
        }
        out.push_str(parts.next().expect("a macro ends with @@"));
    }
    out
}

/// The setting under which the verdicts hold.
fn config(standalone: bool) -> RulesConfig {
    let boxed = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
    RulesConfig {
        stream_plugins: boxed(&[
            "ip-restriction",
            "limit-conn",
            "mqtt-proxy",
            "syslog",
            "traffic-split",
            "prometheus",
        ]),
        xrpc_protocols: boxed(&["redis", "dubbo"]),
        keyring: boxed(&["qeddd145sfvddff3", "edd1c9f0985e76a2"]),
        plugins_key_counts: false,
        standalone,
        ..RulesConfig::default()
    }
}

fn answer(rules: &Rules, vector: &Value) -> Value {
    let line = json!({ "id": vector["id"], "kind": vector["kind"], "value": vector["value"] });
    let answer: Value = serde_json::from_str(&validate_line(rules, &line.to_string())).unwrap();
    assert_eq!(answer["id"], vector["id"]);
    assert_eq!(answer["ok"].as_bool().unwrap(), answer["error"].is_null(), "{answer}");
    answer
}

/// Vectors where we differ on purpose, with the rule of docs/compatibility.md. None: what APISIX
/// accepts is accepted, and parts that cannot work are dropped with a warning.
const DIFFERENT: &[(&str, &str)] = &[];

#[test]
fn documents_are_decided_as_by_apisix() {
    let (rules, pems) = (Rules::new(&config(false)), pems());
    let mut wrong = Vec::new();
    let mut seen = 0;
    for mut vector in lines("schema.jsonl") {
        expand(&mut vector["value"], &pems);
        let id = vector["id"].as_str().unwrap().to_owned();
        let expected = vector["dp"].as_bool().unwrap();
        let answer = answer(&rules, &vector);
        seen += 1;
        let excused = DIFFERENT.iter().any(|(different, _)| *different == id);
        assert!(!excused || vector["tags"].is_array(), "{id} carries no tag: it has to be followed");
        if (answer["ok"] == expected) == excused {
            wrong.push(format!(
                "{id} {} dp={expected} {:?} we={} {:?}",
                vector["kind"], vector["dp_err"], answer["ok"], answer["error"]
            ));
        }
    }
    assert!(seen > 3000, "only {seen} vectors");
    assert!(wrong.is_empty(), "{} of {seen} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn standalone_refuses_unknown_plugins() {
    let (rules, pems) = (Rules::new(&config(true)), pems());
    let mut wrong = Vec::new();
    let mut seen = 0;
    for mut vector in lines("schema.jsonl") {
        let Some(expected) = vector["standalone_dp"].as_bool() else { continue };
        // SG-002: a service with plugins is kept in standalone mode.
        if vector["kind"] == "service" {
            continue;
        }
        expand(&mut vector["value"], &pems);
        seen += 1;
        if answer(&rules, &vector)["ok"] != expected {
            wrong.push(vector["id"].to_string());
        }
    }
    assert!(seen > 3, "only {seen} vectors");
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn what_makes_apisix_raise_rejects_that_object_alone() {
    let (rules, pems) = (Rules::new(&config(false)), pems());
    for mut vector in lines("thrown.jsonl") {
        expand(&mut vector["value"], &pems);
        let answer = answer(&rules, &vector);
        assert_eq!(answer["ok"], false, "{}", vector["id"]);
        let error = answer["error"].as_str().unwrap();
        assert!(error.starts_with('/'), "{} names no path: {error}", vector["id"]);
    }
}

/// `filled` holds the defaults of every part; plugin configurations are where they reach sessions.
#[test]
fn plugin_defaults_are_those_of_apisix() {
    let (rules, pems) = (Rules::new(&config(false)), pems());
    let mut seen = 0;
    for mut vector in lines("schema.jsonl") {
        let kind = vector["kind"].as_str().unwrap().to_owned();
        let Some(name) = kind.strip_prefix("plugin:") else { continue };
        if vector["dp"] != true || !vector["filled"].is_object() || vector["schema"] == false {
            continue;
        }
        expand(&mut vector, &pems);
        let route = json!({ "plugins": { name: vector["value"] } }).to_string();
        let parsed = rules.parse(&Key::new(Kind::StreamRoute, "r"), route.as_bytes()).unwrap();
        let Object::StreamRoute(route) = parsed.object else { panic!("{:?}", parsed.object) };
        let conf = (*route.plugins[0].conf).clone();
        assert_eq!(canonical(conf), canonical(vector["filled"].clone()), "{}", vector["id"]);
        seen += 1;
    }
    assert!(seen > 100, "only {seen} vectors");
}

/// Numbers as doubles, empty lists as empty objects, nodes without what the filter does to them.
fn canonical(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64().unwrap()),
        Value::Array(list) if list.is_empty() => json!({}),
        Value::Array(list) => list.into_iter().map(canonical).collect(),
        Value::Object(map) => map.into_iter().map(|(name, value)| (name, canonical(value))).collect(),
        other => other,
    }
}

#[test]
fn stored_keys_load_as_in_apisix() {
    let pems = pems();
    let mut better = 0;
    for mut vector in lines("keyring.jsonl") {
        if vector["op"] != "load" {
            continue;
        }
        expand(&mut vector, &pems);
        let id = &vector["id"];
        let entries: Vec<&str> = match &vector["keyring"] {
            Value::String(single) => vec![single],
            list => list.as_array().into_iter().flatten().map(|entry| entry.as_str().unwrap()).collect(),
        };
        let loaded = Keyring::new(&entries).load(vector["value"].as_str().unwrap());
        let expected: Option<Vec<u8>> = match (vector["result"].as_str(), vector["result_hex"].as_str()) {
            (Some(text), _) => Some(text.as_bytes().to_vec()),
            (None, Some(hex)) => Some(
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect(),
            ),
            (None, None) => None,
        };
        let Some(expected) = expected else {
            assert!(loaded.is_err(), "{id} loads");
            continue;
        };
        let loaded = loaded.unwrap_or_else(|error| panic!("{id}: {error}"));
        if *loaded != *expected {
            // A wrong key left a clean padding by chance; the right one stands behind it.
            assert!(loaded.starts_with(b"---") && !expected.starts_with(b"---"), "{id} differs");
            better += 1;
        } else if let Some(usable) = vector["usable"].as_bool() {
            let text = String::from_utf8_lossy(&loaded);
            assert_eq!(pem::private_key(&text).is_ok(), usable, "{id} {:?}", pem::private_key(&text).err());
        }
    }
    assert!(better > 0, "the vectors have such keys");
}
