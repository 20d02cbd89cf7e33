//! What the sessions of one thread share, and how they find their pool.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::balance::Pool;
use crate::certs::Served;
use crate::live::recent::Recent;
use crate::plugin::Choice;
use crate::proxy::Shared;
use crate::proxy::output::Output;
use crate::proxy::pipes::Pipes;
use crate::proxy::rate::Rate;
use crate::proxy::record::Record;
use crate::proxy::steer::Loads;
use crate::proxy::udp::Associations;
use crate::proxy::workers::Command;
use crate::session::{End, Inbound, Transport};
use crate::snapshot::{Ended, Route, Snapshot};

/// Outcomes of datagrams that got no association, logged by each worker in a second. Anybody can
/// send datagrams with any source address: they must not become a flood of log lines.
const REFUSED_DATAGRAMS_LOGGED: u32 = 50;

/// One thread's part of the data path.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) shared: Shared,
    /// Sessions and open listens of this thread.
    pub(super) alive: Rc<Alive>,
    pub(super) udp: Associations,
    pub(super) pipes: Pipes,
    /// What it writes of its sessions.
    pub(super) output: Output,
    /// Which of the workers it is, and how to reach all of them.
    pub(super) place: Place,
    snapshot: RefCell<SnapshotCache>,
    /// Counters of APISIX's series that were used last.
    pub(super) counted: RefCell<Recent>,
    refused: RefCell<Rate>,
    complaints: RefCell<Rate>,
}

/// A worker among the others.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) number: usize,
    pub(super) loads: Loads,
    pub(super) commands: Rc<[UnboundedSender<Command>]>,
}

/// Why a session got no further, with what the log shall say.
pub(super) type Refusal = (End, String);

/// Why a session got no node after so many attempts; `failures` says what became of those.
pub(super) fn nobody_left(pool: &Pool, attempts: u32, mut failures: String) -> Refusal {
    if attempts == 0 {
        return (End::NoNode, format!("upstream {}: {}", pool.id, pool.why_empty()));
    }
    failures.push_str("; every node was tried");
    (End::ConnectFailed, failures)
}

impl Worker {
    /// `associations` is this worker's share of the process's.
    pub(super) fn new(shared: Shared, place: Place, associations: usize) -> Self {
        Self {
            snapshot: RefCell::new(SnapshotCache(Cache::new(shared.published.clone()))),
            alive: Rc::default(),
            udp: Associations::new(associations),
            pipes: Pipes::new(shared.pipes.clone()),
            output: Output::new(&shared.logs, place.number, place.commands.len()),
            place,
            counted: RefCell::default(),
            refused: RefCell::new(Rate::new(REFUSED_DATAGRAMS_LOGGED, Duration::from_secs(1))),
            complaints: RefCell::new(Rate::new(1, Duration::from_secs(5))),
            shared,
        }
    }

    /// The route of a session, or why it goes nowhere. Waits for nothing: servers that speak first are
    /// served. The order is APISIX's (`apisix/init.lua:1383-1514`): route, upstream, plugins.
    pub(super) fn route(&self, record: &mut Record) -> Result<Arc<Route>, Refusal> {
        let mut cache = self.snapshot.borrow_mut();
        let snapshot = cache.0.load();
        let Some(route) = snapshot.find(&record.inbound) else {
            let what = if record.inbound.sni.is_some() { "addresses and server name" } else { "addresses" };
            return Err((End::NoRoute, format!("no stream_route matches its {what}")));
        };
        record.enter(route);
        Ok(route.clone())
    }

    /// The pool of a session: its route's, or the one that a plugin chose.
    pub(super) fn pool(
        &self,
        record: &mut Record,
        route: &Route,
        choice: Option<&Choice>,
    ) -> Result<Arc<Pool>, Refusal> {
        let mut cache = self.snapshot.borrow_mut();
        let snapshot = cache.0.load();
        let pool = match choice {
            None => snapshot.pool(&route.target)?,
            Some(choice) => snapshot.chosen(choice)?,
        };
        record.upstream = Some(pool.id.clone());
        // Datagrams carry no TLS, and what is passed through has its own.
        let speaks_tls = record.inbound.transport == Transport::Tcp && !record.is_passed_through();
        if let Some(why) = pool.settings.unfit.as_ref().filter(|_| speaks_tls) {
            return Err((End::UpstreamTls, format!("upstream {}: {why}", pool.id)));
        }
        Ok(pool.clone())
    }

