//! How long a match and a change take with 100,000 routes of several shapes, and what a route costs
//! in memory.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros document nothing; a bench may panic"
)]
#![allow(clippy::print_stdout, reason = "the memory figure is printed")]

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};

use criterion::{Criterion, criterion_group, criterion_main};
use streamgate::addr::IpMatcher;
use streamgate::matcher::{Matcher, Order, Query, Rule};

#[path = "support/shapes.rs"]
mod shapes;

use shapes::{RULES, Random, SHAPES, Shape};

/// Ids as people write them: numbers and words, in no order.
fn order(index: u32) -> Order {
    Order(format!("{:x}-route", index.wrapping_mul(2_654_435_761)).as_bytes().into())
}

struct Asked {
    client: IpAddr,
    server: SocketAddr,
    sni: Option<String>,
}

impl Asked {
    /// Three of four are made from a rule, so that one matches. The others are made from several, or
    /// by chance where rules are mixed.
    fn new(random: &mut Random, rules: &[Rule], shape: Shape) -> Self {
        let hit = random.chance(75);
        let home = random.below(RULES) as usize;
        let pick = |random: &mut Random| match (hit, shape) {
            (true, _) => rules[home].clone(),
            (false, Shape::Mixed) => Rule::default(),
            (false, _) => rules[random.below(RULES) as usize].clone(),
        };
        let addr = |net: Option<IpMatcher>| net.map(|net| net.network().addr());
        let client = addr(pick(random).remote_addr).unwrap_or_else(|| random.v4());
        let port = pick(random).server_port.unwrap_or_else(|| random.port());
        let server = addr(pick(random).server_addr).unwrap_or_else(|| shapes::server(random.below(64)));
        let named = pick(random).snis.first().map(|sni| sni.to_string().replace('*', "w"));
        let other = || format!("h{}.d{}.example.com", random.below(50), random.below(2000));
        let sni = named.or_else(|| port.is_multiple_of(2).then(other));
        Self { client, server: (server, port).into(), sni }
    }

    fn query(&self) -> Query<'_> {
        Query { client: self.client, server: self.server, sni: self.sni.as_deref() }
    }
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn matcher(c: &mut Criterion) {
    for (shape, name) in SHAPES {
        let mut random = Random::new();
        let rules = shape.rules(&mut random);
        let asked: Vec<_> = (0..20_000).map(|_| Asked::new(&mut random, &rules, shape)).collect();

        let before = resident();
        let mut matcher = Matcher::default();
        for (index, rule) in (0..).zip(&rules) {
            matcher.insert(order(index), rule.clone(), index);
        }
        println!("{name}: {} bytes a rule", resident().saturating_sub(before) / u64::from(RULES));
        let found = asked.iter().filter(|asked| matcher.find(&asked.query()).is_some()).count();
        println!("{name}: {found} of {} queries match", asked.len());

        let suffix = if shape == Shape::Mixed { String::new() } else { format!(", {name}") };
        let mut turn = asked.iter().cycle();
        c.bench_function(&format!("match, 100,000 rules{suffix}"), |b| {
            b.iter(|| black_box(matcher.find(&turn.next().unwrap().query())));
        });

        let mut turn = (0..).zip(&rules).cycle();
        c.bench_function(&format!("replace one of 100,000 rules{suffix}"), |b| {
            b.iter(|| {
                let (index, rule) = turn.next().unwrap();
                let mut changed = matcher.clone();
                changed.remove(&order(index), rule);
                changed.insert(order(index), rule.clone(), index);
                matcher = changed;
            });
        });
        if shape == Shape::Mixed {
            whole(c, &matcher, &asked[0]);
        }
    }
}

/// What looks at every rule.
fn whole(c: &mut Criterion, matcher: &Matcher<u32>, asked: &Asked) {
    c.bench_function("clone, 100,000 rules", |b| b.iter(|| black_box(matcher.clone())));
    let mut slow = c.benchmark_group("whole");
    slow.sample_size(10);
    slow.bench_function("explain", |b| {
        b.iter(|| black_box(matcher.explain(&asked.query(), 20)).others.len());
    });
    slow.bench_function("shadowed", |b| b.iter(|| black_box(matcher.shadowed()).len()));
    slow.bench_function("overlaps", |b| b.iter(|| black_box(matcher.overlaps(1000, |_, _| false)).complete));
}

criterion_group!(benches, matcher);
criterion_main!(benches);
