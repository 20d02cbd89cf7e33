//! What holds of every balancer whatever the weights, priorities and states of its nodes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/objects.rs"]
mod objects;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use objects::Objects;
use proptest::prelude::*;
use serde_json::{Value, json};
use streamgate::balance::{Picked, Pool, PoolNode, Tried};
use streamgate::health::{Cause, Finding, Limits, Report};
use streamgate::resource::Kind;
use streamgate::session::{Inbound, Transport};

const TYPES: [&str; 4] = ["roundrobin", "chash", "least_conn", "ewma"];
const PICKS: u32 = 10_000;

/// An upstream with health checks; its nodes are 10.0.0.1:1, 10.0.0.1:2, …
fn upstream(balancer: &str, nodes: &[(u32, i64)]) -> Value {
    let node = |(port, (weight, priority)): (u16, &(u32, i64))| json!({"host": "10.0.0.1", "port": port, "weight": weight, "priority": priority});
    let nodes: Vec<Value> = (1..).zip(nodes).map(node).collect();
    let checks = json!({"active": {"type": "tcp", "unhealthy": {"tcp_failures": 1}}});
    json!({"type": balancer, "key": "remote_port", "nodes": nodes, "checks": checks})
}

fn weights(weights: &[u32]) -> Vec<(u32, i64)> {
    weights.iter().map(|weight| (*weight, 0)).collect()
}

fn inbound(port: u32) -> Inbound {
    let client = ([10, 9, 0, 1], u16::try_from(1 + port % 60_000).unwrap()).into();
    Inbound::new(Transport::Tcp, client, ([127, 0, 0, 1], 9100).into())
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn pick(pool: &Pool) -> Picked {
    pool.pick(&inbound(0), now(), &mut Tried::default()).unwrap()
}

/// The place of a node in its upstream.
fn place(node: &PoolNode) -> usize {
    usize::from(node.addr.port()) - 1
}

/// Takes nodes out and lets them in again.
fn set_up(pool: &Pool, up: &[bool]) {
    let cause = || Cause { by: Finding::Active, why: "the test says so".into(), since_unix_ms: 0 };
    let limits = Limits { successes: 1, tcp_failures: 1, ..Limits::ACTIVE };
    for node in pool.nodes() {
        let report = if up[place(node)] { Report::Success } else { Report::TcpFailure };
        node.health.as_ref().unwrap().report(report, &limits, cause);
    }
}

fn up_sets(nodes: usize) -> impl Strategy<Value = Vec<bool>> {
    proptest::collection::vec(any::<bool>(), nodes)
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(config(60))]

    /// Each node gets its share of every ten thousand sessions within 1 % of them, whichever nodes are up,
    /// and exactly its weight of each full round while all are.
    #[test]
    fn shares_of_turns_are_the_weights(
        (weights, ups) in proptest::collection::vec(prop_oneof![4 => 1_u32..=100, 1 => Just(2000)], 2..9)
            .prop_flat_map(|weights| {
                let nodes = weights.len();
                (Just(weights), proptest::collection::vec(up_sets(nodes), 1..4))
            }),
        seed in any::<u64>(),
    ) {
        let pool = Objects::to(seed, &upstream("roundrobin", &self::weights(&weights))).pool();
        let total: u32 = weights.iter().sum();
        let mut counts = vec![0; weights.len()];
        (0..total).for_each(|_| counts[place(&pick(&pool).node)] += 1);
        prop_assert_eq!(&counts, &weights);
        for up in ups {
            set_up(&pool, &up);
            let up: Vec<bool> = if up.contains(&true) { up } else { vec![true; weights.len()] };
            let total: u32 = weights.iter().zip(&up).filter(|(_, up)| **up).map(|(weight, _)| weight).sum();
            let mut counts = vec![0_u32; weights.len()];
            (0..PICKS).for_each(|_| counts[place(&pick(&pool).node)] += 1);
            for ((weight, count), up) in weights.iter().zip(&counts).zip(&up) {
                let share = if *up { PICKS * weight / total } else { 0 };
                prop_assert!(count.abs_diff(share) <= PICKS / 100, "{:?} by {:?}, up {:?}", counts, weights, up);
            }
        }
    }
}