    /// The certificate for a server name.
    pub(super) fn certificate(&self, name: &str) -> Option<Arc<Served>> {
        self.snapshot.borrow_mut().0.load().certificates().find(name).cloned()
    }

    /// Reports whether the route of a session wants its TLS left alone.
    pub(super) fn passes_through(&self, inbound: &Inbound) -> bool {
        self.snapshot.borrow_mut().0.load().find(inbound).is_some_and(|route| route.tls_passthrough)
    }

    /// The pool that a route has in the present snapshot.
    pub(super) fn pool_of(&self, route: &str) -> Option<Arc<Pool>> {
        let mut cache = self.snapshot.borrow_mut();
        let snapshot = cache.0.load();
        snapshot.pool(&snapshot.route(route)?.target).ok().cloned()
    }

    /// The pool that a plugin chose, in the present snapshot.
    pub(super) fn chosen(&self, choice: &Choice) -> Option<Arc<Pool>> {
        self.snapshot.borrow_mut().0.load().chosen(choice).ok().cloned()
    }

    /// Once a second, as long as the worker lives: gives back what nobody uses.
    ///
    /// It also makes timers cheap: the runtime wakes itself, by two system calls, for a timer that is
    /// due before all others. With a next second to wake for, no timer of a session is.
    pub(super) async fn tidy(self: Rc<Self>) {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            second.tick().await;
            self.pipes.sweep();
            self.udp.sweep();
            self.output.flush();
            self.output.tell_of_lasting(&self.shared);
            // An idle worker would keep the snapshot of its last session.
            self.snapshot.borrow_mut().0.load();
        }
    }

    /// Hands on what became of a session: to the log, and to what reports of it elsewhere.
    pub(super) fn tell(&self, ended: Arc<Ended>, log: bool, reports: bool) {
        if reports && self.shared.reports.try_send(ended.clone()).is_err() {
            self.shared.node.reports_dropped.add_one();
        }
        if log && self.shared.outcomes.try_send(ended).is_err() {
            self.shared.node.outcomes_dropped.add_one();
        }
    }

    /// Reports whether one more refused datagram may be logged; counts it where not.
    pub(super) fn may_log_refused(&self) -> bool {
        let may = self.refused.borrow_mut().allows(Instant::now());
        if !may {
            self.shared.node.outcomes_dropped.add_one();
        }
        may
    }

    /// Reports whether a trouble of the whole process may be logged: seldom, it comes in floods.
    pub(super) fn may_complain(&self) -> bool {
        self.complaints.borrow_mut().allows(Instant::now())
    }
}

/// The last snapshot this thread has seen, compared with the published pointer at each load.
struct SnapshotCache(Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>);

impl fmt::Debug for SnapshotCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SnapshotCache")
    }
}

/// Counts what has to end before the thread may.
#[derive(Debug, Default)]
pub(super) struct Alive {
    count: Cell<usize>,
    none: Notify,
}

/// One that is alive.
#[derive(Debug)]
pub(super) struct Living(Rc<Alive>);

impl Alive {
    /// Counts one in; the guard counts it out.
    pub(super) fn enter(self: &Rc<Self>) -> Living {
        self.count_in();
        Living(self.clone())
    }

    /// Counts one in that will count itself out.
    pub(super) fn count_in(&self) {
        self.count.set(self.count.get() + 1);
    }

    /// Counts one out.
    pub(super) fn count_out(&self) {
        let left = self.count.get() - 1;
        self.count.set(left);
        if left == 0 {
            self.none.notify_one();
        }
    }

    /// Waits until none is left.
    pub(super) async fn none(&self) {
        while self.count.get() > 0 {
            self.none.notified().await;
        }
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.0.count_out();
    }
}
