//! The pages of a node over HTTP: metrics, status, the control API, and what an operator may tell it.
//!
//! Sockets and the stop signal are given. Everything is read from the present snapshot and from
//! shared counters, so a page costs sessions nothing; it is written on a thread of its own, and so
//! few pages exist at once that slow readers cannot take the memory.

pub mod apisix_metrics;
mod control_api;
pub mod explain;
mod health_metrics;
mod healthcheck;
mod limit_metrics;
mod process_metrics;
mod refusal_metrics;
mod report_metrics;
mod route_metrics;
mod server;
mod status;
mod text;
mod tls_metrics;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::explain::Facing;
pub use self::server::{Pages, serve};
use crate::config::Prometheus;
use crate::live::node_state::NodeState;
use crate::live::totals::Totals;
use crate::live::{Budget, NodeCounters};
use crate::metrics::{Metrics, number};
use crate::net::clock::unix_ms;
use crate::net::this_host::this_host;
use crate::resource::Kind;
use crate::session::{End, Transport};
use crate::snapshot::{Published, Snapshot};

/// How often samples are drained.
const UPKEEP: Duration = Duration::from_secs(5);
/// How many upkeeps pass before series of what is loaded no more are looked for.
const SWEEP_EVERY: u32 = 60;

/// What the pages show, and what they may set off.
#[derive(Debug)]
pub struct Admin {
    metrics: Metrics,
    published: Published,
    totals: Arc<Totals>,
    state: Arc<NodeState>,
    node: Arc<NodeCounters>,
    budgets: Budgets,
    accept_state: mpsc::Sender<()>,
    facing: Arc<ArcSwap<Facing>>,
    etcd_prefix: Box<str>,
    prefix: Box<str>,
    max_series: usize,
    hostname: Arc<str>,
    /// Size of the last page: room for the next one.
    page_bytes: AtomicUsize,
}

/// What sessions share of the limits of the process.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// Descriptors.
    pub descriptors: Arc<Budget>,
    /// Pipes for bulk flows.
    pub pipes: Arc<Budget>,
}

/// The parts of a node that its pages are made from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The node's own metrics.
    pub metrics: Metrics,
    /// The present snapshot.
    pub published: Published,
    /// Counters of no route.
    pub totals: Arc<Totals>,
    /// How the node stands towards its source.
    pub state: Arc<NodeState>,
    /// Counters of the data path.
    pub node: Arc<NodeCounters>,
    /// What sessions may take of the process, and have taken.
    pub budgets: Budgets,
    /// Gets a message when an operator accepts a full read that is held back.
    pub accept_state: mpsc::Sender<()>,
    /// What of the present configuration meets sessions first.
    pub facing: Arc<ArcSwap<Facing>>,
    /// `deployment.etcd.prefix`, which keys of objects begin with; empty for a file.
    pub etcd_prefix: Box<str>,
}

impl Admin {
    /// The pages of a node. Without `prometheus` the metrics have APISIX's default prefix; whether
    /// they are served at all is said by [`Pages`].
    #[must_use]
    pub fn new(parts: Parts, prometheus: Option<&Prometheus>) -> Self {
        Self {
            metrics: parts.metrics,
            published: parts.published,
            totals: parts.totals,
            state: parts.state,
            node: parts.node,
            budgets: parts.budgets,
            accept_state: parts.accept_state,
            facing: parts.facing,
            etcd_prefix: parts.etcd_prefix,
            prefix: prometheus.map_or("apisix_", |prometheus| &*prometheus.prefix).into(),
            max_series: prometheus.map_or(200_000, |prometheus| prometheus.max_series),
            hostname: this_host().hostname,
            page_bytes: AtomicUsize::new(0),
        }
    }

