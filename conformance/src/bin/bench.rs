//! `bench GATEWAY [latency N | load N | start N | scrape N | flat N | certificates N | criterion FOLDER |
//! json FILE]…`: the numbers of the configuration in docs/performance.md, with a real etcd, each beside its
//! limit.
//! What `compare` measures of the data path is not among them.
//!
//! Every figure is measured in several rounds, each with a gateway of its own; the median decides.
//! Exits with 1 where one misses its limit.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use streamgate_conformance::echo;
use streamgate_conformance::etcd::{Client, Etcd};
use streamgate_conformance::figures::{Figure, head};
use streamgate_conformance::gateway::{Gateway, LIMIT, Ports, expect, http_get, tcp_once};
use streamgate_conformance::machine::Machine;
use streamgate_conformance::process::until;
use streamgate_conformance::routes::other_route;
use streamgate_conformance::ssls;
use streamgate_conformance::verdict::{conclude, say};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: bench GATEWAY [latency N | load N | start N | scrape N | flat N | certificates N | \
                     criterion FOLDER | json FILE]…";
/// Gateways started for one figure.
const ROUNDS: usize = 5;
/// Changes of one round.
const CHANGES: usize = 200;
/// How long a start with many routes may take at most.
const START: Duration = Duration::from_mins(2);
/// The limit of a pick.
const PICK: Option<f64> = Some(200.0);
/// What criterion measures: name of the bench, what it is, limit in nanoseconds where there is one.
const CRITERION: &[(&str, &str, Option<f64>)] = &[
    ("match, 100,000 rules", "a match among 100,000 mixed routes", Some(3_000.0)),
    ("route", "parse and validate a typical route", Some(15_000.0)),
    ("upstream", "parse and validate a typical upstream", Some(15_000.0)),
    ("pick of 100, roundrobin", "a pick among 100 nodes, roundrobin", PICK),
    ("pick of 100, roundrobin, one down", "the same, one of them down", PICK),
    ("pick of 100, least_conn", "a pick among 100 nodes, least_conn", PICK),
    ("pick of 100, least_conn, one down", "the same, one of them down", PICK),
    ("pick of 100, ewma", "a pick among 100 nodes, ewma", PICK),
    ("pick of 100, ewma, one down", "the same, one of them down", PICK),
    ("pick of 100, chash remote_addr", "a pick among 100 nodes, chash by client address", PICK),
    ("pick of 100, chash remote_addr, one down", "the same, one of them down", PICK),
    ("pick of 100, chash template", "a pick among 100 nodes, chash by a template", PICK),
    ("pick of 100, chash template, one down", "the same, one of them down", PICK),
    ("certificate of 10,000", "a certificate chosen among 10,000", Some(2_000.0)),
    ("certificate of 10,000, none", "none of 10,000 certificates for a long name", Some(2_000.0)),
    ("publish a route, mixed", "publish a changed route of 100,000, mixed", Some(1e6)),
    (
        "publish a route, client networks alone",
        "publish a changed route of 100,000, by client networks alone",
        Some(1e6),
    ),
    ("publish a route, equal conditions", "publish a changed route of 100,000, equal conditions", Some(1e6)),
    (
        "publish a route beside 5,000 refused",
        "publish a changed route of 100,000, beside 5,000 refused",
        Some(1e6),
    ),
    ("publish a service of ten routes, mixed", "publish a service of ten routes, mixed", Some(1e6)),
    (
        "publish a service of ten routes, equal conditions",
        "publish a service of ten routes, equal conditions",
        Some(1e6),
    ),
    ("publish an upstream", "publish a changed upstream", Some(1e6)),
    ("publish addresses of an upstream", "publish new addresses of an upstream's names", Some(1e6)),
];

fn main() -> ExitCode {
    conclude(bench(&std::env::args().skip(1).collect::<Vec<_>>()))
}

/// Measures the cases; whether every limit is kept.
fn bench(arguments: &[String]) -> Outcome<bool> {
    let (binary, cases) = arguments.split_first().ok_or(USAGE)?;
    let binary = PathBuf::from(binary);
    say(format_args!("{}, load {}", Machine::this(), Machine::load()));
    say(head());
    let mut all = Vec::new();
    for case in cases.chunks(2) {
        let [what, of] = case else { return Err(USAGE.into()) };
        let figures = match what.as_str() {
            "latency" => latency(&binary, of.parse()?)?,
            "load" => load(&binary, of.parse()?)?,
            "start" => start(&binary, of.parse()?)?,
            "scrape" => scrape(&binary, of.parse()?)?,
            "flat" => flat(&binary, of.parse()?)?,
            "certificates" => ssls::measure(&binary, of.parse()?, ROUNDS)?,
            "criterion" => criterion(Path::new(of))?,
            "json" => {
                save(Path::new(of), &all)?;
                continue;
            }
            _ => return Err(USAGE.into()),
        };
        figures.iter().for_each(say);
        all.extend(figures);
    }
    say(format_args!("{}, load {}", Machine::this(), Machine::load()));
    Ok(all.iter().all(Figure::holds))
}

