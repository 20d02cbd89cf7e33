//! How long a match and a change take with 100,000 mixed routes, and what a route costs in memory.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros document nothing; a bench may panic"
)]
#![allow(clippy::print_stdout, reason = "the memory figure is printed")]

use std::hint::black_box;
use std::net::IpAddr;
use std::net::SocketAddr;

use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use streamgate::addr::IpMatcher;
use streamgate::matcher::Matcher;
use streamgate::matcher::Order;
use streamgate::matcher::Query;
use streamgate::matcher::Rule;

const RULES: u32 = 100_000;

/// xorshift: the same rules and queries at every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    fn below(&mut self, end: u32) -> u32 {
        u32::try_from((self.next() >> 11) % u64::from(end)).unwrap()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }

    fn port(&mut self) -> u16 {
        u16::try_from(1 + self.below(20_000)).unwrap()
    }

    fn v4(&mut self) -> IpAddr {
        IpAddr::from(self.below(u32::MAX).to_be_bytes())
    }
}

fn server(index: u32) -> IpAddr {
    [10, 0, 0, u8::try_from(index).unwrap()].into()
}

/// Client networks of all sizes, some IPv6; most with a port, some with a local address or a name.
fn rule(random: &mut Random) -> Rule {
    let remote_addr = random.chance(70).then(|| {
        let length = u8::try_from(8 + random.below(25)).unwrap();
        let address = if random.chance(10) {
            let [a, b, c] = [(); 3].map(|()| u16::try_from(random.below(65_536)).unwrap());
            IpAddr::from([0x2001, a, b, c, 0, 0, 0, 0])
        } else {
            random.v4()
        };
        IpMatcher::from(IpNet::new(address, if address.is_ipv4() { length } else { length * 2 }).unwrap())
    });
    let snis = random.chance(30).then(|| {
        let domain = random.below(2000);
        let name = if random.chance(50) { format!("h{}", random.below(50)) } else { "*".to_owned() };
        format!("{name}.d{domain}.example.com").parse().unwrap()
    });
    Rule {
        server_port: (remote_addr.is_none() || random.chance(85)).then(|| random.port()),
        server_addr: random.chance(20).then(|| IpNet::from(server(random.below(64))).into()),
        remote_addr,
        snis: snis.into_iter().collect(),
    }
}

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
    /// Three of four are made from a rule, so that one matches.
    fn new(random: &mut Random, rules: &[Rule]) -> Self {
        let rule = &rules[random.below(RULES) as usize];
        let hit = random.chance(75);
        let net = rule.remote_addr.filter(|_| hit).map(|net| net.network());
        let client = net.map_or_else(|| random.v4(), |net| net.addr());
        let port = rule.server_port.filter(|_| hit).unwrap_or_else(|| random.port());
        let addr = rule
            .server_addr
            .filter(|_| hit)
            .map_or_else(|| server(random.below(64)), |net| net.network().addr());
        let named = rule.snis.first().filter(|_| hit).map(|sni| sni.to_string().replace('*', "w"));
        let other = || format!("h{}.d{}.example.com", random.below(50), random.below(2000));
        Self {
            client,
            server: (addr, port).into(),
            sni: named.or_else(|| port.is_multiple_of(2).then(other)),
        }
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
    let mut random = Random(88_172_645_463_325_252);
    let rules: Vec<_> = (0..RULES).map(|_| rule(&mut random)).collect();
    let asked: Vec<_> = (0..20_000).map(|_| Asked::new(&mut random, &rules)).collect();

    let before = resident();
    let mut matcher = Matcher::default();
    for (index, rule) in (0..).zip(&rules) {
        matcher.insert(order(index), rule.clone(), index);
    }
    println!("memory: {} bytes a rule", (resident() - before) / u64::from(RULES));
    let found = asked.iter().filter(|asked| matcher.find(&asked.query()).is_some()).count();
    println!("{found} of {} queries match", asked.len());

    let mut turn = asked.iter().cycle();
    c.bench_function("match, 100,000 rules", |b| {
        b.iter(|| black_box(matcher.find(&turn.next().unwrap().query())));
    });

    let mut turn = (0..).zip(&rules).cycle();
    c.bench_function("replace one rule on a clone, 100,000 rules", |b| {
        b.iter(|| {
            let (index, rule) = turn.next().unwrap();
            let mut changed = matcher.clone();
            changed.remove(&order(index), rule);
            changed.insert(order(index), rule.clone(), index);
            matcher = changed;
        });
    });

    c.bench_function("clone, 100,000 rules", |b| b.iter(|| black_box(matcher.clone())));
    let mut slow = c.benchmark_group("whole");
    slow.sample_size(10);
    slow.bench_function("explain", |b| {
        b.iter(|| black_box(matcher.explain(&asked[0].query(), 20)).others.len());
    });
    slow.bench_function("shadowed", |b| b.iter(|| black_box(matcher.shadowed()).len()));
    slow.bench_function("overlaps", |b| b.iter(|| black_box(matcher.overlaps(1000, |_, _| false)).complete));
}

criterion_group!(benches, matcher);
criterion_main!(benches);