    /// The metrics page, in Prometheus's text format 0.0.4.
    #[must_use]
    pub fn metrics_page(&self) -> String {
        let snapshot = self.published.load_full();
        let room = self.page_bytes.load(Relaxed);
        let mut out = String::with_capacity(room + room / 16);
        self.observe(&snapshot, unix_ms());
        let (totals, state) = (&*self.totals, &*self.state);
        let (hostname, etcd_prefix) = (&*self.hostname, &*self.etcd_prefix);
        let facts = apisix_metrics::Facts { snapshot: &snapshot, totals, state, hostname, etcd_prefix };
        apisix_metrics::render(&mut out, &self.prefix, facts);
        process_metrics::render(&mut out, state.started_unix_ms);
        limit_metrics::render(&mut out, &self.budgets);
        self.metrics.render(&mut out);
        let (routes, pools) = (snapshot.routes(), snapshot.pools());
        route_metrics::render(&mut out, &totals.unrouted, routes, pools, self.max_series);
        refusal_metrics::render(&mut out, snapshot.routes(), totals, self.max_series);
        tls_metrics::render(&mut out, &self.node.tls, &snapshot, self.max_series);
        health_metrics::render(&mut out, &snapshot, self.max_series);
        report_metrics::render(&mut out, &self.node);
        self.page_bytes.store(out.len(), Relaxed);
        out
    }

    /// A page of the control API.
    fn control_page(&self, request: &control_api::Request) -> control_api::Page {
        let (snapshot, facing) = (self.published.load_full(), self.facing.load_full());
        let (prefix, source) = (&*self.etcd_prefix, self.state.source);
        control_api::Site { snapshot: &snapshot, facing: &facing, prefix, source }.answer(request)
    }

    /// Sets what is derived from the snapshot and from the state of the source.
    fn observe(&self, snapshot: &Snapshot, now: u64) {
        let (metrics, state) = (&self.metrics, &self.state);
        let age = |then: u64| Duration::from_millis(now.saturating_sub(then)).as_secs_f64();
        metrics.config_revision.set(number(snapshot.revision));
        metrics.source_revision.set(number(state.source_revision()));
        metrics.last_event_age.set(age(state.event_unix_ms()));
        metrics.last_contact_age.set(age(state.contact_unix_ms()));
        metrics.source_up.set(flag(state.reachable()));
        metrics.ready.set(flag(state.ready()));
        metrics.held_read.set(flag(state.held().is_some()));
        metrics.degraded_routes.set(crate::metrics::count(snapshot.degraded().len()));
        for kind in Kind::ALL {
            let rejected = snapshot.rejected().iter().filter(|rejected| rejected.key.kind == kind).count();
            metrics.rejected_objects.set(kind.directory(), rejected);
            metrics.loaded_objects.set(kind.directory(), snapshot.loaded(kind));
        }
        self.observe_counters();
        let listens = self.totals.listens();
        let active = |transport: Transport| {
            let of_kind = listens.iter().filter(|listen| listen.transport == transport);
            let sum: u64 = of_kind.map(|listen| listen.active()).sum();
            crate::metrics::count(usize::try_from(sum).unwrap_or(usize::MAX))
        };
        metrics.sessions_active.set(active(Transport::Tcp));
        metrics.udp_associations.set(active(Transport::Udp));
    }

    /// Counters that the data path keeps in atomics of its own, and the source in its status.
    fn observe_counters(&self) {
        let (metrics, node) = (&self.metrics, &self.node);
        metrics.accept_errors.absolute(node.accept_aborted.count() + node.accept_paused.count());
        metrics.steered.absolute(node.steered.count());
        metrics.bulk_flows.absolute(node.bulk_flows.count());
        metrics.pipes_refused.absolute(node.pipes_refused.count());
        metrics.session_limit_hits.absolute(self.totals.unrouted.ended_count(End::Limit));
        metrics.udp_evictions.absolute(node.udp_evicted.count());
        metrics.udp_over_rate.absolute(node.udp_over_rate.count());
        metrics.udp_dropped.absolute(node.udp_dropped.count() + node.udp_undeliverable.count());
        metrics.udp_errors.absolute(node.udp_refused.count());
        metrics.limit_keys_forgotten.absolute(node.limit_keys_forgotten.count());
        metrics.outcomes_dropped.absolute(node.outcomes_dropped.count());
        metrics.access_lines_dropped.absolute(node.access_lines_dropped.count());
        metrics.session_lines_dropped.absolute(node.session_lines_dropped.count());
        metrics.etcd_reconnects.absolute(self.state.status.reconnects());
    }

    /// Forgets the series of routes and nodes that the snapshot does not have.
    fn sweep(&self, snapshot: &Snapshot) {
        let labels: HashSet<&str> =
            snapshot.routes().filter_map(|route| route.apisix_label()).map(|label| &**label).collect();
        let nodes: HashSet<&str> =
            snapshot.pools().flat_map(|pool| pool.nodes()).map(|node| &*node.label).collect();
        let has_route = |route: &str| snapshot.route(route).is_some();
        self.totals.sweep(has_route, |label| labels.contains(label), |node| nodes.contains(node));
    }
}

