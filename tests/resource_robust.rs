//! No bytes from etcd panic us, and what is accepted once is accepted again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use streamgate::addr::{HostPort, IpMatcher};
use streamgate::config::RulesConfig;
use streamgate::expr::Expr;
use streamgate::resource::{Key, Kind, Rules, pem, validate_line};

static RULES: LazyLock<Rules> = LazyLock::new(|| {
    let names = ["ip-restriction", "limit-conn", "mqtt-proxy", "prometheus", "syslog", "traffic-split"];
    Rules::new(&RulesConfig {
        stream_plugins: names.map(Box::from).to_vec(),
        xrpc_protocols: vec!["redis".into(), "dubbo".into()],
        keyring: vec!["qeddd145sfvddff3".into()],
        ..RulesConfig::default()
    })
});

/// Documents of every kind, as the generator of the vectors made them.
static DOCUMENTS: LazyLock<Vec<(Kind, Value)>> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/vectors/schema.jsonl");
    let lines = fs::read_to_string(path).unwrap();
    let vectors = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    vectors
        .map(|mut vector| {
            let value = vector["value"].take();
            match vector["kind"].as_str().unwrap() {
                "stream_route" => (Kind::StreamRoute, value),
                "upstream" => (Kind::Upstream, value),
                "service" => (Kind::Service, value),
                "ssl" => (Kind::Ssl, value),
                plugin => {
                    let name = plugin.strip_prefix("plugin:").unwrap();
                    (Kind::StreamRoute, json!({ "plugins": { name: value } }))
                }
            }
        })
        .collect()
});

/// Odd values to put in the place of others.
fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[[]]])),
        Just(json!("$env://A")),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        Just(json!("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----")),
        Just(json!({"-----": ["é", 1e308]})),
    ]
}

/// Puts a value in the place of the one that is `steps` further on.
fn replace(value: &mut Value, steps: &mut usize, by: &Value) {
    if *steps == 0 {
        *value = by.clone();
    }
    *steps = steps.wrapping_sub(1);
    match value {
        Value::Array(list) => list.iter_mut().for_each(|entry| replace(entry, steps, by)),
        Value::Object(map) => map.values_mut().for_each(|entry| replace(entry, steps, by)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        for kind in Kind::ALL {
            let _ = RULES.parse(&Key::new(kind, "7"), &bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let _ = validate_line(&RULES, &text);
        let _ = (pem::certificates(&text), pem::private_key(&text));
    }

    #[test]
    fn any_text(text in r"(-----BEGIN (RSA |EC |)PRIVATE KEY-----\n)?[A-Za-z0-9+/=\n:\[\].é-]{0,40}(\n-----END PRIVATE KEY-----)?") {
        let _ = (HostPort::parse_apisix(&text), IpMatcher::parse_apisix(&text));
        let _ = (pem::certificates(&text), pem::private_key(&text));
    }

    #[test]
    fn changed_documents(index in any::<prop::sample::Index>(), place in 0_usize..40, by in odd()) {
        let (kind, document) = index.get(&DOCUMENTS);
        let mut document = document.clone();
        replace(&mut document, &mut place.clone(), &by);
        let key = Key::new(*kind, "7");
        let text = document.to_string();
        match RULES.parse(&key, text.as_bytes()) {
            Ok(first) => {
                let again = RULES.parse(&key, text.as_bytes()).expect("the same bytes");
                prop_assert_eq!(format!("{:?}", first.object), format!("{:?}", again.object));
            }
            Err(rejection) => prop_assert!(!rejection.mistakes.is_empty(), "{}", text),
        }
    }

    #[test]
    fn cut_documents(index in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        let (kind, document) = index.get(&DOCUMENTS);
        let text = document.to_string();
        let _ = RULES.parse(&Key::new(*kind, "7"), &text.as_bytes()[..at.index(text.len() + 1)]);
    }

    #[test]
    fn any_expression(rule in odd(), operator in r"[=~<>!a-zA-Z]{0,7}", operand in odd()) {
        for rule in [json!([["a", operator, operand]]), json!(["OR", [operator, "!", "in", operand], [rule, operand]]), rule] {
            if let Ok(expr) = Expr::compile(&rule) {
                let _ = expr.holds(&|name: &str| (name == "a").then_some("1"));
                let _ = expr.dead_patterns();
            }
        }
    }
}
