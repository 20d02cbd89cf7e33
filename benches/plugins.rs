//! What plugins that limit cost a session: ip-restriction with 10,000 entries, and a place or a token of
//! many keys, with other threads at the same work.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros document nothing; a bench may panic"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::SystemTime;

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};
use streamgate::live::Live;
use streamgate::plugin::{Armed, Attached, Kept, Plugins, RouteFacts, Run, Scene, Step};
use streamgate::resource::{Key, Kind, PluginConf};
use streamgate::session::{Host, Inbound, Transport};
use tokio::time::Instant;

fn plugins(live: &Live, name: &str, conf: Value) -> Plugins {
    let conf = PluginConf {
        name: name.into(),
        conf: Arc::new(conf),
        disabled: false,
        enabled: true,
        broken: None,
        secret: false,
        split: None,
    };
    let attached = Attached { owner: Key::new(Kind::StreamRoute, "1"), conf: &conf };
    Plugins::new(vec![Arc::new(Armed::new(&attached, live, &mut Vec::new()).unwrap())])
}

fn inbound(client: IpAddr) -> Inbound {
    Inbound::new(Transport::Tcp, SocketAddr::new(client, 5000), "127.0.0.1:9100".parse().unwrap())
}

/// Asks about one session, whose places are given back at once.
fn ask(
    plugins: &Plugins,
    inbound: &mut Inbound,
    host: &Host,
    times: (std::time::Instant, SystemTime),
) -> Step {
    let mut kept = Kept::default();
    let mut scene = Scene {
        inbound,
        route: RouteFacts::default(),
        host,
        first: &[],
        now: times.0,
        time: times.1,
        kept: &mut kept,
        given: None,
        preview: false,
    };
    Run::default().step(plugins, &mut scene)
}

/// Clients all over the addresses of IPv4, and of IPv6.
fn clients(count: u32) -> Vec<Inbound> {
    let spread = |at: u32| at.wrapping_mul(2_654_435_761);
    let v4 = (0..count).map(|at| inbound(Ipv4Addr::from_bits(spread(at)).into()));
    let v6 = (0..count).map(|at| inbound(Ipv4Addr::from_bits(spread(at)).to_ipv6_mapped().into()));
    v4.chain(v6).collect()
}

fn measure(c: &mut Criterion, name: &str, plugins: &Plugins) {
    let (host, times) = (Host::default(), (Instant::now().into_std(), SystemTime::now()));
    let mut clients = clients(10_000);
    let mut at = 0;
    c.bench_function(name, |b| {
        b.iter(|| {
            at = (at + 7919) % clients.len();
            black_box(ask(plugins, &mut clients[at], &host, times))
        });
    });
}

/// The same while another thread does nothing else.
fn beside(c: &mut Criterion, name: &str, plugins: &Plugins) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (host, times) = (Host::default(), (Instant::now().into_std(), SystemTime::now()));
            let mut clients = clients(10_000);
            while !stop.load(Relaxed) {
                for client in &mut clients {
                    black_box(ask(plugins, client, &host, times));
                }
            }
        });
        measure(c, name, plugins);
        stop.store(true, Relaxed);
    });
}

fn limits(c: &mut Criterion) {
    let live = Live::default();
    // Half are addresses, half networks; no entry is in another.
    let spread = |at: u32| Ipv4Addr::from_bits(at.wrapping_mul(2_654_435_761) & 0xffff_ff00);
    let v4 =
        (0..5_000).map(|at| if at % 2 == 0 { spread(at).to_string() } else { format!("{}/24", spread(at)) });
    let v6 = (0..5_000).map(|at| format!("2001:db8:{at:x}::/48"));
    let entries: Vec<String> = v4.chain(v6).collect();
    let restriction = |list: &str| plugins(&live, "ip-restriction", json!({list: entries}));
    measure(c, "ip-restriction, blacklist of 10,000, mostly let in", &restriction("blacklist"));
    measure(c, "ip-restriction, whitelist of 10,000, mostly refused", &restriction("whitelist"));

    let by_client = json!({"conn": 100, "burst": 0, "default_conn_delay": 1, "key": "remote_addr"});
    let by_port = json!({"conn": 100, "burst": 0, "default_conn_delay": 1, "key": "server_port"});
    let rate = json!({"rate": 1e9, "burst": 0, "rejected_code": 503});
    for (name, kind, conf) in [
        ("limit-conn, 20,000 keys", "limit-conn", by_client),
        ("limit-conn, one key", "limit-conn", by_port),
        ("limit-rate, 20,000 keys", "limit-rate", rate),
    ] {
        let plugins = plugins(&live, kind, conf);
        measure(c, name, &plugins);
        beside(c, &format!("{name}, another thread beside"), &plugins);
    }
}

criterion_group!(benches, limits);
criterion_main!(benches);
