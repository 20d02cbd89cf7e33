//! A gateway in this process: real sockets on loopback, port 0, every wait bounded.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use streamgate::balance::{Pool, PoolNode, PoolSettings};
use streamgate::config::Listen;
use streamgate::drain::Drain;
use streamgate::live::totals::Totals;
use streamgate::live::{Budget, Live, NodeCounters, Stats};
use streamgate::matcher::Rule;
use streamgate::plugin::{Armed, Attached, Plugins};
use streamgate::proxy::{Crew, ListenError, Listens, Logs, Report, Shared, Workers};
use streamgate::resource::{Balancer, Key, Kind, PluginConf, Timeouts};
use streamgate::session::{End, Outcome, Transport};
use streamgate::snapshot::{Ended, Published, Route, Snapshot, Target};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// No wait of a test is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What a gateway may have.
pub(crate) struct Setup {
    pub(crate) workers: usize,
    pub(crate) pinned: bool,
    pub(crate) sessions: usize,
    pub(crate) descriptors: usize,
    pub(crate) pipes: usize,
    pub(crate) associations: usize,
    /// Sessions that end normally are told of, too.
    pub(crate) every_outcome: bool,
    pub(crate) logs: Logs,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            workers: 2,
            pinned: false,
            sessions: 1000,
            descriptors: 2000,
            pipes: 16,
            associations: 1000,
            every_outcome: true,
            logs: Logs::default(),
        }
    }
}

pub(crate) struct Gateway {
    pub(crate) drain: Drain,
    pub(crate) node: Arc<NodeCounters>,
    pub(crate) stats: Arc<Stats>,
    totals: Arc<Totals>,
    pub(crate) sessions: Arc<Budget>,
    pub(crate) pipes: Arc<Budget>,
    pub(crate) runtime: Runtime,
    published: Published,
    workers: Option<Workers>,
    listens: Listens,
    outcomes: mpsc::Receiver<Arc<Ended>>,
    /// What plugins that send lines hear of.
    pub(crate) reports: Option<mpsc::Receiver<Arc<Ended>>>,
    wanted: Vec<Listen>,
}

impl Gateway {
    pub(crate) fn start(setup: &Setup) -> Self {
        let published = Published::new(ArcSwap::default());
        let (sender, outcomes) = mpsc::channel(10_000);
        let (reports, reported) = mpsc::channel(10_000);
        let node = Arc::new(NodeCounters::default());
        let totals = Arc::<Totals>::default();
        let (sessions, pipes) = (Budget::new(setup.sessions), Budget::new(setup.pipes));
        let shared = Shared {
            published: published.clone(),
            node: node.clone(),
            totals: totals.clone(),
            outcomes: sender,
            reports,
            host: Arc::default(),
            every_outcome: setup.every_outcome,
            sessions: sessions.clone(),
            descriptors: Budget::new(setup.descriptors),
            pipes: pipes.clone(),
            udp_associations: setup.associations,
            fallback_sni: None,
            real_ip_from: Arc::default(),
            logs: setup.logs.clone(),
        };
        let drain = Drain::new();
        let crew = Crew { count: setup.workers, pinned: setup.pinned };
        let workers = Workers::start(crew, &shared, &drain.watch()).unwrap();
        let listens = Listens::new(&workers, false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let workers = Some(workers);
        let stats = Arc::default();
        Self {
            drain,
            node,
            totals,
            stats,
            sessions,
            pipes,
            runtime,
            published,
            workers,
            listens,
            outcomes,
            reports: Some(reported),
            wanted: vec![],
        }
    }

    /// A gateway with one listen and one route from everywhere to `pool`.
    pub(crate) fn serving(setup: &Setup, listen: Listen, pool: Pool) -> (Self, SocketAddr) {
        let mut gateway = Self::start(setup);
        gateway.publish(Target::Inline(Arc::new(pool)), &[]);
        let addr = gateway.listen(listen);
        (gateway, addr)
    }

    /// Publishes one route that takes every client.
    pub(crate) fn publish(&self, target: Target, plugins: &[(&str, serde_json::Value)]) {
        let (owner, live) = (Key::new(Kind::StreamRoute, "r1"), Live::default());
        let armed = plugins.iter().filter_map(|(name, conf)| {
            let conf = PluginConf {
                name: (*name).into(),
                conf: Arc::new(conf.clone()),
                enabled: true,
                ..PluginConf::default()
            };
            let attached = Attached { owner: owner.clone(), conf: &conf };
            Armed::new(&attached, &live, &mut Vec::new()).map(Arc::new)
        });
        let route = Route {
            id: "r1".into(),
            revision: 1,
            name: None,
            service: None,
            service_name: None,
            stats: self.stats.clone(),
            target,
            plugins: Plugins::new(armed.collect()),
            tls_passthrough: false,
            degraded: Arc::default(),
        };
        self.published.store(Arc::new(Snapshot::from_parts(vec![(Rule::default(), route)], vec![])));
    }

    /// Where its sessions read what they are routed by.
    pub(crate) fn published(&self) -> Published {
        self.published.clone()
    }

    /// The next session's outcome, where one has ended.
    pub(crate) fn outcome_now(&mut self) -> Option<Outcome> {
        self.outcomes.try_recv().ok().map(of)
    }

    /// How many sessions ended so, whether they had a route or not.
    pub(crate) fn ended_count(&self, end: End) -> u64 {
        self.totals.unrouted.ended_count(end) + self.stats.ended_count(end)
    }

    /// Publishes a state without any route.
    pub(crate) fn publish_nothing(&self) {
        self.published.store(Arc::default());
    }

    /// Opens one more listen; its address.
    pub(crate) fn listen(&mut self, listen: Listen) -> SocketAddr {
        self.wanted.push(listen);
        let report = self.reconcile(&self.wanted.clone()).unwrap();
        assert_eq!(report.opened.len(), 1);
        report.opened[0].addr
    }

    pub(crate) fn reconcile(&mut self, wanted: &[Listen]) -> Result<Report, Vec<ListenError>> {
        self.wanted = wanted.to_vec();
        let reconciled = self.listens.reconcile(wanted);
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, reconciled).await.unwrap() })
    }

    /// The next session's outcome.
    #[track_caller]
    pub(crate) fn outcome(&mut self) -> Outcome {
        let next = self.outcomes.recv();
        let next = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, next).await });
        of(next.expect("no session ended").unwrap())
    }

    #[track_caller]
    pub(crate) fn ends_with(&mut self, end: End) -> Outcome {
        let outcome = self.outcome();
        assert_eq!(outcome.end, end, "{outcome:?}");
        outcome
    }

    /// Stops; what is left is ended after `grace`.
    pub(crate) fn stop(mut self, grace: Duration) -> Vec<Outcome> {
        self.reconcile(&[]).unwrap();
        self.drain.start(Instant::now() + grace);
        let finished = self.drain.finished();
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, finished).await.unwrap() });
        self.workers.take().unwrap().join();
        std::iter::from_fn(|| self.outcomes.try_recv().ok().map(of)).collect()
    }
}

