//! A whole gateway: the one place that knows every part and wires them.
//!
//! Nothing here decides anything about traffic. Sockets are bound here or by [`Listens`]; listens
//! open only after a first state was applied, and stay whatever becomes of the source.

mod logs;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::logs::Hearers;
use crate::addr::IpMatcher;
use crate::admin::explain::Facing;
use crate::admin::{self, Admin, Budgets, Pages, Parts, apisix_metrics};
use crate::config::{Config, Listen, Source};
use crate::control::{self, Control};
use crate::discovery;
use crate::drain::Drain;
use crate::live::limits::Limits;
use crate::live::node_state::NodeState;
use crate::live::source_status::SourceStatus;
use crate::live::totals::Totals;
use crate::live::{Budget, Live, NodeCounters};
use crate::log;
use crate::metrics::Metrics;
use crate::net::clock::unix_ms;
use crate::net::this_host::this_host;
use crate::net::trust::Trust;
use crate::net::{bind, limits};
use crate::probe;
use crate::proxy::{Crew, ListenError, Listens, Logs, Opened, PIPE_SIZE, Shared, Workers};
use crate::resolve;
use crate::session::Transport;
use crate::snapshot::{Builder, Published, UpstreamSettings};
use crate::source;
use crate::store::Store;

/// Batches of events that wait for the control loop.
const EVENTS: usize = 1024;
/// A gateway that may serve fewer sessions says so at the start.
const FEW_SESSIONS: usize = 1000;
/// Outcomes that wait for the log; what comes on top is counted and lost.
const OUTCOMES: usize = 4096;
/// How long syslog servers may take for the last lines where the time of sessions is over.
const LAST_LINES: Duration = Duration::from_secs(2);

/// What the command line adds to config.yaml.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Listen on ports that other processes hold too.
    pub share_ports: bool,
    /// The node's metrics, where something counts in them already.
    pub metrics: Option<Metrics>,
}

impl Options {
    fn metrics(&self) -> Metrics {
        let made = || Metrics::new(&admin::kinds(), env!("CARGO_PKG_VERSION"));
        self.metrics.clone().unwrap_or_else(made)
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    config: Config,
    published: Published,
    state: Arc<NodeState>,
    listens: Listens,
    workers: Workers,
    drain: Drain,
    hearers: Hearers,
    first_state: oneshot::Receiver<()>,
    /// Peers whose PROXY header the workers believe.
    real_ip_from: Arc<ArcSwap<Vec<IpMatcher>>>,
    /// What the control API explains sessions by.
    facing: Arc<ArcSwap<Facing>>,
    /// Everything but the workers ends with it.
    background: CancellationToken,
    /// The real address of the metrics server.
    pub metrics_addr: Option<SocketAddr>,
    /// The real address of the status server.
    pub status_addr: Option<SocketAddr>,
    /// The real address of the control API; `None` also where its default address is taken.
    pub control_addr: Option<SocketAddr>,
}

impl Gateway {
    /// Starts everything but the listens. Fails where an address cannot be had.
    pub async fn start(config: Config, options: Options) -> anyhow::Result<Self> {
        prove_free(&config, options.share_ports)?;
        let metrics = options.metrics();
        let totals = totals(&config);
        let status = Arc::new(SourceStatus::new(Instant::now().into_std()));
        let state = Arc::new(NodeState::new(kind(&config.source), unix_ms(), status));
        let published = Published::default();
        let background = CancellationToken::new();

        let (shared, hearers) = shared(&config, &published, totals.clone(), &metrics, &background)?;
        let drain = Drain::new();
        let crew = Crew { count: config.workers, pinned: config.cpu_affinity };
        let workers = Workers::start(crew, &shared, &drain.watch()).context("cannot start workers")?;
        let listens = Listens::new(&workers, options.share_ports);

        let facing = Arc::new(ArcSwap::from_pointee(facing(&config, config.listens.clone())));
        let (accept_state, accepted) = mpsc::channel(1);
        let admin = Arc::new(Admin::new(
            Parts {
                metrics: metrics.clone(),
                published: published.clone(),
                totals,
                state: state.clone(),
                node: shared.node.clone(),
                budgets: Budgets { descriptors: shared.descriptors.clone(), pipes: shared.pipes.clone() },
                accept_state,
                facing: facing.clone(),
                etcd_prefix: etcd_prefix(&config.source),
            },
            config.prometheus.as_ref(),
        ));
        let servers = serve_pages(&config, &admin, &background).await?;
        tokio::spawn(admin::upkeep(admin, background.clone()));
        let (first, first_state) = oneshot::channel();
        let with = Following {
            published: published.clone(),
            metrics,
            state: state.clone(),
            first,
            accepted,
            descriptors: shared.descriptors.clone(),
            limits: Limits::new(shared.node.limit_keys_forgotten.clone()),
            trust: hearers.trust.clone(),
        };
        follow(&config, with, &background);
        Ok(Self {
            config,
            published,
            state,
            listens,
            workers,
            drain,
            hearers,
            first_state,
            real_ip_from: shared.real_ip_from,
            facing,
            background,
            metrics_addr: servers.metrics,
            status_addr: servers.status,
            control_addr: servers.control,
        })
    }

