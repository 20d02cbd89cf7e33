//! What reading one object costs: decode, schema, checks, typed value.
#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a bench fails by panicking")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use streamgate::config::RulesConfig;
use streamgate::resource::{Key, Kind, Rules};

const ROUTE: &str = r#"{"id":"7","name":"orders","server_port":9100,"remote_addr":"10.0.0.0/8",
"upstream":{"type":"roundrobin","nodes":{"10.1.0.5:5432":1,"10.1.0.6:5432":2}},
"plugins":{"limit-conn":{"conn":100,"burst":0,"default_conn_delay":0.1,"key":"remote_addr"}},
"create_time":1700000000,"update_time":1700000000}"#;

const UPSTREAM: &str = r#"{"type":"chash","key":"remote_addr","scheme":"tcp",
"nodes":[{"host":"10.1.0.5","port":3306,"weight":1},{"host":"db.internal","port":3306,"weight":1,"priority":-1}],
"timeout":{"connect":5,"send":60,"read":60},
"checks":{"active":{"type":"tcp","healthy":{"interval":2},"unhealthy":{"tcp_failures":3}}}}"#;

const REFUSED: &str = r#"{"server_port":"x","upstream":{"nodes":[{"host":"a"}]},"plugin":{}}"#;

fn parse(c: &mut Criterion) {
    let names = ["ip-restriction", "limit-conn", "mqtt-proxy", "syslog", "traffic-split", "prometheus"];
    let rules =
        Rules::new(&RulesConfig { stream_plugins: names.map(Box::from).to_vec(), ..RulesConfig::default() });
    let cases = [
        ("route", Kind::StreamRoute, ROUTE, true),
        ("upstream", Kind::Upstream, UPSTREAM, true),
        ("refused", Kind::StreamRoute, REFUSED, false),
    ];
    for (name, kind, text, accepted) in cases {
        let key = Key::new(kind, "7");
        assert_eq!(rules.parse(&key, text.as_bytes()).is_ok(), accepted);
        c.bench_function(name, |b| b.iter(|| rules.parse(black_box(&key), black_box(text.as_bytes()))));
    }
}

criterion_group!(benches, parse);
criterion_main!(benches);