fn of(ended: Arc<Ended>) -> Outcome {
    Arc::unwrap_or_clone(ended).outcome
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.drain.now();
    }
}

/// A listen on a port of the kernel's choice.
pub(crate) fn listen(transport: Transport, ip: &str) -> Listen {
    Listen::plain(format!("{ip}:0"), SocketAddr::new(ip.parse().unwrap(), 0), transport)
}

/// Settings that no test waits for.
pub(crate) fn settings() -> PoolSettings {
    PoolSettings {
        timeouts: Timeouts { connect: PATIENCE, idle: Duration::from_mins(10) },
        attempts: 3,
        retry_timeout: None,
        unfit: None,
        pending: false,
        close_on_down: 0,
    }
}

/// A pool whose nodes are preferred in this order.
pub(crate) fn pool(settings: PoolSettings, nodes: &[SocketAddr]) -> Pool {
    let node = |(place, addr): (i64, &SocketAddr)| PoolNode {
        addr: *addr,
        label: addr.to_string().into(),
        weight: 1,
        priority: -place,
        stats: Arc::default(),
        tls: None,
        health: None,
        leash: None,
    };
    let nodes = (0..).zip(nodes).map(node).collect();
    Pool::new("u1".into(), &Balancer::RoundRobin, settings, nodes, 0)
}

/// A TCP server.
pub(crate) fn server() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// An address nobody listens on. The socket keeps others from it.
pub(crate) fn refused() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, addr)
}

#[track_caller]
pub(crate) fn connect(addr: SocketAddr) -> TcpStream {
    bounded(TcpStream::connect_timeout(&addr, PATIENCE).unwrap())
}

#[track_caller]
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    poll_until("a connection", || {
        listener.set_nonblocking(true).unwrap();
        listener.accept().ok()
    })
    .0
    .unblocked()
}

trait Unblocked {
    fn unblocked(self) -> Self;
}

impl Unblocked for TcpStream {
    fn unblocked(self) -> Self {
        self.set_nonblocking(false).unwrap();
        bounded(self)
    }
}

fn bounded(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Asks again until there is an answer, but not for ever.
#[track_caller]
pub(crate) fn poll_until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "no {what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
pub(crate) fn says(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
}

#[track_caller]
pub(crate) fn hears(stream: &mut TcpStream, bytes: &[u8]) {
    let mut heard = vec![0; bytes.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard, bytes);
}

#[track_caller]
pub(crate) fn hears_end(stream: &mut TcpStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "bytes instead of the end");
}

#[track_caller]
pub(crate) fn hears_reset(stream: &mut TcpStream) {
    let error = stream.read(&mut [0]).expect_err("no reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
}

/// Closes with a reset.
pub(crate) fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

pub(crate) fn udp(ip: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}
