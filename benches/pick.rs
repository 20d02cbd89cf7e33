//! How long a pick takes among 100 nodes.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros document nothing; a bench may panic"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use streamgate::balance::Pool;
use streamgate::balance::PoolNode;
use streamgate::balance::PoolSettings;
use streamgate::balance::Tried;
use streamgate::resource::Balancer;
use streamgate::resource::HashKey;
use streamgate::resource::Timeouts;
use streamgate::session::Inbound;
use streamgate::session::Transport;

fn pool(balancer: &Balancer) -> Pool {
    let node = |index: u8| PoolNode {
        addr: ([10, 0, 0, index], 8080).into(),
        label: format!("10.0.0.{index}:8080").into(),
        weight: 1 + u32::from(index % 5),
        priority: 0,
        stats: Arc::default(),
        tls: None,
        health: None,
        leash: None,
    };
    let settings = PoolSettings {
        timeouts: Timeouts::default(),
        attempts: 3,
        retry_timeout: None,
        unfit: None,
        pending: false,
        close_on_down: 0,
    };
    Pool::new("u".into(), balancer, settings, (0..100).map(node).collect(), 7)
}

fn pick(c: &mut Criterion) {
    let balancers = [
        ("roundrobin", Balancer::RoundRobin),
        ("least_conn", Balancer::LeastConn),
        ("chash remote_addr", Balancer::Chash(HashKey::Variable("remote_addr".into()))),
        ("chash template", Balancer::Chash(HashKey::Template("$remote_addr$server_port".into()))),
    ];
    let inbound =
        Inbound::new(Transport::Tcp, "10.20.30.40:5000".parse().unwrap(), "127.0.0.1:9100".parse().unwrap());
    for (name, balancer) in balancers {
        let pool = pool(&balancer);
        c.bench_function(&format!("pick of 100, {name}"), |b| {
            b.iter(|| {
                black_box(pool.pick_where(&inbound, now(), |node| node.weight < 9, &mut Tried::default()))
            });
        });
    }
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

criterion_group!(benches, pick);
criterion_main!(benches);