proptest! {
    #![proptest_config(config(300))]

    /// A session is given each node once, no node that is down while one is up, and higher priorities first.
    #[test]
    fn no_node_that_is_down_while_one_is_up(
        balancer in prop::sample::select(&TYPES[..]),
        (nodes, up) in proptest::collection::vec((0_u32..4, 0_i64..3), 2..8)
            .prop_flat_map(|nodes| { let count = nodes.len(); (Just(nodes), up_sets(count)) }),
        port in any::<u16>(),
    ) {
        let pool = Objects::to(1, &upstream(balancer, &nodes)).pool();
        set_up(&pool, &up);
        let all_down = !up.contains(&true);
        let (mut tried, mut got) = (Tried::default(), Vec::new());
        while let Some(picked) = pool.pick(&inbound(port.into()), now(), &mut tried) {
            let node = place(&picked.node);
            prop_assert!(all_down || up[node], "{} is down; {:?} {:?}", node, nodes, up);
            prop_assert!(!got.contains(&node), "{} comes twice; {:?} {:?}", node, nodes, up);
            got.push(node);
        }
        let priorities: Vec<i64> = got.iter().map(|node| nodes[*node].1).collect();
        prop_assert!(priorities.is_sorted_by(|a, b| a >= b), "{:?} of {:?}", got, nodes);
        if nodes.iter().all(|(weight, _)| *weight > 0) {
            let expected = up.iter().filter(|up| **up || all_down).count();
            prop_assert_eq!(got.len(), expected);
        } else if balancer != "chash" {
            prop_assert!(!got.is_empty(), "nobody of {:?} {:?}", nodes, up);
        }
        let counted = pool.checked().unwrap().stats.all_down.count();
        prop_assert_eq!(counted, u64::from(all_down && !got.is_empty()));
    }
}

proptest! {
    #![proptest_config(config(40))]

    /// After any history of begins and ends, once nothing ends any more, no node is ahead by more than the
    /// session it got last; and an edit of the upstream loses none that is held.
    #[test]
    fn least_conn_is_never_off_by_more_than_one(
        weights in proptest::collection::vec(1_u32..5, 2..7),
        ends in proptest::collection::vec(any::<u16>(), 0..200),
        edited in proptest::collection::vec(1_u32..5, 6),
    ) {
        let mut objects = Objects::to(1, &upstream("least_conn", &self::weights(&weights)));
        let mut held: Vec<Picked> = Vec::new();
        for end in ends {
            held.push(pick(&objects.pool()));
            if end % 3 == 0 {
                held.swap_remove(usize::from(end) % held.len());
            }
        }
        check_counts(&objects.pool(), &held)?;
        // One node more, all weights other, and their order.
        let mut edit = edited;
        edit.truncate(weights.len() + 1);
        objects.put(Kind::Upstream, "u1", &upstream("roundrobin", &self::weights(&edit)));
        check_counts(&objects.pool(), &held)?;
        let mut reversed = upstream("least_conn", &self::weights(&edit));
        reversed["nodes"].as_array_mut().unwrap().reverse();
        objects.put(Kind::Upstream, "u1", &reversed);
        let pool = objects.pool();
        check_counts(&pool, &held)?;
        (0..held.len() * 10 + 100).for_each(|_| held.push(pick(&pool)));
        check_counts(&pool, &held)?;
        for (a, b) in pool.nodes().iter().flat_map(|a| pool.nodes().iter().map(move |b| (a, b))) {
            let (of_a, of_b) = (a.stats.in_flight(), b.stats.in_flight());
            // The last session of `a` went there because it was no worse than one more for `b`.
            let fair = of_a * u64::from(b.weight) <= (of_b + 1) * u64::from(a.weight);
            prop_assert!(fair, "{} of weight {}, {} of weight {}", of_a, a.weight, of_b, b.weight);
        }
        drop(held);
        prop_assert!(pool.nodes().iter().all(|node| node.stats.in_flight() == 0));
    }
}

/// Asserts that each node counts exactly the sessions it has.
fn check_counts(pool: &Pool, held: &[Picked]) -> Result<(), TestCaseError> {
    for node in pool.nodes() {
        let sessions = held.iter().filter(|picked| picked.node.label == node.label).count();
        prop_assert_eq!(node.stats.in_flight(), sessions as u64, "{}", node.label);
    }
    Ok(())
}

/// Four threads begin and end sessions at once, then begin until each node has had some.
#[test]
fn least_conn_is_exact_over_threads() {
    let pool = Objects::to(1, &upstream("least_conn", &weights(&[1; 5]))).pool();
    let worker = |number: usize| {
        let mut held: Vec<Picked> = Vec::new();
        for turn in 0..4000 {
            held.push(pick(&pool));
            if turn < 2000 && !(turn + number).is_multiple_of(4) {
                held.swap_remove(turn * 7 % held.len());
            }
        }
        held
    };
    let held: Vec<Picked> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|number| scope.spawn(move || worker(number))).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let counts: Vec<u64> = pool.nodes().iter().map(|node| node.stats.in_flight()).collect();
    assert_eq!(counts.iter().sum::<u64>(), held.len() as u64);
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 1, "{counts:?}");
}

/// Picks while nodes answer after so many milliseconds each; a pick every hundred.
fn ewma_run(pool: &Pool, start: &mut Instant, millis: [u64; 2]) -> [u32; 2] {
    let mut counts = [0; 2];
    for _ in 0..1000 {
        *start += Duration::from_millis(100);
        let picked = pool.pick(&inbound(0), *start, &mut Tried::default()).unwrap();
        let node = place(&picked.node);
        counts[node] += 1;
        picked.node.stats.ewma.record(Duration::from_millis(millis[node]), *start);
    }
    counts
}