/// Keeps memory flat whether or not anybody scrapes, until `stop`.
pub async fn upkeep(admin: Arc<Admin>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(UPKEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut swept = admin.published.load_full();
    for round in 1_u32.. {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => admin.metrics.upkeep(),
        }
        let present = admin.published.load_full();
        if round.is_multiple_of(SWEEP_EVERY) && !Arc::ptr_eq(&present, &swept) {
            let (admin, snapshot) = (admin.clone(), present.clone());
            // Sweeping looks at every route; a failure to join is a panic told elsewhere.
            let _ = spawn_blocking(move || admin.sweep(&snapshot)).await;
            swept = present;
        }
    }
}

/// The values of the `kind` label, for [`Metrics::new`].
#[must_use]
pub fn kinds() -> Vec<&'static str> {
    Kind::ALL.map(Kind::directory).to_vec()
}

fn flag(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::node_state::HeldRead;
    use crate::live::source_status::SourceStatus;

    /// An admin over an empty snapshot, and the receiver of `accept-state`.
    pub(super) fn admin() -> (Arc<Admin>, mpsc::Receiver<()>) {
        let (accept_state, accepted) = mpsc::channel(1);
        let status = Arc::new(SourceStatus::new(tokio::time::Instant::now().into_std()));
        let parts = Parts {
            metrics: Metrics::new(&kinds(), "1.2.3"),
            published: Published::default(),
            totals: Arc::default(),
            state: Arc::new(NodeState::new("etcd", unix_ms(), status)),
            node: Arc::default(),
            budgets: Budgets { descriptors: Budget::new(100), pipes: Budget::new(8) },
            accept_state,
            facing: Arc::default(),
            etcd_prefix: "/apisix".into(),
        };
        (Arc::new(Admin::new(parts, None)), accepted)
    }

    pub(super) fn hold(admin: &Admin) {
        let held =
            HeldRead { revision: 9, routes: 20, removed: 18, since_unix_ms: 1_000, until_unix_ms: 2_000 };
        admin.state.set_held(Some(held));
    }

    pub(super) fn state(admin: &Admin) -> &NodeState {
        &admin.state
    }

    #[track_caller]
    fn check(page: &str, line: &str) {
        assert_eq!(page.lines().filter(|present| *present == line).count(), 1, "`{line}` in\n{page}");
    }

    #[test]
    fn the_page_is_one_valid_text() {
        let (admin, _accepted) = admin();
        hold(&admin);
        admin.state.set_ready();
        let listen = admin.totals.listen(Transport::Tcp, "0.0.0.0:9100".into(), &"9100".into());
        let _session = listen.enter();
        let page = admin.metrics_page();
        for kind in kinds() {
            check(&page, &format!("streamgate_rejected_objects{{kind=\"{kind}\"}} 0"));
        }
        check(&page, "streamgate_full_read_held 1");
        check(&page, "streamgate_ready 1");
        check(&page, "streamgate_tcp_sessions 1");
        check(&page, "streamgate_udp_associations 0");
        check(&page, r#"apisix_stream_active_connections{listen_addr="0.0.0.0:9100"} 1"#);
        let mut types: Vec<&str> = page.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        let told = types.len();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), told, "a family is told twice");
        let mut series: Vec<&str> = page.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
        let lines = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), lines, "a series is there twice");
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_sweeps_after_a_change_and_stops_when_told() {
        let (admin, _accepted) = admin();
        let gone = crate::live::totals::ConnectionKey { route: "gone".into(), extra: Box::default() };
        admin.totals.connections.count(&gone);
        let stop = CancellationToken::new();
        let task = tokio::spawn(upkeep(admin.clone(), stop.clone()));
        tokio::time::sleep(UPKEEP * (SWEEP_EVERY + 2)).await;
        assert_eq!(admin.totals.connections.len(), 1, "nothing has changed yet");
        admin.published.store(Arc::default());
        tokio::time::sleep(UPKEEP * (SWEEP_EVERY + 2)).await;
        let deadline = tokio::time::Instant::now() + Duration::from_mins(1);
        while !admin.totals.connections.is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(admin.totals.connections.is_empty());
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }
}