/// Writes what was measured so far.
fn save(file: &Path, figures: &[Figure]) -> Outcome {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let figures: Vec<Value> = figures.iter().map(Figure::json).collect();
    Ok(std::fs::write(file, format!("{:#}\n", Value::from(figures)))?)
}

struct Stage {
    etcd: Etcd,
    client: Client,
    upstreams: [SocketAddr; 2],
    ports: Ports,
    folder: tempfile::TempDir,
}

/// An etcd with one route that is followed and `count` others, mixed.
fn stage(count: usize) -> Outcome<Stage> {
    let folder = tempfile::tempdir()?;
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let upstreams = [echo::serve("A", any)?, echo::serve("B", any)?];
    let etcd = Etcd::start(folder.path())?;
    let mut client = etcd.connect()?;
    let ports = Ports::choose()?;
    let others: Vec<_> = (0..count).map(other_route).collect();
    client.put_all(&others)?;
    let port = ports.tcp.port();
    client.put("/apisix/upstreams/followed", &nodes(upstreams[0]))?;
    let route = format!(r#"{{"server_port":{port},"upstream_id":"followed"}}"#);
    client.put("/apisix/stream_routes/zz-followed", &route)?;
    Ok(Stage { etcd, client, upstreams, ports, folder })
}

impl Stage {
    fn launch(&self, binary: &Path) -> Outcome<Gateway> {
        Ok(Gateway::start(binary, self.folder.path(), self.etcd.address(), self.ports)?)
    }

    /// One that is ready and follows the first upstream.
    fn launch_ready(&mut self, binary: &Path) -> Outcome<Gateway> {
        self.client.put("/apisix/upstreams/followed", &nodes(self.upstreams[0]))?;
        let mut gateway = self.launch(binary)?;
        gateway.wait_ready(START)?;
        until(LIMIT, || expect(tcp_once(self.ports.tcp)?, "A:hi"))?;
        Ok(gateway)
    }
}

fn nodes(address: SocketAddr) -> String {
    format!(r#"{{"nodes":{{"{address}":1}}}}"#)
}

/// From etcd's answer to a put until the first connection that follows it.
fn latency(binary: &Path, count: usize) -> Outcome<Vec<Figure>> {
    let mut stage = stage(count)?;
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let _gateway = stage.launch_ready(binary)?;
        let mut took = Vec::with_capacity(CHANGES);
        for change in 1..=CHANGES {
            let (upstream, name) = (stage.upstreams[change % 2], ["A:hi", "B:hi"][change % 2]);
            stage.client.put("/apisix/upstreams/followed", &nodes(upstream))?;
            let begun = SystemTime::now();
            while tcp_once(stage.ports.tcp)? != name {}
            took.push(milliseconds(begun.elapsed()?));
            // Changes of a person are apart; without this the next one would meet a warm pipeline.
            sleep(Duration::from_millis(5));
        }
        let round = Figure::new("", "ms", took);
        medians.push(round.percentile(50));
        tails.push(round.percentile(99));
    }
    let what = |which| format!("put acknowledged to first connection, {count} routes, {which} of {CHANGES}");
    let (median, tail) = (Figure::new(what("median"), "ms", medians), Figure::new(what("p99"), "ms", tails));
    Ok(if count <= 1000 {
        vec![median.at_most(2.3), tail.at_most(8.0)]
    } else {
        vec![median.at_most(10.0), tail]
    })
}

/// Loading many routes: time, memory, and the cost of publishing one change among them.
fn load(binary: &Path, count: usize) -> Outcome<Vec<Figure>> {
    let mut stage = stage(count)?;
    let (mut ready, mut resident, mut peak) = (Vec::new(), Vec::new(), Vec::new());
    let (mut published, mut scraped) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let begun = SystemTime::now();
        let mut gateway = stage.launch(binary)?;
        gateway.wait_ready(START)?;
        ready.push(begun.elapsed()?.as_secs_f64());
        until(LIMIT, || expect(tcp_once(stage.ports.tcp)?, "A:hi"))?;
        // What the load left over may be given back only after a while.
        sleep(Duration::from_secs(2));
        resident.push(megabytes(gateway.memory_kib("VmRSS:")?));
        peak.push(megabytes(gateway.memory_kib("VmHWM:")?));
        for change in 0..10 {
            let other = (round * 10 + change) * 7 % count.max(1);
            let before = revision(stage.ports.metrics)?;
            let (_, value) = other_route(other + 4 * (round + 1));
            stage.client.put(&other_route(other).0, &value)?;
            until(LIMIT, || match revision(stage.ports.metrics)? {
                now if now > before => Ok(()),
                _ => Err(io::Error::other("a change is not published")),
            })?;
            published.push(gauge(stage.ports.metrics, "streamgate_snapshot_build_last_seconds")? * 1000.0);
        }
        scraped.push(megabytes(gateway.memory_kib("VmRSS:")?));
    }
    let what = |what: &str| format!("{count} routes: {what}");
    Ok(vec![
        Figure::new(what("start to ready, loaded from etcd"), "s", ready).at_most(5.0),
        Figure::new(what("resident memory"), "MB", resident).at_most(400.0),
        Figure::new(what("resident memory at its highest"), "MB", peak),
        Figure::new(what("resident memory after 30 scrapes or more"), "MB", scraped).at_most(400.0),
        Figure::new(what("one change published"), "ms", published).at_most(10.0),
    ])
}

