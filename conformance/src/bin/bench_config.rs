//! `bench_config GATEWAY [latency N | load N | start N]…`: how fast a change is live, how long a
//! start takes and how much memory it holds, with a real etcd. The numbers of docs/performance.md.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use streamgate_conformance::echo;
use streamgate_conformance::etcd::{Client, Etcd};
use streamgate_conformance::gateway::{Gateway, LIMIT, Ports, expect, http_get, tcp_once};
use streamgate_conformance::process::until;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Changes measured for one line.
const CHANGES: usize = 200;
/// How long a start with many routes may take at most.
const START: Duration = Duration::from_mins(2);

fn main() -> ExitCode {
    match bench(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn say(line: impl std::fmt::Display) {
    // Nobody reads any more: go on to the end all the same.
    let _ = writeln!(io::stdout(), "{line}");
}

fn bench(arguments: &[String]) -> Outcome {
    let usage = "usage: bench_config GATEWAY [latency N | load N | start N]…";
    let (binary, cases) = arguments.split_first().ok_or(usage)?;
    let binary = PathBuf::from(binary);
    for case in cases.chunks(2) {
        let [what, count] = case else { return Err(usage.into()) };
        let count = count.parse()?;
        match what.as_str() {
            "latency" => latency(&binary, count)?,
            "load" => load(&binary, count)?,
            "start" => start(&binary, count)?,
            _ => return Err(usage.into()),
        }
    }
    Ok(())
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

fn nodes(address: SocketAddr) -> String {
    format!(r#"{{"nodes":{{"{address}":1}}}}"#)
}

/// Mixed ports, client networks and server names, none of which takes the followed route's traffic.
fn other_route(i: usize) -> (String, String) {
    let (a, b, c) = (i / 65_536 % 256, i / 256 % 256, i % 256);
    let conditions = match i % 4 {
        0 => format!(r#""server_port":{},"remote_addr":"10.{b}.{c}.0/24""#, 10_000 + i % 20_000),
        1 => format!(r#""server_port":{},"remote_addr":"172.{a}.{b}.{c}""#, 20_000 + i % 100),
        2 => format!(r#""sni":"host{i}.example.com""#),
        _ => format!(r#""server_addr":"192.168.{b}.{c}","server_port":{}"#, 30_000 + i % 1000),
    };
    let node = format!(r#"{{"nodes":{{"10.200.{b}.{c}:3306":1,"10.201.{b}.{c}:3306":2}}}}"#);
    (format!("/apisix/stream_routes/r{i:06}"), format!(r#"{{{conditions},"upstream":{node}}}"#))
}

fn launch(binary: &Path, stage: &Stage) -> Outcome<Gateway> {
    let mut gateway = Gateway::start(binary, stage.folder.path(), stage.etcd.address(), stage.ports)?;
    gateway.wait_ready(START)?;
    Ok(gateway)
}

/// From etcd's answer to a put until the first connection that follows it.
fn latency(binary: &Path, count: usize) -> Outcome {
    let mut stage = stage(count)?;
    let _gateway = launch(binary, &stage)?;
    until(LIMIT, || expect(tcp_once(stage.ports.tcp)?, "A:hi"))?;
    let mut took = Vec::with_capacity(CHANGES);
    for change in 1..=CHANGES {
        let (upstream, name) = (stage.upstreams[change % 2], ["A:hi", "B:hi"][change % 2]);
        stage.client.put("/apisix/upstreams/followed", &nodes(upstream))?;
        let begun = SystemTime::now();
        while tcp_once(stage.ports.tcp)? != name {}
        took.push(begun.elapsed()?);
        // Changes of a person are apart; without this the next one would meet a warm pipeline.
        sleep(Duration::from_millis(5));
    }
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 100].as_secs_f64() * 1000.0;
    say(format_args!(
        "put acknowledged to first connection that follows it, {count} other routes, {CHANGES} changes: \
         median {:.2} ms  p90 {:.2} ms  p99 {:.2} ms  max {:.2} ms",
        at(50),
        at(90),
        at(99),
        at(100),
    ));
    Ok(())
}

/// Loading many routes: time, memory, and the cost of publishing one change among them.
fn load(binary: &Path, count: usize) -> Outcome {
    let mut stage = stage(count)?;
    let begun = SystemTime::now();
    let gateway = launch(binary, &stage)?;
    let ready = begun.elapsed()?;
    until(LIMIT, || expect(tcp_once(stage.ports.tcp)?, "A:hi"))?;
    let resident = gateway.resident_kib()?;
    let mut took = Vec::new();
    for change in 0..50 {
        let (key, _) = other_route(change * 7 % count.max(1));
        let (_, value) = other_route(change * 7 % count.max(1) + 4);
        stage.client.put(&key, &value)?;
        sleep(Duration::from_millis(20));
        took.push(last_build_ms(stage.ports.metrics)?);
    }
    took.sort_by(f64::total_cmp);
    say(format_args!(
        "{count} stream_routes: ready {:.2} s after the start, resident {} MiB, one changed route published in \
         median {:.3} ms, max {:.3} ms",
        ready.as_secs_f64(),
        resident / 1024,
        took[took.len() / 2],
        took[took.len() - 1],
    ));
    Ok(())
}

/// The gauge of the last build.
fn last_build_ms(metrics: SocketAddr) -> Outcome<f64> {
    let page = http_get(metrics, "/apisix/prometheus/metrics")?;
    let line = page.lines().find_map(|line| line.strip_prefix("streamgate_snapshot_build_last_seconds "));
    Ok(line.ok_or("no streamgate_snapshot_build_last_seconds in the metrics")?.trim().parse::<f64>()?
        * 1000.0)
}

/// From the start of the process to the first connection served.
fn start(binary: &Path, count: usize) -> Outcome {
    let stage = stage(count)?;
    let mut took = Vec::new();
    for _ in 0..5 {
        let begun = SystemTime::now();
        let mut gateway = Gateway::start(binary, stage.folder.path(), stage.etcd.address(), stage.ports)?;
        until(START, || expect(tcp_once(stage.ports.tcp)?, "A:hi"))?;
        took.push(begun.elapsed()?);
        if !gateway.process.is_running() {
            return Err(gateway.log().into());
        }
    }
    took.sort_unstable();
    say(format_args!(
        "start to first served connection with {count} routes: median {:.3} s, max {:.3} s",
        took[2].as_secs_f64(),
        took[4].as_secs_f64(),
    ));
    Ok(())
}
