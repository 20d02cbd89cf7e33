//! `disturbance GATEWAY [ROUTES [ROUNDS]]`: what sessions notice of a configuration that is replaced.
//!
//! One open connection exchanges 64 bytes all the time while the gateway's file is replaced by one
//! in which every route differs. Its median round trip while the file is read, while the routes are
//! built anew and while the former ones are freed is held against that of a quiet time before, in
//! each round. Client, worker and node share one core: where the scheduler spreads them, a round trip
//! takes twice as long or half, whatever else happens. The control plane may run on any core.
//! Exits with 1 where the building changes the median by a tenth or more.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, SystemTime};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use streamgate_conformance::echo;
use streamgate_conformance::figures::{Figure, head};
use streamgate_conformance::gateway::{LIMIT, connect, expect, tcp_once};
use streamgate_conformance::process::{Process, free_port, until};
use streamgate_conformance::routes::conditions;
use streamgate_conformance::verdict::{conclude, say};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: disturbance GATEWAY [ROUTES [ROUNDS]]";
/// How long reading and building may take at most.
const PATIENCE: Duration = Duration::from_mins(2);
/// A quiet time, and the time in which old routes are freed.
const QUIET: Duration = Duration::from_secs(2);
/// Bytes of an exchange.
const MESSAGE: usize = 64;
/// How much the median may change while routes are built, in percent.
const MOST: f64 = 10.0;

fn main() -> ExitCode {
    conclude(measure(&std::env::args().skip(1).collect::<Vec<_>>()))
}

fn measure(arguments: &[String]) -> Outcome<bool> {
    let binary = arguments.first().ok_or(USAGE)?;
    let number = |index: usize, default| {
        arguments.get(index).map_or(Ok(default), |text| text.parse().map_err(|_| USAGE))
    };
    let (routes, rounds) = (number(1, 100_000)?, number(2, 5)?);
    let cores = sched_getaffinity(None)?;
    // The nodes inherit this, and the client below.
    sched_setaffinity(None, &first(&cores))?;
    let stage = Stage::new(routes)?;
    stage.write(0)?;
    sched_setaffinity(None, &cores)?;
    let mut gateway = stage.start(Path::new(binary))?;
    sched_setaffinity(None, &first(&cores))?;
    let ready = until(PATIENCE, || if gateway.is_running() { stage.follows(0) } else { Ok(()) });
    if ready.is_err() || !gateway.is_running() {
        return Err(fs::read_to_string(stage.log())?.into());
    }
    let stop = AtomicBool::new(false);
    let stream = connect(stage.open)?;
    let (windows, trips) = thread::scope(|scope| {
        let trips = scope.spawn(|| exchange(stream, &stop));
        let windows = (1..=rounds).map(|round| stage.round(round)).collect::<io::Result<Vec<_>>>();
        stop.store(true, Relaxed);
        (windows, trips.join())
    });
    let trips = trips.map_err(|_| "the client panicked")??;
    Ok(report(routes, &windows?, &trips))
}

/// The core that the gateway's only worker stays on.
fn first(cores: &CpuSet) -> CpuSet {
    let mut first = CpuSet::new();
    if let Some(core) = (0..CpuSet::MAX_CPU).find(|core| cores.is_set(*core)) {
        first.set(core);
    }
    first
}

/// A configuration of many routes with two that are used, and the nodes behind them.
struct Stage {
    folder: tempfile::TempDir,
    routes: usize,
    /// Where the exchange goes.
    open: SocketAddr,
    /// Where a connection tells which version of the file is in force.
    marked: SocketAddr,
    nodes: [SocketAddr; 2],
}

/// When the times of a round begin; the last one is its end.
struct Windows {
    quiet: SystemTime,
    reading: SystemTime,
    building: SystemTime,
    freeing: SystemTime,
    end: SystemTime,
}

