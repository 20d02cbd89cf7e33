//! Which certificate serves a name, as a real APISIX 3.18 chose it (`conformance/vectors/sni_cert.jsonl`),
//! asked through `streamgate explain --jsonl`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;

use std::fs;
use std::path::Path;

use binary::{run, stderr, stdout};
use serde_json::{Value, json};

/// Runs the cases; one answer each.
#[track_caller]
fn explain(cases: &[Value]) -> Vec<Value> {
    let input: Vec<String> = cases.iter().map(Value::to_string).collect();
    let output = run(&["explain", "--jsonl"], input.join("\n").as_bytes());
    assert!(output.status.success(), "{}", stderr(&output));
    let answers: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), cases.len());
    answers
}

/// A client of TLS; `sni` is null where it names no server.
fn client(sni: &Value) -> Value {
    let mut connection = json!({
        "remote_addr": "10.8.0.7", "remote_port": 4000, "server_addr": "10.0.0.2", "server_port": 9443, "tls": true
    });
    if !sni.is_null() {
        connection["sni"] = sni.clone();
    }
    connection
}

fn vectors() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/vectors/sni_cert.jsonl");
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn certificates_as_apisix_chooses_them() {
    let vectors = vectors();
    let cases: Vec<Value> = vectors
        .iter()
        .map(|vector| {
            let tests = vector["tests"].as_array().unwrap();
            let mut case = json!({
                "id": vector["id"],
                "stream_routes": [{"id": "r", "upstream": {"nodes": {"10.0.0.1:80": 1}}}],
                "ssls": vector["ssls"],
                "connections": tests.iter().map(|test| client(&test["sni"])).collect::<Vec<_>>(),
            });
            if !vector["fallback_sni"].is_null() {
                case["fallback_sni"] = vector["fallback_sni"].clone();
            }
            case
        })
        .collect();
    let mut compared = 0;
    for (vector, answer) in vectors.iter().zip(explain(&cases)) {
        assert_eq!(answer["id"], vector["id"]);
        let (tests, results) = (vector["tests"].as_array().unwrap(), answer["results"].as_array().unwrap());
        assert_eq!(tests.len(), results.len());
        for (test, result) in tests.iter().zip(results) {
            assert_eq!(result.get("ssl"), Some(&test["ssl"]), "{} with {test}: {result}", vector["id"]);
            // Who gets no certificate gets no session either.
            let route = if test["ssl"].is_null() { Value::Null } else { json!("r") };
            assert_eq!(result["route"], route, "{} with {test}: {result}", vector["id"]);
            compared += 1;
        }
    }
    assert!(compared >= 112 * 25, "only {compared} names were compared");
}

#[track_caller]
fn check(case: &Value, connection: &Value, ssl: Option<&Value>, route: &Value, reason: &str) {
    let mut case = case.clone();
    case["connections"] = json!([connection]);
    let result = explain(&[case])[0]["results"][0].clone();
    assert_eq!((result.get("ssl"), &result["route"]), (ssl, route), "{result}");
    assert!(result["reason"].as_str().unwrap().starts_with(reason), "{result}");
}

#[test]
fn the_name_decides_certificate_and_route() {
    let case = json!({
        "id": 1,
        "stream_routes": [
            {"id": "left", "sni": "pass.test", "tls_passthrough": true, "upstream": {"nodes": {"10.0.0.1:80": 1}}},
            {"id": "named", "sni": "a.test", "upstream": {"nodes": {"10.0.0.1:80": 1}}},
            {"id": "plain", "upstream": {"nodes": {"10.0.0.1:80": 1}}},
        ],
        "ssls": [{"id": "s1", "value": {"snis": ["a.test", "b.test"]}}],
        "fallback_sni": "b.test",
    });
    let (s1, null) = (json!("s1"), Value::Null);
    check(&case, &client(&json!("A.Test.")), Some(&s1), &json!("named"), "matched");
    check(&case, &client(&null), Some(&s1), &json!("plain"), "matched");
    check(&case, &client(&json!("other.test")), Some(&null), &null, "tls_no_certificate");
    check(&case, &client(&json!("pass.test")), Some(&null), &json!("left"), "matched");
    let mut nameless = case.clone();
    nameless.as_object_mut().unwrap().remove("fallback_sni");
    check(&nameless, &client(&null), Some(&null), &null, "tls_no_sni");
    // fallback_sni is for TLS alone (`apisix/ssl.lua:39`).
    let mut plain = client(&null);
    plain["tls"] = json!(false);
    check(&case, &plain, None, &json!("plain"), "matched");
}