    /// Waits for the first state and opens the listens. Cancelled, it may be called again.
    pub async fn open(&mut self) -> anyhow::Result<Vec<Opened>> {
        if !self.published.load().complete && (&mut self.first_state).await.is_err() {
            bail!("the configuration loop ended before a first state was read");
        }
        let report = self.listens.reconcile(&self.config.listens).await.map_err(|errors| told(&errors))?;
        for warning in &report.warnings {
            tracing::warn!("{warning}");
        }
        self.face();
        self.state.set_ready();
        let opened: Vec<String> = report.opened.iter().map(ToString::to_string).collect();
        tracing::info!(
            revision = self.published.load().revision,
            metrics = self.metrics_addr.map(tracing::field::display),
            control = self.control_addr.map(tracing::field::display),
            "gateway ready: {}",
            opened.join(", "),
        );
        Ok(report.opened)
    }

    /// What is open.
    #[must_use]
    pub fn opened(&self) -> Vec<Opened> {
        self.listens.opened()
    }

    /// How long QUIT lets sessions finish.
    #[must_use]
    pub fn shutdown_timeout(&self) -> Duration {
        self.config.shutdown_timeout
    }

    /// Follows a new config.yaml: opens and closes listens, keeps every session. On an error nothing
    /// has changed.
    pub async fn reload(&mut self, config: Config) -> anyhow::Result<()> {
        let refusals = self.config.changes_needing_restart(&config);
        if !refusals.is_empty() {
            bail!("{}", refusals.join("\n"));
        }
        let opened = self.hearers.log.prepare(&config)?;
        // Before the first state there is nothing to open yet.
        if self.state.ready() {
            let report = self.listens.reconcile(&config.listens).await.map_err(|errors| told(&errors))?;
            for opened in &report.opened {
                tracing::info!("opened {opened}");
            }
            for closed in &report.closed {
                tracing::info!("closed {closed}; its TCP sessions go on");
            }
            for changed in &report.changed {
                tracing::info!("new settings for {changed}; they count for new sessions");
            }
            for warning in &report.warnings {
                tracing::warn!("{warning}");
            }
        }
        self.real_ip_from.store(Arc::new(config.real_ip_from.clone()));
        self.hearers.log.follow(&config, opened);
        self.config = config;
        self.face();
        Ok(())
    }

    /// Opens the files of sessions anew, for they may have been renamed: lines of sessions that ended before
    /// go to the old ones.
    pub async fn reopen_logs(&self) {
        // A worker answers within a turn of its loop.
        let _ = tokio::time::timeout(LAST_LINES, self.workers.flush_lines()).await;
        if self.hearers.log.reopen().await {
            tracing::info!(
                "USR1: opened the files of the access log and the session log anew, where there are any"
            );
        } else {
            tracing::error!("USR1: a file cannot be written in time; it stays open, send USR1 again");
        }
    }

    /// Tells the control API which listens there are now.
    fn face(&self) {
        let real = |opened: Opened| Listen { addr: opened.addr, ..(*opened.listen).clone() };
        let listens = self.listens.opened().into_iter().map(real).collect();
        self.facing.store(Arc::new(facing(&self.config, listens)));
    }

