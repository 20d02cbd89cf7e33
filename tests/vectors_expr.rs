//! Expressions and node keys against the real ones (`conformance/vectors/plugins.jsonl`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;
use streamgate::addr::{Host, HostPort};
use streamgate::expr::Expr;

fn vectors(kind: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/vectors/plugins.jsonl");
    let lines = fs::read_to_string(path).unwrap();
    let vectors = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    vectors.filter(|vector| vector["kind"] == kind).collect()
}

#[test]
fn expressions_compile_and_hold_as_in_apisix() {
    let mut wrong = Vec::new();
    for vector in vectors("expr") {
        let compiled = Expr::compile(&vector["rule"]);
        let Some(tests) = vector["tests"].as_array() else {
            if compiled.is_ok() {
                wrong.push(format!("{} {} compiles", vector["id"], vector["rule"]));
            }
            continue;
        };
        let expr = match compiled {
            Ok(expr) => expr,
            Err(error) => {
                wrong.push(format!("{} {}: {}: {error}", vector["id"], vector["rule"], error.path));
                continue;
            }
        };
        for test in tests {
            let holds = expr.holds(&|name: &str| test["vars"].get(name).and_then(Value::as_str));
            if test["result"] != holds {
                wrong.push(format!("{} {} on {}: {holds}", vector["id"], vector["rule"], test));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn node_keys_are_cut_as_in_apisix() {
    for vector in vectors("parse_addr") {
        for test in vector["tests"].as_array().unwrap() {
            let text = test["addr"].as_str().unwrap();
            let parsed = HostPort::parse_apisix(text);
            let port = test["port"].as_f64().filter(|port| (0.0..65536.0).contains(port));
            assert_eq!(parsed.port.map(f64::from), port.map(f64::floor), "{test}");
            let host = test["host"].as_str().unwrap();
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            let address: Option<IpAddr> = bare.parse().ok();
            match (test["ip"].as_i64(), parsed.host) {
                (Some(4 | 6), Host::Ip(ip)) => assert_eq!(Some(ip), address, "{test}"),
                (Some(0), Host::Name(name)) => assert_eq!(*name, *host, "{test}"),
                (_, host) => panic!("{test}: {host:?}"),
            }
        }
    }
}
