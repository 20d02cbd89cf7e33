//! The output of every command but `run` and `check`, taken from the binary.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/binary.rs"]
mod binary;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use binary::{run, stderr, stdout, streamgate};
use serde_json::{Value, json};

fn vectors(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/vectors").join(file);
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs a command that reads and answers lines.
#[track_caller]
fn answers(arguments: &[&str], input: &[u8]) -> Vec<Value> {
    let output = run(arguments, input);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn version_is_one_line() {
    for word in ["version", "--version"] {
        let output = run(&[word], b"");
        assert!(output.status.success());
        assert_eq!(stdout(&output), format!("streamgate {}\n", env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn every_command_helps_with_an_example() {
    let commands = ["run", "check", "validate", "explain", "accept-state", "version", "completions"];
    let general = stdout(&run(&["--help"], b""));
    for command in commands {
        let output = run(&[command, "--help"], b"");
        assert!(output.status.success(), "{command}");
        let help = stdout(&output);
        let (_, examples) = help.split_once("Example").unwrap_or_else(|| panic!("{command}: {help}"));
        assert!(examples.contains(&format!("streamgate {command}")), "{help}");
        assert!(general.contains(&format!("  {command}")), "{general}");
    }
    assert!(general.contains("Examples:\n  streamgate check"), "{general}");
}

#[test]
fn arguments_that_mean_nothing_exit_with_64() {
    for arguments in [
        &["no-such-command"][..],
        &[],
        &["explain"],
        &["explain", "--client", "x", "--server", "1.2.3.4:5"],
        &["explain", "--jsonl", "--sni", "x"],
        &["accept-state", "--address", "nowhere"],
        &["completions", "cmd"],
    ] {
        let output = run(arguments, b"");
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn completions_are_made_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell], b"");
        assert!(output.status.success(), "{shell}");
        let script = stdout(&output);
        assert!(script.contains("streamgate") && script.contains("accept-state"), "{shell}: {script}");
    }
}

/// A reader that goes away, as `head` does, ends a command quietly.
#[test]
fn a_closed_pipe_is_no_failure() {
    for command in ["completions", "version", "validate"] {
        let mut all = streamgate();
        all.arg(command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if command == "completions" {
            all.arg("bash");
        }
        let mut child = all.spawn().unwrap();
        drop(child.stdout.take());
        let mut input = child.stdin.take().unwrap();
        for _ in 0..1000 {
            // It may have gone already.
            let line = b"{\"id\":1,\"kind\":\"upstream\",\"value\":{}}\n";
            if std::io::Write::write_all(&mut input, line).is_err() {
                break;
            }
        }
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{command}");
    }
}

#[test]
fn validate_answers_each_line_in_order() {
    let input = [
        br#"{"id":1,"kind":"stream_route","value":{"server_port":"x"}}"#.as_slice(),
        b"",
        br#"{"id":"b","kind":"upstream","value":{"nodes":{"127.0.0.1:1":1}}}"#,
        b"  \r",
        b"junk",
        br#"{"id":3,"kind":"nonsense","value":{}}"#,
        br#"{"id":4}"#,
        b"{\"id\":5,\"kind\":\"stream_route\",\"value\":{\"server_addr\":\"\xff\"}}",
        br#"{"id":6,"kind":"plugin:limit-conn","value":{}}"#,
        // The last line need not end.
        br#"{"id":{"any":[1]},"kind":"service","value":{}}"#,
    ];
    let answers = answers(&["validate"], &input.join(&b'\n'));
    let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
    let (null, any) = (Value::Null, json!({"any": [1]}));
    assert_eq!(ids, [&json!(1), &json!("b"), &null, &json!(3), &json!(4), &json!(5), &json!(6), &any]);
    let verdicts: Vec<bool> = answers.iter().map(|answer| answer["ok"].as_bool().unwrap()).collect();
    assert_eq!(verdicts, [false, true, false, false, false, false, false, true]);
    for answer in &answers {
        assert_eq!(answer["error"].is_string(), answer["ok"] == false, "{answer}");
    }
    let error = |index: usize| answers[index]["error"].as_str().unwrap();
    assert_eq!(error(0), "/server_port is \"x\"; an integer from 1 to 65535 is allowed");
    assert!(error(2).contains("not an object with `id`, `kind` and `value`"), "{}", error(2));
    assert!(error(3).contains("kind \"nonsense\" is unknown"), "{}", error(3));
    assert!(error(6).contains("lacks `conn`"), "{}", error(6));
}

#[test]
fn validate_answers_before_its_input_ends() {
    use std::io::{BufRead, BufReader, Write};
    let mut command = streamgate();
    let mut child = command.arg("validate").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut output = BufReader::new(output);
    for id in 0..3 {
        writeln!(input, r#"{{"id":{id},"kind":"upstream","value":{{"nodes":{{}}}}}}"#).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{{\"id\":{id},\"ok\":true,\"error\":null}}\n"));
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn validate_knows_the_plugins_of_a_config() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let config = "apisix: {proxy_mode: stream, stream_proxy: {tcp: [9100]}}\n\
                  deployment: {role: data_plane, role_data_plane: {config_provider: json}}\n\
                  stream_plugins: [limit-conn]\n";
    fs::write(&file, config).unwrap();
    let line = br#"{"id":1,"kind":"plugin:ip-restriction","value":{"whitelist":["10.0.0.0/8"]}}"#;
    assert_eq!(answers(&["validate"], line)[0]["ok"], true);
    let strict = &answers(&["validate", "-c", file.to_str().unwrap()], line)[0];
    assert_eq!(strict["ok"], false);
    assert!(strict["error"].as_str().unwrap().contains("stream_plugins"), "{strict}");
    fs::write(&file, "apisix: [").unwrap();
    assert_eq!(run(&["validate", "-c", file.to_str().unwrap()], line).status.code(), Some(64));
}

/// An object with its id in it.
fn with_id(id: &str, value: &Value) -> Value {
    let mut value = value.clone();
    value["id"] = id.into();
    value
}

fn explain(cases: &[Value]) -> Vec<Value> {
    let lines: Vec<String> = cases.iter().map(Value::to_string).collect();
    let answers = answers(&["explain", "--jsonl"], lines.join("\n").as_bytes());
    assert_eq!(answers.len(), cases.len());
    answers
}

#[test]
fn explain_routes_as_apisix_does() {
    let upper = |route: &Value| {
        route["value"]["sni"].as_str().is_some_and(|sni| sni.contains(|c: char| c.is_ascii_uppercase()))
    };
    let all = vectors("routing.jsonl");
    // APISIX 3.18 never matches an upper-case sni; from 3.19 on, and here, it is lower-cased.
    let tables: Vec<&Value> =
        all.iter().filter(|case| !case["routes"].as_array().unwrap().iter().any(upper)).collect();
    let upstreams: Vec<Value> =
        (1..9).map(|id| with_id(&id.to_string(), &json!({"nodes": {"127.0.0.1:1": 1}}))).collect();
    let cases: Vec<Value> = tables
        .iter()
        .map(|table| {
            let routes = table["routes"].as_array().unwrap().iter();
            let routes: Vec<_> = routes.map(|route| with_id(route["id"].as_str().unwrap(), &route["value"])).collect();
            json!({"id": table["id"], "stream_routes": routes, "upstreams": upstreams, "connections": table["tests"]})
        })
        .collect();
    let mut compared = 0;
    for (table, answer) in tables.iter().zip(explain(&cases)) {
        assert_eq!(table["id"], answer["id"]);
        assert_eq!(answer["rejected"], Value::Null, "{answer}");
        let (tests, results) = (table["tests"].as_array().unwrap(), answer["results"].as_array().unwrap());
        assert_eq!(tests.len(), results.len());
        for (test, result) in tests.iter().zip(results) {
            assert_eq!(result["route"], test["route"], "{} asked {test}: {result}", table["id"]);
            assert!(result["reason"].is_string(), "{result}");
            compared += 1;
        }
    }
    assert!(compared > 4_000, "{compared}");
}

/// A connection of a vector: its variables, the nodes that are down and those already tried.
fn connection(test: &Value, tried: &[Value]) -> Value {
    let vars = &test["vars"];
    let down = test.get("down").cloned().unwrap_or_else(|| json!([]));
    let mut connection = json!({"vars": vars, "down": down, "tried": tried});
    for name in ["remote_addr", "remote_port", "server_addr", "server_port"] {
        if let Some(value) = vars.get(name) {
            connection[name] = value.clone();
        }
    }
    connection
}

/// The connections of a balancer vector and the nodes they must get.
fn sessions(case: &Value) -> Vec<(Value, Value)> {
    let mut sessions = Vec::new();
    for test in case["tests"].as_array().unwrap() {
        let Some(attempts) = test["attempts"].as_array() else {
            sessions.push((connection(test, &[]), test["node"].clone()));
            continue;
        };
        // Quirk 24 of the vectors: APISIX hands out tried nodes again where one of weight 0 is left.
        if test["repeats"] == true {
            continue;
        }
        let mut tried = Vec::new();
        for attempt in attempts {
            sessions.push((connection(test, &tried), attempt["node"].clone()));
            tried.push(attempt["node"].clone());
        }
    }
    sessions
}

#[test]
fn explain_hashes_and_retries_as_apisix_does() {
    let all = vectors("balancer.jsonl");
    let fixed = |case: &&Value| case["kind"] == "chash" || case["order_fixed"] == true;
    let vectors: Vec<(&Value, Vec<(Value, Value)>)> =
        all.iter().filter(fixed).map(|case| (case, sessions(case))).collect();
    let cases: Vec<Value> = vectors
        .iter()
        .map(|(case, sessions)| {
            let connections: Vec<&Value> = sessions.iter().map(|(connection, _)| connection).collect();
            json!({
                "id": case["id"],
                "stream_routes": [{"id": "r", "upstream_id": "u"}],
                "upstreams": [with_id("u", &case["upstream"])],
                "connections": connections,
            })
        })
        .collect();
    let mut compared = 0;
    for ((case, sessions), answer) in vectors.iter().zip(explain(&cases)) {
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), sessions.len());
        for ((connection, node), result) in sessions.iter().zip(results) {
            assert_eq!(&result["node"], node, "{} with {connection}: {result}", case["id"]);
            compared += 1;
        }
    }
    assert!(compared > 6_000, "{compared}");
}

#[test]
fn explain_names_what_closes_a_connection() {
    let case = json!({
        "id": "x",
        "stream_routes": [
            {"id": "1", "server_port": 1, "upstream_id": "nowhere"},
            {"id": "2", "server_port": 2, "service_id": "nowhere"},
            {"id": "3", "server_port": 3, "upstream": {"nodes": {}}},
            {"id": "4", "server_port": 4, "service_id": "s"},
            {"id": "5", "server_port": "x"},
        ],
        "services": [{"id": "s", "upstream": {"nodes": {"10.0.0.1:7": 1}}}],
        "connections": (1..6).map(|port| json!({"remote_addr": "1.2.3.4", "server_port": port})).collect::<Vec<_>>(),
    });
    let answer = &explain(&[case])[0];
    let expected = [
        (json!("1"), Value::Null, "upstream_missing: "),
        (json!("2"), Value::Null, "service_missing: "),
        (json!("3"), Value::Null, "no_node: "),
        (json!("4"), json!("10.0.0.1:7"), "matched"),
        (Value::Null, Value::Null, "no_route: "),
    ];
    for ((route, node, reason), result) in expected.iter().zip(answer["results"].as_array().unwrap()) {
        assert_eq!((&result["route"], &result["node"]), (route, node), "{result}");
        assert!(result["reason"].as_str().unwrap().starts_with(reason), "{result}");
    }
    assert!(answer["rejected"]["stream_routes/5"].as_str().unwrap().contains("/server_port"), "{answer}");
    let bad = answers(
        &["explain", "--jsonl"],
        b"junk\n\n{\"id\":2,\"connections\":[{\"remote_addr\":\"10.0.0.256\"}]}",
    );
    assert_eq!(bad.len(), 2);
    assert!(bad[0]["error"].as_str().unwrap().starts_with("the line is no JSON"), "{}", bad[0]);
    assert_eq!(bad[1]["results"][0]["reason"], "remote_addr is \"10.0.0.256\", which is no address");
}

#[test]
fn connections_of_one_line_share_their_turns() {
    let one = json!({"remote_addr": "1.2.3.4"});
    let case = |id: u32| {
        json!({
            "id": id,
            "stream_routes": [{"id": "r", "upstream": {"nodes": {"10.0.0.1:7": 2, "10.0.0.2:7": 1}}}],
            "connections": vec![&one; 30],
        })
    };
    for answer in explain(&[case(1), case(2)]) {
        let results = answer["results"].as_array().unwrap();
        let first = results.iter().filter(|result| result["node"] == "10.0.0.1:7").count();
        assert_eq!(first, 20, "{answer}");
    }
}

#[test]
fn accept_state_says_whom_it_cannot_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let output = run(&["accept-state", "--address", &address], b"");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains(&format!("cannot reach the gateway at {address}")), "{said}");
    assert!(output.stdout.is_empty());
    let output = run(&["accept-state", "-c", "/nonexistent/config.yaml"], b"");
    assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
}