/// From the start of the process to the first connection served.
fn start(binary: &Path, count: usize) -> Outcome<Vec<Figure>> {
    let stage = stage(count)?;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let begun = SystemTime::now();
        let mut gateway = stage.launch(binary)?;
        until(START, || expect(tcp_once(stage.ports.tcp)?, "A:hi"))?;
        took.push(begun.elapsed()?.as_secs_f64());
        if !gateway.process.is_running() {
            return Err(gateway.log().into());
        }
    }
    let what = format!("start to first served connection, {count} routes");
    Ok(vec![Figure::new(what, "s", took).at_most(1.0)])
}

/// The metrics page over HTTP.
fn scrape(binary: &Path, count: usize) -> Outcome<Vec<Figure>> {
    let mut stage = stage(count)?;
    let _gateway = stage.launch_ready(binary)?;
    let (mut took, mut size) = (Vec::new(), Vec::new());
    for _ in 0..4 * ROUNDS {
        let begun = SystemTime::now();
        let page = http_get(stage.ports.metrics, "/apisix/prometheus/metrics")?;
        took.push(milliseconds(begun.elapsed()?));
        #[expect(clippy::cast_precision_loss, reason = "megabytes for a person")]
        size.push(page.len() as f64 / 1e6);
    }
    Ok(vec![
        Figure::new(format!("a scrape over HTTP, {count} routes"), "ms", took).at_most(500.0),
        Figure::new(format!("size of that page, {count} routes"), "MB", size),
    ])
}

/// Memory that connections leave behind where nobody scrapes.
fn flat(binary: &Path, connections: usize) -> Outcome<Vec<Figure>> {
    let mut stage = stage(1000)?;
    let gateway = stage.launch_ready(binary)?;
    let address = stage.ports.tcp;
    many(address, connections / 10)?;
    let before = megabytes(gateway.memory_kib("VmRSS:")?);
    let begun = SystemTime::now();
    many(address, connections)?;
    let took = begun.elapsed()?.as_secs_f64();
    let after = megabytes(gateway.memory_kib("VmRSS:")?);
    #[expect(clippy::cast_precision_loss, reason = "a rate for a person")]
    let rate = connections as f64 / took;
    Ok(vec![
        Figure::new(
            format!("memory that {connections} connections leave, no scrape"),
            "MB",
            vec![after - before],
        )
        .at_most(2.0),
        Figure::new("resident memory then", "MB", vec![after]),
        Figure::new("connections a second meanwhile, one exchange each", "", vec![rate]),
    ])
}

/// So many connections, four at a time.
fn many(address: SocketAddr, connections: usize) -> Outcome {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| scope.spawn(move || (0..connections / 4).try_for_each(|_| tcp_once(address).map(drop))))
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(io::Error::other("a client panicked")))
        })
    })?;
    Ok(())
}

/// What `cargo bench` found before.
fn criterion(folder: &Path) -> Outcome<Vec<Figure>> {
    CRITERION
        .iter()
        .map(|(name, what, limit)| {
            let file = folder.join(name).join("new/sample.json");
            let text = std::fs::read_to_string(&file)
                .map_err(|error| format!("{}: {error}; run cargo bench first", file.display()))?;
            let sample: Value = serde_json::from_str(&text)?;
            let list = |name: &str| -> Vec<f64> {
                sample[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
            };
            let each = list("times").iter().zip(list("iters")).map(|(time, turns)| time / turns).collect();
            let figure = Figure::new(*what, "ns", each);
            Ok(match limit {
                Some(limit) => figure.at_most(*limit),
                None => figure,
            })
        })
        .collect()
}

/// What the metrics page says of one gauge.
fn gauge(metrics: SocketAddr, name: &str) -> io::Result<f64> {
    let page = http_get(metrics, "/apisix/prometheus/metrics")?;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = line.ok_or_else(|| io::Error::other(format!("no {name} in the metrics")))?;
    value.trim().parse().map_err(io::Error::other)
}

fn revision(metrics: SocketAddr) -> io::Result<f64> {
    gauge(metrics, "streamgate_config_revision")
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "megabytes for a person")]
fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}
