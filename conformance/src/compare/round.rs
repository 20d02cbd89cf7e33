//! One round: every work on every proxy in turn, inside a network namespace of its own. First all that is
//! of plain TCP and UDP, then, with other processes, what is of TLS.

use std::io;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, SystemTime};

use super::client::{self, Progress};
use super::datagram::{self, SEGMENT};
use super::metric::{Metric, Work};
use super::plan::Plan;
use super::proxy::{HASH, LEAST_CONN, PLUGINS, Proxy, Running, Setting, Stage};
use super::tls;
use super::upstream::{DATAGRAMS, ECHO, SINK, SOURCE};
use crate::certificate::Certificate;
use crate::figures::Figure;
use crate::process::until;

/// How long a proxy may take to close what its clients closed.
const CLOSE: Duration = Duration::from_secs(10);
/// Descriptors that a proxy may keep of closed connections, in pools.
const KEPT: usize = 50;
/// The longest time that a load runs before it is measured.
const WARM_UP: f64 = 0.4;
/// How many times longer than planned a load may take until something comes through: where other
/// programs take the cores, a proxy may not have had its turn.
const PATIENCE: usize = 5;
/// One in so many idle connections is there before the memory of the others is measured.
const FIRST: usize = 9;

/// One measured value.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// What was measured.
    pub metric: Metric,
    /// Of whom.
    pub proxy: Proxy,
    /// In the unit of the metric.
    pub value: f64,
}

pub(super) type Values = Vec<(Metric, f64)>;

/// Starts the proxies and gives them each work in turn; every value goes to `heard` at once, and where
/// nobody hears it the round is over.
pub fn run(
    plan: &Plan,
    setting: &Setting,
    mut heard: impl FnMut(Sample) -> io::Result<()>,
) -> io::Result<()> {
    let certificate = Certificate::ecdsa(tls::NAME)?;
    for stage in [Stage::Plain, Stage::Tls(&certificate)] {
        let works = plan.works.iter().copied().filter(|work| stage.has(*work)).collect();
        let plan = Plan { works, ..plan.clone() };
        act(&plan, stage, setting, &mut heard)?;
    }
    Ok(())
}

/// The works of one stage.
fn act(
    plan: &Plan,
    stage: Stage,
    setting: &Setting,
    heard: &mut impl FnMut(Sample) -> io::Result<()>,
) -> io::Result<()> {
    let wanted = |proxy: &&Proxy| plan.works.iter().any(|work| proxy.does(*work));
    let start = |proxy: &Proxy| Running::start(*proxy, stage, setting);
    let mut running = plan.proxies.iter().filter(wanted).map(start).collect::<io::Result<Vec<_>>>()?;
    let turns = |work: &Work| vec![*work; work.turns(plan.turns)];
    for work in plan.works.iter().flat_map(turns) {
        for proxy in running.iter().filter(|running| running.proxy.does(work)) {
            let done = match stage {
                Stage::Plain => does(proxy, work, plan),
                Stage::Tls(certificate) => tls::does(proxy, work, plan, certificate),
            };
            let values = done.map_err(|error| {
                io::Error::other(format!("{}, {}: {error}", proxy.proxy.name(), work.name()))
            })?;
            for (metric, value) in values {
                heard(Sample { metric, proxy: proxy.proxy, value })?;
            }
        }
        // What drifts meanwhile does not always strike the same.
        running.reverse();
    }
    Ok(())
}

fn does(proxy: &Running, work: Work, plan: &Plan) -> io::Result<Values> {
    match work {
        Work::Idle => idle(proxy, plan),
        Work::Connections => {
            let measured = measured(proxy, plan, client::connections, ECHO)?;
            Ok(vec![measured.cpu(Metric::Connection), measured.rate(Metric::ConnectionRate)])
        }
        Work::Requests => {
            let measured = measured(proxy, plan, client::requests, ECHO)?;
            Ok(vec![measured.cpu(Metric::Request), measured.rate(Metric::RequestRate)])
        }
        Work::Paced => Ok(vec![measured(proxy, plan, client::paced, ECHO)?.cpu(Metric::Paced)]),
        Work::BulkOne => bulk(proxy, plan, 1, Metric::BulkOne),
        Work::BulkEight => bulk(proxy, plan, 8, Metric::BulkEight),
        Work::FirstBytes => first_bytes(proxy, plan),
        Work::Datagrams => {
            let measured = measured(proxy, plan, datagram::echoes, DATAGRAMS)?;
            Ok(vec![measured.cpu(Metric::Datagram), measured.rate(Metric::DatagramRate)])
        }
        Work::Segments => segments(proxy, plan),
        Work::LeastConn => {
            Ok(vec![measured(proxy, plan, client::connections, LEAST_CONN)?.cpu(Metric::LeastConn)])
        }
        Work::Hash => Ok(vec![measured(proxy, plan, client::connections, HASH)?.cpu(Metric::Hash)]),
        Work::Plugins => {
            let without = measured(proxy, plan, client::greetings, ECHO)?.cpu(Metric::Greeting);
            let with = measured(proxy, plan, client::greetings, PLUGINS)?.cpu(Metric::Plugins);
            Ok(vec![without, with])
        }
        of_tls => Err(io::Error::other(format!("{} is not of plain TCP or UDP", of_tls.name()))),
    }
}

