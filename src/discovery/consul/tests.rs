//! Answers of `/v1/health/service`, and what the next query waits from.

use serde_json::json;

use super::*;
use crate::config::{Config, Environment};

fn config(more: &str) -> ConsulRegistry {
    let text = format!(
        "apisix: {{proxy_mode: stream, stream_proxy: {{tcp: [1]}}}}\n\
         discovery: {{consul: {{servers: ['http://a:8500']{more}}}}}\n"
    );
    let config = Config::from_text(&text, Path::new("/conf/config.yaml"), &Environment::default());
    config.unwrap_or_else(|mistakes| panic!("{mistakes}")).registries.consul.unwrap()
}

#[track_caller]
fn check(more: &str, answer: &Value, expected: Result<&str, &str>) {
    nodes::tests::check(&parse(answer, &config(more)), answer, expected);
}

#[test]
fn instances_are_read() {
    let two = json!([
        {"Node": {"Address": "10.0.0.9"}, "Service": {"Address": "10.0.0.2", "Port": 90, "Weights": {"Passing": 5, "Warning": 1}}},
        {"Node": {"Address": "10.0.0.1"}, "Service": {"Address": "", "Port": 91}},
    ]);
    check("", &two, Ok("10.0.0.1:91*1 10.0.0.2:90*5"));
    check(", weight: 7", &two, Ok("10.0.0.1:91*7 10.0.0.2:90*5"));
    check(", sort_type: port_sort", &two, Ok("10.0.0.2:90*5 10.0.0.1:91*1"));
    check("", &json!([]), Ok(""));
    let portless = json!([
        {"Service": {"Address": "a.test"}},
        {"Service": {"Address": "b.test", "Port": 0}},
        {"Service": {"Address": "c.test", "Port": null}},
        {"Service": {"Address": "2001:db8::1", "Port": 5}},
    ]);
    check("", &portless, Ok("[2001:db8::1]:5*1 a.test:80*1 b.test:80*1 c.test:80*1"));
    let twice = json!([
        {"Service": {"Address": "a", "Port": 1, "Weights": {"Passing": 2}}},
        {"Service": {"Address": "a", "Port": 1, "Weights": {"Passing": 3}}},
    ]);
    check("", &twice, Ok("a:1*3"));
    check("", &json!([{"Service": {"Address": "a", "Port": 1, "Weights": {"Passing": 0}}}]), Ok("a:1*0"));
}

#[test]
fn what_makes_no_sense_is_told_or_left_out() {
    let one = json!({"Service": {"Address": "a", "Port": 1}});
    check("", &json!([one, {"Node": {}}, {"Service": {"Address": "b/c", "Port": 1}}, 5, null]), Ok("a:1*1"));
    check("", &json!([{"Service": {"Address": "", "Port": 1}}]), Err("none of its 1 instances"));
    check("", &json!([{"Service": {"Address": "a", "Port": 70_000}}]), Err("has a port that is none"));
    check("", &json!([{"Service": {"Address": "a", "Port": -1}}]), Err("has a port that is none"));
    check("", &json!([{"Service": []}]), Err("has no Service"));
    for odd in [json!({}), json!(null), json!("x"), json!({"Service": {}})] {
        check("", &odd, Err("it is no list"));
    }
}

#[test]
fn an_index_never_goes_backwards() {
    let cases = [(0, 0, 0), (0, 7, 7), (7, 7, 7), (7, 9, 9), (9, 7, 0), (9, 0, 0)];
    for (before, told, expected) in cases {
        assert_eq!(next_index(before, told), expected, "{before} {told}");
    }
}
