//! Answers of Nacos, and signatures.

use serde_json::json;

use super::*;
use crate::config::Waits;

fn config() -> NacosRegistry {
    let second = Duration::from_secs(1);
    NacosRegistry {
        servers: vec![],
        prefix: "/nacos/v1".into(),
        fetch_interval: second,
        weight: 100,
        waits: Waits { connect: second, answer: second },
        keys: None,
    }
}

#[track_caller]
fn check(answer: &Value, expected: Result<&str, &str>) {
    nodes::tests::check(&parse(answer, &config()), answer, expected);
}

#[test]
fn instances_are_read() {
    let two = json!({"name": "g@@x", "hosts": [
        {"ip": "10.0.0.2", "port": 8002, "weight": 2.0, "healthy": true, "enabled": true},
        {"ip": "10.0.0.1", "port": 8001, "weight": 1.0},
    ]});
    check(&two, Ok("10.0.0.1:8001*1 10.0.0.2:8002*2"));
    check(&json!({"hosts": [{"ip": "a.test", "port": 1}]}), Ok("a.test:1*100"));
    check(&json!({"hosts": [{"ip": "a", "port": 1, "weight": 0.0}]}), Ok("a:1*0"));
    let fractions = json!({"hosts": [
        {"ip": "a", "port": 1, "weight": 0.5}, {"ip": "b", "port": 1, "weight": 2}, {"ip": "c", "port": 1},
    ]});
    check(&fractions, Ok("a:1*50 b:1*200 c:1*10000"));
    let off = json!({"hosts": [
        {"ip": "a", "port": 1, "healthy": false}, {"ip": "b", "port": 1, "enabled": false},
    ]});
    check(&off, Ok(""));
    check(&json!({"hosts": []}), Ok(""));
    check(&json!({"hosts": null}), Ok(""));
}

#[test]
fn what_makes_no_sense_is_told_or_left_out() {
    check(&json!({"hosts": [{"ip": "a", "port": 1}, {"ip": "b"}, {"port": 1}, 5]}), Ok("a:1*100"));
    check(&json!({"hosts": [{"ip": "b"}]}), Err("has no port"));
    check(&json!({"hosts": [{"ip": "b", "port": 0}]}), Err("none of its 1 instances"));
    for odd in [json!({}), json!([]), json!(null), json!({"hosts": {}}), json!({"code": 0, "data": {}})] {
        check(&odd, Err("no list of hosts"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_before_its_end() {
    let life = |answer: Value| token(&answer).map(|token| (token.until - Instant::now()).as_secs());
    assert_eq!(life(json!({"accessToken": "t", "tokenTtl": 100})), Some(90));
    assert_eq!(life(json!({"accessToken": "t"})), Some(16_200));
    assert_eq!(life(json!({"accessToken": "t", "tokenTtl": -5})), Some(16_200));
    assert_eq!(life(json!({"accessToken": "t", "tokenTtl": 1e300})), Some(16_200));
    for odd in [json!({}), json!({"accessToken": ""}), json!({"accessToken": 5}), json!([])] {
        assert_eq!(life(odd), None);
    }
}

#[test]
fn a_signature_is_hmac_sha1_in_base64() {
    // printf '1@@g@@s' | openssl dgst -sha1 -hmac secret -binary | base64
    let query = signed(&("key".into(), "secret".into()), "1@@g@@s");
    assert_eq!(query, "&ak=key&data=1%40%40g%40%40s&signature=pqay3OQ0omgtDINDVN9Xpi8XEKk%3D");
}
