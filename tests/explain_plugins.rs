//! `explain` asks the plugins of a route, too: each case of a real APISIX through the binary.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

fn vectors(kind: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/vectors/plugins.jsonl");
    let lines = fs::read_to_string(path).unwrap();
    let vectors = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    vectors.filter(|vector| vector["kind"] == kind).collect()
}

/// The answer of `explain --jsonl` to each case.
fn explain(cases: &[Value]) -> Vec<Value> {
    let lines: Vec<String> = cases.iter().map(Value::to_string).collect();
    let input = lines.join("\n");
    let mut child = Command::new(env!("CARGO_BIN_EXE_streamgate"))
        .args(["explain", "--jsonl"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap().unwrap();
    let answers: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), cases.len());
    answers
}

/// One route with these plugins and these connections.
fn case(id: &Value, plugins: &Value, connections: &[Value]) -> Value {
    json!({
        "id": id,
        "stream_routes": [{"id": "r", "plugins": plugins, "upstream_id": "own"}],
        "upstreams": [
            {"id": "own", "nodes": {"10.1.0.1:80": 1}},
            {"id": "other", "nodes": {"10.1.0.2:80": 1}},
        ],
        "connections": connections,
    })
}

fn results(answer: &Value) -> &[Value] {
    answer["results"].as_array().unwrap()
}

#[test]
fn addresses_are_let_through_and_refused_as_in_apisix() {
    let vectors = vectors("ip-restriction");
    let cases: Vec<Value> = vectors
        .iter()
        .map(|vector| {
            let connection = |test: &Value| json!({"remote_addr": test["remote_addr"], "server_port": 9100});
            let connections: Vec<Value> =
                vector["tests"].as_array().unwrap().iter().map(connection).collect();
            case(&vector["id"], &json!({"ip-restriction": vector["conf"]}), &connections)
        })
        .collect();
    let mut compared = 0;
    for (vector, answer) in vectors.iter().zip(explain(&cases)) {
        for (test, result) in vector["tests"].as_array().unwrap().iter().zip(results(&answer)) {
            let told = format!("{} {test}: {result}", vector["id"]);
            match test["reject"].as_u64() {
                None => assert_eq!(result["node"], "10.1.0.1:80", "{told}"),
                Some(code) => {
                    assert!(result["node"].is_null(), "{told}");
                    assert_eq!(
                        (&result["plugin"], &result["code"]),
                        (&json!("ip-restriction"), &json!(code)),
                        "{told}"
                    );
                    assert!(
                        result["reason"].as_str().unwrap().starts_with("plugin_denied: ip-restriction"),
                        "{told}"
                    );
                }
            }
            compared += 1;
        }
    }
    assert!(compared > 500, "{compared}");
}

/// First bytes that APISIX takes or dies of, and which are refused here.
fn is_quirk(vector: &Value) -> bool {
    let first = vector["hex"].as_str().and_then(|hex| hex.get(..2)).unwrap_or_default();
    first != "10" || vector["result"] == "error"
}

#[test]
fn mqtt_clients_are_told_apart_as_in_apisix() {
    let vectors = vectors("mqtt-proxy");
    let cases: Vec<Value> = vectors
        .iter()
        .map(|vector| {
            let connection =
                json!({"remote_addr": "10.0.0.1", "server_port": 9100, "preread": vector["hex"]});
            case(&vector["id"], &json!({"mqtt-proxy": vector["conf"]}), &[connection])
        })
        .collect();
    let mut seen = [0; 3];
    for (vector, answer) in vectors.iter().zip(explain(&cases)) {
        let result = &results(&answer)[0];
        let told = format!("{vector}: {result}");
        match vector["result"].as_str().unwrap() {
            _ if is_quirk(vector) => {
                assert!(result["node"].is_null() || vector["result"] == "need_more", "{told}");
            }
            "accept" => {
                assert_eq!(result["node"], "10.1.0.1:80", "{told}");
                seen[0] += 1;
            }
            "reject" => {
                assert_eq!((&result["node"], &result["code"]), (&Value::Null, &json!(503)), "{told}");
                seen[1] += 1;
            }
            "need_more" => {
                assert_eq!((&result["node"], &result["wants"]), (&Value::Null, &vector["want"]), "{told}");
                seen[2] += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(seen.iter().all(|seen| *seen > 10), "{seen:?}");
}

/// The plugins of a route on which `rule` decides.
type Asks = fn(&Value) -> Value;

#[track_caller]
fn check_expressions(asks: Asks, holds: &str, fails: &str) {
    let vectors: Vec<Value> =
        vectors("expr").into_iter().filter(|vector| vector["tests"].is_array()).collect();
    let cases: Vec<Value> = vectors
        .iter()
        .map(|vector| {
            let connection = |test: &Value| json!({"vars": test["vars"]});
            let connections: Vec<Value> =
                vector["tests"].as_array().unwrap().iter().map(connection).collect();
            case(&vector["id"], &asks(&vector["rule"]), &connections)
        })
        .collect();
    for (vector, answer) in vectors.iter().zip(explain(&cases)) {
        for (test, result) in vector["tests"].as_array().unwrap().iter().zip(results(&answer)) {
            let expected = if test["result"] == true { holds } else { fails };
            let node = result["node"].as_str().unwrap_or("none");
            assert_eq!(node, expected, "{} {} {test}: {result}", vector["id"], vector["rule"]);
        }
    }
}

#[test]
fn expressions_decide_where_traffic_goes() {
    let split = |rule: &Value| {
        json!({"traffic-split": {"rules": [
            {"match": [{"vars": rule}], "weighted_upstreams": [{"upstream_id": "other"}]}
        ]}})
    };
    check_expressions(split, "10.1.0.2:80", "10.1.0.1:80");
}

#[test]
fn filters_decide_whether_a_plugin_runs() {
    let filter =
        |rule: &Value| json!({"ip-restriction": {"whitelist": ["192.0.2.200"], "_meta": {"filter": rule}}});
    check_expressions(filter, "none", "10.1.0.1:80");
}

#[test]
fn sessions_of_one_line_count_together() {
    let connection = json!({"remote_addr": "10.0.0.1", "server_port": 9100});
    let limit =
        json!({"limit-conn": {"conn": 1, "burst": 1, "default_conn_delay": 0.5, "key": "remote_addr"}});
    let split = json!({"traffic-split": {"rules": [
        {"weighted_upstreams": [{"upstream_id": "other", "weight": 3}, {"weight": 1}]}
    ]}});
    let answers = explain(&[
        case(&json!(1), &limit, &vec![connection.clone(); 3]),
        case(&json!(2), &split, &vec![connection; 8]),
    ]);
    let [first, second, third] = results(&answers[0]) else { panic!("{}", answers[0]) };
    assert_eq!((&first["node"], &first["delay"]), (&json!("10.1.0.1:80"), &Value::Null));
    assert_eq!((&second["node"], &second["delay"]), (&json!("10.1.0.1:80"), &json!(0.5)));
    assert_eq!((&third["plugin"], &third["code"]), (&json!("limit-conn"), &json!(503)));
    let to =
        |upstream: &str| results(&answers[1]).iter().filter(|result| result["upstream"] == upstream).count();
    assert_eq!((to("other"), to("own")), (6, 2), "{}", answers[1]);
}