impl Stage {
    fn new(routes: usize) -> io::Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let free = || free_port(0).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let nodes = [echo::serve("A", any)?, echo::serve("B", any)?];
        Ok(Self { folder: tempfile::tempdir()?, routes, open: free()?, marked: free()?, nodes })
    }

    fn start(&self, binary: &Path) -> io::Result<Process> {
        let (open, marked) = (self.open, self.marked);
        let config = self.folder.path().join("config.yaml");
        let text = format!(
            "apisix:
  proxy_mode: stream
  enable_control: false
  stream_proxy: {{tcp: [\"{open}\", \"{marked}\"]}}
deployment: {{role: data_plane, role_data_plane: {{config_provider: json}}}}
nginx_config: {{worker_processes: 1, enable_cpu_affinity: true, error_log_level: info}}
"
        );
        fs::write(&config, text)?;
        Process::start(Command::new(binary).arg("run").arg("-c").arg(&config), &self.log())
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("gateway.log")
    }

    /// Replaces the objects by those of a version, in which every route differs from the one before.
    fn write(&self, version: usize) -> io::Result<()> {
        let mut text = String::from("{\"stream_routes\":[\n");
        let used = [(self.open, self.nodes[0]), (self.marked, self.nodes[version % 2])];
        for (id, (listen, node)) in used.into_iter().enumerate() {
            let port = listen.port();
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                r#"{{"id":"used{id}","server_port":{port},"upstream":{{"nodes":{{"{node}":1}}}}}},"#
            );
        }
        for i in 0..self.routes {
            let comma = if i + 1 < self.routes { "," } else { "" };
            let _ = writeln!(text, "{}{comma}", other_route(i, 1 + version));
        }
        text.push_str("]}\n");
        let written = self.folder.path().join("written");
        fs::write(&written, text)?;
        fs::rename(written, self.folder.path().join("apisix.json"))
    }

    fn follows(&self, version: usize) -> io::Result<()> {
        expect(tcp_once(self.marked)?, ["A:hi", "B:hi"][version % 2]).map(drop)
    }

    /// How often the file was read.
    fn reads(&self) -> io::Result<usize> {
        Ok(fs::read_to_string(self.log())?.matches(" objects from ").count())
    }

    fn round(&self, version: usize) -> io::Result<Windows> {
        let before = self.reads()?;
        let quiet = SystemTime::now();
        sleep(QUIET);
        self.write(version)?;
        let reading = SystemTime::now();
        until(PATIENCE, || if self.reads()? > before { Ok(()) } else { Err(io::Error::other("not read")) })?;
        let building = SystemTime::now();
        until(PATIENCE, || {
            // A connection every other millisecond would be a load of its own.
            sleep(Duration::from_millis(20));
            self.follows(version)
        })?;
        let freeing = SystemTime::now();
        sleep(QUIET);
        Ok(Windows { quiet, reading, building, freeing, end: SystemTime::now() })
    }
}

/// Mixed ports, client networks and server names, none of which takes the used routes' traffic.
fn other_route(i: usize, weight: usize) -> String {
    let (b, c, conditions) = (i / 256 % 256, i % 256, conditions(i));
    let nodes = format!(r#"{{"10.200.{b}.{c}:3306":1,"10.201.{b}.{c}:3306":{weight}}}"#);
    format!(r#"{{"id":"r{i:06}",{conditions},"upstream":{{"nodes":{nodes}}}}}"#)
}

/// Round trips with the time each began.
type Trips = Vec<(SystemTime, f64)>;

/// Exchanges messages until told to stop; the round trips in microseconds.
fn exchange(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<Trips> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut trips = Vec::with_capacity(4 << 20);
    // The echo puts `A:` before what it got.
    let mut answer = [0; MESSAGE + 2];
    while !stop.load(Relaxed) {
        let begun = SystemTime::now();
        stream.write_all(&[b'x'; MESSAGE])?;
        stream.read_exact(&mut answer)?;
        trips.push((begun, begun.elapsed().unwrap_or_default().as_secs_f64() * 1e6));
    }
    Ok(trips)
}

fn report(routes: usize, rounds: &[Windows], trips: &Trips) -> bool {
    let trips_of = |from, to| {
        let inside = trips.iter().filter(|(begun, _)| (from..to).contains(begun));
        Figure::new("", "us", inside.map(|(_, took)| *took).collect())
    };
    let all = |what: &str, of: &dyn Fn(&Windows) -> f64, unit| {
        Figure::new(what, unit, rounds.iter().map(of).collect())
    };
    let quiet = |round: &Windows| trips_of(round.quiet, round.quiet + QUIET);
    let reading = |round: &Windows| trips_of(round.reading, round.building);
    let building = |round: &Windows| trips_of(round.building, round.freeing);
    let freeing = |round: &Windows| trips_of(round.freeing, round.end);
    let more = |of: &dyn Fn(&Windows) -> Figure, share: usize, what: &str| {
        let change =
            |round: &Windows| (of(round).percentile(share) / quiet(round).percentile(share) - 1.0) * 100.0;
        all(&format!("{routes} routes replaced, p{share} of an exchange {what}, change"), &change, "%")
    };
    let took = |from: SystemTime, to: SystemTime| to.duration_since(from).unwrap_or_default().as_secs_f64();
    let figures = [
        all("p50 of an exchange of 64 bytes when quiet", &|round| quiet(round).percentile(50), "us"),
        all("p99 of an exchange of 64 bytes when quiet", &|round| quiet(round).percentile(99), "us"),
        all("reading the file", &|round| took(round.reading, round.building), "s"),
        all("building and publishing", &|round| took(round.building, round.freeing), "s"),
        more(&building, 50, "while they are built").at_most(MOST),
        more(&building, 99, "while they are built"),
        more(&reading, 50, "while the file is read"),
        more(&freeing, 50, "while the former ones are freed"),
    ];
    say(head());
    let mut held = true;
    for figure in &figures {
        held &= figure.holds();
        say(figure);
    }
    held
}
