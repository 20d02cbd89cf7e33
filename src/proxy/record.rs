//! What a session is held to account by: it becomes one outcome, whatever happens.
//!
//! A record that is dropped without an ending was cut off by the end of its worker, so its outcome
//! says drained. Sessions therefore need no stop signal of their own: the worker drops their tasks.

use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use streamgate_sys::tcp::info;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::balance::{Assigned, Picked, Pool};
use crate::config::Listen;
use crate::drain::Leash;
use crate::health::Cell;
use crate::live::ActiveGuard;
use crate::live::listen_stats::ListenGuard;
use crate::plugin::Kept;
use crate::proxy::blame::blame;
use crate::proxy::output::{Lasting, Told};
use crate::proxy::worker::{Refusal, Worker};
use crate::proxy::workers::Door;
use crate::session::{Attempt, ConnectFailure, Course, End, Inbound, Measured, Outcome, Path, Traffic};
use crate::snapshot::{Ended, Route};

/// An attempt that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed<'a> {
    pub(super) failure: ConnectFailure,
    pub(super) after: Duration,
    /// For the operator.
    pub(super) why: &'a str,
}

/// The node being tried or in use.
#[derive(Debug)]
struct InUse {
    stats: Assigned,
    health: Option<Arc<Cell>>,
    leash: Option<Arc<Leash>>,
}

/// Times of a session. Sessions are many and most of them idle, so each takes four bytes.
#[derive(Clone, Copy, Debug)]
struct Laps {
    /// From the accept to the last attempt, in [`TICK`]s.
    attempted: u32,
    /// From there until it was reached, in microseconds; [`NEVER`] before.
    connected: u32,
    /// From there to the node's first byte, in [`TICK`]s; [`NEVER`] before.
    first_byte: u32,
}

/// Twelve hours fit.
const TICK: Duration = Duration::from_micros(10);
const MICRO: Duration = Duration::from_micros(1);
const NEVER: u32 = u32::MAX;

impl Default for Laps {
    fn default() -> Self {
        Self { attempted: 0, connected: NEVER, first_byte: NEVER }
    }
}

/// A time in units, the longest there is where it does not fit.
fn lap(time: Duration, unit: Duration) -> u32 {
    u32::try_from(time.as_micros() / unit.as_micros()).unwrap_or(NEVER).min(NEVER - 1)
}

fn time(lap: u32, unit: Duration) -> Option<Duration> {
    (lap != NEVER).then(|| unit * lap)
}

/// What few sessions have: attempts that failed, connections that were asked for what the kernel knows, a
/// line while it lives.
#[derive(Debug, Default)]
struct More {
    failed: Vec<Attempt>,
    measured: Option<Box<Measured>>,
    lasting: Option<Rc<Lasting>>,
}

/// One session from its first to its last moment.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) inbound: Inbound,
    pub(super) listen: Arc<Listen>,
    pub(super) upstream: Option<Arc<str>>,
    pub(super) attempts: u32,
    /// What plugins left with it.
    pub(super) kept: Option<Box<Kept>>,
    pub(super) worker: Rc<Worker>,
    door: ListenGuard,
    started: Instant,
    route: Option<(Arc<Route>, ActiveGuard)>,
    /// The node being tried or in use.
    node: Option<InUse>,
    /// Label of the node last tried.
    tried: Option<Arc<str>>,
    traffic: Traffic,
    laps: Laps,
    /// What few sessions have.
    more: Option<Box<More>>,
    /// What is to be told of it, once that is decided.
    told: Option<Told>,
    /// Made no association: its outcome is one of those whose rate is bounded.
    bounded: bool,
    /// Its TLS is left alone.
    passed_through: bool,
    ended: bool,
}

