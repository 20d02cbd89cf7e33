//! How long the control thread needs to publish one change among 100,000 routes: from handing the
//! change to the builder until the new snapshot is stored and the one before is freed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros document nothing; a bench may panic"
)]
#![allow(clippy::disallowed_methods, reason = "a bench reads the real clock")]

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use streamgate::config::RulesConfig;
use streamgate::live::Live;
use streamgate::matcher::Rule;
use streamgate::resource::{Key, Kind};
use streamgate::snapshot::{Builder, Published};
use streamgate::store::{Batch, Changes, Event, Store};

#[path = "support/shapes.rs"]
mod shapes;

use shapes::{RULES, Random, SHAPES, Shape};

const UPSTREAMS: u32 = 1000;
/// Each has ten routes.
const SERVICES: u32 = RULES / 40;
const REFUSED: u32 = 5000;

/// The control plane without its threads.
struct Control {
    rules: Vec<Rule>,
    store: Store,
    builder: Builder,
    published: Published,
    revision: i64,
}

impl Control {
    fn new(shape: Shape) -> Self {
        let rules = shape.rules(&mut Random::new());
        let store = Store::new(RulesConfig::default());
        let builder = Builder::new(Arc::new(Live::default()), 1);
        let mut control = Self { rules, store, builder, published: Published::default(), revision: 1 };
        let routes = (0..RULES).map(|index| control.route(index, 1));
        let upstreams = (0..UPSTREAMS).map(|index| upstream(index, 1));
        let services = (0..SERVICES).map(|index| service(index, 1));
        let objects = routes.chain(upstreams).chain(services).map(|(key, text)| (key, text.into(), 1));
        let resync = Event::Resync { objects: objects.collect(), revision: 1 };
        let upstreams = (0..UPSTREAMS).map(|index| resolved("db", index, 1));
        let services = (0..SERVICES).map(|index| resolved("service", index, 1));
        let events = [resync].into_iter().chain(upstreams).chain(services).collect();
        let changes = control.store.apply(Batch { events, revision: 1 }, 0);
        assert!(control.store.rejected().next().is_none(), "{:?}", control.store.rejected().next());
        control.publish(&changes);
        assert_eq!(control.published.load().route_count(), RULES as usize);
        control
    }

