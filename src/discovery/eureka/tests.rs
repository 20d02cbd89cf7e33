//! Answers of Eureka.

use serde_json::json;

use super::*;
use crate::config::Waits;

#[track_caller]
fn check(answer: &Value, expected: Result<&str, &str>) {
    let second = Duration::from_secs(1);
    let config = EurekaRegistry {
        servers: vec![],
        prefix: "/eureka".into(),
        fetch_interval: second,
        weight: 100,
        waits: Waits { connect: second, answer: second },
    };
    nodes::tests::check(&parse(answer, &config), answer, expected);
}

/// An instance that is up, with other values for some of its keys.
fn instance(ip: &str, changes: &Value) -> Value {
    let mut instance = json!({
        "instanceId": ip, "app": "X", "ipAddr": ip, "hostName": "h", "status": "UP",
        "overriddenstatus": "UNKNOWN",
        "port": {"$": 8080, "@enabled": "true"}, "securePort": {"$": 443, "@enabled": "false"},
        "metadata": {"management.port": "8080"},
    });
    for (key, value) in changes.as_object().unwrap() {
        instance[key] = value.clone();
    }
    instance
}

#[track_caller]
fn check_one(changes: &Value, expected: Result<&str, &str>) {
    check(&json!({"application": {"name": "X", "instance": instance("10.0.0.1", changes)}}), expected);
}

#[test]
fn instances_are_read() {
    let list = json!([instance("10.0.0.2", &json!({})), instance("10.0.0.1", &json!({}))]);
    check(&json!({"application": {"instance": list}}), Ok("10.0.0.1:8080*100 10.0.0.2:8080*100"));
    check_one(&json!({}), Ok("10.0.0.1:8080*100"));
    check_one(&json!({"ipAddr": "a.test"}), Ok("a.test:8080*100"));
    check_one(&json!({"metadata": {"weight": "7"}}), Ok("10.0.0.1:8080*7"));
    check_one(&json!({"metadata": {"weight": 0}}), Ok("10.0.0.1:8080*0"));
    check_one(&json!({"metadata": null}), Ok("10.0.0.1:8080*100"));
    check(&json!({"application": {"name": "X", "instance": []}}), Ok(""));
    check(&json!({"application": {"name": "X"}}), Ok(""));
}

#[test]
fn the_status_that_was_set_by_hand_counts() {
    for (changes, up) in [
        (json!({"status": "DOWN"}), false),
        (json!({"status": "STARTING"}), false),
        (json!({"status": null}), false),
        (json!({"overriddenstatus": "OUT_OF_SERVICE"}), false),
        (json!({"overriddenStatus": "OUT_OF_SERVICE"}), false),
        (json!({"status": "DOWN", "overriddenstatus": "UP"}), true),
    ] {
        check_one(&changes, Ok(if up { "10.0.0.1:8080*100" } else { "" }));
    }
}

#[test]
fn the_secure_port_comes_first_where_it_is_on() {
    check_one(&json!({"securePort": {"$": 8443, "@enabled": "true"}}), Ok("10.0.0.1:8443*100"));
    check_one(&json!({"securePort": {"$": "8443", "@enabled": true}}), Ok("10.0.0.1:8443*100"));
    check_one(&json!({"securePort": {"@enabled": true}}), Ok("10.0.0.1:8080*100"));
    check_one(&json!({"port": {"$": 1, "@enabled": "false"}}), Err("has no port that is on"));
    check_one(&json!({"port": 5}), Err("has no port that is on"));
}

#[test]
fn what_makes_no_sense_is_told_or_left_out() {
    let good = instance("10.0.0.1", &json!({}));
    let nameless = instance("", &json!({}));
    check(&json!({"application": {"instance": [good, nameless, 5, null]}}), Ok("10.0.0.1:8080*100"));
    check(&json!({"application": {"instance": "x"}}), Err("neither a list nor an object"));
    for odd in [json!({}), json!([]), json!(null), json!({"application": []}), json!({"applications": {}})] {
        check(&odd, Err("it has no application"));
    }
}