#[test]
fn ewma_prefers_the_node_that_answers_sooner_and_does_not_forget_the_other() {
    let pool = Objects::to(7, &upstream("ewma", &weights(&[1, 1]))).pool();
    assert!(pool.measures_connects());
    let mut clock = now();
    let [slow, fast] = ewma_run(&pool, &mut clock, [50, 5]);
    assert!(slow >= 2 && fast > 2 * slow, "the slow one got {slow}, the fast one {fast}");
    // It is the slow one's turn to be the fast one.
    let [fast, slow] = ewma_run(&pool, &mut clock, [5, 50]);
    assert!(slow >= 2 && fast > 2 * slow, "the slow one got {slow}, the fast one {fast}");
    // A node nobody measured for long is as good as any.
    pool.nodes()[0].stats.ewma.record(Duration::from_secs(5), clock);
    pool.nodes()[1].stats.ewma.record(Duration::from_millis(1), clock);
    let later = clock + Duration::from_mins(5);
    let mut counts = BTreeMap::<usize, u32>::new();
    for _ in 0..1000 {
        let picked = pool.pick(&inbound(0), later, &mut Tried::default()).unwrap();
        *counts.entry(place(&picked.node)).or_default() += 1;
    }
    assert!(counts[&0] > 300 && counts[&1] > 300, "{counts:?}");
}

#[test]
fn ewma_weighs_sessions_that_a_node_has() {
    let pool = Objects::to(7, &upstream("ewma", &weights(&[1, 3]))).pool();
    for node in pool.nodes() {
        node.stats.ewma.record(Duration::from_millis(5), now());
    }
    let held: Vec<Picked> = (0..4000).map(|_| pick(&pool)).collect();
    let share = held.iter().filter(|picked| place(&picked.node) == 0).count();
    assert!((990..=1010).contains(&share), "{share} of 4000 on a quarter of the weight");
}

#[test]
fn turns_are_smooth_from_anywhere() {
    let mut firsts = [0; 3];
    for seed in 0..300 {
        let pool = Objects::to(seed, &upstream("roundrobin", &weights(&[1, 1, 1]))).pool();
        let six: Vec<usize> = (0..6).map(|_| place(&pick(&pool).node)).collect();
        assert_eq!(six[..3], six[3..], "turn by turn");
        firsts[six[0]] += 1;
        let pool = Objects::to(seed, &upstream("roundrobin", &weights(&[5, 1, 1]))).pool();
        let round: Vec<bool> = (0..14).map(|_| place(&pick(&pool).node) == 0).collect();
        assert!(!round.windows(6).any(|six| six == [true; 6]), "five in a row and one more: {round:?}");
        assert!(round.windows(3).all(|three| three.contains(&true)), "{round:?}");
    }
    assert!(firsts.iter().all(|first| *first > 50), "{firsts:?}");
}

/// What a node had to wait for beside a heavy one is not made up for when that one goes.
#[test]
fn turns_stay_smooth_when_a_heavy_node_goes() {
    for before in (0..1000).step_by(37) {
        let pool = Objects::to(1, &upstream("roundrobin", &weights(&[1000, 1, 1]))).pool();
        (0..before).for_each(|_| drop(pick(&pool)));
        set_up(&pool, &[false, true, true]);
        let after: Vec<usize> = (0..40).map(|_| place(&pick(&pool).node)).collect();
        let unfair = after.windows(12).any(|twelve| !(twelve.contains(&1) && twelve.contains(&2)));
        assert!(!unfair, "after {before} sessions: {after:?}");
    }
}

/// Nodes that are written twice are one, the last weight counting (`apisix/balancer.lua:51-73`).
#[test]
fn a_node_that_is_written_twice_is_one() {
    let node = |port: u16, weight: u32| json!({"host": "10.0.0.1", "port": port, "weight": weight});
    let twice = json!({"nodes": [node(1, 7), node(2, 1), node(1, 3)]});
    let pool = Objects::to(1, &twice).pool();
    let mut counts = [0; 2];
    (0..400).for_each(|_| counts[place(&pick(&pool).node)] += 1);
    assert_eq!(counts, [300, 100]);
}

/// The random name of a session decides, not its place in a sequence: a node that goes takes only its own.
#[test]
fn chash_moves_only_the_keys_of_a_node_that_is_down() {
    let pool = Objects::to(1, &upstream("chash", &weights(&[1, 2, 3, 1]))).pool();
    let all = |pool: &Arc<Pool>| -> Vec<usize> {
        let picked = |port| pool.pick(&inbound(port), now(), &mut Tried::default()).unwrap();
        (0..2000).map(|port| place(&picked(port).node)).collect()
    };
    let before = all(&pool);
    set_up(&pool, &[true, true, false, true]);
    let after = all(&pool);
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
    assert!(moved.clone().count() > 100);
    assert!(moved.clone().all(|(before, after)| *before == 2 && *after != 2));
    set_up(&pool, &[true; 4]);
    assert_eq!(all(&pool), before);
}