impl Record {
    /// A session that begins now.
    pub(super) fn new(worker: &Rc<Worker>, inbound: Inbound, door: &Door) -> Self {
        // Not by a guard, which would hold another pointer to what the worker has; `drop` counts it out.
        worker.alive.count_in();
        Self {
            inbound,
            listen: door.settings.load_full(),
            door: door.stats.enter(),
            upstream: None,
            attempts: 0,
            kept: None,
            worker: worker.clone(),
            started: Instant::now(),
            route: None,
            node: None,
            tried: None,
            traffic: Traffic::default(),
            laps: Laps::default(),
            more: None,
            told: None,
            bounded: false,
            passed_through: false,
            ended: false,
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

    /// The pool it would go to now, which may be newer than the one it was given.
    pub(super) fn pool_now(&self) -> Option<Arc<Pool>> {
        let (route, _) = self.route.as_ref()?;
        match self.kept.as_ref().and_then(|kept| kept.choice.as_ref()) {
            None => self.worker.pool_of(&route.id),
            Some(choice) => self.worker.chosen(choice),
        }
    }

    /// Its route, or why it goes nowhere.
    pub(super) fn route(&mut self) -> Result<Arc<Route>, Refusal> {
        self.worker.clone().route(self)
    }

    /// The pool it goes to, or why it goes nowhere.
    pub(super) fn pool(&mut self, route: &Route) -> Result<Arc<Pool>, Refusal> {
        let kept = self.kept.take();
        let choice = kept.as_ref().and_then(|kept| kept.choice.as_ref());
        let pool = self.worker.clone().pool(self, route, choice);
        self.kept = kept;
        pool
    }

    /// Notes its route and counts it in there.
    pub(super) fn enter(&mut self, route: &Arc<Route>) {
        self.route = Some((route.clone(), route.stats.enter()));
    }

    /// Notes that a node is tried and counts the session in there.
    #[inline]
    pub(super) fn attempt(&mut self, picked: Picked) {
        self.attempts += 1;
        let Picked { node, assigned } = picked;
        self.node = Some(InUse { stats: assigned, health: node.health, leash: node.leash });
        self.tried = Some(node.label);
        self.laps = Laps::default();
    }

    /// Label of the node last tried; empty where none was.
    pub(super) fn tried(&self) -> &str {
        self.tried.as_deref().unwrap_or_default()
    }

    /// Notes that the node being tried was not reached after so long; `again`: another attempt follows.
    pub(super) fn attempt_failed(&mut self, pool: &Pool, failed: Failed<'_>, again: bool) {
        let Some(node) = self.node.take() else { return };
        let failure = failed.failure;
        self.laps.connected = NEVER;
        if let Some(label) = self.tried.clone() {
            let attempt = Attempt { node: label, failure, took: failed.after };
            self.more.get_or_insert_default().failed.push(attempt);
        }
        node.stats.ended(End::ConnectFailed);
        node.stats.failed(failure);
        if pool.measures_connects() {
            // A quick refusal is not a quick node.
            node.stats.ewma.record(failed.after.max(Duration::from_secs(1)), Instant::now().into_std());
        }
        if let Some(health) = &node.health {
            blame(pool, health, (failure, again), &self.told(failed.why));
        }
    }

    /// What was found, with the node: a check may probe another port of it.
    fn told(&self, why: &str) -> String {
        format!("a session found {}: {why}", self.tried())
    }

    /// Notes that the node in use refuses what it is sent, and that no other one will be tried.
    pub(super) fn refused(&mut self, pool: &Pool, failed: Failed<'_>) {
        let Some(node) = &self.node else { return };
        node.stats.failed(failed.failure);
        if let Some(health) = &node.health {
            blame(pool, health, (failed.failure, false), &self.told(failed.why));
        }
    }

    /// Reports whether it has to end because its node went down or left; not told twice.
    pub(super) fn is_pulled(&self) -> bool {
        self.node.as_ref().and_then(|node| node.leash.as_ref()).is_some_and(|leash| leash.is_pulled())
    }

    /// The leash of the node in use, where its sessions may have to end.
    pub(super) fn leash(&self) -> Option<Arc<Leash>> {
        self.node.as_ref()?.leash.clone()
    }

    /// Notes that the node was reached, by an attempt that began then.
    pub(super) fn connected(&mut self, began: Instant) {
        self.laps.attempted = lap(began.saturating_duration_since(self.started), TICK);
        self.laps.connected = lap(began.elapsed(), MICRO);
    }

    /// Counts a connect time on route and node. Not for UDP, where nothing is waited for.
    #[inline]
    pub(super) fn count_connect(&self, pool: &Pool) {
        let Some(took) = time(self.laps.connected, MICRO) else { return };
        if let Some((route, _)) = &self.route {
            route.stats.connect.record(took);
        }
        if let Some(node) = &self.node {
            node.stats.connect.record(took);
            if pool.measures_connects() {
                node.stats.ewma.record(took, Instant::now().into_std());
            }
        }
    }

    /// Counts bytes while the session runs.
    #[inline]
    pub(super) fn moved(&mut self, moved: Traffic, at: Instant) {
        self.traffic.received += moved.received;
        self.traffic.sent += moved.sent;
        if moved.sent > 0 && self.laps.first_byte == NEVER {
            let since = at.saturating_duration_since(self.started);
            self.laps.first_byte = lap(since, TICK).saturating_sub(self.laps.attempted);
        }
        if let Some(lasting) = self.more.as_ref().and_then(|more| more.lasting.as_ref()) {
            lasting.traffic.set(self.traffic);
        }
        if moved.received > 0 {
            self.door.add_received(moved.received);
            self.door.add_upstream_sent(moved.received);
        }
        if moved.sent > 0 {
            self.door.add_sent(moved.sent);
            self.door.add_upstream_received(moved.sent);
        }
        let of_route = self.route.as_ref().map(|(_, stats)| &**stats);
        let stats = [of_route, self.node.as_ref().map(|node| &*node.stats)];
        for stats in stats.into_iter().flatten() {
            if moved.received > 0 {
                stats.add_received(moved.received);
            }
            if moved.sent > 0 {
                stats.add_sent(moved.sent);
            }
        }
    }

    /// Counts bytes of datagrams to the node.
    pub(super) fn received(&mut self, bytes: u64) {
        self.moved(Traffic { received: bytes, sent: 0 }, self.started);
    }

    /// Counts bytes of datagrams to the client. The clock is asked for the first alone.
    pub(super) fn sent(&mut self, bytes: u64) {
        let at = if self.laps.first_byte == NEVER { Instant::now() } else { self.started };
        self.moved(Traffic { received: 0, sent: bytes }, at);
    }

    /// The session ended so.
    pub(super) fn finish(mut self, end: End, detail: Option<String>) {
        self.close(end, detail);
    }

    /// Counts bytes that its node got beside those of the client, such as a PROXY header: they belong to
    /// the listen and to no route, as in APISIX.
    pub(super) fn told_node(&self, bytes: usize) {
        self.door.add_upstream_sent(bytes as u64);
    }

    /// The datagram of so many bytes that would have begun the session was refused: its outcome may go
    /// unlogged.
    pub(super) fn refuse(mut self, end: End, detail: String, bytes: usize) {
        self.door.add_received(bytes as u64);
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
        if let Some(node) = &self.node {
            node.stats.ended(end);
        }
        let serial = self.more.as_mut().and_then(|more| more.lasting.take()).map(|lasting| {
            self.worker.output.forget(&lasting);
            lasting.serial()
        });
        let told = self.tells(end);
        let log = told.logged || self.worker.shared.every_outcome;
        // Without a route it is counted apart.
        let reported = self.route.as_ref().is_none_or(|(route, _)| !route.plugins.is_silent());
        // Most sessions end normally on routes without APISIX's series: nobody would read of them.
        if !log && !told.written && !reported {
            return;
        }
        let serial = serial.unwrap_or_else(|| self.worker.output.next_serial());
        let (failed, measured) =
            self.more.take().map(|more| (more.failed, more.measured)).unwrap_or_default();
        let mut ended = self.ended((end, detail), duration, serial, failed);
        ended.outcome.course.measured = measured;
        ended.outcome.apisix_label = ended.apisix_label(&self.worker.shared.host);
        self.worker.shared.totals.record(&ended.outcome, &mut self.worker.counted.borrow_mut());
        let log = log && (!self.bounded || self.worker.may_log_refused());
        if told.written {
            self.worker.output.write(&ended, &self.worker.shared);
        }
        let reports = ended.route.as_ref().is_some_and(|route| route.plugins.sends_lines());
        if log || reports {
            self.worker.tell(Arc::new(ended), log, reports);
        }
    }

    /// Decides what is to be told of it.
    fn tells(&mut self, end: End) -> Told {
        *self.told.get_or_insert_with(|| self.worker.output.tells(end))
    }

    /// Asks the kernel for what it knows of the connections, where a line will show it. Before they are
    /// closed.
    pub(super) fn measure(&mut self, end: End, client: &TcpStream, upstream: Option<&TcpStream>) {
        let told = self.tells(end);
        let sends_lines = || self.route.as_ref().is_some_and(|(route, _)| route.plugins.sends_lines());
        if !told.logged && !told.measured && !sends_lines() {
            return;
        }
        let measured = Measured { client: path(client), upstream: upstream.and_then(path) };
        self.more.get_or_insert_default().measured = Some(Box::new(measured));
    }

    /// It has its node and will be told of while it lives, where that is asked for.
    pub(super) fn lives(&mut self) {
        if !self.worker.output.watches() {
            return;
        }
        let serial = match self.more.as_mut().and_then(|more| more.lasting.take()) {
            None => self.worker.output.next_serial(),
            Some(lasting) => {
                self.worker.output.forget(&lasting);
                lasting.serial()
            }
        };
        // As it would be told of if it ended now.
        let failed = self.more.as_ref().map(|more| more.failed.clone()).unwrap_or_default();
        let ended = self.ended((End::Drained, None), Duration::ZERO, serial, failed);
        let lasting = self.worker.output.watch(ended, self.started);
        self.more.get_or_insert_default().lasting = lasting;
    }

    /// What became of it. In one piece: each part that is moved into place is copied.
    fn ended(
        &self,
        (end, detail): (End, Option<String>),
        duration: Duration,
        serial: u64,
        failed: Vec<Attempt>,
    ) -> Ended {
        let route = self.route.as_ref().map(|(route, _)| route);
        Ended {
            outcome: Outcome {
                inbound: self.inbound.clone(),
                listen: self.listen.written.clone(),
                listen_addr: self.door.addr.clone(),
                apisix_label: None,
                denied: self.kept.as_ref().and_then(|kept| kept.denied),
                route: route.map(|route| route.id.clone()),
                upstream: self.upstream.clone(),
                node: self.tried.clone(),
                end,
                detail: detail.map(String::into_boxed_str),
                traffic: self.traffic,
                attempts: self.attempts,
                connect: time(self.laps.connected, MICRO),
                duration,
                course: Course {
                    serial,
                    ended: SystemTime::now(),
                    failed: failed.into(),
                    attempted: TICK * self.laps.attempted,
                    first_byte: time(self.laps.first_byte, TICK),
                    measured: None,
                },
            },
            route: route.cloned(),
        }
    }
}

/// What the kernel knows of a connection.
fn path(stream: &TcpStream) -> Option<Path> {
    let known = info(stream.as_fd()).ok()?;
    Some(Path { rtt: known.rtt, retransmits: known.retransmits })
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.close(End::Drained, None);
        }
        self.worker.alive.count_out();
    }
}