    /// Half of the routes have nodes of their own, a quarter those of an upstream or of a service.
    fn route(&self, index: u32, weight: u32) -> (Key, String) {
        let Rule { remote_addr, server_addr, server_port, snis } = &self.rules[index as usize];
        let mut text = String::from("{");
        // Writing to a string cannot fail.
        let mut condition = |name, value: Option<String>| {
            if let Some(value) = value {
                write!(text, r#""{name}":{value},"#).unwrap();
            }
        };
        condition("remote_addr", remote_addr.map(|net| format!("\"{net}\"")));
        condition("server_addr", server_addr.map(|net| format!("\"{net}\"")));
        condition("server_port", server_port.map(|port| port.to_string()));
        condition("sni", snis.first().map(|sni| format!("\"{sni}\"")));
        let [.., a, b] = index.to_be_bytes();
        match index % 4 {
            0 => write!(text, r#""upstream_id":"{}","#, index / 4 % UPSTREAMS).unwrap(),
            1 => write!(text, r#""service_id":"{}","#, index / 4 % SERVICES).unwrap(),
            _ => {
                let nodes = format!(r#"{{"10.1.{a}.{b}:80":1,"10.2.{a}.{b}:80":{weight}}}"#);
                write!(text, r#""upstream":{{"nodes":{nodes}}},"#).unwrap();
            }
        }
        write!(text, r#""desc":"{weight}"}}"#).unwrap();
        (Key::new(Kind::StreamRoute, format!("{:x}", index.wrapping_mul(2_654_435_761))), text)
    }

    fn apply(&mut self, change: impl FnOnce(i64) -> Event) -> Changes {
        self.revision += 1;
        let batch = Batch { events: vec![change(self.revision)], revision: self.revision };
        self.store.apply(batch, 0)
    }

    fn put(&mut self, (key, text): (Key, String)) -> Changes {
        self.apply(|revision| Event::Put { key, value: text.into(), revision })
    }

    /// What `control` does with a change, and how long it takes.
    fn publish(&mut self, changes: &Changes) -> Duration {
        let begun = Instant::now();
        let next = Arc::new(self.builder.build(&self.store, changes));
        drop(self.published.swap(next));
        begun.elapsed()
    }
}

fn upstream(index: u32, weight: u32) -> (Key, String) {
    let text = format!(r#"{{"nodes":{{"db{index}:80":1,"10.9.0.1:80":{weight}}}}}"#);
    (Key::new(Kind::Upstream, index.to_string()), text)
}

fn service(index: u32, weight: u32) -> (Key, String) {
    let text = format!(r#"{{"upstream":{{"nodes":{{"service{index}:80":1,"10.9.0.1:80":{weight}}}}}}}"#);
    (Key::new(Kind::Service, index.to_string()), text)
}

fn resolved(name: &str, index: u32, host: u32) -> Event {
    let [.., a, b] = index.to_be_bytes();
    let addresses = [IpAddr::from([10, 3, a, b]), IpAddr::from([10, 4, 0, u8::try_from(host).unwrap()])];
    Event::Addresses {
        name: format!("{name}{index}").into(),
        addresses: addresses.into(),
        ttl: Duration::from_mins(1),
    }
}

/// `change` is given how many there were before it.
fn measure(
    c: &mut Criterion,
    control: &mut Control,
    name: &str,
    change: impl Fn(&mut Control, u32) -> Changes,
) {
    let mut turn = 0_u32;
    c.bench_function(&format!("publish {name}"), |b| {
        b.iter_custom(|times| {
            let once = |_| {
                turn += 1;
                let changes = change(control, turn);
                control.publish(&changes)
            };
            (0..times).map(once).sum()
        });
    });
}

/// One of `count` objects and a number that is another one when the object comes again.
fn spread(turn: u32, count: u32) -> (u32, u32) {
    // No factor of any count.
    (turn.wrapping_mul(40_503) % count, 2 + turn / count % 100)
}

fn publish(c: &mut Criterion) {
    for (shape, name) in SHAPES {
        let mut control = Control::new(shape);
        let c = &mut *c;
        measure(c, &mut control, &format!("a route, {name}"), |control, turn| {
            let (index, weight) = spread(turn, RULES);
            control.put(control.route(index, weight))
        });
        if shape == Shape::Mixed || shape == Shape::Same {
            measure(c, &mut control, &format!("a service of ten routes, {name}"), |control, turn| {
                let (index, weight) = spread(turn, SERVICES);
                control.put(service(index, weight))
            });
        }
        if shape == Shape::Mixed {
            others(c, &mut control);
        }
    }
}

/// What does not depend on the conditions of routes.
fn others(c: &mut Criterion, control: &mut Control) {
    measure(c, control, "an upstream", |control, turn| {
        let (index, weight) = spread(turn, UPSTREAMS);
        control.put(upstream(index, weight))
    });
    let mut dns = |what, name: &'static str, count| {
        measure(c, control, &format!("addresses of {what}"), |control, turn| {
            let (index, host) = spread(turn, count);
            control.apply(|_| resolved(name, index, host))
        });
    };
    dns("an upstream", "db", UPSTREAMS);
    dns("a service of ten routes", "service", SERVICES);
    for index in 0..REFUSED {
        let key = Key::new(Kind::StreamRoute, format!("refused{index}"));
        let changes = control.put((key, r#"{"server_port":"none"}"#.into()));
        control.publish(&changes);
    }
    measure(c, control, "a route beside 5,000 refused", |control, turn| {
        let (index, weight) = spread(turn, RULES);
        control.put(control.route(index, weight + 100))
    });
    let mut whole = c.benchmark_group("whole");
    whole.sample_size(10);
    let keys: Vec<_> = control.store.entries().map(|(key, _)| key.clone()).collect();
    let changes = Changes { keys, ..Changes::default() };
    whole.bench_function("full build", |b| {
        b.iter_with_large_drop(|| {
            let mut builder = Builder::new(Arc::new(Live::default()), 1);
            (builder.build(&control.store, &changes), builder)
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = publish
}
criterion_main!(benches);
