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
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::balance::{Checked, Pool, Target};
use crate::config::Extensions;
use crate::health::{Cell, Finding, Report};
use crate::live::{Budget, Live};
use crate::net::checkup;
use crate::resource::{CheckKind, Checks};
use crate::snapshot::{Published, Snapshot};

use self::schedule::{LastProbe, Schedule};
pub use crate::net::trust::Trust;

/// Changes that come in such a time are looked at together.
const TOGETHER: Duration = Duration::from_millis(100);
/// A target looks so often whether a session has found out something, which may bring its probe nearer.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How soon a probe asks again for a descriptor where there is none left.
const FULL: Duration = Duration::from_millis(100);
/// How long what is known of a target is kept that is gone, as in APISIX (`resty/healthcheck.lua:142`).
const REMEMBERED: Duration = Duration::from_secs(10);

/// A result with what was found, for the operator; `None`: it says nothing.
type Probed = Option<(Report, String)>;

/// What probes are made with.
#[derive(Debug)]
pub struct Means {
    /// The snapshots.
    pub published: Published,
    /// What they are made with.
    pub live: Arc<Live>,
    /// Whom probes by https believe.
    pub trust: Trust,
    /// The descriptors that sessions and probes may have together.
    pub descriptors: Arc<Budget>,
}

/// Probes what the published snapshots ask for, until `stop`. `changed` tells of new ones.
pub async fn run(means: Means, mut changed: watch::Receiver<()>, stop: CancellationToken) {
    let shared = Arc::new(Shared { trust: means.trust, descriptors: means.descriptors });
    let mut checkers = Checkers { shared, all: HashMap::new(), gone: HashMap::new(), tasks: JoinSet::new() };
    let mut leashes = leashes::Leashes::new(means.live);
    loop {
        changed.borrow_and_update();
        let snapshot = means.published.load_full();
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

/// What all probes share.
struct Shared {
    trust: Trust,
    descriptors: Arc<Budget>,
}

/// The checker of each pool, by id.
struct Checkers {
    shared: Arc<Shared>,
    all: HashMap<Arc<str>, Checker>,
    /// Targets that are gone, until nothing known of them matters: one that comes back is in the state it
    /// was in, and not probed sooner than if it had stayed.
    gone: HashMap<(Arc<str>, SocketAddr), Gone>,
    tasks: JoinSet<()>,
}

/// A target that is probed no longer.
struct Gone {
    since: Instant,
    last: Arc<LastProbe>,
    /// Held on to, so that it is found again.
    _cell: Arc<Cell>,
}

/// The probes of one pool.
struct Checker {
    plan: Arc<Plan>,
    targets: HashMap<SocketAddr, Running>,
}

/// The probes of one target.
struct Running {
    target: Target,
    /// A probe that is under way is judged before its task ends: edits may come faster than answers.
    _ends: DropGuard,
    last: Arc<LastProbe>,
}

/// What the probes of a pool share.
struct Plan {
    /// Its newest version.
    pool: Mutex<Arc<Pool>>,
    checks: Arc<Checks>,
    extensions: Extensions,
    /// Places for probes under way.
    lanes: Semaphore,
    shared: Arc<Shared>,
}

impl Plan {
    fn new(pool: &Arc<Pool>, checked: &Checked, shared: &Arc<Shared>) -> Self {
        Self {
            pool: Mutex::new(pool.clone()),
            checks: checked.checks.clone(),
            extensions: checked.extensions.clone(),
            lanes: Semaphore::new(checked.checks.active.concurrency.min(Semaphore::MAX_PERMITS)),
            shared: shared.clone(),
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
        self.gone.retain(|_, gone| gone.last.is_recent(now) || now.duration_since(gone.since) < REMEMBERED);
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
        let plan = kept.unwrap_or_else(|| Arc::new(Plan::new(pool, checked, &self.shared)));
        *plan.pool.lock().unwrap_or_else(PoisonError::into_inner) = pool.clone();
        let mut targets = HashMap::new();
        for target in &*checked.targets {
            let running = match known.remove(&target.addr) {
                Some(running) if goes_on && running.target.is_same(target) => running,
                before => {
                    let gone = || self.gone.remove(&(pool.id.clone(), target.addr)).map(|gone| gone.last);
                    let last = before.map(|before| before.last.clone()).or_else(gone).unwrap_or_default();
                    let ended = CancellationToken::new();
                    self.tasks.spawn(probe(plan.clone(), target.clone(), last.clone(), ended.clone()));
                    Running { target: target.clone(), _ends: ended.drop_guard(), last }
                }
            };
            targets.insert(target.addr, running);
        }
        self.forget(&pool.id, &known);
        Checker { plan, targets }
    }

    /// Notes what is known of targets that are probed no longer.
    fn forget(&mut self, pool: &Arc<str>, targets: &HashMap<SocketAddr, Running>) {
        let since = Instant::now();
        let gone = |(addr, running): (&SocketAddr, &Running)| {
            let gone = Gone { since, last: running.last.clone(), _cell: running.target.cell.clone() };
            ((pool.clone(), *addr), gone)
        };
        self.gone.extend(targets.iter().map(gone));
    }
}

/// Probes one target again and again.
async fn probe(plan: Arc<Plan>, target: Target, last: Arc<LastProbe>, ended: CancellationToken) {
    let active = &plan.checks.active;
    let mut schedule = Schedule::new(last, rand::random());
    // Asked wherever nothing is under way.
    while !ended.is_cancelled() {
        let pause = async |time| {
            tokio::select! {
                () = ended.cancelled() => {}
                () = sleep(time) => {}
            }
        };
        let now = Instant::now();
        match active.interval(target.cell.is_usable()) {
            Some(interval) if schedule.is_due(interval, now) => {
                let lane = tokio::select! {
                    () = ended.cancelled() => return,
                    lane = plan.lanes.acquire() => lane,
                };
                // Sessions and other probes have them all: they go first.
                let (Ok(_lane), Some(_descriptor)) = (lane, plan.shared.descriptors.take(1)) else {
                    pause(FULL).await;
                    continue;
                };
                schedule.begins(Instant::now(), interval, rand::random());
                if let Some((report, why)) = once(&plan, &target).await {
                    let result = (report, Finding::Active);
                    checkup::report(&plan.pool(), &target, result, &active.limits, &why);
                }
            }
            Some(interval) => pause(schedule.left(interval, now).min(LOOK_AGAIN)).await,
            None => {
                schedule.without_probes(&plan.pool(), &target, now);
                pause(LOOK_AGAIN).await;
            }
        }
    }
}

/// One probe.
async fn once(plan: &Plan, target: &Target) -> Probed {
    match plan.checks.active.kind {
        CheckKind::Tcp => tcp::probe(plan, target).await,
        CheckKind::Http | CheckKind::Https => http::probe(plan, target).await,
    }
}
