//! The matcher against what a real APISIX 3.18 routed (conformance/vectors/routing.jsonl).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use serde_json::Value;
use streamgate::matcher::Matcher;
use streamgate::matcher::Order;
use streamgate::matcher::Query;
use streamgate::matcher::Rule;

fn rule(value: &Value) -> Rule {
    let text = |name: &str| value.get(name).map(|text| text.as_str().unwrap());
    Rule {
        remote_addr: text("remote_addr").map(|text| text.parse().unwrap()),
        server_addr: text("server_addr").map(|text| text.parse().unwrap()),
        server_port: value.get("server_port").map(|port| port.as_u64().unwrap().try_into().unwrap()),
        snis: text("sni").map(|text| text.parse().unwrap()).into_iter().collect(),
    }
}

/// A name as `Query` wants it: the certificate lookup does the same (`apisix/ssl.lua:39`).
fn client_name(sent: &str) -> String {
    sent.strip_suffix('.').unwrap_or(sent).to_ascii_lowercase()
}

/// The rules of one table. `3.18` never matches a route whose `sni` has an upper-case letter; from
/// 3.19 on, and here, it is lower-cased: such routes are left out.
fn matcher(routes: &[Value]) -> Matcher<String> {
    let mut matcher = Matcher::default();
    for route in routes {
        let value = &route["value"];
        let subordinate = value.pointer("/protocol/superior_id").is_some();
        let upper = value["sni"].as_str().is_some_and(|sni| sni.contains(|c: char| c.is_ascii_uppercase()));
        if !subordinate && !upper {
            let id = route["id"].as_str().unwrap();
            matcher.insert(Order(id.as_bytes().into()), rule(value), id.to_owned());
        }
    }
    matcher
}

#[track_caller]
fn check(case: &Value) -> usize {
    let matcher = matcher(case["routes"].as_array().unwrap());
    let tests = case["tests"].as_array().unwrap();
    for test in tests {
        let address = |name: &str| test[name].as_str().unwrap().parse().unwrap();
        let name = test["sni"].as_str().map(client_name);
        let port: u16 = test["server_port"].as_u64().unwrap().try_into().unwrap();
        let query = Query {
            client: address("remote_addr"),
            server: (address("server_addr"), port).into(),
            sni: name.as_deref(),
        };
        let found = matcher.find(&query).map(String::as_str);
        assert_eq!(found, test["route"].as_str(), "{} asked {test}", case["id"]);
        let explained = matcher.explain(&query, 5).winner.map(|(_, id)| id.as_str());
        assert_eq!(explained, found, "{} explained {test}", case["id"]);
    }
    tests.len()
}

#[test]
fn routes_as_apisix_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/vectors/routing.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let connections: usize = text.lines().map(|line| check(&serde_json::from_str(line).unwrap())).sum();
    assert!(connections >= 5_000, "only {connections} connections were compared");
}
