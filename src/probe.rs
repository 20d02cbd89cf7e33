//! Active health checks of the present snapshot, and what follows from a node that is down.
//!
//! Each pool with checks that a stream_route reaches has one checker, from the moment the route is there
//! (APISIX begins with the first session). Each of its targets is probed by a task of its own: not before
//! its interval is over since the probe before, the first somewhere in the first interval, so that probes
//! of thousands spread; at most `concurrency` of an upstream at once. What is known of a target stays
//! over every edit, and so does the time of its last probe.

mod http;
mod leashes;
mod schedule;
mod tcp;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::balance::{Checked, Pool, Target};
use crate::config::Extensions;
use crate::health::{Finding, Report};
use crate::live::Live;
use crate::net::checkup;
use crate::resource::{CheckKind, Checks};
use crate::snapshot::{Published, Snapshot};

pub use self::http::Trust;
use self::schedule::{LastProbe, Schedule};

/// Changes that come in such a time are looked at together.
const TOGETHER: Duration = Duration::from_millis(100);
/// A target looks so often whether a session has found out something, which may bring its probe nearer.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A result with what was found, for the operator; `None`: it says nothing.
type Probed = Option<(Report, String)>;

/// Probes what the published snapshots ask for, until `stop`. `changed` tells of new ones, which are made
/// with `live`.
pub async fn run(
    published: Published,
    live: Arc<Live>,
    trust: Trust,
    mut changed: watch::Receiver<()>,
    stop: CancellationToken,
) {
    let mut checkers = Checkers { trust: Arc::new(trust), ..Checkers::default() };
    let mut leashes = leashes::Leashes::new(live);
    loop {
        changed.borrow_and_update();
        let snapshot = published.load_full();
        checkers.follow(&snapshot);
        leashes.follow(&snapshot);
        // Nobody frees an old snapshot in the middle of traffic but who made it.
        drop(snapshot);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changed.changed() => if changed.is_err() { return },
            never = leashes.pull() => match never {},
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(TOGETHER) => {}
        }
    }
}

/// The checker of each pool, by id.
#[derive(Default)]
struct Checkers {
    trust: Arc<Trust>,
    all: HashMap<Arc<str>, Checker>,
    /// When targets that are gone were probed last, until that no longer matters: one that comes back is
    /// not probed sooner than if it had stayed.
    gone: HashMap<(Arc<str>, SocketAddr), Arc<LastProbe>>,
    tasks: JoinSet<()>,
}

/// The probes of one pool.
struct Checker {
    plan: Arc<Plan>,
    targets: HashMap<SocketAddr, Running>,
}

/// The probes of one target.
struct Running {
    target: Target,
    task: AbortHandle,
    last: Arc<LastProbe>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the probes of a pool share.
struct Plan {
    /// Its newest version.
    pool: Mutex<Arc<Pool>>,
    checks: Arc<Checks>,
    extensions: Extensions,
    /// Places for probes under way.
    lanes: Semaphore,
    trust: Arc<Trust>,
}

impl Plan {
    fn new(pool: &Arc<Pool>, checked: &Checked, trust: &Arc<Trust>) -> Self {
        Self {
            pool: Mutex::new(pool.clone()),
            checks: checked.checks.clone(),
            extensions: checked.extensions.clone(),
            lanes: Semaphore::new(checked.checks.active.concurrency.min(Semaphore::MAX_PERMITS)),
            trust: trust.clone(),
        }
    }

    fn pool(&self) -> Arc<Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reports whether probes of this version of the pool are made just so.
    fn fits(&self, checked: &Checked) -> bool {
        self.checks == checked.checks && self.extensions == checked.extensions
    }
}

impl Checkers {
    /// Brings the checkers in line with a snapshot.
    fn follow(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.all);
        for pool in snapshot.checked_pools() {
            let known = before.remove(&pool.id);
            let checker = match (known, pool.checked()) {
                (Some(known), _) if Arc::ptr_eq(&known.plan.pool(), pool) => known,
                (known, Some(checked)) => self.renew(pool, checked, known),
                (_, None) => continue,
            };
            self.all.insert(pool.id.clone(), checker);
        }
        // What is left has no checks any more, or no route.
        for (id, checker) in before {
            self.forget(&id, &checker.targets);
        }
        let now = Instant::now();
        self.gone.retain(|_, last| last.is_recent(now));
        // A task that was ended keeps its memory until it is joined.
        while self.tasks.try_join_next().is_some() {}
    }

    /// A checker of this version of a pool, going on where `known` was: a probe that is under way and
    /// would be made just so goes on.
    fn renew(&mut self, pool: &Arc<Pool>, checked: &Checked, known: Option<Checker>) -> Checker {
        let (plan, mut known) = match known {
            Some(Checker { plan, targets }) => (Some(plan), targets),
            None => (None, HashMap::new()),
        };
        let kept = plan.filter(|plan| plan.fits(checked));
        let goes_on = kept.is_some();
        let plan = kept.unwrap_or_else(|| Arc::new(Plan::new(pool, checked, &self.trust)));
        *plan.pool.lock().unwrap_or_else(PoisonError::into_inner) = pool.clone();
        let mut targets = HashMap::new();
        for target in &*checked.targets {
            let running = match known.remove(&target.addr) {
                Some(running) if goes_on && running.target.is_same(target) => running,
                before => {
                    let gone = || self.gone.remove(&(pool.id.clone(), target.addr));
                    let last = before.map(|before| before.last.clone()).or_else(gone).unwrap_or_default();
                    let task = self.tasks.spawn(probe(plan.clone(), target.clone(), last.clone()));
                    Running { target: target.clone(), task, last }
                }
            };
            targets.insert(target.addr, running);
        }
        self.forget(&pool.id, &known);
        Checker { plan, targets }
    }

    /// Notes when targets were probed that are probed no longer.
    fn forget(&mut self, pool: &Arc<str>, targets: &HashMap<SocketAddr, Running>) {
        let last = |(addr, running): (&SocketAddr, &Running)| ((pool.clone(), *addr), running.last.clone());
        self.gone.extend(targets.iter().map(last));
    }
}

/// Probes one target again and again.
async fn probe(plan: Arc<Plan>, target: Target, last: Arc<LastProbe>) {
    let active = &plan.checks.active;
    let mut schedule = Schedule::new(last, rand::random());
    loop {
        let now = Instant::now();
        match active.interval(target.cell.is_usable()) {
            Some(interval) if schedule.is_due(interval, now) => {
                let Ok(_lane) = plan.lanes.acquire().await else { return };
                schedule.begins(Instant::now(), interval, rand::random());
                if let Some((report, why)) = once(&plan, &target).await {
                    let result = (report, Finding::Active);
                    checkup::report(&plan.pool(), &target, result, &active.limits, &why);
                }
            }
            Some(interval) => sleep(schedule.left(interval, now).min(LOOK_AGAIN)).await,
            None => {
                schedule.without_probes(&plan.pool(), &target, now);
                sleep(LOOK_AGAIN).await;
            }
        }
    }
}

/// One probe.
async fn once(plan: &Plan, target: &Target) -> Probed {
    match plan.checks.active.kind {
        CheckKind::Tcp => Some(tcp::probe(plan, target).await),
        CheckKind::Http | CheckKind::Https => http::probe(plan, target).await,
    }
}
