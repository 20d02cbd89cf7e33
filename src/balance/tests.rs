//! What the vectors do not pin: single nodes, weight 0, health, turns among equals, counts.

use std::time::Duration;

use super::*;
use crate::session::Transport;

pub(super) fn inbound() -> Inbound {
    Inbound::new(Transport::Tcp, "10.0.0.1:5000".parse().unwrap(), "127.0.0.1:9100".parse().unwrap())
}

pub(super) fn settings() -> PoolSettings {
    PoolSettings {
        timeouts: Timeouts::default(),
        attempts: 1,
        retry_timeout: Some(Duration::ZERO),
        unfit: None,
        pending: false,
        close_on_down: 0,
    }
}

/// Nodes named A, B, … of these weights and priorities.
pub(super) fn nodes(weights: &[(u32, i64)]) -> Vec<PoolNode> {
    let node = |(port, (weight, priority)): (u16, &(u32, i64))| PoolNode {
        addr: ([127, 0, 0, 1], port).into(),
        label: char::from(b'A' + u8::try_from(port).unwrap()).to_string().into(),
        weight: *weight,
        priority: *priority,
        stats: Arc::default(),
        tls: None,
        health: None,
        leash: None,
    };
    (0..).zip(weights).map(node).collect()
}

fn pool(balancer: &Balancer, weights: &[(u32, i64)]) -> Pool {
    Pool::new("u".into(), balancer, settings(), nodes(weights), 0)
}

pub(super) fn chash() -> Balancer {
    Balancer::Chash(HashKey::Variable("remote_addr".into()))
}

/// What one session tries until nothing is left, at most five times.
fn session(pool: &Pool, down: &str) -> String {
    let mut tried = Tried::default();
    let usable = |node: &PoolNode| !down.contains(&*node.label);
    (0..5)
        .map_while(|_| pool.pick_where(&inbound(), now(), usable, &mut tried))
        .map(|picked| picked.node.label.to_string())
        .collect()
}

#[track_caller]
fn check(balancer: &Balancer, weights: &[(u32, i64)], down: &str, tries: &[&str]) {
    let found = session(&pool(balancer, weights), down);
    assert!(
        tries.contains(&found.as_str()),
        "{balancer:?} {weights:?} without {down}: {found}, not of {tries:?}"
    );
}

#[test]
fn a_node_alone_is_used_whatever_its_state() {
    for balancer in [Balancer::RoundRobin, chash(), Balancer::LeastConn, Balancer::Ewma] {
        check(&balancer, &[(0, 0)], "A", &["AAAAA"]);
    }
    check(&Balancer::RoundRobin, &[], "", &[""]);
}

#[test]
fn weight_0_is_for_sets_without_weight() {
    for balancer in [Balancer::RoundRobin, chash(), Balancer::LeastConn] {
        check(&balancer, &[(1, 0), (0, 0)], "", &["A"]);
        check(&balancer, &[(1, 0), (0, 0)], "A", if balancer == chash() { &[""] } else { &["B"] });
        check(&balancer, &[(0, 0), (0, 0)], "", &["AB", "BA"]);
        check(&balancer, &[(0, 1), (1, 0)], "", &["AB"]);
    }
}

#[test]
fn health_filters_unless_nothing_is_left() {
    for balancer in [Balancer::RoundRobin, chash(), Balancer::LeastConn] {
        check(&balancer, &[(1, 0), (1, 0)], "A", &["B"]);
        check(&balancer, &[(1, 0), (1, 0)], "AB", &["AB", "BA"]);
        check(&balancer, &[(1, 5), (1, 0)], "A", &["B"]);
        check(&balancer, &[(1, 0), (1, 5)], "", &["BA"]);
    }
}

#[test]
fn least_conn_counts_outlive_the_pool() {
    let nodes = nodes(&[(1, 0), (1, 0)]);
    let new = |nodes: &[PoolNode]| Pool::new("u".into(), &Balancer::LeastConn, settings(), nodes.to_vec(), 0);
    let first = new(&nodes).pick(&inbound(), now(), &mut Tried::default()).unwrap();
    let pool = new(&nodes);
    let second = pool.pick(&inbound(), now(), &mut Tried::default()).unwrap();
    assert_ne!(first.node.label, second.node.label);
    drop(first);
    drop(second);
    assert!(nodes.iter().all(|node| node.stats.in_flight() == 0));
}

#[test]
fn least_conn_takes_turns_among_idle_nodes() {
    let pool = pool(&Balancer::LeastConn, &[(1, 0), (1, 0), (1, 0)]);
    let picks = (0..6).filter_map(|_| pool.pick(&inbound(), now(), &mut Tried::default()));
    assert_eq!(picks.map(|picked| picked.node.label.to_string()).collect::<String>(), "ABCABC");
}

#[test]
fn least_conn_is_exact_over_workers() {
    let pool = pool(&Balancer::LeastConn, &[(1, 0), (2, 0), (1, 0)]);
    let worker = || {
        let pick = |_| pool.pick(&inbound(), now(), &mut Tried::default()).unwrap();
        (0..1000).map(pick).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let held: Vec<_> =
            [scope.spawn(worker), scope.spawn(worker)].map(|worker| worker.join().unwrap()).into();
        assert_eq!(
            pool.nodes().iter().map(|node| node.stats.in_flight()).collect::<Vec<_>>(),
            [500, 1000, 500]
        );
        drop(held);
    });
}

#[test]
fn a_session_goes_on_in_a_newer_pool() {
    let nodes = nodes(&[(1, 0), (1, 0), (1, 0)]);
    let mut tried = Tried::default();
    let new =
        |nodes: &[PoolNode]| Pool::new("u".into(), &Balancer::RoundRobin, settings(), nodes.to_vec(), 0);
    let mut next =
        |pool: &Pool| pool.pick(&inbound(), now(), &mut tried).map(|picked| picked.node.label.to_string());
    assert_eq!(next(&new(&nodes)).as_deref(), Some("A"));
    assert_eq!(next(&new(&nodes[..2])).as_deref(), Some("B"));
    assert_eq!(next(&new(&nodes[..2])), None);
}

#[test]
fn degradation_is_said() {
    assert_eq!(pool(&Balancer::RoundRobin, &[(1, 0)]).degraded(), None);
    assert_eq!(pool(&Balancer::Ewma, &[(1, 0)]).degraded(), None);
    assert!(pool(&Balancer::Unknown("random".into()), &[(1, 0)]).degraded().unwrap().contains("`random`"));
    assert_eq!(session(&pool(&Balancer::Unknown("random".into()), &[(1, 0), (1, 0)]), "").len(), 2);
}

#[test]
fn huge_chash_weights_do_not_eat_the_memory() {
    let pool = pool(&chash(), &[(u32::MAX, 0), (1, 0), (u32::MAX, 0)]);
    assert!(pool.degraded().unwrap().contains("weights"));
    assert_eq!(session(&pool, "").len(), 3);
}

pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