/// What a proxy did in a while.
pub(super) struct Measured {
    units: f64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Measured {
    /// Microseconds of CPU time for a unit.
    pub(super) fn cpu(&self, metric: Metric) -> (Metric, f64) {
        (metric, self.cpu_seconds / self.units * 1e6)
    }

    /// Seconds of CPU time for a gigabyte, where a unit is a byte.
    pub(super) fn gigabyte(&self, metric: Metric) -> (Metric, f64) {
        (metric, self.cpu_seconds / self.units * 1e9)
    }

    /// Units a second.
    fn rate(&self, metric: Metric) -> (Metric, f64) {
        (metric, self.units / self.seconds)
    }
}

/// Measures a proxy under a load that counts what it does.
fn measured(
    proxy: &Running,
    plan: &Plan,
    load: fn(std::net::SocketAddr, &Progress) -> io::Result<()>,
    port: u16,
) -> io::Result<Measured> {
    let progress = Progress::default();
    measure(proxy, plan, &progress, || load(proxy.at(port), &progress), || progress.done())
}

/// Measures a proxy while `load` runs on a thread of its own.
pub(super) fn measure(
    proxy: &Running,
    plan: &Plan,
    progress: &Progress,
    load: impl FnOnce() -> io::Result<()> + Send,
    units: impl Fn() -> u64,
) -> io::Result<Measured> {
    let now = || io::Result::Ok((SystemTime::now(), units(), proxy.tree().cpu_seconds()?));
    let watch = || {
        thread::sleep(Duration::from_secs_f64(plan.seconds.min(WARM_UP)));
        let (begun, done, cpu) = now()?;
        for _ in 0..PATIENCE {
            thread::sleep(Duration::from_secs_f64(plan.seconds));
            let (ended, by_now, cpu_by_now) = now()?;
            if by_now > done {
                let seconds = ended.duration_since(begun).map_err(io::Error::other)?.as_secs_f64();
                #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
                let units = (by_now - done) as f64;
                return Ok(Measured { units, seconds, cpu_seconds: cpu_by_now - cpu });
            }
        }
        Err(io::Error::other("nothing comes through"))
    };
    thread::scope(|scope| {
        let load = scope.spawn(load);
        let measured = watch();
        progress.stop();
        // Its error tells more than that nothing comes through.
        load.join().map_err(|_| io::Error::other("the load panicked"))??;
        measured
    })
}

fn bulk(proxy: &Running, plan: &Plan, connections: usize, metric: Metric) -> io::Result<Values> {
    let progress = Progress::default();
    let load = || client::bulk(proxy.at(SOURCE), connections, &progress);
    Ok(vec![measure(proxy, plan, &progress, load, || progress.done())?.gigabyte(metric)])
}

fn first_bytes(proxy: &Running, plan: &Plan) -> io::Result<Values> {
    let count = if plan.seconds < 1.0 { 100 } else { 1_000 };
    let took = Figure::new("", "us", client::first_bytes(proxy.at(ECHO), count)?);
    Ok(vec![(Metric::FirstByte, took.percentile(50)), (Metric::FirstByteTail, took.percentile(99))])
}

/// What arrives counts, not what is sent: the sender floods.
fn segments(proxy: &Running, plan: &Plan) -> io::Result<Values> {
    let progress = Progress::default();
    let arrived = || proxy.upstream.received() / u64::from(SEGMENT);
    let load = || datagram::segments(proxy.at(SINK), &progress);
    let measured = measure(proxy, plan, &progress, load, arrived)?;
    Ok(vec![measured.cpu(Metric::Segment), measured.rate(Metric::SegmentRate)])
}

/// Memory and CPU time of idle connections, and the cost of a connection beside them.
fn idle(proxy: &Running, plan: &Plan) -> io::Result<Values> {
    let tree = proxy.tree();
    let held = hold(proxy, plan, |count| client::hold(proxy.at(ECHO), count))?;

    let (begun, cpu) = (SystemTime::now(), tree.cpu_seconds()?);
    thread::sleep(Duration::from_secs_f64(plan.seconds));
    let cpu = tree.cpu_seconds()? - cpu;
    let idle_cpu = cpu / begun.elapsed().map_err(io::Error::other)?.as_secs_f64() * 1e3;

    let churn = measured(proxy, plan, client::connections, ECHO)?;
    let memory = held.end(proxy)?;
    let values = [(Metric::IdleMemory, memory), (Metric::IdleCpu, idle_cpu)];
    Ok([values, [churn.cpu(Metric::Churn), churn.rate(Metric::ChurnRate)]].concat())
}

/// Connections that are held.
pub(super) struct Held {
    connections: Vec<TcpStream>,
    memory: f64,
    descriptors: usize,
}

/// Holds the idle connections of a plan with the memory of one of them.
///
/// Some connections come and go, some stay: pools and arenas are there then. The memory is the growth
/// by the connections after those.
pub(super) fn hold(
    proxy: &Running,
    plan: &Plan,
    open: impl Fn(usize) -> io::Result<Vec<TcpStream>>,
) -> io::Result<Held> {
    let tree = proxy.tree();
    let first = plan.idle / FIRST;
    let descriptors = tree.descriptors()?;
    drop(open(first)?);
    closed(proxy, descriptors)?;
    let mut connections = open(first)?;
    let before = tree.resident_bytes()?;
    let more = open(plan.idle - first)?;
    let after = tree.resident_bytes()?;
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let memory = (after - before) / more.len() as f64;
    connections.extend(more);
    Ok(Held { connections, memory, descriptors })
}

impl Held {
    /// Closes them; the resident memory of one, in bytes.
    pub(super) fn end(self, proxy: &Running) -> io::Result<f64> {
        drop(self.connections);
        closed(proxy, self.descriptors)?;
        Ok(self.memory)
    }
}

/// Waits until the proxy has closed what its clients closed.
fn closed(proxy: &Running, before: usize) -> io::Result<()> {
    until(CLOSE, || match proxy.tree().descriptors()? {
        open if open <= before + KEPT => Ok(()),
        open => {
            thread::sleep(Duration::from_millis(20));
            Err(io::Error::other(format!("{open} descriptors are open, {before} were before the load")))
        }
    })
}