    /// Ends it: no new sessions, those that live have until `limit` from now, or until `hurry`.
    pub async fn stop(mut self, limit: Duration, hurry: impl Future<Output = ()>) {
        let deadline = Instant::now() + limit;
        self.drain.start(deadline);
        let mut hurry = pin!(hurry);
        let mut hurried = false;
        let finished = async {
            // Closing empties the accept queues: whoever got through to us is served.
            if let Err(errors) = self.listens.reconcile(&[]).await {
                tracing::error!("{}", told(&errors));
            }
            self.drain.finished().await;
        };
        tokio::select! {
            () = finished => {}
            () = &mut hurry => {
                hurried = true;
                self.drain.now();
                self.drain.finished().await;
            }
        }
        // Threads that have said goodbye end at once.
        let _ = tokio::task::spawn_blocking(move || self.workers.join()).await;
        // Those who collect lines get what sessions have left of their time.
        let soon = Instant::now() + LAST_LINES;
        let heard = self.hearers.finish(if hurried { soon } else { soon.max(deadline) });
        tokio::select! {
            () = heard => {}
            () = hurry, if !hurried => {}
        }
        self.background.cancel();
    }
}

/// What turns the source's changes into snapshots shares with the rest of the gateway.
struct Following {
    published: Published,
    metrics: Metrics,
    state: Arc<NodeState>,
    /// Told of the first full state.
    first: oneshot::Sender<()>,
    /// An operator accepts a held read.
    accepted: mpsc::Receiver<()>,
    /// Those that sessions and probes may have.
    descriptors: Arc<Budget>,
    /// What limits of plugins remember.
    limits: Limits,
    /// Whom probes by https believe.
    trust: Trust,
}

/// Starts it, and what keeps the snapshots up to date otherwise.
fn follow(config: &Config, with: Following, stop: &CancellationToken) {
    let (events, received) = mpsc::channel(EVENTS);
    let (wanted, names) = watch::channel(Arc::from([]));
    let (wanted_services, services) = watch::channel(Arc::from([]));
    let (changed, snapshots) = watch::channel(());
    let live = Arc::new(Live { limits: with.limits, ..Live::default() });
    let builder = Builder::new(live.clone(), rand::random());
    let control = Control {
        store: Store::new(config.rules.clone()),
        builder: builder.with_settings(UpstreamSettings::new(config)),
        published: with.published.clone(),
        wanted,
        wanted_services,
        changed,
        metrics: with.metrics.clone(),
        state: with.state.clone(),
        first: Some(with.first),
    };
    let (trust, descriptors) = (with.trust, with.descriptors);
    let means = probe::Means { published: with.published, live, trust, descriptors };
    tokio::spawn(probe::run(means, snapshots, stop.clone()));
    tokio::spawn(control::run(control, received, with.accepted, stop.clone()));
    let means = discovery::Means {
        registries: config.registries.clone(),
        trusted: config.ssl.trusted.clone(),
        failing: with.state.discovery.clone(),
        metrics: with.metrics,
    };
    tokio::spawn(discovery::run(means, services, events.clone(), stop.clone()));
    tokio::spawn(resolve::run(config.dns.clone(), names, events.clone(), stop.clone()));
    let (from, status, stop) = (config.source.clone(), with.state.status.clone(), stop.clone());
    tokio::spawn(async move { source::run(&from, events, status, stop).await });
}

/// Every address must be free now: waiting for etcd first would tell of a mistake too late.
fn prove_free(config: &Config, share: bool) -> anyhow::Result<()> {
    let mut errors = Vec::new();
    for listen in &config.listens {
        let (transport, addr) = (listen.transport, listen.addr);
        let plan = bind::Plan { transport, addr, count: 1, share };
        if let Err(error) = bind::bind(&plan) {
            errors.push(format!("listen {}: {error}", listen.written));
        }
    }
    if errors.is_empty() { Ok(()) } else { bail!("{}", errors.join("\n")) }
}

fn told(errors: &[ListenError]) -> anyhow::Error {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    anyhow!("{}", lines.join("\n"))
}

/// Descriptors that a worker needs for listens: UDP ones also watch the sockets of their associations.
fn listening(config: &Config) -> usize {
    config.listens.iter().map(|listen| if listen.transport == Transport::Udp { 2 } else { 1 }).sum()
}

/// What is counted beside the statistics of routes.
fn totals(config: &Config) -> Arc<Totals> {
    let labels = |metric| apisix_metrics::extra_labels(config.prometheus.as_ref(), metric);
    Arc::new(Totals::new(labels("stream_connection_total"), labels("stream_status")))
}

/// What the workers share, with the limits of the process, and where the outcomes arrive that they hand on.
fn shared(
    config: &Config,
    published: &Published,
    totals: Arc<Totals>,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> anyhow::Result<(Shared, Hearers)> {
    let descriptors = limits::raise_descriptors().context("cannot raise the limit on descriptors")?;
    let pipes = limits::for_pipes(descriptors, PIPE_SIZE);
    let free = limits::for_sessions(descriptors, listening(config) * config.workers + 2 * pipes);
    let sessions = config.limits.sessions.unwrap_or(free / 2);
    metrics.sessions_limit.set(crate::metrics::count(sessions));
    if config.limits.sessions.is_none() && sessions < FEW_SESSIONS {
        tracing::warn!(
            "this process may hold {descriptors} descriptors, which is enough for {sessions} TCP sessions; raise \
             LimitNOFILE (ulimit -n)"
        );
    }
    let wanted = config.limits.udp_associations;
    let udp_associations = limits::for_associations(wanted, free);
    if udp_associations < wanted && config.listens.iter().any(|listen| listen.transport == Transport::Udp) {
        tracing::info!(
            "UDP associations are limited to {udp_associations}, not {wanted}: a third of the descriptors stays for \
             TCP sessions; raise LimitNOFILE for more"
        );
    }
    metrics.udp_associations_limit.set(crate::metrics::count(udp_associations));
    let (outcomes, received) = mpsc::channel(OUTCOMES);
    let (reports, received_reports) = mpsc::channel(OUTCOMES);
    let (lasting, heard) = mpsc::channel(OUTCOMES);
    let (host, logs) = (Arc::new(this_host()), Logs { lasting: Some(lasting), ..Logs::default() });
    let log = tokio::spawn(log::outcomes(log::Heard {
        ended: received,
        lasting: heard,
        settings: logs.settings.clone(),
        host: host.clone(),
    }));
    let shared = Shared {
        published: published.clone(),
        node: Arc::new(NodeCounters::default()),
        totals,
        outcomes,
        reports,
        host,
        // The session log decides.
        every_outcome: false,
        sessions: Budget::new(sessions),
        descriptors: Budget::new(free),
        pipes: Budget::new(pipes),
        udp_associations,
        fallback_sni: config.ssl.fallback_sni.as_deref().map(Into::into),
        real_ip_from: Arc::new(ArcSwap::from_pointee(config.real_ip_from.clone())),
        logs,
    };
    let hearers = Hearers::start(&shared, config, (log, received_reports), stop)?;
    Ok((shared, hearers))
}

/// Real addresses of the servers of pages.
#[derive(Debug, Default)]
struct Servers {
    metrics: Option<SocketAddr>,
    status: Option<SocketAddr>,
    control: Option<SocketAddr>,
}

/// Binds and serves the metrics, the status pages and the control API.
async fn serve_pages(
    config: &Config,
    admin: &Arc<Admin>,
    stop: &CancellationToken,
) -> anyhow::Result<Servers> {
    let serve = async |addr: SocketAddr, pages: Pages, key: &str| {
        let listener = TcpListener::bind(addr).await.with_context(|| {
            format!(
                "cannot listen on {addr} ({key}); another process may hold it, or this host lacks the address"
            )
        })?;
        let addr = listener.local_addr()?;
        tokio::spawn(admin::serve(listener, pages, admin.clone(), stop.clone()));
        anyhow::Ok(addr)
    };
    let mut servers = Servers::default();
    if let Some(prometheus) = &config.prometheus {
        let pages = Pages { metrics: Some(prometheus.uri.clone()), ..Pages::default() };
        servers.metrics = Some(serve(prometheus.addr, pages, "plugin_attr.prometheus.export_addr").await?);
    }
    if let Some(addr) = config.status {
        let pages = Pages { status: true, ..Pages::default() };
        servers.status = Some(serve(addr, pages, "apisix.status").await?);
    }
    if let Some(control) = config.control {
        let pages = Pages { control: true, ..Pages::default() };
        match serve(control.addr, pages, "apisix.control").await {
            Ok(addr) => servers.control = Some(addr),
            Err(error) if control.written => return Err(error),
            // An APISIX or another gateway of this host has it, and nobody asked for it here.
            Err(error) => tracing::warn!(
                "{error:#}; this gateway goes on without the control API. Write another apisix.control.port, or \
                 enable_control: false"
            ),
        }
    }
    Ok(servers)
}

/// What meets sessions first.
fn facing(config: &Config, listens: Vec<Listen>) -> Facing {
    Facing { listens, fallback_sni: config.ssl.fallback_sni.clone() }
}

/// Where objects come from, in a word.
fn kind(source: &Source) -> &'static str {
    if matches!(source, Source::Etcd(_)) { "etcd" } else { "file" }
}

/// What keys of objects begin with.
fn etcd_prefix(source: &Source) -> Box<str> {
    match source {
        Source::Etcd(etcd) => etcd.prefix.clone(),
        Source::File(_) => "".into(),
    }
}
