//! What a session is held to account by: it becomes one outcome, whatever happens.
//!
//! A record that is dropped without an ending was cut off by the end of its worker, so its outcome
//! says drained. Sessions therefore need no stop signal of their own: the worker drops their tasks.

use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::balance::{Assigned, Picked, Pool};
use crate::config::Listen;
use crate::live::ActiveGuard;
use crate::live::listen_stats::ListenGuard;
use crate::proxy::worker::{Living, Refusal, Worker};
use crate::proxy::workers::Door;
use crate::session::{End, Inbound, Outcome, Traffic};
use crate::snapshot::Route;

/// One session from its first to its last moment.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) inbound: Inbound,
    pub(super) listen: Arc<Listen>,
    pub(super) upstream: Option<Arc<str>>,
    pub(super) attempts: u32,
    /// The code of the plugin that refused it.
    pub(super) denied: Option<u16>,
    pub(super) worker: Rc<Worker>,
    door: ListenGuard,
    started: Instant,
    route: Option<(Arc<Route>, ActiveGuard)>,
    /// The statistics of the node being tried or in use, where the session counts as active and, for
    /// the balancer, as assigned.
    node: Option<(ActiveGuard, Assigned)>,
    /// Label of the node last tried.
    tried: Option<Arc<str>>,
    traffic: Traffic,
    connect: Option<Duration>,
    /// Made no association: its outcome is one of those whose rate is bounded.
    bounded: bool,
    /// Its TLS is left alone.
    passed_through: bool,
    ended: bool,
    _alive: Living,
}

impl Record {
    /// A session that begins now.
    pub(super) fn new(worker: &Rc<Worker>, inbound: Inbound, door: &Door) -> Self {
        Self {
            inbound,
            listen: door.settings.load_full(),
            door: door.stats.enter(),
            upstream: None,
            attempts: 0,
            denied: None,
            worker: worker.clone(),
            started: Instant::now(),
            route: None,
            node: None,
            tried: None,
            traffic: Traffic::default(),
            connect: None,
            bounded: false,
            passed_through: false,
            ended: false,
            _alive: worker.alive.enter(),
        }
    }

    /// Notes that its TLS is left alone, and counts it.
    pub(super) fn passes_through(&mut self) {
        self.passed_through = true;
        self.worker.shared.node.tls.passed_through.add_one();
    }

    /// Reports whether its TLS is left alone: towards its node, too.
    pub(super) fn is_passed_through(&self) -> bool {
        self.passed_through
    }

    /// When it began.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// The pool its route has now, which may be newer than the one it was given.
    pub(super) fn pool_now(&self) -> Option<Arc<Pool>> {
        let (route, _) = self.route.as_ref()?;
        self.worker.pool_of(&route.id)
    }

    /// The pool it goes to, or why it goes nowhere.
    pub(super) fn route(&mut self) -> Result<Arc<Pool>, Refusal> {
        self.worker.clone().route(self)
    }

    /// Notes its route and counts it in there.
    pub(super) fn enter(&mut self, route: &Arc<Route>) {
        self.route = Some((route.clone(), route.stats.enter()));
    }

    /// Notes that a node is tried and counts the session in there.
    pub(super) fn attempt(&mut self, picked: Picked) {
        self.attempts += 1;
        let Picked { node, assigned } = picked;
        self.node = Some((node.stats.enter(), assigned));
        self.tried = Some(node.label);
    }

    /// Label of the node last tried; empty where none was.
    pub(super) fn tried(&self) -> &str {
        self.tried.as_deref().unwrap_or_default()
    }

    /// Notes that the node being tried was not reached.
    pub(super) fn attempt_failed(&mut self) {
        if let Some((node, _assigned)) = self.node.take() {
            node.ended(End::ConnectFailed);
        }
    }

    /// Notes that the node was reached, after so long.
    pub(super) fn connected(&mut self, took: Duration) {
        self.connect = Some(took);
    }

    /// Counts a connect time on route and node. Not for UDP, where nothing is waited for.
    pub(super) fn count_connect(&self) {
        let Some(took) = self.connect else { return };
        if let Some((route, _)) = &self.route {
            route.stats.connect.record(took);
        }
        if let Some((node, _)) = &self.node {
            node.connect.record(took);
        }
    }

    /// Counts bytes while the session runs.
    pub(super) fn moved(&mut self, moved: Traffic) {
        self.traffic.received += moved.received;
        self.traffic.sent += moved.sent;
        if moved.received > 0 {
            self.door.add_received(moved.received);
            self.door.add_upstream_sent(moved.received);
        }
        if moved.sent > 0 {
            self.door.add_sent(moved.sent);
            self.door.add_upstream_received(moved.sent);
        }
        let stats = [self.route.as_ref().map(|(_, stats)| stats), self.node.as_ref().map(|(stats, _)| stats)];
        for stats in stats.into_iter().flatten() {
            if moved.received > 0 {
                stats.add_received(moved.received);
            }
            if moved.sent > 0 {
                stats.add_sent(moved.sent);
            }
        }
    }

    /// The session ended so.
    pub(super) fn finish(mut self, end: End, detail: Option<String>) {
        self.close(end, detail);
    }

    /// The datagram that would have begun the session was refused: its outcome may go unlogged.
    pub(super) fn refuse(mut self, end: End, detail: String) {
        self.bounded = true;
        self.close(end, Some(detail));
    }

    fn close(&mut self, end: End, detail: Option<String>) {
        self.ended = true;
        let duration = self.started.elapsed();
        if let Some((route, _)) = &self.route {
            route.stats.ended(end);
            route.stats.duration.record(duration);
        }
        if let Some((node, _)) = &self.node {
            node.ended(end);
        }
        let unread = end.is_normal() && !self.worker.shared.every_outcome;
        // Most sessions end normally on routes without APISIX's series: nobody would read of them.
        if unread && self.route.as_ref().is_some_and(|(route, _)| route.apisix_label().is_none()) {
            return;
        }
        let outcome = self.outcome(end, detail, duration);
        self.worker.shared.totals.record(&outcome);
        if unread || (self.bounded && !self.worker.may_log_refused()) {
            return;
        }
        self.worker.log(outcome);
    }

    fn outcome(&mut self, end: End, detail: Option<String>, duration: Duration) -> Outcome {
        Outcome {
            inbound: self.inbound.clone(),
            listen: self.listen.written.clone(),
            listen_addr: self.door.addr.clone(),
            apisix_label: self.route.as_ref().and_then(|(route, _)| route.apisix_label().cloned()),
            denied: self.denied,
            route: self.route.as_ref().map(|(route, _)| route.id.clone()),
            upstream: self.upstream.take(),
            node: self.tried.take(),
            end,
            detail: detail.map(String::into_boxed_str),
            traffic: mem::take(&mut self.traffic),
            attempts: self.attempts,
            connect: self.connect,
            duration,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.close(End::Drained, None);
        }
    }
}
