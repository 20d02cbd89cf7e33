//! How long it takes to choose one of 10,000 certificates.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros document nothing; a bench may panic"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use streamgate::certs::Certificates;
use streamgate::matcher::Order;
use streamgate::resource::Ssl;

/// Names of every kind: most exact, one in ten a wildcard, of many lengths.
fn name(index: u32) -> String {
    let host = "x".repeat(usize::try_from(index % 40).unwrap());
    if index.is_multiple_of(10) {
        format!("*.{host}{index}.example.com")
    } else {
        format!("{host}{index}.example.com")
    }
}

fn certificates(count: u32) -> Certificates<u32> {
    let mut certificates = Certificates::default();
    for index in 0..count {
        let ssl = Ssl::of_names(index.to_string().into(), &json!({"sni": name(index)}));
        let order = Order(index.to_string().as_bytes().into());
        certificates.insert(order, Arc::new(ssl), index);
    }
    certificates
}

fn choose(criterion: &mut Criterion) {
    let certificates = certificates(10_000);
    let asked: Vec<String> = (0..10_000).map(|index| name(index).replace('*', "api")).collect();
    assert!(asked.iter().all(|name| certificates.find(name).is_some()));
    let mut turn = asked.iter().cycle();
    criterion.bench_function("certificate of 10,000", |bencher| {
        bencher.iter(|| certificates.find(black_box(turn.next().unwrap())));
    });
    let long = format!("{}.example.org", "a.".repeat(100));
    criterion.bench_function("certificate of 10,000, none", |bencher| {
        bencher.iter(|| certificates.find(black_box(&long)));
    });
}

criterion_group!(benches, choose);
criterion_main!(benches);
