//! How long a pick takes among 100 nodes with health checks, all well and with one of them down.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros document nothing; a bench may panic"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use streamgate::balance::{Pool, Tried};
use streamgate::config::RulesConfig;
use streamgate::health::{Cause, Finding, Limits, Report};
use streamgate::live::Live;
use streamgate::resource::{Key, Kind};
use streamgate::session::{Inbound, Transport};
use streamgate::snapshot::Builder;
use streamgate::store::{Batch, Event, Store};
use tokio::time::Instant;

/// The pool of an upstream of 100 nodes; `how` is its type with what belongs to it.
fn pool(how: &serde_json::Value) -> Arc<Pool> {
    let mut upstream = how.clone();
    let node = |index: u32| json!({"host": format!("10.0.0.{index}"), "port": 8080, "weight": 1 + index % 5});
    upstream["nodes"] = (0..100).map(node).collect();
    upstream["checks"] = json!({"active": {"type": "tcp", "healthy": {}, "unhealthy": {}}});
    let value = json!({"upstream": upstream}).to_string().into();
    let put = Event::Put { key: Key::new(Kind::StreamRoute, "r"), value, revision: 1 };
    let mut store = Store::new(RulesConfig::default());
    let changes = store.apply(Batch { events: vec![put], revision: 1 }, 0);
    let snapshot = Builder::new(Arc::new(Live::default()), 7).build(&store, &changes);
    let pool = snapshot.checked_pools().next().unwrap().clone();
    assert_eq!(pool.nodes().len(), 100);
    pool
}

/// Takes a node out.
fn take_out(pool: &Pool, place: usize) {
    let cause = || Cause { by: Finding::Active, why: "a bench".into(), since_unix_ms: 0 };
    let limits = Limits { tcp_failures: 1, ..Limits::ACTIVE };
    let cell = &pool.checked().unwrap().targets[place].cell;
    assert!(cell.report(Report::TcpFailure, &limits, cause).unwrap().turned);
}

fn pick(c: &mut Criterion) {
    let template =
        json!({"type": "chash", "hash_on": "vars_combinations", "key": "$remote_addr$server_port"});
    let balancers = [
        ("roundrobin", json!({"type": "roundrobin"})),
        ("least_conn", json!({"type": "least_conn"})),
        ("ewma", json!({"type": "ewma"})),
        ("chash remote_addr", json!({"type": "chash", "key": "remote_addr"})),
        ("chash template", template),
    ];
    let inbound =
        Inbound::new(Transport::Tcp, "10.20.30.40:5000".parse().unwrap(), "127.0.0.1:9100".parse().unwrap());
    let now = Instant::now().into_std();
    for (name, how) in &balancers {
        let pool = pool(how);
        for state in ["", ", one down"] {
            if !state.is_empty() {
                take_out(&pool, 50);
            }
            c.bench_function(&format!("pick of 100, {name}{state}"), |b| {
                b.iter(|| black_box(pool.pick(&inbound, now, &mut Tried::default())));
            });
        }
    }
}

criterion_group!(benches, pick);
criterion_main!(benches);
